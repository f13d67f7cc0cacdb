from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss.constants import ESYS_TR

from agent.attestation import policy
from agent.attestation.policy import (
    Approval,
    CounterLimit,
    encode_approval,
    parse_approval,
    verify_approval,
)
from agent.attestation.structures import object_name
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.sealed import current_state, init_vault, open_vault
from agent.identity.tpm_counter import COUNTER_HANDLE, TPMCounter
from agent.identity.tpm_device import TPMDevice
from agent.identity.vault import open_plain_vault
from tests.simulators.swtpm import Swtpm, shared_maker

REGISTERS = (0, 4, 7, 12)
RELEASE_KEY = ec.generate_private_key(ec.SECP256R1())


def signed_by(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))


def approve(
    registers: Mapping[int, bytes],
    *,
    counter: CounterLimit | None = None,
    key: ec.EllipticCurvePrivateKey = RELEASE_KEY,
) -> Approval:
    return policy.approve(registers, signed_by(key), counter)


def measure(device: TPMDevice, what: bytes) -> None:
    device.run(lambda esapi: esapi.pcr_event(ESYS_TR.PCR4, what))


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


@pytest.fixture
def device(tpm: Swtpm) -> TPMDevice:
    return TPMDevice(tpm.tcti)


@pytest.fixture
def vault(device: TPMDevice, tmp_path: Path) -> Path:
    path = tmp_path / "state" / "vault"
    init_vault(device, path, RELEASE_KEY.public_key())
    return path


def test_opens_in_an_approved_state_every_time(device: TPMDevice, vault: Path) -> None:
    approvals = [approve(current_state(device, REGISTERS))]
    one, two = (open_vault(device, vault, approvals) for _ in range(2))
    assert one.key_for("ledger") == two.key_for("ledger") != one.key_for("session")


def test_made_once(device: TPMDevice, vault: Path) -> None:
    before = vault.read_bytes()
    init_vault(device, vault, RELEASE_KEY.public_key())
    assert vault.read_bytes() == before
    assert vault.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in vault.parent.iterdir()] == ["vault"]


def test_survives_a_restart(tpm: Swtpm, device: TPMDevice, vault: Path) -> None:
    approvals = [approve(current_state(device, REGISTERS))]
    before = open_vault(device, vault, approvals).key_for("ledger")
    tpm.stop()
    tpm.start()
    assert open_vault(device, vault, approvals).key_for("ledger") == before


def test_signed_update_blesses_its_own_state(tpm: Swtpm, device: TPMDevice, vault: Path) -> None:
    old = approve(current_state(device, REGISTERS))
    before = open_vault(device, vault, [old]).key_for("ledger")
    measure(device, b"new release")
    with pytest.raises(HardwareError, match="not approved") as failure:
        open_vault(device, vault, [old])
    assert failure.value.code == "identity.unapproved_state"
    new = approve(current_state(device, REGISTERS))
    assert open_vault(device, vault, [old, new]).key_for("ledger") == before


def test_approval_by_another_key(device: TPMDevice, vault: Path) -> None:
    forged = approve(current_state(device, REGISTERS), key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(PeerProtocolError, match="not signed by the key"):
        open_vault(device, vault, [forged])


def test_tpm_itself_refuses_an_approval_by_another_key(
    device: TPMDevice, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An attacker on the box skips our check; the TPM does not.
    monkeypatch.setattr("agent.identity.sealed.verify_approval", lambda approval, approver: None)
    forged = approve(current_state(device, REGISTERS), key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(HardwareError, match="refused"):
        open_vault(device, vault, [forged])


def test_disk_moved_to_another_box(device: TPMDevice, vault: Path) -> None:
    with shared_maker().make("b") as other:
        there = TPMDevice(other.tcti)
        with pytest.raises(HardwareError, match="sealed by another box's TPM") as failure:
            open_vault(there, vault, [approve(current_state(there, REGISTERS))])
    assert failure.value.code == "identity.sealed_elsewhere"
    assert "own box" in failure.value.next_step


def test_old_release_cannot_open_after_the_floor_rose(device: TPMDevice, vault: Path) -> None:
    counter = TPMCounter(device)
    value = counter.define()
    limit = CounterLimit(object_name(0x000B, counter.certify(bytes(32)).index_public), value)
    approval = approve(current_state(device, REGISTERS), counter=limit)
    assert open_vault(device, vault, [approval], counter=COUNTER_HANDLE)
    counter.increment()
    with pytest.raises(HardwareError, match="not approved"):
        open_vault(device, vault, [approval], counter=COUNTER_HANDLE)


def test_bounded_approval_without_its_counter(device: TPMDevice, vault: Path) -> None:
    limit = CounterLimit(b"\x00\x0b" + bytes(32), 9)
    with pytest.raises(HardwareError, match="not approved"):
        open_vault(device, vault, [approve(current_state(device, REGISTERS), counter=limit)])


@pytest.mark.parametrize("data", [b"", b"noise", bytes(5000), b"\x83\x01\x02\x03"])
def test_damaged_file(device: TPMDevice, vault: Path, data: bytes) -> None:
    vault.write_bytes(data)
    with pytest.raises(OperatorError, match="damaged"):
        open_vault(device, vault, [approve(current_state(device, REGISTERS))])


def test_missing_file(device: TPMDevice, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="missing"):
        open_vault(device, tmp_path / "nothing", [])


def test_box_without_a_tpm_keeps_its_vault_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state" / "vault"
    one, two = open_plain_vault(path), open_plain_vault(path)
    assert one.key_for("ledger") == two.key_for("ledger") != one.key_for("session")
    assert not one.sealed
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(OperatorError, match="damaged"):
        open_plain_vault(path)


limits = st.none() | st.builds(CounterLimit, st.binary(min_size=34, max_size=34), st.integers(0, 2**64 - 1))


@given(st.sets(st.integers(0, 23), max_size=8), limits)
def test_approvals_travel(registers: set[int], counter: CounterLimit | None) -> None:
    approval = approve(dict.fromkeys(registers, bytes(32)), counter=counter)
    assert parse_approval(encode_approval(approval)) == approval
    verify_approval(parse_approval(encode_approval(approval)), RELEASE_KEY.public_key())


@given(st.binary(max_size=100))
def test_noise_is_no_approval(data: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_approval(data)
