"""A node's key, whatever holds it: TPM, smartcard, FIDO2 authenticator, or (development only) a file.

The one operation that all kinds share is `prove`: a statement goes in, a signed statement comes out. A FIDO2 key cannot
sign a digest, so nothing above this module may assume `sign`; where only short-lived keys sign (session certificates),
it need not.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, cast
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from agent.attestation.credential import Credential
from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.signing import SigningKey
from agent.statements.envelope import Proof, Statement, pre_authentication_encoding
from agent.statements.roots import EvidenceClass, KeyKind, RootKey, key_id, public_key_bytes


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a key can do; the wiring asks, and never guesses from the kind.

    Args:
        signs: It signs any message (`sign`, `signing_key`), not statements alone.
        attests: It can show evidence that it lives in hardware.
        unattended: It proves without a person: no PIN, no touch.
        holds_sessions: It can hold short-lived session keys beside the root (`new_session_key`).
        seals: It can seal secrets to itself and to the platform's state.
        measures: It can quote the platform's boot state and a monotonic counter.
    """

    signs: bool
    attests: bool = False
    unattended: bool = False
    holds_sessions: bool = False
    seals: bool = False
    measures: bool = False


class PresenceState(StrEnum):
    """Whether a key would answer now."""

    READY = "ready"
    BUSY = "busy"  # somebody else holds it; waiting helps
    ABSENT = "absent"  # no device, reader, card or file
    EMPTY = "empty"  # the device is there, the key is not
    FOREIGN = "foreign"  # a device is there, but it holds another key
    BLOCKED = "blocked"  # the device refuses until a person unblocks it (PIN, lock-out)


@dataclass(frozen=True, slots=True)
class Presence:
    """A key's state and what to do about it, readable by a technician.

    Args:
        state: Whether it would answer now.
        device: What holds it, in plain words with maker and serial where known.
        next_step: What a person should do; empty when ready.
        attempts_remaining: PIN attempts left, where the device has a PIN and says so.
    """

    state: PresenceState
    device: str
    next_step: str = ""
    attempts_remaining: int | None = None


@dataclass(frozen=True, slots=True)
class KeyURI:
    """A parsed key URI: `<scheme>:<target>?<option>=<value>&...`."""

    scheme: str
    target: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A device on this box that holds, or could hold, a key.

    Args:
        uri: What `open_key` or `init_key` would take.
        device: What it is, in plain words with maker and serial where known.
        holds_key: Whether a key of ours is in it already.
    """

    uri: str
    device: str
    holds_key: bool


class Person(Protocol):
    """Whoever stands at the box; console and terminal implement it."""

    @property
    def risks_last_attempt(self) -> bool:
        """Whether the person insists on a PIN attempt although it is the last one (`--force`)."""
        ...

    def ask_new_pin(self, device: str) -> str:
        """Ask for a new PIN, twice; used for one call and never kept or logged."""
        ...

    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        """Ask for the device's PIN. The answer is used for one call and never kept or logged."""
        ...

    def ask_touch(self, device: str) -> None:
        """Say that the device waits for a touch; returns at once."""
        ...


class Nobody(Person):
    """No person is there: the answer for unattended work."""

    @property
    @override
    def risks_last_attempt(self) -> bool:
        """Never."""
        return False

    @override
    def ask_new_pin(self, device: str) -> str:
        """Refuse."""
        raise _person_needed(device, "a new PIN")

    @override
    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        """Refuse."""
        raise _person_needed(device, "its PIN")

    @override
    def ask_touch(self, device: str) -> None:
        """Refuse."""
        raise _person_needed(device, "a touch")


