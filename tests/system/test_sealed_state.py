"""The state directory of a box whose TPM seals its secrets: in its own box, and carried into another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.attestation.policy import approve, encode_approval
from agent.identity.key import init_key
from agent.identity.sealed import current_state
from agent.identity.tpm_device import TPMDevice
from tests.simulators.hospital import RunningHospital
from tests.simulators.superlink import RunningSuperLink
from tests.simulators.swtpm import Swtpm, shared_maker

pytestmark = pytest.mark.slow

REGISTERS = (0, 4, 7, 12)
APPROVER = ec.generate_private_key(ec.SECP256R1())


def _approve_present_state(tpm: Swtpm, directory: Path) -> None:
    """As the consortium does for every release: its signature over the boot state that the release gives."""
    state = current_state(TPMDevice(tpm.tcti), REGISTERS)
    approval = approve(state, lambda message: APPROVER.sign(message, ec.ECDSA(hashes.SHA256())))
    (directory / "approvals").mkdir(exist_ok=True)
    (directory / "approvals" / "release-1.cbor").write_bytes(encode_approval(approval))


def _box(directory: Path, superlink: RunningSuperLink, tpm: Swtpm) -> RunningHospital:
    directory.mkdir()
    pem = APPROVER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "approver.pem").write_bytes(pem)
    sections = '[vault]\napprover = "approver.pem"\napprovals = "approvals"\n'
    return RunningHospital.prepare(directory, superlink, key_uri=tpm.uri, sections=sections)


def test_a_disk_moved_to_another_box_starts_no_agent_there_and_its_own_box_still_does(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with shared_maker().make("a") as own, shared_maker().make("b") as other:
        init_key(other.uri)
        with (
            _box(tmp_path / "own", superlink, own) as box,
            _box(tmp_path / "other", superlink, other) as stranger,
        ):
            # Both boot alike and both states are approved: the TPM alone tells the boxes apart.
            for tpm, place in ((own, box), (other, stranger)):
                _approve_present_state(tpm, place.directory)
            box.register(superlink)
            box.start()
            box.wait_for_link()
            assert box.events("agent_ready")[-1]["sealed"] is True
            assert box.stop()[0] == 0

            shutil.copytree(box.directory / "state", stranger.directory / "state")
            stranger.start()
            assert stranger.process is not None
            assert stranger.process.wait(30) == 4
            said = (stranger.directory / "agent.log").read_text()
            assert "identity.sealed_elsewhere" in said
            assert "own box" in said
            assert not stranger.events("agent_ready")
            assert stranger.status is None

            box.start()
            box.wait_for_link()


def test_an_unapproved_boot_state_waits_until_somebody_approves_it(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with shared_maker().make() as tpm, _box(tmp_path / "box", superlink, tpm) as box:
        box.register(superlink)
        box.start()
        box.wait_for_link("waiting")
        assert box.status is not None
        assert box.status.trouble == "identity.unapproved_state"
        _approve_present_state(tpm, box.directory)
        box.wait_for_link()
