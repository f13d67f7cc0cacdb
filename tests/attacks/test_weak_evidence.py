"""A box whose key lives in a file, in a study that wants hardware: nobody needs the coordinator to keep it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.errors import SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.secagg.messages import parse_advertise_reply
from agent.statements.roots import EvidenceClass, KeyKind
from agent.trust.roster import Roster, encode_roster, parse_roster
from agent.trust.study import parse_study, study_digest
from tests.simulators.scripted_line import Answer, Said, ScriptedLine
from tests.unit.coordinator.test_secure import Federation

WEAK, HONEST = "hospital-d", ("hospital-a", "hospital-b", "hospital-c")
CONTINUING = {"dropout": "continue", "accept_differencing": True, "minimum_sites": 3}


def show_evidence(federation: Federation, shown: Mapping[str, EvidenceClass], *, to: tuple[str, ...]) -> None:
    """Pin a roster that says of each site's key what it shows, and hardware of all others."""
    path = federation.directory.path
    roster = parse_roster((path / "roster.json").read_bytes())
    nodes = {
        site: tuple(
            replace(node, root=replace(node.root, kind=KeyKind.TPM, evidence=shown.get(site, EvidenceClass.HARDWARE)))
            for node in entry
        )
        for site, entry in roster.sites.items()
    }
    changed = Roster(nodes, roster.coordinator)
    data = (path / "study.json").read_bytes()
    for site in to:
        if site == "coordinator":
            (path / "roster.json").write_bytes(encode_roster(changed))
        else:
            federation.sites[site].join(parse_study(data), study_digest(data), changed)


def paused(federation: Federation, line: ScriptedLine | None = None) -> SecureHealthError:
    with pytest.raises(SecureHealthError) as caught:
        federation.run(line)
    return caught.value


@pytest.mark.parametrize("shown", [EvidenceClass.NONE, EvidenceClass.TEST, EvidenceClass.VIRTUAL])
def test_weak_box_that_the_coordinator_admits_is_refused_by_every_peer(tmp_path: Path, shown: EvidenceClass) -> None:
    federation = Federation(tmp_path, minimum_evidence="hardware")
    show_evidence(federation, {}, to=("coordinator", WEAK))
    show_evidence(federation, {WEAK: shown}, to=HONEST)
    paused(federation)
    for site in HONEST:
        errors = federation.sites[site].refused
        assert errors
        for error in errors:
            assert error.code == "secagg.untrusted_certificate"
            assert (error.details["peer"], error.details["cause"]) == (WEAK, "statements.weak_evidence")
            assert shown.name.lower() in error.sentence
    assert federation.events("round") == []


def test_weak_box_is_refused_by_the_coordinator_which_names_it_and_no_other(tmp_path: Path) -> None:
    federation = Federation(tmp_path, minimum_evidence="hardware")
    show_evidence(federation, {WEAK: EvidenceClass.NONE}, to=("coordinator", WEAK, *HONEST))
    error = paused(federation)
    assert (error.code, error.details["peer"]) == ("secagg.untrusted_certificate", WEAK)
    assert not any(site in error.sentence for site in HONEST)
    assert [event["site"] for event in federation.events("faulty")] == [WEAK]
    assert not any(frame.stage is Stage.MASKED_INPUT for site in HONEST for frame in federation.sites[site].seen)


def test_weak_box_is_left_out_where_the_study_goes_on_without_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, minimum_evidence="virtual", secagg=CONTINUING)
    show_evidence(federation, {WEAK: EvidenceClass.TEST}, to=("coordinator", WEAK, *HONEST))
    assert [record["cohort"] for record in federation.run()["history"]] == [list(HONEST)] * 3


def test_hospital_that_refuses_at_once_does_not_shut_out_those_that_answer_later(tmp_path: Path) -> None:
    federation = Federation(tmp_path, secagg=CONTINUING)
    answers: dict[str, Answer] = {name: late(federation, name) for name in HONEST}
    answers[WEAK] = lambda frame: Said({"refusal": Refusal.PROTOCOL}) if frame.stage is Stage.ADVERTISE else frame
    result = federation.run(ScriptedLine.of(federation.clock, answers))
    assert [record["cohort"] for record in result["history"]] == [list(HONEST)] * 3


def late(federation: Federation, name: str) -> Answer:
    def answer(frame: Frame) -> Frame | Said | None:
        said = federation.sites[name].answer(frame)
        return Said(frame=said, after_s=1.0) if isinstance(said, Frame) else said

    return answer


@pytest.mark.parametrize("minimum", ["none", "test", "virtual", "hardware"])
def test_box_that_shows_just_enough_takes_part(tmp_path: Path, minimum: str) -> None:
    federation = Federation(tmp_path, minimum_evidence=minimum, rounds=1)
    enough = EvidenceClass[minimum.upper()]
    show_evidence(federation, dict.fromkeys(federation.sites, enough), to=("coordinator", *federation.sites))
    assert federation.run()["history"][0]["cohort"] == sorted(federation.sites)


def test_hospital_that_answers_in_another_ones_name(tmp_path: Path) -> None:
    """It relays keys that another hospital signed; that one's place must not count as filled by it, nor be changed."""
    federation = Federation(tmp_path)
    kept: list[Frame] = []

    def impostor(frame: Frame) -> Frame | Said | None:
        said = federation.sites["hospital-b"].answer(frame)
        if frame.stage is not Stage.ADVERTISE:
            return said
        assert isinstance(said, Frame)
        kept.append(federation.sites["hospital-a"].answer(frame))  # type: ignore[arg-type]  # it answers honestly
        assert parse_advertise_reply(kept[-1].header, kept[-1].payload).bundle.site == "hospital-a"
        return kept[-1]

    answers: dict[str, Answer] = {name: site.answer for name, site in federation.sites.items()}
    error = paused(federation, ScriptedLine.of(federation.clock, answers | {"hospital-b": impostor}))
    assert kept
    assert (error.code, error.details["site"]) == ("coordinator.stray_answer", "hospital-b")


def test_certificate_that_names_a_newer_repository_stops_nobody_unnamed(tmp_path: Path) -> None:
    """A pinned roster has no newer state; one hospital's word for it must not end the others' study without a name."""
    federation = Federation(tmp_path)
    federation.sites[WEAK].timestamp_version = 99
    federation.sites[WEAK].restart()
    error = paused(federation)
    assert (error.code, error.details["peer"]) == ("secagg.untrusted_certificate", WEAK)
    assert [event["site"] for event in federation.events("faulty")] == [WEAK]
