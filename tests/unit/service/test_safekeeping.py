"""Where a box's secrets lie: sealed to its TPM where the configuration says so, else in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.constants import ESYS_TR

from agent.attestation.policy import Approval, approve, encode_approval
from agent.core.clock import SystemClock
from agent.core.config import AgentConfig, parse_config
from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import init_key
from agent.identity.sealed import current_state
from agent.identity.session import SessionKeeper, Subject
from agent.identity.signing import SigningKey
from agent.identity.tpm import new_session_key, open_device
from agent.identity.tpm_device import TPMDevice
from agent.identity.vault import open_plain_vault
from agent.service.safekeeping import MAX_APPROVALS, load_vault, session_keys
from tests.simulators.fake_key import FakeKey
from tests.simulators.swtpm import Swtpm, shared_maker
from tests.unit.core.test_config import COMPLETE

REGISTERS = (0, 4, 7, 12)
APPROVER = ec.generate_private_key(ec.SECP256R1())


def approved(device: TPMDevice, key: ec.EllipticCurvePrivateKey = APPROVER) -> Approval:
    return approve(current_state(device, REGISTERS), lambda message: key.sign(message, ec.ECDSA(hashes.SHA256())))


@dataclass
class Box:
    """A box with a TPM and a sealed vault."""

    directory: Path
    tpm: Swtpm

    @property
    def device(self) -> TPMDevice:
        return TPMDevice(self.tpm.tcti)

    @property
    def config(self) -> AgentConfig:
        text = COMPLETE.replace("software:key.pem", self.tpm.uri)
        sections = '[vault]\napprover = "approver.pem"\napprovals = "approvals"\n'
        return parse_config((text + sections).encode(), directory=self.directory)

    def install(self, name: str, approval: Approval) -> None:
        (self.directory / "approvals" / name).write_bytes(encode_approval(approval))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    (tmp_path / "approvals").mkdir()
    pem = APPROVER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "approver.pem").write_bytes(pem)
    with shared_maker().make() as tpm:
        yield Box(tmp_path, tpm)


def test_a_box_that_says_nothing_of_a_vault_keeps_a_file(tmp_path: Path) -> None:
    config = parse_config(COMPLETE.encode(), directory=tmp_path)
    vault = load_vault(config)
    assert not vault.sealed
    assert load_vault(config).key_for("any") == vault.key_for("any")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_sealed_vault_opens_with_the_approval_of_this_boot_state(box: Box) -> None:
    box.install("release-1.cbor", approved(box.device))
    vault = load_vault(box.config)
    assert vault.sealed
    assert load_vault(box.config).key_for("any") == vault.key_for("any")


def test_before_an_approval_is_there_it_stays_shut_and_then_opens(box: Box) -> None:
    with pytest.raises(HardwareError) as failure:
        load_vault(box.config)
    assert failure.value.code == "identity.unapproved_state"
    box.install("release-1.cbor", approved(box.device))
    assert load_vault(box.config).sealed


def test_a_boot_state_that_nobody_approved_opens_nothing(box: Box) -> None:
    box.install("release-1.cbor", approved(box.device))
    load_vault(box.config)
    box.device.run(lambda esapi: esapi.pcr_event(ESYS_TR.PCR4, b"another boot loader"))
    with pytest.raises(HardwareError) as failure:
        load_vault(box.config)
    assert failure.value.code == "identity.unapproved_state"


def test_an_approval_that_cannot_be_used_keeps_no_other_from_opening(box: Box) -> None:
    (box.directory / "approvals" / "0-junk.cbor").write_bytes(b"\xff" * 10)
    (box.directory / "approvals" / "1-huge.cbor").write_bytes(bytes(1 << 20))
    (box.directory / "approvals" / "2-directory.cbor").mkdir()
    box.install("3-forged.cbor", approved(box.device, ec.generate_private_key(ec.SECP256R1())))
    box.install("4-good.cbor", approved(box.device))
    with structlog.testing.capture_logs() as events:
        assert load_vault(box.config).sealed
    assert [event["file"][0] for event in events if event["event"] == "approval_set_aside"] == list("0123")


def test_a_flood_of_approvals_is_not_read(box: Box) -> None:
    for number in range(MAX_APPROVALS):
        (box.directory / "approvals" / f"{number:03}.cbor").write_bytes(b"")
    box.install("zzz.cbor", approved(box.device))
    with pytest.raises(HardwareError):
        load_vault(box.config)


def test_a_disk_in_another_box_opens_nothing_and_says_so(box: Box) -> None:
    box.install("release-1.cbor", approved(box.device))
    load_vault(box.config)
    box.tpm.swap("b")
    with pytest.raises(HardwareError) as failure:
        load_vault(box.config)
    assert failure.value.code == "identity.sealed_elsewhere"


def test_a_tpm_that_is_away_is_said_plainly(box: Box) -> None:
    box.tpm.stop()
    with pytest.raises(HardwareError) as failure:
        load_vault(box.config)
    assert failure.value.code == "identity.tpm_gone"


def test_a_file_is_no_sealed_vault(box: Box) -> None:
    open_plain_vault(box.directory / "state" / "vault")
    with pytest.raises(OperatorError) as failure:
        load_vault(box.config)
    assert failure.value.code == "identity.bad_vault"


@pytest.mark.parametrize("content", [None, b"", b"junk", "p384"])
def test_an_approver_that_is_none_is_named(box: Box, content: bytes | str | None) -> None:
    path = box.directory / "approver.pem"
    path.unlink()
    if content == "p384":
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(OperatorError, match=r"approver\.pem") as failure:
        load_vault(box.config)
    assert failure.value.code == "config.bad_approver"


def test_a_vault_that_cannot_be_read_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    with pytest.raises(OperatorError, match="cannot be used: Is a directory"):
        open_plain_vault(tmp_path / "vault")


def test_two_processes_that_make_it_at_once_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_link = os.link

    def link_later(source: Path, target: Path) -> None:
        target.write_bytes(b"o" * 32)  # another command was faster
        real_link(source, target)

    monkeypatch.setattr("os.link", link_later)
    first = open_plain_vault(tmp_path / "vault")
    monkeypatch.undo()
    assert open_plain_vault(tmp_path / "vault").key_for("any") == first.key_for("any")
    assert [path.name for path in tmp_path.iterdir()] == ["vault"]


def test_a_box_with_a_card_and_a_tpm_keeps_its_session_keys_in_the_tpm(tmp_path: Path) -> None:
    with shared_maker().make() as tpm:
        text = COMPLETE.replace('uri = "software:key.pem"', f'uri = "software:key.pem"\nsessions_in = "{tpm.uri}"')
        source = session_keys(parse_config(text.encode(), directory=tmp_path))
        root, subject = FakeKey(), Subject("c0" * 32, "north", "box-1")
        keeper = SessionKeeper(root, subject, clock=SystemClock(), timestamp_version=lambda: 0, new_session_key=source)
        keeper.tick()
        session = keeper.current()
        assert isinstance(session.signing_key, SigningKey)
        assert session.signing_key.sign(b"message", ec.ECDSA(hashes.SHA256()))
        tpm.stop()
        with pytest.raises(HardwareError, match="No TPM answers"):
            session.signing_key.sign(b"message", ec.ECDSA(hashes.SHA256()))


def test_a_tpm_for_session_keys_needs_no_key_of_its_own(tmp_path: Path) -> None:
    with shared_maker().make() as tpm:
        key = new_session_key(open_device(tpm.uri))
        assert key.public_key() != new_session_key(open_device(tpm.uri)).public_key()
        assert init_key(tpm.uri).public_key() != key.public_key()


def test_without_a_tpm_named_the_box_s_key_makes_them(tmp_path: Path) -> None:
    assert session_keys(parse_config(COMPLETE.encode(), directory=tmp_path)) is None
