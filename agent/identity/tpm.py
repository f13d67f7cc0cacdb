"""Keys in a TPM 2.0: made inside it, bound to it, used without a person.

`tpm:<tcti>?key=<handle>`: the TCTI as the TSS names it (`device:/dev/tpmrm0` when empty), and the key's persistent
handle. The storage root key stands at 0x81000001, where the TCG's provisioning guidance puts it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import (
    ESAPI,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
    TSS2_Exception,
)
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_ST, TPMA_OBJECT
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import (
    Capabilities,
    FoundDevice,
    HardwareKey,
    Person,
    Presence,
    PresenceState,
    foreign_key,
    no_evidence,
    parse_key_uri,
)
from agent.identity.signing import SigningKey
from agent.identity.tpm_device import DEFAULT_TCTI, TPMDevice, flushed, is_missing
from agent.statements.roots import KeyKind, hash_for

SRK_HANDLE: Final = 0x81000001
NODE_KEY_HANDLE: Final = 0x81020001
"""In the range that the TCG's registry of reserved handles leaves to the owner."""

_BOUND = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
# NODA: a wrong authorisation elsewhere must not lock the node out. USERWITHAUTH: no person is needed.
_UNATTENDED = _BOUND | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
_STORAGE_TEMPLATE = ("ecc256:aes128cfb", _UNATTENDED | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT)
_SIGNING_TEMPLATE = ("ecc256:ecdsa-sha256:null", _UNATTENDED | TPMA_OBJECT.SIGN_ENCRYPT)


_STATE_FOR_CODE = {
    "identity.tpm_busy": PresenceState.BUSY,
    "identity.tpm_locked": PresenceState.BLOCKED,
    "identity.no_key": PresenceState.EMPTY,
    "identity.foreign_key": PresenceState.FOREIGN,
}


def open_key(uri: str, _person: Person) -> TPMKey:
    """Open the node key in the TPM that `uri` names.

    Raises:
        HardwareError: The TPM is gone, or holds no such key.
    """
    device, handle = _parse_uri(uri)
    return TPMKey(uri, device, handle, load_public_key_at(device, handle))


def init_key(uri: str, _person: Person) -> TPMKey:
    """Make the node key inside the TPM that `uri` names, or open the one that is there.

    Raises:
        HardwareError: The TPM is gone, or its owner authorisation is set (keys are made before that).
    """
    device, handle = _parse_uri(uri)
    device.run(lambda esapi: _ensure_key(esapi, handle))
    return TPMKey(uri, device, handle, load_public_key_at(device, handle))


def find_devices() -> tuple[FoundDevice, ...]:
    """The TPM behind the kernel's resource manager, if there is one."""
    device = TPMDevice(DEFAULT_TCTI, patience_s=0.0)
    try:
        holds_key = device.run(lambda esapi: _is_there(esapi, NODE_KEY_HANDLE))
    except HardwareError:
        return ()
    return (FoundDevice("tpm:", f"TPM at {DEFAULT_TCTI}", holds_key),)


