"""Session keys: short-lived keys that sign in the hardware's place, certified by it, renewed before they end.

A TPM signs a few times a second and a person touches a key once a day; a session key signs each message. It lives
inside the TPM where there is one, else in this process's memory only, and dies with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from threading import Lock
from typing import Final, Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.identity.key import HardwareKey
from agent.statements.chain import CLOCK_SKEW_S
from agent.statements.envelope import Proof, Statement, encode_proof, parse_proof
from agent.statements.kinds import SessionCertificate
from agent.statements.roots import LONGEST_LIFETIME_S, KeyKind, hash_for, key_id, public_key_bytes, verify_proof

OFFER_LIFE_S: Final = 300.0
"""How long what was offered for signing may be signed and handed back."""
ASK_BEFORE_S: Final = 2 * 3600
"""How long before the end a person is asked to vouch for the box again."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """How long a kind of key vouches at a time, and when it is asked again.

    Args:
        lifetime_s: Asked for; verifiers accept no more than the kind's longest lifetime.
        renew_before_s: Before the end; what remains bridges a device that is pulled out.
    """

    lifetime_s: int
    renew_before_s: int


def renewal_policy(key: HardwareKey) -> RenewalPolicy:
    """How long `key` vouches at a time: a key that works unattended renews at half-time, a person late and once."""
    longest_s = LONGEST_LIFETIME_S[key.kind]
    return RenewalPolicy(longest_s, longest_s // 2 if key.capabilities.unattended else ASK_BEFORE_S)


SessionKeySource = Callable[[], ec.EllipticCurvePrivateKey]
"""Makes a fresh P-256 key that lives no longer than this process."""


@dataclass(frozen=True, slots=True)
class Subject:
    """In whose name the session signs.

    Args:
        consortium: Digest (hex) of the pinned trust root.
        site: The hospital.
        node: The box.
    """

    consortium: str
    site: str
    node: str


@dataclass(frozen=True, slots=True)
class ActiveSession:
    """A session key and the certificate that makes others believe it.

    Args:
        signing_key: P-256; in the TPM where there is one.
        certificate: The DSSE envelope to send along.
        issued_s: Seconds since 1970.
        expires_s: Seconds since 1970; exclusive.
    """

    signing_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)
    issued_s: int
    expires_s: int

    def prove(self, statement: Statement) -> Proof:
        """Sign `statement` with the session key.

        Raises:
            HardwareError: The key lives in a device that is gone.
        """
        public_key = self.signing_key.public_key()
        draft = Proof(statement.payload_type(), statement.payload(), key_id(public_key), b"")
        signature = self.signing_key.sign(draft.signed_bytes(), ec.ECDSA(hash_for(public_key)))
        return Proof(draft.payload_type, draft.payload, draft.key_id, signature)


class SessionState(StrEnum):
    """What the node can prove now."""

    VALID = "valid"
    DUE = "due"  # still valid; the renewal failed or waits, and is tried again
    NEEDS_PERSON = "needs-person"  # still valid or not; a person must touch the key or enter its PIN
    LAPSED = "lapsed"  # nothing can be proven until the key is back


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """The session's state, readable by a technician.

    Args:
        state: What the node can prove now.
        expires_s: Seconds since 1970; None where there is no session.
        sentence: What is wrong; empty when valid.
        next_step: What a person should do; empty when nothing.
    """

    state: SessionState
    expires_s: int | None = None
    sentence: str = ""
    next_step: str = ""


_DEVICE_FOR_KIND: Final = {
    KeyKind.TPM: "The TPM",
    KeyKind.PIV: "The smartcard",
    KeyKind.FIDO2: "The security key",
    KeyKind.PKCS11: "The token",
    KeyKind.SOFTWARE: "The key file",
}


class TimestampSource(Protocol):
    """Where the keeper learns the newest state of the trust repository that this node has seen."""

    def __call__(self) -> int:
        """Its timestamp's version."""
        ...


@dataclass(frozen=True, slots=True)
class _Offer:
    """A session key that nobody vouches for yet.

    Args:
        signing_key: The key.
        certificate: What the hardware key is to sign.
        made_s: When, on the clock's monotonic scale.
    """

    signing_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: SessionCertificate
    made_s: float


