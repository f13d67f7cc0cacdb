"""Keys in whatever speaks PKCS#11: hardware security modules, and cards that are not PIV.

`pkcs11:token=<label>;object=<label>?module-path=<library>&pin-source=<file>`, after RFC 7512. With `pin-source` (a file
that only the service reads, a systemd credential say) the key works unattended; without it, a person gives the PIN.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pkcs11
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11._pkcs11 import lib as Module  # noqa: N812 - the class has a small name
from pkcs11.constants import TokenFlag
from pkcs11.exceptions import (
    NoSuchKey,
    NoSuchToken,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
)
from pkcs11.types import PublicKey, Session, SignMixin, Token
from pkcs11.util.ec import encode_ec_public_key, encode_ecdsa_signature, encode_named_curve_parameters
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
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
from agent.statements.roots import KeyKind, hash_for

log = structlog.get_logger()

DEFAULT_OBJECT: Final = "secur-e-health node"
_STATE_FOR_CODE: Final = {
    "identity.no_key": PresenceState.EMPTY,
    "identity.foreign_key": PresenceState.FOREIGN,
    "identity.pin_blocked": PresenceState.BLOCKED,
}
_MODULES = threading.Lock()
"""A PKCS#11 module's state belongs to the whole process (login, initialisation), so one call at a time uses it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key is, or is to be made.

    Args:
        module: The maker's shared library.
        token: Label of the token.
        label: Label of the key pair.
        pin_source: File with the PIN; None where a person gives it.
    """

    module: Path
    token: str
    label: str
    pin_source: Path | None


def find_devices() -> tuple[FoundDevice, ...]:
    """None: a module is only known by its URI."""
    return ()


def open_key(uri: str, person: Person) -> PKCS11Key:
    """Open the key that `uri` names.

    Raises:
        HardwareError: The module, the token or the key is not there.
        OperatorError: The URI is incomplete, or the key could be read out of its token.
    """
    place = _parse_uri(uri)
    with _token(place) as token, token.open() as session:
        return PKCS11Key(uri, place, person, _load_public_key(session, place.label))


def init_key(uri: str, person: Person) -> PKCS11Key:
    """Make the key that `uri` names inside its token, or open the one that is there.

    Raises:
        HardwareError: The module or the token is not there, or cannot make such a key.
        OperatorError: Nobody is there, or the PIN is wrong.
    """
    place = _parse_uri(uri)
    with _token(place) as token:
        with token.open() as session:
            is_there = _has_key(session, place.label)
        if not is_there:
            with _logged_in(token, place, person, writable=True) as session:
                _generate(session, place.label)
                log.info("key_made", token=place.token, label=place.label)
    return open_key(uri, person)


class PKCS11Key(HardwareKey):
    """A P-256 key pair in one token.

    Args:
        uri: What named it.
        place: The same, parsed.
        person: Who is asked for the PIN where no file holds it.
        public_key: What the token held when it was opened; another key of the same name is refused.
    """

    kind = KeyKind.PKCS11

    def __init__(self, uri: str, place: Place, person: Person, public_key: ec.EllipticCurvePublicKey) -> None:
        self.uri = uri
        self._place = place
        self._person = person
        self._public_key = public_key

    @property
    def capabilities(self) -> Capabilities:
        """It signs; unattended where a file holds the PIN."""
        return Capabilities(signs=True, unattended=self._place.pin_source is not None)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    def presence(self) -> Presence:
        """Whether the token is there and holds this very key; no PIN is needed for that."""
        device = f"PKCS#11 token {self._place.token!r}"
        try:
            with _token(self._place) as token:
                if token.flags & TokenFlag.USER_PIN_LOCKED:
                    raise _blocked(self._place)
                with token.open() as session:
                    if _load_public_key(session, self._place.label) != self._public_key:
                        raise foreign_key("token")
                attempts = 1 if token.flags & TokenFlag.USER_PIN_FINAL_TRY else None
                return Presence(PresenceState.READY, device, attempts_remaining=attempts)
        except SecureHealthError as error:
            return Presence(_STATE_FOR_CODE.get(error.code, PresenceState.ABSENT), device, error.next_step)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """Refuse: PKCS#11 has no evidence that all makers share."""
        raise no_evidence(self.kind)

    @override
    def change_pin(self) -> None:
        """Ask the person for the token's PIN and a new one, and change it."""
        with _token(self._place) as token:
            _check_attempts(token, self._place, self._person)
            current = self._person.ask_pin(f"token {self._place.token}", attempts_remaining=None)
            new = self._person.ask_new_pin(f"token {self._place.token}")
            with _pin_failures(token, self._place), token.open(rw=True, user_pin=current) as session:
                session.set_pin(current, new)
        log.info("pin_changed", token=self._place.token)

    def _signature_over(self, message: bytes) -> bytes:
        digest = hashlib.new(hash_for(self._public_key).name, message).digest()
        with _token(self._place) as token:
            with token.open() as session:  # before a foreign token sees a PIN
                if _load_public_key(session, self._place.label) != self._public_key:
                    raise foreign_key("token")
            with _logged_in(token, self._place, self._person) as session:
                signature = _sign(session, self._place.label, digest)
        try:
            self._public_key.verify(signature, message, ec.ECDSA(hash_for(self._public_key)))
        except InvalidSignature:
            raise foreign_key("token") from None
        return signature


@contextmanager
def _token(place: Place) -> Iterator[Token]:
    """Hold the module, started for this use alone: it forgets logins at its end, and sees tokens come and go."""
    with _MODULES:
        library = _start_module(place)
        try:
            yield library.get_token(token_label=place.token)
        except NoSuchToken as error:
            raise _no_token(place) from error
        except PKCS11Error as error:
            raise _token_failure(place, error) from error
        finally:
            library.finalize()