class TPMKey(HardwareKey):
    """A P-256 signing key at a persistent handle.

    Args:
        uri: What named it.
        device: The TPM.
        handle: Persistent handle.
        public_key: What was there when it was opened; another TPM's signatures are refused.
    """

    kind = KeyKind.TPM

    def __init__(self, uri: str, device: TPMDevice, handle: int, public_key: ec.EllipticCurvePublicKey) -> None:
        self.uri = uri
        self.device = device
        self._handle = handle
        self._public_key = public_key

    @property
    def capabilities(self) -> Capabilities:
        """All of them: it signs, attests, seals and measures without a person."""
        return Capabilities(signs=True, attests=True, unattended=True, holds_sessions=True, seals=True, measures=True)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half, P-256."""
        return self._public_key

    def presence(self) -> Presence:
        """Whether the key would answer now."""
        device = f"TPM at {self.device.tcti}"
        try:
            found = load_public_key_at(self.device, self._handle)
        except HardwareError as error:
            state = _STATE_FOR_CODE.get(error.code, PresenceState.ABSENT)
            return Presence(state, device, error.next_step)
        if found != self._public_key:
            return Presence(PresenceState.FOREIGN, device, "Put this node's own TPM back, or enrol the node again.")
        return Presence(PresenceState.READY, device)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """Show evidence that the key lives in the TPM."""
        raise no_evidence(self.kind)

    def new_session_key(self) -> ec.EllipticCurvePrivateKey:
        """A fresh P-256 key inside the TPM; it is gone with this process."""
        private, public = self.device.run(_create_signing_key)
        return SigningKey(_TransientKey(self.device, private, public))

    def _signature_over(self, message: bytes) -> bytes:
        signature = self.device.run(lambda esapi: _sign(esapi, _find(esapi, self._handle), message))
        _check_ours(self._public_key, signature, message)
        return signature


class _TransientKey:
    """A key whose encrypted blob this process keeps and which the TPM sees only while it signs."""

    def __init__(self, device: TPMDevice, private: bytes, public: TPM2B_PUBLIC) -> None:
        self._device = device
        self._private = private
        self._public = public
        self._public_key = _to_public_key(public)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        signature = self._device.run(lambda esapi: self._load_and_sign(esapi, message))
        _check_ours(self._public_key, signature, message)
        return signature

    def _load_and_sign(self, esapi: ESAPI, message: bytes) -> bytes:
        with flushed(esapi, esapi.load(_find(esapi, SRK_HANDLE), self._private, self._public)) as key:
            return _sign(esapi, key, message)


def load_public_key_at(device: TPMDevice, handle: int) -> ec.EllipticCurvePublicKey:
    """Read the public half of the key at a persistent handle.

    Raises:
        HardwareError: The TPM is gone, or nothing is there (`identity.no_key`).
    """
    return device.run(lambda esapi: _to_public_key(esapi.read_public(_find(esapi, handle))[0]))


def _ensure_key(esapi: ESAPI, handle: int) -> None:
    if _is_there(esapi, handle):
        return
    private, public = _create_signing_key(esapi)
    with flushed(esapi, esapi.load(_find(esapi, SRK_HANDLE), private, public)) as key:
        esapi.evict_control(ESYS_TR.OWNER, key, handle)


def _ensure_srk(esapi: ESAPI) -> ESYS_TR:
    if not _is_there(esapi, SRK_HANDLE):
        primary, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), _template(*_STORAGE_TEMPLATE), ESYS_TR.OWNER)
        with flushed(esapi, primary):
            esapi.evict_control(ESYS_TR.OWNER, primary, SRK_HANDLE)
    return _find(esapi, SRK_HANDLE)


def _create_signing_key(esapi: ESAPI) -> tuple[bytes, TPM2B_PUBLIC]:
    private, public, *_ = esapi.create(_ensure_srk(esapi), TPM2B_SENSITIVE_CREATE(), _template(*_SIGNING_TEMPLATE))
    return private, public


def _template(algorithm: str, attributes: TPMA_OBJECT) -> TPM2B_PUBLIC:
    return TPM2B_PUBLIC.parse(algorithm, objectAttributes=attributes)


def _is_there(esapi: ESAPI, handle: int) -> bool:
    try:
        esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        if is_missing(error):
            return False
        raise
    return True


def _find(esapi: ESAPI, handle: int) -> ESYS_TR:
    try:
        return esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        if is_missing(error):
            raise _no_key(handle) from error
        raise


def _sign(esapi: ESAPI, key: ESYS_TR, message: bytes) -> bytes:
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # the key's own: ECDSA with SHA-256
    not_hashed_here = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    return bytes(esapi.sign(key, hashlib.sha256(message).digest(), scheme, not_hashed_here))


def _to_public_key(public: TPM2B_PUBLIC) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(public.to_der())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise foreign_key("TPM")
    return key


def _check_ours(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    # A persistent handle names a place, not a key: another TPM may answer at the same address.
    try:
        public_key.verify(signature, message, ec.ECDSA(hash_for(public_key)))
    except InvalidSignature:
        raise foreign_key("TPM") from None


def _parse_uri(uri: str) -> tuple[TPMDevice, int]:
    parsed = parse_key_uri(uri, options=frozenset({"key"}))
    text = parsed.options.get("key", hex(NODE_KEY_HANDLE))
    try:
        handle = int(text, 16)
    except ValueError:
        handle = 0
    # TPM 2.0 Part 2, 7.4: persistent objects; the upper half belongs to the platform.
    if not 0x81000000 <= handle < 0x81800000 or handle == SRK_HANDLE:
        raise OperatorError(
            "identity.bad_handle",
            f"{text[:20]!r} is no persistent handle that a node key may have.",
            next_step="Leave `key=` out, or give one from 0x81020000 to 0x817fffff.",
        )
    return TPMDevice(parsed.target or DEFAULT_TCTI), handle


def _no_key(handle: int) -> HardwareError:
    return HardwareError(
        "identity.no_key",
        f"The TPM holds no key at 0x{handle:x}.",
        next_step="Make one with `seh-agent key init`. If the node was enrolled, its TPM was cleared: enrol it again.",
    )
