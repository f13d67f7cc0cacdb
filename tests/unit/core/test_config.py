from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.config import MAX_CONFIG_BYTES, load_config, parse_config
from agent.core.errors import OperatorError

COMPLETE = """
[node]
site = "hospital-a"
state_directory = "state"
environment = "demo"
[superlink]
address = "127.0.0.1:9092"
root_certificates = "root.pem"
[key]
uri = "software:key.pem"
[data]
catalog = "/etc/catalog.toml"
[studies]
directory = "studies"
"""


def _change(old: str, new: str) -> bytes:
    assert old in COMPLETE
    return COMPLETE.replace(old, new).encode()


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(COMPLETE)
    config = load_config(tmp_path / "agent.toml")
    assert config.node.state_directory == tmp_path / "state"
    assert config.pinned is not None
    assert config.pinned.superlink.root_certificates == tmp_path / "root.pem"
    assert config.studies_directory == tmp_path / "studies"
    assert config.data.catalog == Path("/etc/catalog.toml")
    assert config.federation.allow_plain is False


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("software:key.pem", "software:{here}/key.pem"),
        ("software:/keys/key.pem", "software:/keys/key.pem"),
        ("software:", "software:"),
        ("fido2:key.json?reader=a/b", "fido2:{here}/key.json?reader=a/b"),
        ("piv:reader?slot=9e", "piv:reader?slot=9e"),
        ("tpm:device:/dev/tpmrm0?key=81020002", "tpm:device:/dev/tpmrm0?key=81020002"),
    ],
)
def test_a_keys_file_starts_where_other_paths_do(uri: str, resolved: str, tmp_path: Path) -> None:
    config = parse_config(_change("software:key.pem", uri), directory=tmp_path)
    assert config.key.uri == resolved.format(here=tmp_path)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (_change('site = "hospital-a"', 'site = "Hospital A"'), "node.site"),
        (_change('site = "hospital-a"', 'site = "hospital-a"\nsurprise = 1'), "node.surprise"),
        (_change("127.0.0.1:9092", "https://127.0.0.1"), "superlink.address"),
        (_change('uri = "software:key.pem"', ""), "key.uri"),
        (_change("[data]", "[federation]\nidle_poll_s = -1\n[data]"), "federation.idle_poll_s"),
        (_change("[data]", "[federation]\nidle_poll_s = nan\n[data]"), "federation.idle_poll_s"),
        (_change('uri = "software:key.pem"', 'uri = "software:key.pem"\nsessions_in = "piv:"'), "key.sessions_in"),
        (_change("[data]", "[vault]\napprover = 'a'\napprovals = 'b'\n[data]"), "vault needs a TPM"),
        (_change('site = "hospital-a"', ""), "go together"),
        (_change('[studies]\ndirectory = "studies"', ""), "go together"),
        (_change("[superlink]", "[other]"), "other"),
        (_change("[data]", "[enrolment]\nroot_digest = 'short'\n[data]"), "enrolment.root_digest"),
        (b"[node", "table declaration"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_fault_is_named_with_its_place(data: bytes, place: str) -> None:
    with pytest.raises(OperatorError, match=place) as caught:
        parse_config(data, directory=Path())
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("[federation]\nallow_plain = true\n[roster]\nfile='r'\n", "allow_plain"),
        ("[roster]\nfile='r'\n", "software key"),
        ("", "roster.file"),
    ],
)
def test_production_never_takes_what_only_a_demonstration_may(extra: str, sentence: str) -> None:
    text = COMPLETE.replace('"demo"', '"production"') + extra
    if sentence != "software key":
        text = text.replace("software:key.pem", "tpm:device:/dev/tpmrm0")
    with pytest.raises(OperatorError, match=sentence):
        parse_config(text.encode(), directory=Path())


@pytest.mark.parametrize("key", ['uri = "tpm:"', 'uri = "fido2:key.json"\nsessions_in = "tpm:"'])
def test_a_vault_is_sealed_to_the_tpm_that_the_box_uses(key: str, tmp_path: Path) -> None:
    text = COMPLETE.replace('uri = "software:key.pem"', key) + '[vault]\napprover = "a.pem"\napprovals = "b"\n'
    config = parse_config(text.encode(), directory=tmp_path)
    assert config.key.tpm_uri == "tpm:"
    assert config.vault is not None
    assert (config.vault.approver, config.vault.approvals) == (tmp_path / "a.pem", tmp_path / "b")


def test_a_box_that_is_enrolled_needs_three_lines(tmp_path: Path) -> None:
    text = '[node]\nstate_directory = "state"\n[key]\nuri = "tpm:"\n[data]\ncatalog = "catalog.toml"\n'
    config = parse_config(text.encode(), directory=tmp_path)
    assert config.pinned is None
    assert config.studies_directory == tmp_path / "state" / "studies"
    with pytest.raises(OperatorError, match="go together"):
        parse_config(f'{text}[roster]\nfile = "roster.json"\n'.encode(), directory=tmp_path)


def test_a_missing_or_huge_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(OperatorError, match="larger"):
        load_config(tmp_path / "huge.toml")


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(OperatorError):
        parse_config(data, directory=Path())


def test_only_a_demonstration_may_leave_governance_out(tmp_path: Path) -> None:
    demo = parse_config(COMPLETE.encode(), directory=tmp_path)
    assert demo.governed_by is None
    roster = COMPLETE + '[roster]\nfile = "roster.json"\n'
    with_policy = parse_config((roster + '[governance]\npolicy = "p.toml"\n').encode(), directory=tmp_path)
    assert with_policy.governed_by is not None
    assert with_policy.governed_by.policy == tmp_path / "p.toml"
    production = roster.replace('environment = "demo"', "").replace("software:key.pem", "tpm:device:/dev/tpmrm0")
    governed = parse_config(production.encode(), directory=tmp_path)
    assert governed.governed_by is not None
    assert governed.governed_by.policy == Path("/etc/secur-e-health/policy.toml")


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("[governance]\n", "roster.file is missing"),
        ("[governance]\n[federation]\nallow_plain = true\n[roster]\nfile='r'\n", "exclude each other"),
        ("[governance]\norigins = ['http://a b']\n", "governance.origins"),
    ],
)
def test_governance_that_cannot_govern_is_refused(extra: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=sentence):
        parse_config((COMPLETE + extra).encode(), directory=tmp_path)
