"""Studies at a real SuperLink under permits, approvals and logs: what runs, what stops, and what stands written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.audit.bundle import VerifiedLog, verify_bundle
from agent.audit.leaves import MessageRefused, UpdateSent
from agent.core.ids import SiteID
from agent.service.running_box import RunningBox
from agent.trust.roster import Roster, encode_roster
from tests.simulators.enrolled_consortium import EnrolledConsortium
from tests.simulators.governed import PURPOSE, Deciding, govern, write_policy
from tests.simulators.hospital import RunningHospital
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until
from tests.simulators.witness import RunningWitness

pytestmark = pytest.mark.slow

QUANTISATION = 2e-3


@contextmanager
def governed(
    superlink: RunningSuperLink,
    place: Path,
    **changes: Any,  # noqa: ANN401 - any part of a study
) -> Iterator[tuple[SecureConsortium, dict[str, Deciding]]]:
    """A consortium whose boxes govern studies, and each hospital's steward; nothing runs."""
    with SecureConsortium.found(superlink, place, use=PURPOSE, **changes) as consortium:
        stewards = {site: Deciding(site) for site in consortium.sites}
        listed = {SiteID(site): (steward.key.record,) for site, steward in stewards.items()}
        roster = Roster(consortium.roster.sites, consortium.roster.coordinator, listed)
        for box in consortium.boxes.values():
            (box.directory / "roster.json").write_bytes(encode_roster(roster))
            (box.directory / "local.csv").write_text("age,ill\n50,1\n")
            govern(box.directory)
        yield consortium, stewards


def ask(box: RunningHospital) -> RunningBox:
    """The agent of a box, as its console asks it."""
    return RunningBox(box.directory / "state")


def approve_all(consortium: SecureConsortium, stewards: dict[str, Deciding]) -> None:
    """Every hospital approves the study."""
    for site, box in consortium.boxes.items():
        stewards[site].approve(ask(box), consortium.assignment.study.id)


def export_of(box: RunningHospital) -> VerifiedLog:
    """A box's log, exported and verified."""
    piece = ask(box).export(0, 0)
    data = piece.text.encode()
    while len(data) < piece.total:
        data += ask(box).export(piece.size, len(data)).text.encode()
    return verify_bundle(data)


def sent_by(log: VerifiedLog) -> list[UpdateSent]:
    """The receipts in a log."""
    return [leaf for leaf in log.leaves if isinstance(leaf, UpdateSent)]


def refusals_in(log: VerifiedLog) -> list[tuple[str, str]]:
    """Study and rule of every refusal in a log."""
    return [(leaf.study, leaf.rule) for leaf in log.leaves if isinstance(leaf, MessageRefused)]


