"""Objects inside a TPM, by handle: finding, making, using them over an open connection.

The storage root key stands at 0x81000001, where the TCG's provisioning guidance puts it.

Source: TCG TPM 2.0 Library Parts 2 and 3; TCG TPM v2.0 Provisioning Guidance 1.0, 7.5.1.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import (
    ESAPI,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
    TSS2_Exception,
)
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_ST, TPMA_OBJECT

from agent.attestation.structures import parse_public
from agent.core.errors import HardwareError
from agent.identity.key import foreign_key
from agent.identity.tpm_device import flushed, is_missing

SRK_HANDLE: Final = 0x81000001
BOUND: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
# NODA: a wrong authorisation elsewhere must not lock the node out. USERWITHAUTH: no person is needed.
UNATTENDED: Final = BOUND | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
_STORAGE_TEMPLATE = ("ecc256:aes128cfb", UNATTENDED | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT)
_SIGNING_TEMPLATE = ("ecc256:ecdsa-sha256:null", UNATTENDED | TPMA_OBJECT.SIGN_ENCRYPT)
NO_SCHEME: Final = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
"""The key's own scheme: ECDSA with SHA-256."""


def is_there(esapi: ESAPI, handle: int) -> bool:
    """Whether anything is at a persistent handle or NV index."""
    try:
        esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        if is_missing(error):
            return False
        raise
    return True


def find(esapi: ESAPI, handle: int) -> ESYS_TR:
    """What is at a persistent handle or NV index.

    Raises:
        HardwareError: Nothing is (`identity.no_key`).
    """
    try:
        return esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        if is_missing(error):
            raise _no_key(handle) from error
        raise


def ensure_srk(esapi: ESAPI) -> ESYS_TR:
    """The storage root key, made if it is not there."""
    if not is_there(esapi, SRK_HANDLE):
        primary, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template(*_STORAGE_TEMPLATE), ESYS_TR.OWNER)
        with flushed(esapi, primary):
            esapi.evict_control(ESYS_TR.OWNER, primary, SRK_HANDLE)
    return find(esapi, SRK_HANDLE)


def create_signing_key(esapi: ESAPI) -> tuple[bytes, TPM2B_PUBLIC]:
    """A new P-256 key under the storage root key: its encrypted private part, and its public part."""
    private, public, *_ = esapi.create(ensure_srk(esapi), TPM2B_SENSITIVE_CREATE(), template(*_SIGNING_TEMPLATE))
    return private, public


def ensure_signing_key(esapi: ESAPI, handle: int) -> None:
    """Make a signing key at a persistent handle, unless something is there."""
    if is_there(esapi, handle):
        return
    private, public = create_signing_key(esapi)
    with flushed(esapi, esapi.load(find(esapi, SRK_HANDLE), private, public)) as key:
        esapi.evict_control(ESYS_TR.OWNER, key, handle)


def template(algorithm: str, attributes: TPMA_OBJECT) -> TPM2B_PUBLIC:
    """A public area to create from, in the short form of tpm2-tools."""
    return TPM2B_PUBLIC.parse(algorithm, objectAttributes=attributes)


def sign(esapi: ESAPI, key: ESYS_TR, message: bytes) -> bytes:
    """ECDSA over SHA-256 of `message`, DER."""
    not_hashed_here = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    return bytes(esapi.sign(key, hashlib.sha256(message).digest(), NO_SCHEME, not_hashed_here))


def public_area(esapi: ESAPI, handle: ESYS_TR) -> bytes:
    """TPMT_PUBLIC of a loaded or persistent key."""
    public, _, _ = esapi.read_public(handle)
    return bytes(public.publicArea.marshal())


def elliptic_key(public_area: bytes) -> ec.EllipticCurvePublicKey:
    """The public key in a TPMT_PUBLIC.

    Raises:
        HardwareError: It is of another kind, so somebody else put it there.
    """
    key = parse_public(public_area).key
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise foreign_key("TPM")
    return key


def _no_key(handle: int) -> HardwareError:
    return HardwareError(
        "identity.no_key",
        f"The TPM holds no key at 0x{handle:x}.",
        next_step="Make one with `seh-agent key init`. If the node was enrolled, its TPM was cleared: enrol it again.",
    )
