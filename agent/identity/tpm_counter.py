"""A monotonic counter in the TPM: it outlives disks, and nobody can turn it back.

Source: TPM 2.0 Library Part 1, 37.2.4 (counters never go back, even when undefined and defined again); Part 3, 31.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tpm2_pytss import ESAPI, TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_NT, TPMA_NV

from agent.identity.tpm_device import TPMDevice
from agent.identity.tpm_evidence import ensure_ak
from agent.identity.tpm_objects import NO_SCHEME, find, is_there

COUNTER_HANDLE: Final = 0x01800001
"""In the range of NV indices that the owner assigns (TCG registry of reserved handles, 2.2.2)."""

_ATTRIBUTES = (
    TPM2_NT.COUNTER << TPMA_NV.TPM2_NT_SHIFT | TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.OWNERREAD | TPMA_NV.NO_DA
)


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
            public = TPMS_NV_PUBLIC(
                nvIndex=self._handle, nameAlg=TPM2_ALG.SHA256, attributes=_ATTRIBUTES, authPolicy=b"", dataSize=8
            )
            esapi.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public), ESYS_TR.OWNER)
            return self._increment(esapi)
        return self._read(esapi)

    def _read(self, esapi: ESAPI) -> int:
        return int.from_bytes(bytes(esapi.nv_read(find(esapi, self._handle), 8)), "big")

    def _increment(self, esapi: ESAPI) -> int:
        esapi.nv_increment(find(esapi, self._handle))
        return self._read(esapi)

    def _certify(self, esapi: ESAPI, qualifying_data: bytes) -> CounterCertificate:
        index, ak = find(esapi, self._handle), ensure_ak(esapi)
        info, signature = esapi.nv_certify(ak, index, qualifying_data, NO_SCHEME, 8)
        public, _ = esapi.nv_read_public(index)
        return CounterCertificate(bytes(info), signature.marshal(), public.nvPublic.marshal())
