"""Enrolment with nothing played but hardware: every part is what its operator would start, by the command for it."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from agent.enrolment.record import EnrolmentRecord
from agent.identity.key import init_key, open_key
from agent.service.control import renew_session
from agent.statements.roots import KeyKind
from agent.trust.fingerprint import consortium_words
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.hospital import STUDY_ID, RunningHospital
from tests.simulators.makers import authenticator_maker, card_maker
from tests.simulators.operator import Operator
from tests.simulators.pcscd import card_inserted
from tests.simulators.person import Technician
from tests.simulators.piv_card import PIVApplet
from tests.simulators.played_study import study_files
from tests.simulators.superlink import wait_until
from tests.simulators.swtpm import shared_maker
from tests.simulators.terminal import converse

pytestmark = pytest.mark.slow

SITE = "hospital-a"
OTHERS = ("hospital-b", "hospital-c", "hospital-d")
PIN = "975318"
AGENT = str(Path(sys.executable).parent / "seh-agent")


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A founded consortium of four hospitals; the tool of one endorses by itself, the others have not signed yet."""
    roots = [maker.root.public_bytes(Encoding.PEM) for maker in (card_maker(), authenticator_maker())]
    with shared_maker().make("a") as tpm:
        roots += [path.read_bytes() for path in tpm.ca_certificates]
    with Operator.found(tmp_path_factory.mktemp("consortium"), makers=roots) as operator:
        for site in (SITE, *OTHERS):
            operator.add_site(site)
        operator.endorse(SITE)
        yield operator


@pytest.fixture
def digest(operator: Operator) -> str:
    return hashlib.sha256(operator.root.read_bytes()).hexdigest()


def insert_and_wait(box: RunningHospital, token: str) -> EnrolmentRecord:
    """Put the stick in, and wait until the box is enrolled, and online."""
    box.start()
    box.wait_for_link("waiting for enrolment")
    begin_s = time.monotonic()
    box.insert_stick(token)
    wait_until(lambda: box.folder.load_record() is not None, limit_s=60, what="the box is enrolled", interval_s=0.02)
    took_s = time.monotonic() - begin_s
    print(f"{box.kind.value}: stick in -> Enrolled in {took_s:.2f} s")  # noqa: T201 - measured, not asserted
    box.wait_for_link("online", limit_s=60)
    record = box.folder.load_record()
    assert record is not None
    return record


def evidence_of(operator: Operator, record: EnrolmentRecord) -> str:
    """What the hospital wrote down of a box's evidence."""
    listed = operator.types("consortium", "status", "-d", operator.place)
    (line,) = [line for line in listed.splitlines() if record.node in line]
    return line


def test_a_tpm_box_is_enrolled_by_its_stick_alone(tmp_path: Path, operator: Operator, digest: str) -> None:
    study, model = study_files((SITE, *OTHERS))
    (tmp_path / "study.json").write_bytes(study)
    (tmp_path / "model.onnx").write_bytes(model)
    with (
        shared_maker().make("a") as tpm,
        RunningHospital.bare(tmp_path / "box", site=SITE, key_uri=tpm.uri, preset=digest) as box,
    ):
        record = insert_and_wait(box, operator.issue(SITE))
        assert "tpm, test" in evidence_of(operator, record)
        assert "box_endorsed" in operator.log.read_text(), "the hospital's tool says whom it let in"
        files = (str(tmp_path / "study.json"), str(tmp_path / "model.onnx"))
        operator.types("study", "publish", *files, "-d", operator.place)
        folder = box.directory / "state" / "studies" / STUDY_ID
        wait_until((folder / "study.json").exists, limit_s=20, what="the study arrives")
        revoking = ("--reason", "a test of revocation", *operator.desk(SITE))
        operator.types("node", "revoke", record.node, *revoking)
        wait_until(
            lambda: box.status is not None and "has revoked this box's key" in box.status.notice,
            limit_s=20,
            what="the box says that it was revoked",
        )


def test_a_card_box_is_enrolled_by_its_stick_alone(tmp_path: Path, operator: Operator, digest: str) -> None:
    with card_inserted(VirtualCard(PIVApplet(4714))) as slot:
        uri = f"piv:{quote(slot.reader)}?slot=9e"
        init_key(uri, person=Technician())
        with RunningHospital.bare(tmp_path / "box", site=SITE, key_uri=uri, preset=digest) as box:
            record = insert_and_wait(box, operator.issue(SITE))
    assert "piv, test" in evidence_of(operator, record)


def test_a_software_box_is_enrolled_where_tests_are_run(tmp_path: Path, operator: Operator, digest: str) -> None:
    with RunningHospital.bare(tmp_path / "box", site=SITE, preset=digest) as box:
        record = insert_and_wait(box, operator.issue(SITE))
    assert "software, none" in evidence_of(operator, record)


def test_a_security_key_is_touched_by_a_technician_who_compares_the_words(
    tmp_path: Path, operator: Operator, digest: str
) -> None:
    with card_inserted(VirtualCard(CTAPApplet(Authenticator(), polls_before_touch=2))) as slot:
        uri = f"fido2:{tmp_path}/security-key.json?reader={quote(slot.reader)}"
        init_key(uri, person=Technician(pin=PIN, new_pin=PIN))
        with RunningHospital.bare(tmp_path / "box", site=SITE, key_uri=uri) as box:
            box.start()
            box.wait_for_link("waiting for enrolment")
            token = operator.issue(SITE)
            command = [AGENT, "enrol", "--token", token, "--config", str(box.config)]
            shown, status = converse(command, {"Are these the words": "y", "PIN of": PIN})
            assert status == 0, shown
            assert consortium_words(digest) in shown
            assert f"Enrolled: {SITE} in Consortium A." in shown
            assert PIN not in shown
            box.wait_for_link("online", limit_s=60)
            renew_session(box.directory / "state", open_key(uri, person=Technician(pin=PIN)))
            wait_until(lambda: box.status is not None and box.status.session == "valid", limit_s=10, what="a session")
            record = box.folder.load_record()
    assert record is not None
    assert "fido2, test" in evidence_of(operator, record)


def test_words_that_are_not_on_the_sheet_stop_the_technician(tmp_path: Path, operator: Operator) -> None:
    with RunningHospital.bare(tmp_path / "box", site=SITE) as box:
        command = [AGENT, "enrol", "--token", operator.issue(SITE), "--config", str(box.config)]
        shown, status = converse(command, {"Are these the words": "n"})
        assert (status, box.folder.load_record()) == (2, None), shown
        assert "enrolment.not_confirmed" in shown


def test_power_cuts_at_both_ends_leave_one_box_on_record(tmp_path: Path, operator: Operator, digest: str) -> None:
    with RunningHospital.bare(tmp_path / "box", site=SITE, preset=digest) as box:
        tool, registrar = operator.process_of("endorse"), operator.process_of("registrar")
        tool.send_signal(signal.SIGSTOP)  # the hospital sleeps
        box.start()
        box.wait_for_link("waiting for enrolment")
        box.insert_stick(operator.issue(SITE))
        wait_until(
            lambda: box.status is not None and "accepts this box" in box.status.sentence,
            limit_s=30,
            what="the registrar accepts the box",
        )
        box.kill()
        operator.restart(registrar)
        box.start()
        tool.send_signal(signal.SIGCONT)
        box.wait_for_link("online", limit_s=90)
        assert box.kind is KeyKind.SOFTWARE
        record = box.folder.load_record()
        assert record is not None
    assert "software" in evidence_of(operator, record)
