"""A probe on the wires to a TPM chip: what goes over them in the clear belongs to whoever opens the case."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.policy import CounterLimit, approve
from agent.attestation.structures import object_name
from agent.identity.sealed import current_state, seal, unseal
from agent.identity.tpm_counter import COUNTER_HANDLE, TPMCounter
from agent.identity.tpm_device import TPMDevice
from tests.simulators.swtpm import Swtpm, shared_maker
from tests.simulators.tpm_wire import Probe, probed

APPROVER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


@pytest.fixture
def probe(tpm: Swtpm) -> Iterator[Probe]:
    with probed(tpm) as probe:
        yield probe


def sign(message: bytes) -> bytes:
    return APPROVER.sign(message, ec.ECDSA(hashes.SHA256()))


def test_probe_sees_what_is_not_protected(probe: Probe) -> None:
    registers = current_state(TPMDevice(probe.tcti), (0, 7))
    assert registers[7] in probe.seen


def test_secret_read_off_the_wires_when_it_is_sealed_or_unsealed(probe: Probe) -> None:
    device, secret = TPMDevice(probe.tcti), secrets.token_bytes(32)
    blob = seal(device, secret, APPROVER.public_key())
    approval = approve(current_state(device, (0, 7)), sign)
    assert unseal(device, blob, [approval]) == secret
    assert secret not in probe.seen


def test_secret_read_off_the_wires_where_a_counter_bounds_its_approval(probe: Probe) -> None:
    device, secret = TPMDevice(probe.tcti), secrets.token_bytes(32)
    counter = TPMCounter(device)
    value = counter.define()
    name = object_name(0x000B, counter.certify(bytes(32)).index_public)
    blob = seal(device, secret, APPROVER.public_key())
    approval = approve(current_state(device, (0, 7)), sign, CounterLimit(name, value))
    assert unseal(device, blob, [approval], counter=COUNTER_HANDLE) == secret
    assert secret not in probe.seen
