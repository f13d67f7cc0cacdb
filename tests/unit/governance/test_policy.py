"""The site's policy file, and the one that the package brings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from agent.governance.duo import MODIFIERS, PERMISSIONS, PURPOSES
from agent.governance.policy import MAX_POLICY_BYTES, load_policy, parse_policy
from tests.simulators.permits import ISSUER, JKU, POLICY, played_issuer, played_policy

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "packaging/deb/policy.toml"


def uncommented(text: str) -> str:
    """The shipped file with every suggestion taken: what a steward may make of it."""
    lines = [re.sub(r"^# (?=\[|\S+ = |\"MONDO)", "", line) for line in text.splitlines()]
    return "\n".join(lines)


def test_the_shipped_policy_allows_nothing() -> None:
    policy = load_policy(SHIPPED)
    assert policy.rules.requesters == ()
    assert policy.datasets == {}
    assert policy.issuers == {}
    assert policy == parse_policy(b"", jwks={})


def test_what_the_shipped_policy_suggests_can_be_taken_as_it_stands() -> None:
    text = uncommented(SHIPPED.read_text())
    policy = parse_policy(text.encode(), jwks={Path("login.example.org.json"): played_issuer().jwks})
    own = policy.datasets["cleveland"]
    assert own.budget.hospital is not None
    assert own.limits.time_limit is not None
    limited = {name for name in type(own.limits).model_fields if getattr(own.limits, name)}
    assert limited == set(type(own.limits).model_fields)
    assert set(tomllib.loads(text)["policy"]) == set(type(policy.rules).model_fields)


def test_the_shipped_policy_names_every_term() -> None:
    text = SHIPPED.read_text()
    for terms in (PURPOSES, PERMISSIONS, MODIFIERS):
        for term in terms:
            number = int(term.removeprefix("DUO:"))
            assert any(
                int(low) <= number <= int(high or low) for low, high in re.findall(r"\b(\d+)(?: to (\d+))?", text)
            )


def test_the_package_installs_it_as_a_file_of_the_hospitals() -> None:
    script = (ROOT / "packaging/deb/build.sh").read_text()
    assert '"$here/policy.toml"' in script
    assert re.search(r"agent catalog policy >\S*DEBIAN/conffiles", script)


def test_key_files_lie_beside_the_policy(tmp_path: Path) -> None:
    issuer = played_issuer()
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "keys.json").write_bytes(issuer.jwks)
    policy = load_policy(tmp_path / "policy.toml")
    assert policy.issuers[ISSUER].jku == JKU
    assert policy.issuers[ISSUER].keys.keys[0].kid == issuer.key.kid


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("[policy", "policy cannot be used"),
        ("[policy]\nrequester = []", "policy.requester: there is no such"),
        ("[policy]\nminimum_cohort = 2", "minimum_cohort"),
        ('[policy]\nrefused_purposes = ["DUO:0000004"]', "no research purpose of DUO"),
        ('[policy]\nrefused_purposes = ["DUO:0000999"]', "no research purpose of DUO"),
        ('[policy]\nrefused_purposes = ["drugs"]', "refused_purposes"),
        ('[datasets.a]\nduo = ["DUO:0000042", "DUO:0000007"]', "one DUO permission"),
        ('[datasets.a]\nduo = ["DUO:0000021", "DUO:0000021"]', "listed twice"),
        ('[datasets.a]\nfields = "most"', "fields"),
        ("[datasets.a]\nbudget = { record = { epsilon = inf, delta = 1e-6 } }", "epsilon"),
        ("[datasets.a]\nbudget = { record = { epsilon = 1.0 } }", "delta: it is missing"),
        ("[datasets.a.limits]\ndisease = []", "disease"),
        ('[datasets.a.limits]\nprojects = [""]', "limits.projects"),
        ('[datasets.a.limits]\ninstitutions = [""]', "limits.institutions"),
        ("[datasets.A]\n", "datasets.A"),
        ("[other]\n", "other"),
    ],
)
def test_a_faulty_policy_is_refused_whole_and_the_place_is_named(spoilt: str, said: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(said)) as caught:
        parse_policy(spoilt.encode(), jwks={})
    assert caught.value.code == "policy.invalid"


def test_an_issuer_stands_once() -> None:
    issuer = played_issuer()
    section = POLICY[POLICY.index("[[policy.visa_issuers]]") : POLICY.index("[policy.disease")]
    with pytest.raises(OperatorError, match="listed twice"):
        played_policy(issuer, POLICY.replace(section, section * 2))


def test_a_missing_policy_or_key_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"policy\.toml, which cannot be read") as caught:
        load_policy(tmp_path / "policy.toml")
    assert caught.value.code == "policy.unreadable"
    (tmp_path / "policy.toml").write_text(POLICY)
    with pytest.raises(OperatorError, match=r"keys\.json, which cannot be read"):
        load_policy(tmp_path / "policy.toml")


def test_an_endless_policy_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(OperatorError, match="larger than"):
        load_policy(tmp_path / "policy.toml")