def test_a_study_runs_once_every_steward_approved_and_not_before(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with governed(superlink, tmp_path) as (consortium, stewards):
        consortium.start()
        study = consortium.assignment.study.id
        consortium.launch()
        first = consortium.box("a")
        boxes = consortium.boxes.values()
        wait_until(lambda: all(box.events("message_refused") for box in boxes), limit_s=60, what="all refuse")
        line = ask(first).study(study).line
        assert (line.state, line.rule) == ("waiting", "approved")
        assert not any(box.events("masked_input_sent") for box in consortium.boxes.values())
        approve_all(consortium, stewards)  # the coordinator asks again while it waits for all
        consortium.wait_for("finished")
        np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
        for box in consortium.boxes.values():
            log = export_of(box)
            assert [leaf.round for leaf in sent_by(log)] == [1, 2, 3, 4]
            assert all(leaf.cohort == consortium.sites for leaf in sent_by(log))
            assert refusals_in(log) == [(study, "approved")]
        rows = ask(first).budget()
        assert [row.releases for row in rows] == [4] * len(rows) != []
        wait_until(lambda: not ask(first).rounds()[0].under_way, limit_s=10, what="its last round is over")
        (newest,) = ask(first).rounds()
        assert newest.round == 4


def test_an_approval_withdrawn_in_mid_training_lets_nothing_more_leave(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with governed(superlink, tmp_path, rounds=20, round_deadline_s=8.0) as (consortium, stewards):
        consortium.start(training_s=1.0)
        approve_all(consortium, stewards)
        consortium.launch()
        consortium.wait_for_work("b", "masked-input 2")
        box = consortium.box("b")
        (approval,) = ask(box).study(consortium.assignment.study.id).approvals
        stewards[box.site].withdraw(ask(box), approval.sequence)
        wait_until(lambda: box.events("message_refused") != [], limit_s=30, what="its next answer is a refusal")
        log = export_of(box)
        assert [leaf.round for leaf in sent_by(log)] == [1]
        assert refusals_in(log) == [(consortium.assignment.study.id, "approved")]
        consortium.wait_for("paused", limit_s=60)
        assert ask(box).study(consortium.assignment.study.id).line.state == "withdrawn"
        assert [leaf.round for leaf in sent_by(export_of(box))] == [1]


def test_each_reason_to_refuse_is_named_by_its_rule(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with governed(superlink, tmp_path) as (consortium, stewards):
        consortium.start()
        approve_all(consortium, stewards)
        changed, other_model, refused_purpose = (consortium.box(letter) for letter in "abc")
        (changed.directory / "local.csv").write_text("age,ill\n50,1\n51,0\n")
        study = consortium.assignment.study.id
        (other_model.directory / "studies" / study / "model.onnx").write_bytes(b"another model")
        write_policy(refused_purpose.directory / "policy.toml", duo=["DUO:0000042", "DUO:0000019"])
        consortium.launch()
        expected = [
            (changed, "dataset_unchanged", "declined"),
            (other_model, "model_digest", "not-permitted"),
            (refused_purpose, "duo_publication", "not-permitted"),
        ]
        for box, rule, word in expected:
            wait_until(lambda box=box: box.events("message_refused") != [], limit_s=60, what=f"{rule} refuses")  # type: ignore[misc]
            assert box.events("message_refused")[0]["refusal"] == word
            log = export_of(box)
            assert refusals_in(log) == [(study, rule)]
            assert not sent_by(log)


@contextmanager
def witnessed(
    superlink: RunningSuperLink,
    place: Path,
    **changes: Any,  # noqa: ANN401 - any part of a study
) -> Iterator[tuple[EnrolledConsortium, dict[str, Deciding], RunningWitness]]:
    """An enrolled consortium with a witness; its boxes run and have the study."""
    stewards: dict[str, Deciding] = {}
    with ExitStack() as stack:

        def prepare(authority: PlayedConsortium, boxes: dict[str, RunningHospital]) -> None:
            witness = RunningWitness.found(
                place / "witness",
                root=authority.root,
                root_digest=authority.repository.root_digest,
                registrar=authority.address,
            )
            stack.enter_context(witness)
            authority.witnesses = (witness.record,)
            authority.publish_consortium()
            running.append(witness)
            for site, box in boxes.items():
                stewards[site] = Deciding(site)
                authority.employ(stewards[site].key.record)
                (box.directory / "local.csv").write_text("age,ill\n50,1\n")
                write_policy(box.directory / "policy.toml")

        running: list[RunningWitness] = []
        sections = '[governance]\npolicy = "policy.toml"\n'
        consortium = stack.enter_context(
            EnrolledConsortium.grow(
                superlink, place, prepare=prepare, sections=sections, use=PURPOSE, training_s=0.2, **changes
            )
        )
        yield consortium, stewards, running[0]


def test_the_witness_cosigns_what_left_and_a_disk_put_back_uploads_nothing(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with witnessed(superlink, tmp_path, rounds=50, round_deadline_s=8) as (consortium, stewards, witness):
        approve_all(consortium, stewards)
        box, older = consortium.box("c"), tmp_path / "older"
        box.kill()
        shutil.copytree(box.directory / "state", older, ignore=shutil.ignore_patterns("control.sock"))
        box.start()
        box.wait_for_link(limit_s=60)
        consortium.launch()
        consortium.wait_for("round", count=1)
        for one in consortium.boxes.values():
            view = ask(one).audit()
            assert view.witness == witness.record.name
            assert view.cosigned_size > 0
            assert not view.blocked
        box.kill()
        # Somebody puts the disk of an hour ago back.
        shutil.rmtree(box.directory / "state")
        shutil.copytree(older, box.directory / "state")
        before = len(box.events("masked_input_sent"))
        box.start()
        wait_until(
            lambda: box.status is not None and "put back to an earlier state" in box.status.notice,
            limit_s=60,
            what="it says what happened",
        )
        consortium.wait_for("paused", limit_s=60)
        consortium.wait_until_coordinator_is_gone()
        consortium.launch()
        wait_until(lambda: "audit.rolled_back" in str(box.events("message_refused")), limit_s=60, what="it refuses")
        assert "put back to an earlier state" in ask(box).audit().blocked
        assert len(box.events("masked_input_sent")) == before
