"""Keys in a FIDO2 authenticator: a person who touches it, and is verified by it, certifies a session key.

`fido2:<record>?reader=<name>`: the record is the file that remembers the credential; with `reader`, the authenticator
is looked for in card readers of that name only. A FIDO2 key signs no message as such: it signs its own data together
with a hash, and `prove` makes that hash of the statement.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.ctap import CtapError
from fido2.ctap2.base import AssertionResponse, AttestationResponse
from fido2.webauthn import AttestationObject
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.attestation.fido2 import attested_key, registration_hash
from agent.attestation.possession import POSSESSION_TYPE
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from agent.identity import fido2_pin
from agent.identity.authenticators import Authenticator, hold_authenticator, visit_authenticators
from agent.identity.fido2_record import CredentialRecord, load_record, store_record
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
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import (
    NODE_RP_ID,
    EvidenceClass,
    FIDO2Terms,
    KeyKind,
    RootKey,
    encode_assertion,
    public_key_bytes,
)

log = structlog.get_logger()

DEFAULT_RECORD: Final = Path("/var/lib/secur-e-health/fido2-key.json")
_ES256: Final = -7
_PRESENCE_TIMEOUT_S = 0.3
_ZERO_HASH: Final = bytes(32)  # asks whether a credential is there; a signature over it counts for nothing
_STATE_FOR_CODE: Final = {
    "identity.card_busy": PresenceState.BUSY,
    "identity.foreign_key": PresenceState.FOREIGN,
    "identity.pin_blocked": PresenceState.BLOCKED,
}


def find_devices() -> tuple[FoundDevice, ...]:
    """The authenticators on this box, on USB and in card readers."""
    found: list[FoundDevice] = []
    record: CredentialRecord | None = None
    with contextlib.suppress(SecureHealthError):
        record = load_record(DEFAULT_RECORD)

    def note(held: Authenticator) -> None:
        options = f"?reader={quote(held.reader)}" if held.reader else ""
        holds_key = record is not None and knows(held, _credential_of(record))
        found.append(FoundDevice(f"fido2:{DEFAULT_RECORD}{options}", held.device, holds_key))

    visit_authenticators("", note)
    return tuple(found)


def open_key(uri: str, person: Person) -> FIDO2Key:
    """Open the key whose record `uri` names; the authenticator is only needed when it shall prove something.

    Raises:
        HardwareError: There is no such record (`identity.no_key`).
        OperatorError: It cannot be read.
    """
    path, reader = _parse_uri(uri)
    return FIDO2Key(uri, reader, person, load_record(path))


def init_key(uri: str, person: Person) -> FIDO2Key:
    """Make a key in the authenticator that is plugged in, or open the one on record.

    Raises:
        HardwareError: There is no authenticator, or it cannot make such a key.
        OperatorError: Nobody is there, or the PIN is wrong.
    """
    path, reader = _parse_uri(uri)
    if not path.exists():
        _check_single(reader)
        with hold_authenticator(reader, lambda _: None) as held:
            store_record(path, _register(held, person))
    return open_key(uri, person)


class FIDO2Key(HardwareKey):
    """One credential in one authenticator.

    Args:
        uri: What named it.
        reader: Part of a card reader's name; empty for everywhere.
        person: Who touches, and knows the PIN.
        record: The credential.
    """

    kind = KeyKind.FIDO2

    def __init__(self, uri: str, reader: str, person: Person, record: CredentialRecord) -> None:
        self.uri = uri
        self._reader = reader
        self._person = person
        self._record = record
        self._credential = _credential_of(record)
        self._public_key = record.load_key()
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """It proves, with a person; it signs no other message."""
        return Capabilities(signs=False, attests=True)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half, P-256."""
        return self._public_key

    @override
    def root(self, evidence: EvidenceClass = EvidenceClass.NONE) -> RootKey:
        """The key as others put it on record, with its terms."""
        terms = FIDO2Terms(self._record.rp_id, user_verified=True, last_count=self._record.count)
        return RootKey(self.kind, public_key_bytes(self._public_key), evidence, terms)

    def presence(self) -> Presence:
        """Whether the authenticator is there, and how many PIN attempts are left; it is not touched for that."""
        try:
            with self._hold(busy_timeout_s=_PRESENCE_TIMEOUT_S) as held:
                attempts = fido2_pin.pin_attempts(held)
                if attempts == 0:
                    raise fido2_pin.pin_blocked(held.device)
                return Presence(PresenceState.READY, held.device, attempts_remaining=attempts)
        except SecureHealthError as error:
            attempts = 0 if error.code == "identity.pin_blocked" else None
            state = _STATE_FOR_CODE.get(error.code, PresenceState.ABSENT)
            return Presence(state, "security key", error.next_step, attempts_remaining=attempts)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """The maker's word from the registration, and a signature over `qualifying_data`."""
        attestation = AttestationObject(bytes.fromhex(self._record.attestation_object))
        if not attestation.att_stmt.get("x5c"):
            raise no_evidence(self.kind)
        parts: Mapping[str, bytes] = {
            "attestation_object": bytes(attestation),
            "registration_challenge": bytes.fromhex(self._record.registration_challenge),
            "possession": self._signature_over(pre_authentication_encoding(POSSESSION_TYPE, qualifying_data)),
        }
        return Evidence(self.kind, public_key_bytes(self._public_key), parts)

    @override
    def change_pin(self) -> None:
        """Ask for the authenticator's PIN and a new one, and change it."""
        with self._lock, self._hold() as held:
            fido2_pin.change_pin(held, self._person)

    def _signature_over(self, message: bytes) -> bytes:
        client_data_hash = hashlib.sha256(message).digest()
        with self._lock, self._hold() as held:
            assertion = get_assertion(held, self._person, self._credential, client_data_hash)
        self._check(assertion, client_data_hash)
        return encode_assertion(bytes(assertion.auth_data), assertion.signature)

    def _check(self, assertion: AssertionResponse, client_data_hash: bytes) -> None:
        try:
            signed = bytes(assertion.auth_data) + client_data_hash
            self._public_key.verify(assertion.signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise foreign_key("security key") from None
        if not (assertion.auth_data.is_user_present() and assertion.auth_data.is_user_verified()):
            raise _not_present()

    def _hold(self, *, busy_timeout_s: float | None = None) -> AbstractContextManager[Authenticator]:
        def objection(held: Authenticator) -> HardwareError | None:
            return None if knows(held, self._credential) else foreign_key("security key")

        return hold_authenticator(self._reader, objection, busy_timeout_s=busy_timeout_s)


def _register(held: Authenticator, person: Person) -> CredentialRecord:
    held = fido2_pin.set_first_pin(held, person)
    challenge = secrets.token_bytes(32)
    client_data_hash = registration_hash(NODE_RP_ID, challenge)
    made = _make_credential(held, person, client_data_hash)
    credential = made.auth_data.credential_data
    try:
        public_key = attested_key(made.auth_data)
    except PeerProtocolError as error:
        raise _cannot_make(held) from error
    if credential is None:
        raise _cannot_make(held)
    log.info("key_made", device=held.device, aaguid=str(credential.aaguid))
    return CredentialRecord(
        rp_id=NODE_RP_ID,
        credential_id=credential.credential_id.hex(),
        public_key=public_key.hex(),
        attestation_object=AttestationObject.create(made.fmt, made.auth_data, made.att_stmt).hex(),
        registration_challenge=challenge.hex(),
        count=made.auth_data.counter,
    )


def _make_credential(held: Authenticator, person: Person, client_data_hash: bytes) -> AttestationResponse:
    user = fido2_pin.verify_user(held, person, client_data_hash, permission=fido2_pin.MAKE_CREDENTIAL, rp_id=NODE_RP_ID)
    prompt = fido2_pin.TouchPrompt(person, held.device)
    try:
        return held.ctap.make_credential(
            client_data_hash,
            {"id": NODE_RP_ID, "name": "Secur-e-Health node"},
            {"id": secrets.token_bytes(16), "name": "node", "displayName": "node"},
            [{"type": "public-key", "alg": _ES256}],
            options={"rk": False},
            pin_uv_param=user.parameter,
            pin_uv_protocol=user.protocol,
            event=prompt.cancelled,
            on_keepalive=prompt,
        )
    except CtapError as error:
        raise prompt.failure(error) from error


@dataclass(frozen=True, slots=True)
class Credential:
    """What an authenticator is asked for a signature by.

    Args:
        rp_id: The relying party.
        id: As its registration gave it.
    """

    rp_id: str
    id: bytes

    @property
    def allow_list(self) -> list[Mapping[str, object]]:
        """As CTAP takes it."""
        return [{"type": "public-key", "id": self.id}]


def get_assertion(
    held: Authenticator, person: Person, credential: Credential, client_data_hash: bytes
) -> AssertionResponse:
    """Have an authenticator sign, with its user verified and a touch.

    Args:
        held: The authenticator.
        person: Who knows the PIN or has the finger.
        credential: Which of its keys.
        client_data_hash: (32,).

    Raises:
        OperatorError: The PIN is wrong, or nobody is there.
        HardwareError: It does not sign.
    """
    rp_id = credential.rp_id
    user = fido2_pin.verify_user(held, person, client_data_hash, permission=fido2_pin.GET_ASSERTION, rp_id=rp_id)
    prompt = fido2_pin.TouchPrompt(person, held.device)
    try:
        return held.ctap.get_assertion(
            rp_id,
            client_data_hash,
            credential.allow_list,
            pin_uv_param=user.parameter,
            pin_uv_protocol=user.protocol,
            event=prompt.cancelled,
            on_keepalive=prompt,
        )
    except CtapError as error:
        raise prompt.failure(error) from error


def knows(held: Authenticator, credential: Credential) -> bool:
    """Whether the authenticator holds the credential; nobody need touch it for that (CTAP 2.1, 6.2, "up" false)."""
    try:
        held.ctap.get_assertion(credential.rp_id, _ZERO_HASH, credential.allow_list, options={"up": False})
    except CtapError as error:
        # One that verifies its user for everything does not say; its signature will.
        return error.code == CtapError.ERR.PUAT_REQUIRED
    return True


def _credential_of(record: CredentialRecord) -> Credential:
    return Credential(record.rp_id, bytes.fromhex(record.credential_id))


def _check_single(reader: str) -> None:
    devices: list[str] = []
    visit_authenticators(reader, lambda held: devices.append(held.device))
    if len(devices) > 1:
        raise OperatorError(
            "identity.several_authenticators",
            f"Several security keys are there: {' and '.join(devices)}.",
            next_step="Leave only the one in that shall hold this node's key.",
        )


def _parse_uri(uri: str) -> tuple[Path, str]:
    parsed = parse_key_uri(uri, options=frozenset({"reader"}))
    return Path(parsed.target) if parsed.target else DEFAULT_RECORD, parsed.options.get("reader", "")


def _cannot_make(held: Authenticator) -> HardwareError:
    return HardwareError(
        "identity.cannot_make_key",
        f"The {held.device} cannot make a key of the kind that is needed (ES256 on P-256).",
        next_step="Use another security key.",
    )


def _not_present() -> HardwareError:
    return HardwareError(
        "identity.person_not_shown",
        "The security key signed without showing that a person was there and was verified.",
        next_step="Use another security key: this one's signatures would be refused everywhere.",
    )
