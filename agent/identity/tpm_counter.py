"""A monotonic counter in the TPM: it outlives disks, and nobody can turn it back.

Source: TPM 2.0 Library Part 1, 37.2.4 (counters never go back, even when undefined and defined again); Part 3, 31.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tpm2_pytss import ESAPI, TPM2B_MAX_NV_BUFFER, TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_NT, TPMA_NV

from agent.identity.tpm_device import TPMDevice
from agent.identity.tpm_evidence import ensure_ak
from agent.identity.tpm_objects import NO_SCHEME, find, is_there

COUNTER_HANDLE: Final = 0x01800001
"""In the range of NV indices that the owner assigns (TCG registry of reserved handles, 2.2.2)."""
BUDGET_HANDLE: Final = 0x01800020
BUDGET_BASE_HANDLE: Final = 0x01800021

_READABLE = TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.OWNERREAD | TPMA_NV.NO_DA
_ATTRIBUTES = TPM2_NT.COUNTER << TPMA_NV.TPM2_NT_SHIFT | _READABLE
_BASE_ATTRIBUTES = _READABLE | TPMA_NV.WRITEDEFINE


@dataclass(frozen=True, slots=True)
class CounterCertificate:
    """A counter's value as the TPM certifies it.

    Args:
        info: TPMS_ATTEST.
        signature: TPMT_SIGNATURE by the attestation key.
        index_public: TPMS_NV_PUBLIC.
    """

    info: bytes
    signature: bytes
    index_public: bytes


class TPMCounter:
    """One counter.

    Args:
        device: The TPM.
        handle: NV index.
    """

    def __init__(self, device: TPMDevice, handle: int = COUNTER_HANDLE) -> None:
        self._device = device
        self._handle = handle

    def define(self) -> int:
        """Make the counter if it is not there, and start it; needs the owner's authorisation, so at provisioning.

        Returns:
            Its value, which need not be 1: a TPM starts a new counter above every one that it ever had.
        """
        return self._device.run(self._define)

    def read(self) -> int:
        """Its value."""
        return self._device.run(self._read)

    def increment(self) -> int:
        """Add one.

        Returns:
            The new value.
        """
        return self._device.run(self._increment)

    def certify(self, qualifying_data: bytes) -> CounterCertificate:
        """Its value, signed by the TPM's attestation key.

        Args:
            qualifying_data: (32,), the asker's.
        """
        return self._device.run(lambda esapi: self._certify(esapi, qualifying_data))

    def _define(self, esapi: ESAPI) -> int:
        if not is_there(esapi, self._handle):
            _ensure(esapi, self._handle, _ATTRIBUTES)
            return self._increment(esapi)
        return self._read(esapi)

    def _read(self, esapi: ESAPI) -> int:
        return _read_number(esapi, self._handle)

    def _increment(self, esapi: ESAPI) -> int:
        esapi.nv_increment(find(esapi, self._handle))
        return self._read(esapi)

    def _certify(self, esapi: ESAPI, qualifying_data: bytes) -> CounterCertificate:
        index, ak = find(esapi, self._handle), ensure_ak(esapi)
        info, signature = esapi.nv_certify(ak, index, qualifying_data, NO_SCHEME, 8)
        public, _ = esapi.nv_read_public(index)
        return CounterCertificate(bytes(info), signature.marshal(), public.nvPublic.marshal())


class ReservationCounter:
    """Counts reservations of privacy budget, from 0 on a TPM that never counted any (`agent.governance.budget`).

    A counter of the TPM starts anywhere above every one that it ever had. So the value at which this one began stands
    in a second index, which is locked for good as soon as it is written.

    Args:
        device: The TPM.
    """

    def __init__(self, device: TPMDevice) -> None:
        self._device = device
        self._counter = TPMCounter(device, BUDGET_HANDLE)

    def define(self) -> int:
        """Make both indices where they are missing, or finish what a power cut left half made; at every start.

        Returns:
            How many reservations were counted.

        Raises:
            HardwareError: The TPM is gone or refuses.
        """
        self._device.run(self._define)
        return self.read()

    def read(self) -> int:
        """How many reservations it has counted.

        Raises:
            HardwareError: The TPM is gone, or was never prepared.
        """
        base = self._device.run(lambda esapi: _read_number(esapi, BUDGET_BASE_HANDLE))
        return self._counter.read() - base

    def increment(self) -> int:
        """Count one more; returns how many that makes.

        Raises:
            HardwareError: The TPM is gone, or was never prepared.
        """
        self._counter.increment()
        return self.read()

    @staticmethod
    def _define(esapi: ESAPI) -> None:
        _ensure(esapi, BUDGET_HANDLE, _ATTRIBUTES)
        if not _attributes(esapi, BUDGET_HANDLE) & TPMA_NV.WRITTEN:
            esapi.nv_increment(find(esapi, BUDGET_HANDLE))
        _ensure(esapi, BUDGET_BASE_HANDLE, _BASE_ATTRIBUTES)
        if not _attributes(esapi, BUDGET_BASE_HANDLE) & TPMA_NV.WRITTEN:
            value = _read_number(esapi, BUDGET_HANDLE).to_bytes(8, "big")
            esapi.nv_write(find(esapi, BUDGET_BASE_HANDLE), TPM2B_MAX_NV_BUFFER(value))
        if not _attributes(esapi, BUDGET_BASE_HANDLE) & TPMA_NV.WRITELOCKED:
            esapi.nv_write_lock(find(esapi, BUDGET_BASE_HANDLE))


def _ensure(esapi: ESAPI, handle: int, attributes: int) -> None:
    if not is_there(esapi, handle):
        public = TPMS_NV_PUBLIC(
            nvIndex=handle, nameAlg=TPM2_ALG.SHA256, attributes=attributes, authPolicy=b"", dataSize=8
        )
        esapi.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public), ESYS_TR.OWNER)


def _attributes(esapi: ESAPI, handle: int) -> int:
    public, _ = esapi.nv_read_public(find(esapi, handle))
    return int(public.nvPublic.attributes)


def _read_number(esapi: ESAPI, handle: int) -> int:
    return int.from_bytes(bytes(esapi.nv_read(find(esapi, handle), 8)), "big")