class HardwareKey(ABC):
    """One key in one place. Thread-safe; every call finds the device anew, so nothing needs to be closed or reopened.

    All methods may raise `HardwareError` (device gone, busy, or holding another key) and, for kinds that need one,
    `OperatorError` with code `identity.person_needed` when no person is there.
    """

    kind: KeyKind
    uri: str

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this key can do."""

    @abstractmethod
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half: P-256 (or P-384 where the hardware was told to make one)."""

    @abstractmethod
    def presence(self) -> Presence:
        """Whether the key would answer now; never raises, never asks a person, never spends a PIN attempt."""

    @abstractmethod
    def attest(self, qualifying_data: bytes) -> Evidence:
        """Show evidence that the key lives in hardware.

        Args:
            qualifying_data: (32,), what the evidence is bound to, where the hardware can bind it.

        Raises:
            HardwareError: This kind or device has none (`identity.no_evidence`).
        """

    def activate(self, credential: Credential) -> bytes:  # noqa: ARG002 - for those that can
        """Open a relying party's credential, where the key lives in a TPM.

        Raises:
            PeerProtocolError: It is for no key of this kind (`identity.no_activation`), or for another box's.
        """
        raise PeerProtocolError(
            "identity.no_activation",
            f"A {self.kind.value} key was asked to open what only a TPM can.",
            next_step="Begin the enrolment anew; if it repeats, ask the consortium to look at its registrar.",
        )

    def evidence_names(self) -> tuple[bytes, bytes]:
        """What an exchange's qualifying data names: the endorsement key (empty outside a TPM) and this key."""
        return b"", bytes.fromhex(self.key_id)

    @abstractmethod
    def _signature_over(self, message: bytes) -> bytes:
        """The signature bytes of this kind over `message` (`agent.statements.roots` gives their form)."""

    def prove(self, statement: Statement) -> Proof:
        """Sign `statement`; the one operation that every kind of key has."""
        payload_type, payload = statement.payload_type(), statement.payload()
        signature = self._signature_over(pre_authentication_encoding(payload_type, payload))
        return Proof(payload_type, payload, self.key_id, signature)

    def sign(self, message: bytes) -> bytes:
        """ECDSA over the curve's own hash of `message`, DER.

        Raises:
            HardwareError: This kind cannot sign arbitrary messages (`identity.cannot_sign`).
        """
        if not self.capabilities.signs:
            raise _cannot_sign(self.kind)
        return self._signature_over(message)

    @property
    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key as `cryptography` and Flower expect one; its private half stays where it is.

        Raises:
            HardwareError: This kind cannot sign arbitrary messages (`identity.cannot_sign`).
        """
        if not self.capabilities.signs:
            raise _cannot_sign(self.kind)
        return SigningKey(self)

    def new_session_key(self) -> ec.EllipticCurvePrivateKey:
        """A fresh P-256 key that lives no longer than this process; inside the hardware where it can hold one."""
        return ec.generate_private_key(ec.SECP256R1())

    def change_pin(self) -> None:
        """Ask the person for the device's PIN and a new one, and change it.

        Raises:
            OperatorError: This kind has no PIN (`identity.no_pin`).
        """
        raise OperatorError(
            "identity.no_pin",
            f"A {self.kind.value} key has no PIN.",
            next_step="There is nothing to change.",
        )

    def unblock_pin(self) -> None:
        """Ask the person for what unblocks the device's PIN (a card's PUK) and for a new PIN, and set it.

        Raises:
            OperatorError: This kind has no such thing (`identity.no_puk`), or what was given is wrong.
        """
        raise OperatorError(
            "identity.no_puk",
            f"Nothing unblocks the PIN of a {self.kind.value} key.",
            next_step="Reset the device, make a new key with `seh-agent key init`, and enrol the node again.",
        )

    def root(self, evidence: EvidenceClass = EvidenceClass.NONE) -> RootKey:
        """The key as others put it on record, e.g. in the site's signed node record.

        Args:
            evidence: How well somebody saw that it lives in hardware; the key itself cannot say.
        """
        return RootKey(self.kind, public_key_bytes(self.public_key()), evidence)

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, in hex."""
        return key_id(self.public_key())


class KeyBackend(Protocol):
    """What each back end's module offers."""

    def find_devices(self) -> tuple[FoundDevice, ...]:
        """The devices of this kind on this box; never raises for a missing one, never asks a person."""
        ...

    def open_key(self, uri: str, person: Person, /) -> HardwareKey:
        """Open the key that `uri` names."""
        ...

    def init_key(self, uri: str, person: Person, /) -> HardwareKey:
        """Make the key that `uri` names, inside the device; an existing one is opened, never replaced."""
        ...


