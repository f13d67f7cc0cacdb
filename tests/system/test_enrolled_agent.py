"""The agent's process, from a box out of its carton to one that works for its consortium, at a real SuperLink."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.service.state import AgentStatus
from tests.simulators.hospital import STUDY_ID, RunningHospital, study_json
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.registrar import OTHER_SITE, SITE, Asked, PlayedRegistrar, Said
from tests.simulators.superlink import RunningSuperLink, wait_until

pytestmark = pytest.mark.slow
AGENT = str(Path(sys.executable).parent / "seh-agent")
MODEL = b"no model: the played worker reads none"


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with RunningSuperLink.start(tmp_path_factory.mktemp("superlink")) as running:
        yield running


@pytest.fixture
def consortium(tmp_path: Path, superlink: RunningSuperLink) -> Iterator[PlayedConsortium]:
    with PlayedConsortium(tmp_path / "registrar", superlink) as played:
        yield played


@pytest.fixture
def box(tmp_path: Path, consortium: PlayedConsortium) -> Iterator[RunningHospital]:
    with RunningHospital.bare(tmp_path / "box", site=SITE, preset=consortium.repository.root_digest) as box:
        yield box


def status_of(box: RunningHospital) -> AgentStatus:
    status = box.status
    assert status is not None
    return status


def enrol(box: RunningHospital, consortium: PlayedConsortium) -> None:
    box.start()
    box.wait_for_link("waiting for enrolment")
    box.insert_stick(consortium.token())
    box.wait_for_link("online", limit_s=60)


def test_a_stick_is_all_that_a_box_needs(box: RunningHospital, consortium: PlayedConsortium) -> None:
    consortium.publish_study(STUDY_ID, study_json((SITE,)), MODEL)
    box.start()
    box.wait_for_link("waiting for enrolment")
    waiting = status_of(box)
    assert (waiting.trouble, waiting.site) == ("enrolment.not_enrolled", "")
    assert "stick" in waiting.next_step
    box.insert_stick(consortium.token())
    took_s = wait_until(lambda: box.folder.load_record() is not None, limit_s=30, what="the box is enrolled")
    print(f"stick in -> Enrolled: {took_s:.2f} s")  # noqa: T201 - measured, not asserted
    box.wait_for_link("online", limit_s=60)
    assert status_of(box).site == SITE
    studies = box.directory / "state" / "studies" / STUDY_ID
    wait_until((studies / "study.json").exists, limit_s=10, what="the study arrives")
    assert (studies / "model.onnx").read_bytes() == MODEL
    assert len(consortium.nodes[SITE]) == 1
    assert box.stop()[0] == 0


def test_a_killed_enrolment_goes_on_after_the_restart(box: RunningHospital, consortium: PlayedConsortium) -> None:
    consortium.before = lambda asked: Said(503) if asked.path.endswith("/endorsement/evidence") else None
    box.start()
    box.wait_for_link("waiting for enrolment")
    box.insert_stick(consortium.token())
    wait_until(lambda: status_of(box).trouble == "enrolment.busy", limit_s=30, what="the registrar is busy")
    assert status_of(box).link == "enrolling"
    box.kill()
    consortium.before = lambda _: None
    box.start()
    box.wait_for_link("online", limit_s=60)
    assert [node.site for node in consortium.nodes[SITE]] == [SITE]
    assert len(consortium.enrolments) == 1


def test_an_enrolled_box_starts_while_its_registrar_is_away(box: RunningHospital, consortium: PlayedConsortium) -> None:
    enrol(box, consortium)
    box.stop()
    consortium.before = lambda _: Said(503)
    box.start()
    box.wait_for_link("online", limit_s=60)


def test_a_box_off_the_preset_says_what_to_compare(
    tmp_path: Path, box: RunningHospital, superlink: RunningSuperLink
) -> None:
    with PlayedConsortium(tmp_path / "other", superlink) as other:
        box.start()
        box.wait_for_link("waiting for enrolment")
        box.insert_stick(other.token())
        wait_until(
            lambda: status_of(box).trouble == "enrolment.not_preset", limit_s=30, what="it is not the preset one"
        )
        assert len(status_of(box).next_step.rstrip(".").rpartition(": ")[2].split()) == 8
        assert other.asked == []


def test_an_enrolled_box_ignores_another_consortiums_stick(
    tmp_path: Path, box: RunningHospital, consortium: PlayedConsortium
) -> None:
    enrol(box, consortium)
    with PlayedRegistrar(tmp_path / "other") as other:
        box.insert_stick(other.token())
        wait_until(lambda: "another consortium" in status_of(box).notice, limit_s=10, what="it says that it ignores it")
        assert other.asked == []
    assert status_of(box).link == "online"


def test_studies_come_change_and_go_with_the_repository(box: RunningHospital, consortium: PlayedConsortium) -> None:
    enrol(box, consortium)
    folder = box.directory / "state" / "studies" / STUDY_ID
    consortium.publish_study(STUDY_ID, study_json((SITE,)), MODEL)
    wait_until((folder / "study.json").exists, limit_s=10, what="the study arrives")
    changed = study_json((SITE,), title="Another title")
    consortium.publish_study(STUDY_ID, changed, MODEL)
    wait_until(lambda: (folder / "study.json").read_bytes() == changed, limit_s=10, what="the study changes")
    consortium.publish_study(STUDY_ID, study_json(("hospital-z",)), MODEL)
    wait_until(lambda: not folder.exists(), limit_s=10, what="a study for others goes")
    consortium.publish_study(STUDY_ID, changed, MODEL)
    wait_until((folder / "study.json").exists, limit_s=10, what="the study is back")
    consortium.withdraw_study(STUDY_ID)
    wait_until(lambda: not folder.exists(), limit_s=10, what="the withdrawn study goes")


def test_a_superlink_that_moved_is_found_by_the_repository(
    box: RunningHospital, consortium: PlayedConsortium, superlink: RunningSuperLink
) -> None:
    consortium.superlink_address = "127.0.0.1:9"
    consortium.publish_consortium()
    box.start()
    box.wait_for_link("waiting for enrolment")
    box.insert_stick(consortium.token())
    wait_until(lambda: status_of(box).trouble == "fleet.unreachable", limit_s=60, what="nobody is at the old address")
    consortium.superlink_address = superlink.address
    consortium.publish_consortium()
    box.wait_for_link("online", limit_s=60)
    assert box.events("agent_rewired")


def test_a_box_is_enrolled_or_pinned_and_never_both(box: RunningHospital, consortium: PlayedConsortium) -> None:
    enrol(box, consortium)
    box.stop()
    text = box.config.read_text().replace("[node]", f'[node]\nsite = "{SITE}"')
    pinned = '[superlink]\naddress = "127.0.0.1:9"\nroot_certificates = "none.pem"\n[studies]\ndirectory = "studies"\n'
    box.config.write_text(text + pinned)
    box.start()
    assert box.process is not None
    assert box.process.wait(20) == 2
    assert "config.enrolled_and_pinned" in (box.directory / "agent.log").read_text()


def test_a_token_that_was_refused_leaves_the_box_waiting_for_another(
    box: RunningHospital, consortium: PlayedConsortium
) -> None:
    refuse = {"code": "enrol.token_used", "sentence": "The token was used.", "next_step": "Ask for a new one."}
    refused: list[Asked] = []

    def once(asked: Asked) -> Said | None:
        if asked.method == "POST" and not refused:
            refused.append(asked)
            return Said(409, refuse)
        return None

    consortium.before = once
    box.start()
    box.wait_for_link("waiting for enrolment")
    box.insert_stick(consortium.token())
    wait_until(lambda: status_of(box).trouble == "enrolment.refused", limit_s=30, what="the registrar refuses")
    assert "The token was used." in status_of(box).sentence
    box.insert_stick(consortium.token())
    box.wait_for_link("online", limit_s=60)


def test_a_hospital_that_lost_its_keys_is_left_out_until_a_person_confirms_the_new_ones(
    box: RunningHospital, consortium: PlayedConsortium
) -> None:
    enrol(box, consortium)
    key = consortium.swap_keys(OTHER_SITE)
    wait_until(lambda: "Left out for now" in status_of(box).notice, limit_s=20, what="the box leaves it out")
    assert key in status_of(box).notice
    accept = [AGENT, "accept-keys", OTHER_SITE, "--config", str(box.config)]
    wrong = subprocess.run([*accept, "ab" * 32], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "trust.other_site_keys" in wrong.stderr) == (2, True)
    subprocess.run([*accept, key], check=True)
    wait_until(lambda: "Left out for now" not in status_of(box).notice, limit_s=20, what="it counts again")


def test_a_stick_that_leads_nowhere_makes_room_for_the_next_one(
    box: RunningHospital, consortium: PlayedConsortium
) -> None:
    box.start()
    box.wait_for_link("waiting for enrolment")
    box.insert_stick(consortium.token(registrar="127.0.0.1:9"))
    wait_until(lambda: status_of(box).trouble == "enrolment.unreachable", limit_s=30, what="nobody is there")
    box.insert_stick(consortium.token())
    box.wait_for_link("online", limit_s=60)