def _start_module(place: Place) -> Module:
    try:
        return pkcs11.lib(str(place.module))
    except (PKCS11Error, RuntimeError, OSError) as error:
        raise HardwareError(
            "identity.no_module",
            f"The PKCS#11 module {place.module} cannot be loaded.",
            next_step="Install the device maker's library, or correct `module-path` in the key URI.",
        ) from error


@contextmanager
def _logged_in(token: Token, place: Place, person: Person, *, writable: bool = False) -> Iterator[Session]:
    _check_attempts(token, place, person)
    if place.pin_source is None:
        pin = person.ask_pin(f"token {place.token}", attempts_remaining=_attempts(token))
    else:
        pin = _load_pin(place.pin_source)
    with _pin_failures(token, place):
        session = token.open(rw=writable, user_pin=pin)
    del pin
    with session:
        yield session


@contextmanager
def _pin_failures(token: Token, place: Place) -> Iterator[None]:
    try:
        yield
    except PinLocked as error:
        raise _blocked(place) from error
    except (PinIncorrect, PinInvalid, PinLenRange) as error:
        log.warning("pin_rejected", token=place.token)
        raise OperatorError(
            "identity.wrong_pin",
            f"The PIN of the token {place.token!r} is wrong.",
            next_step="Try again with care: after too many wrong ones the token blocks itself.",
            attempts_remaining=_attempts(token),
        ) from error


def _attempts(token: Token) -> int | None:
    # PKCS#11 3.0, 3.2: a token tells no number, only that it is the last one.
    return 1 if token.flags & TokenFlag.USER_PIN_FINAL_TRY else None


def _check_attempts(token: Token, place: Place, person: Person) -> None:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise _blocked(place)
    if _attempts(token) == 1 and not person.risks_last_attempt:
        raise OperatorError(
            "identity.last_pin_attempt",
            f"The token {place.token!r} has one PIN attempt left; a wrong PIN would block it.",
            next_step="Make sure of the PIN, then repeat the command with `--force`.",
            attempts_remaining=1,
        )


def _has_key(session: Session, label: str) -> bool:
    wanted = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: label}
    return any(True for _ in session.get_objects(wanted))


def _load_public_key(session: Session, label: str) -> ec.EllipticCurvePublicKey:
    try:
        found = session.get_key(ObjectClass.PUBLIC_KEY, label=label)
    except NoSuchKey as error:
        raise HardwareError(
            "identity.no_key",
            f"The token holds no key {label!r}.",
            next_step="Make one with `seh-agent key init`. If the node was enrolled, enrol it again.",
        ) from error
    if not isinstance(found, PublicKey) or found.key_type is not KeyType.EC:
        raise foreign_key("token")
    key = load_der_public_key(encode_ec_public_key(found))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise foreign_key("token")
    return key


def _generate(session: Session, label: str) -> None:
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    # PKCS#11 3.0, 4.9: made inside, and never to be had outside.
    private = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.SIGN: True, Attribute.DERIVE: False}
    parameters.generate_keypair(store=True, label=label, private_template=private)


def _sign(session: Session, label: str, digest: bytes) -> bytes:
    key = session.get_key(ObjectClass.PRIVATE_KEY, label=label)
    if not isinstance(key, SignMixin):
        raise foreign_key("token")
    if key[Attribute.EXTRACTABLE] or not key[Attribute.LOCAL]:
        raise HardwareError(
            "identity.extractable_key",
            "The key was brought into its token from outside, or can be taken out of it, so it shows nothing.",
            next_step="Remove it, and make one inside with `seh-agent key init`.",
        )
    return encode_ecdsa_signature(key.sign(digest, mechanism=Mechanism.ECDSA))


def _parse_uri(uri: str) -> Place:
    parsed = parse_key_uri(uri, options=frozenset({"module-path", "pin-source"}))
    # RFC 7512, 2.3: path attributes, separated by semicolons, percent-encoded.
    attributes = dict(part.partition("=")[::2] for part in parsed.target.split(";") if part)
    module, pin_source = parsed.options.get("module-path"), parsed.options.get("pin-source")
    if not attributes.get("token") or module is None or not set(attributes) <= {"token", "object"}:
        raise OperatorError(
            "identity.bad_pkcs11_uri",
            "The key URI does not say which token is meant, or which module speaks to it.",
            next_step="Write pkcs11:token=<name>;object=<key>?module-path=<library>.",
        )
    return Place(
        Path(module),
        unquote(attributes["token"]),
        unquote(attributes.get("object", "")) or DEFAULT_OBJECT,
        None if pin_source is None else Path(pin_source),
    )


def _load_pin(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            "identity.no_pin_source",
            f"The file {path} with the token's PIN cannot be read.",
            next_step="Check `pin-source` in the key URI, and who may read that file.",
        ) from error


def _token_failure(place: Place, error: PKCS11Error) -> HardwareError:
    return HardwareError(
        "identity.token_mute",
        f"The PKCS#11 token {place.token!r} does not answer ({type(error).__name__}).",
        next_step="Check that the device is connected; it is tried again.",
    )


def _no_token(place: Place) -> HardwareError:
    return HardwareError(
        "identity.no_token",
        f"There is no PKCS#11 token {place.token!r}.",
        next_step="Connect the device, or correct the token's name in the key URI.",
    )


def _blocked(place: Place) -> HardwareError:
    return HardwareError(
        "identity.pin_blocked",
        f"The PIN of the token {place.token!r} is blocked: it was entered wrongly too often.",
        next_step="Have the token's security officer set a new PIN.",
    )