KEY_FOR_SCHEME: dict[str, str] = {
    "tpm": "agent.identity.tpm",
    "piv": "agent.identity.piv",
    "fido2": "agent.identity.fido2",
    "pkcs11": "agent.identity.pkcs11",
    "software": "agent.identity.software",
}
"""Which module serves which URI scheme; imported on first use: a box needs only the libraries of its own key."""


def open_key(uri: str, *, person: Person | None = None) -> HardwareKey:
    """Open the key that `uri` names.

    Args:
        uri: `tpm:<tcti>`, `piv:<reader or serial>?slot=9e`, `fido2:<record>`,
            `pkcs11:token=<name>?module-path=<library>` or `software:<path>`.
        person: Who can be asked for a PIN or a touch; nobody by default.

    Raises:
        OperatorError: The URI is none of ours, or the back end's library is not installed.
        HardwareError: The device or the key is not there (`seh-agent key init` makes one).
    """
    return _backend_for(uri).open_key(uri, person or Nobody())


def init_key(uri: str, *, person: Person | None = None) -> HardwareKey:
    """Make the key that `uri` names, inside the device; an existing one is opened, never replaced.

    Args:
        uri: As for `open_key`.
        person: As for `open_key`.

    Raises:
        OperatorError: The URI is none of ours, or the back end's library is not installed.
        HardwareError: The device is not there, or cannot make such a key.
    """
    return _backend_for(uri).init_key(uri, person or Nobody())


def find_devices() -> tuple[FoundDevice, ...]:
    """Every device on this box that holds, or could hold, a key; kinds whose library is missing are left out."""
    found: list[FoundDevice] = []
    for scheme in KEY_FOR_SCHEME:
        with contextlib.suppress(OperatorError):
            found += _backend_for(f"{scheme}:").find_devices()
    return tuple(found)


def parse_key_uri(uri: str, *, options: frozenset[str] = frozenset()) -> KeyURI:
    """Split a key URI; a back end names the options that it knows.

    Raises:
        OperatorError: An option is unknown or has no value.
    """
    scheme, _, rest = uri.partition(":")
    target, _, query = rest.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in pairs.items():
        if name not in options or not value:
            raise OperatorError(
                "identity.bad_uri",
                f"The key URI {uri[:200]!r} has an option {name!r} that its kind does not know, or without a value.",
                next_step=f"Known options: {', '.join(sorted(options)) or 'none'}.",
            )
    return KeyURI(scheme, target, MappingProxyType(pairs))


def _backend_for(uri: str) -> KeyBackend:
    scheme = uri.partition(":")[0]
    if scheme not in KEY_FOR_SCHEME:
        raise OperatorError(
            "identity.unknown_scheme",
            f"The key URI {uri[:80]!r} names no kind of key that this software knows.",
            next_step=f"Begin it with one of: {', '.join(f'{name}:' for name in KEY_FOR_SCHEME)}.",
        )
    try:
        return cast("KeyBackend", importlib.import_module(KEY_FOR_SCHEME[scheme]))
    except ImportError as error:
        raise OperatorError(
            "identity.missing_library",
            f"Keys of the kind {scheme!r} need a library that is not installed here ({error.name}).",
            next_step=f"Install the package's {scheme!r} extra, or choose another kind of key.",
        ) from error


def foreign_key(device: str) -> HardwareError:
    """The failure of a device that answers with another key than the one that was opened."""
    return HardwareError(
        "identity.foreign_key",
        f"The {device} that answers is not the one that holds this node's key.",
        next_step="Put this node's own one back; if it is lost, enrol the node again.",
    )


def no_evidence(kind: KeyKind) -> HardwareError:
    """The failure of a key that has nothing to show."""
    return HardwareError(
        "identity.no_evidence",
        f"This {kind.value} key cannot show evidence that it lives in hardware.",
        next_step="Ask the consortium whether a site may vouch for it in person; otherwise use another kind of key.",
    )


def _person_needed(device: str, what: str) -> OperatorError:
    return OperatorError(
        "identity.person_needed",
        f"{device} wants {what}, and nobody is at the box.",
        next_step="Run `seh-agent key renew` at the box.",
    )


def _cannot_sign(kind: KeyKind) -> HardwareError:
    return HardwareError(
        "identity.cannot_sign",
        f"A {kind.value} key proves statements but cannot sign other messages.",
        next_step="Let it certify a session key, and sign with that.",
    )