class SessionKeeper:
    """Holds the current session and has it renewed in time. Thread-safe.

    The service calls `tick` once a second; with a key that works unattended, a session that a pulled-out device let
    lapse is therefore back within two seconds of the device's return. A key that needs a person is never asked by
    itself: somebody takes what `offer` gives, has the key sign it, in whatever process, and hands it to `accept`.

    Args:
        root: The hardware key; whether it works unattended it says itself.
        subject: In whose name.
        clock: The service's.
        timestamp_version: Asked at each issue.
        policy: How long and when; by the key's kind when None.
        new_session_key: Makes session keys; `root` itself when None.
    """

    def __init__(
        self,
        root: HardwareKey,
        subject: Subject,
        *,
        clock: Clock,
        timestamp_version: TimestampSource,
        policy: RenewalPolicy | None = None,
        new_session_key: SessionKeySource | None = None,
    ) -> None:
        self._root = root
        self._subject = subject
        self._clock = clock
        self._timestamp_version = timestamp_version
        self._policy = policy or renewal_policy(root)
        self._new_session_key = new_session_key or root.new_session_key
        self._session: ActiveSession | None = None
        self._failure: SecureHealthError | None = None
        self._pending: _Offer | None = None
        self._renewing = Lock()
        self._accepting = Lock()

    def current(self) -> ActiveSession:
        """The session to sign with now.

        Raises:
            HardwareError: None is valid, so nothing can be proven (`identity.no_session`).
        """
        session = self._session
        if session is None or not self._counts(session):
            raise self._nothing_valid()
        return session

    def tick(self) -> SessionStatus:
        """Renew if it is time and nobody is needed; never raises for a device that is gone."""
        if self._is_due() and self._root.capabilities.unattended and self._renewing.acquire(blocking=False):
            try:
                self.renew()
            except SecureHealthError as failure:
                if self._failure is None or self._failure.code != failure.code:
                    log.warning("session_renewal_failed", error=failure)
                self._failure = failure
            finally:
                self._renewing.release()
        return self.status()

    def renew(self) -> ActiveSession:
        """Renew now, asking the person whom the key was opened with.

        Raises:
            SecureHealthError: The key is gone or refuses, or the person did not come.
        """
        draft = self._draft()
        return self._install(draft, encode_proof(self._root.prove(draft.certificate)))

    def offer(self) -> SessionCertificate:
        """Make a session key, keep it for five minutes, and say what is to be signed for it; the latest offer counts.

        Raises:
            HardwareError: What makes session keys is gone.
        """
        draft = self._draft()
        with self._accepting:
            self._pending = draft
        log.info("session_offered", expires_s=draft.certificate.expires_s)
        return draft.certificate

    def accept(self, envelope: bytes) -> ActiveSession:
        """Take the present offer back, signed, and sign with its key from now on.

        Args:
            envelope: DSSE, over exactly what `offer` gave last, by this box's own key.

        Raises:
            OperatorError: Nothing is on offer (`identity.no_offer`), another statement was signed
                (`identity.another_offer`), or another key signed it (`identity.another_key`).
            PeerProtocolError: The envelope cannot be read, or its signature does not hold.
        """
        with self._accepting:
            draft = self._pending
            if draft is None or self._clock.monotonic_s() - draft.made_s > OFFER_LIFE_S:
                self._pending = None
                raise _no_offer()
            session = self._install(draft, envelope)
            self._pending = None
        return session

    def status(self) -> SessionStatus:
        """What the node can prove now, and what it needs; the hardware is not touched for that."""
        session, failure = self._session, self._failure
        valid = session is not None and self._counts(session)
        expires_s = session.expires_s if session else None
        if valid and not self._is_due():
            return SessionStatus(SessionState.VALID, expires_s)
        if not self._root.capabilities.unattended:
            return self._wants_person(expires_s if valid else None)
        state = SessionState.DUE if valid else SessionState.LAPSED
        sentence, next_step = (
            (failure.sentence, failure.next_step) if failure else ("The session is being renewed.", "")
        )
        return SessionStatus(state, expires_s, sentence, next_step)

    def _wants_person(self, expires_s: int | None) -> SessionStatus:
        # A device that is polled cannot be used by whoever stands there with it; so it is not looked for either.
        until = "before this box takes part in any study" if expires_s is None else f"again before {utc(expires_s)}"
        sentence = f"{_DEVICE_FOR_KIND[self._root.kind]} must vouch for this box {until}, and that takes a person."
        next_step = "Run `seh-agent key renew` at the box."
        return SessionStatus(SessionState.NEEDS_PERSON, expires_s, sentence, next_step)

    def _draft(self) -> _Offer:
        key = self._new_session_key()
        issued_s = self._now_s()
        certificate = SessionCertificate(
            consortium=self._subject.consortium,
            site=self._subject.site,
            node=self._subject.node,
            root_key=self._root.key_id,
            session_key=public_key_bytes(key.public_key()).hex(),
            issued_s=issued_s,
            expires_s=issued_s + self._policy.lifetime_s,
            timestamp_version=self._timestamp_version(),
        )
        return _Offer(key, certificate, self._clock.monotonic_s())

    def _install(self, draft: _Offer, envelope: bytes) -> ActiveSession:
        proof, wanted = parse_proof(envelope), draft.certificate
        if proof.key_id != self._root.key_id:
            raise another_key()
        if (proof.payload_type, proof.payload) != (wanted.payload_type(), wanted.payload()):
            raise _another_offer()
        verify_proof(proof, self._root.root())
        session = ActiveSession(draft.signing_key, encode_proof(proof), wanted.issued_s, wanted.expires_s)
        self._session, self._failure = session, None
        log.info("session_renewed", expires_s=session.expires_s, key_kind=self._root.kind.value)
        return session

    def _is_due(self) -> bool:
        session = self._session
        return (
            session is None
            or not self._counts(session)
            or session.expires_s - self._now_s() <= self._policy.renew_before_s
        )

    def _counts(self, session: ActiveSession) -> bool:
        # A clock that was set back would leave us with a session that others see as begun in the future.
        return session.issued_s - CLOCK_SKEW_S <= self._now_s() < session.expires_s

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())

    def _nothing_valid(self) -> HardwareError:
        status = self.status()
        return HardwareError(
            "identity.no_session",
            f"This box cannot prove who it is at the moment. {status.sentence}".rstrip(),
            next_step=status.next_step or "It goes on by itself as soon as its key answers.",
        )


def utc(seconds: int) -> str:
    """A moment, in seconds since 1970, as a technician reads it: to the minute, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def another_key() -> OperatorError:
    """The failure of a key that does not belong to this box."""
    return OperatorError(
        "identity.another_key",
        "That is another key than the one that this box is enrolled with.",
        next_step="Use this box's own key, or enrol the box again with the new one.",
    )


def _no_offer() -> OperatorError:
    return OperatorError(
        "identity.no_offer",
        "This box waits for nothing to be signed: it was not asked for a session, or more than five minutes ago.",
        next_step="Run `seh-agent key renew` again.",
    )


def _another_offer() -> OperatorError:
    return OperatorError(
        "identity.another_offer",
        "What the key signed is not what this box asked for last.",
        next_step="Run `seh-agent key renew` again, and only one at a time.",
    )
