"""Keys in a TPM 2.0: made inside it, bound to it, used without a person.

`tpm:<tcti>?key=<handle>&ek=<profile>`: the TCTI as the TSS names it (`device:/dev/tpmrm0` when empty), the node key's
persistent handle, and which endorsement key speaks for the TPM (`p384`, `p256`, `rsa2048`; the best when absent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, TPM2B_PUBLIC, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR
from typing_extensions import override

from agent.attestation.credential import Credential
from agent.attestation.evidence import Evidence
from agent.attestation.structures import parse_public
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.key import (
    Capabilities,
    FoundDevice,
    HardwareKey,
    Person,
    Presence,
    PresenceState,
    foreign_key,
    parse_key_uri,
)
from agent.identity.signing import SigningKey
from agent.identity.tpm_device import DEFAULT_TCTI, TPMDevice, flushed
from agent.identity.tpm_evidence import EK_PROFILES, activate, gather, read_endorsement
from agent.identity.tpm_objects import (
    SRK_HANDLE,
    create_signing_key,
    elliptic_key,
    ensure_signing_key,
    find,
    is_there,
    public_area,
    sign,
)
from agent.statements.roots import KeyKind, hash_for, public_key_bytes

NODE_KEY_HANDLE: Final = 0x81020001
"""In the range that the TCG's registry of reserved handles leaves to the owner."""

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
    place = _parse_uri(uri)
    return TPMKey(uri, place, place.load_public_key())


def init_key(uri: str, _person: Person) -> TPMKey:
    """Make the node key inside the TPM that `uri` names, or open the one that is there.

    Raises:
        HardwareError: The TPM is gone, or its owner authorisation is set (keys are made before that).
    """
    place = _parse_uri(uri)
    place.device.run(lambda esapi: ensure_signing_key(esapi, place.handle))
    return TPMKey(uri, place, place.load_public_key())


def find_devices() -> tuple[FoundDevice, ...]:
    """The TPM behind the kernel's resource manager, if there is one."""
    device = TPMDevice(DEFAULT_TCTI, patience_s=0.0)
    try:
        holds_key = device.run(lambda esapi: is_there(esapi, NODE_KEY_HANDLE))
    except HardwareError:
        return ()
    return (FoundDevice("tpm:", f"TPM at {DEFAULT_TCTI}", holds_key),)


def open_device(uri: str) -> TPMDevice:
    """The TPM that `uri` names, whatever keys it holds."""
    return _parse_uri(uri).device


def new_session_key(device: TPMDevice) -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key inside the TPM; it is gone with this process.

    Raises:
        HardwareError: The TPM is gone or refuses.
    """
    private, public = device.run(create_signing_key)
    return SigningKey(_TransientKey(device, private, public))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands.

    Args:
        device: The TPM.
        handle: The key's persistent handle.
        ek: Which endorsement key speaks for the TPM; None for the best that it has.
    """

    device: TPMDevice
    handle: int
    ek: str | None

    def find(self, esapi: ESAPI) -> ESYS_TR:
        """The key, over an open connection."""
        return find(esapi, self.handle)

    def load_public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half of what stands there now.

        Raises:
            HardwareError: The TPM is gone, or nothing is there (`identity.no_key`).
        """
        return elliptic_key(self.device.run(lambda esapi: public_area(esapi, self.find(esapi))))


class TPMKey(HardwareKey):
    """A P-256 signing key at a persistent handle.

    Args:
        uri: What named it.
        place: Where it stands.
        public_key: What was there when it was opened; another TPM's signatures are refused.
    """

    kind = KeyKind.TPM

    def __init__(self, uri: str, place: Place, public_key: ec.EllipticCurvePublicKey) -> None:
        self.uri = uri
        self._place = place
        self._public_key = public_key

    @property
    def device(self) -> TPMDevice:
        """The TPM that holds it."""
        return self._place.device

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
            found = self._place.load_public_key()
        except HardwareError as error:
            state = _STATE_FOR_CODE.get(error.code, PresenceState.ABSENT)
            return Presence(state, device, error.next_step)
        if found != self._public_key:
            return Presence(PresenceState.FOREIGN, device, "Put this node's own TPM back, or enrol the node again.")
        return Presence(PresenceState.READY, device)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """Show everything that the TPM can: its maker's certificate, this key certified, the boot state quoted.

        Args:
            qualifying_data: (32,), of the exchange, computed over `evidence_names`.
        """
        place = self._place
        parts = self.device.run(lambda esapi: gather(esapi, place.find(esapi), qualifying_data, choice=place.ek))
        return Evidence(self.kind, public_key_bytes(self._public_key), parts)

    @override
    def evidence_names(self) -> tuple[bytes, bytes]:
        """Names of the endorsement key and of the node key."""
        return self.device.run(self._read_names)

    @override
    def activate(self, credential: Credential) -> bytes:
        """Open a relying party's credential; the secret shows that both keys live in one TPM.

        Raises:
            PeerProtocolError: It was made for another TPM or another key (`identity.foreign_credential`).
        """
        try:
            return self.device.run(lambda esapi: activate(esapi, credential, choice=self._place.ek))
        except HardwareError as error:
            if not isinstance(error.__cause__, TSS2_Exception) or error.code != "identity.tpm_refused":
                raise
            raise PeerProtocolError(
                "identity.foreign_credential",
                "The TPM cannot open what the registrar sent: it was made for another box.",
                next_step="Begin the enrolment anew.",
            ) from error

    def _read_names(self, esapi: ESAPI) -> tuple[bytes, bytes]:
        key = parse_public(public_area(esapi, self._place.find(esapi)))
        return read_endorsement(esapi, self._place.ek).public.name, key.name

    def new_session_key(self) -> ec.EllipticCurvePrivateKey:
        """A fresh P-256 key inside the TPM; it is gone with this process."""
        return new_session_key(self.device)

    def _signature_over(self, message: bytes) -> bytes:
        signature = self.device.run(lambda esapi: sign(esapi, self._place.find(esapi), message))
        _check_ours(self._public_key, signature, message)
        return signature


class _TransientKey:
    """A key whose encrypted blob this process keeps and which the TPM sees only while it signs."""

    def __init__(self, device: TPMDevice, private: bytes, public: TPM2B_PUBLIC) -> None:
        self._device = device
        self._private = private
        self._public = public
        self._public_key = elliptic_key(public.publicArea.marshal())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        signature = self._device.run(lambda esapi: self._load_andsign(esapi, message))
        _check_ours(self._public_key, signature, message)
        return signature

    def _load_andsign(self, esapi: ESAPI, message: bytes) -> bytes:
        with flushed(esapi, esapi.load(find(esapi, SRK_HANDLE), self._private, self._public)) as key:
            return sign(esapi, key, message)


def _check_ours(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    # A persistent handle names a place, not a key: another TPM may answer at the same address.
    try:
        public_key.verify(signature, message, ec.ECDSA(hash_for(public_key)))
    except InvalidSignature:
        raise foreign_key("TPM") from None


def _parse_uri(uri: str) -> Place:
    parsed = parse_key_uri(uri, options=frozenset({"key", "ek"}))
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
    ek = parsed.options.get("ek")
    if ek is not None and ek not in EK_PROFILES:
        raise OperatorError(
            "identity.unknown_ek",
            f"{ek[:20]!r} names no kind of endorsement key.",
            next_step=f"Use one of {', '.join(EK_PROFILES)}, or leave it out.",
        )
    return Place(TPMDevice(parsed.target or DEFAULT_TCTI), handle, ek)
