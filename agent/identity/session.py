"""Session keys: short-lived keys that sign in the hardware's place, certified by it, renewed before they end.

A TPM signs a few times a second and a person touches a key once a day; a session key signs each message. It lives
inside the TPM where there is one, else in this process's memory only, and dies with the process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import Final, Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.identity.key import HardwareKey, PresenceState
from agent.statements.chain import CLOCK_SKEW_S
from agent.statements.envelope import Proof, Statement, encode_proof
from agent.statements.kinds import SessionCertificate
from agent.statements.roots import LONGEST_LIFETIME_S, KeyKind, hash_for, key_id, public_key_bytes

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


RENEWAL_FOR_KIND: Final = {
    # Unattended kinds renew at half-time; a person is asked for the next day two hours before the present one ends.
    kind: RenewalPolicy(longest_s, 2 * 3600 if kind is KeyKind.FIDO2 else longest_s // 2)
    for kind, longest_s in LONGEST_LIFETIME_S.items()
}


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


class TimestampSource(Protocol):
    """Where the keeper learns the newest state of the trust repository that this node has seen."""

    def __call__(self) -> int:
        """Its timestamp's version."""
        ...


class SessionKeeper:
    """Holds the current session and renews it in time. Thread-safe.

    The service calls `tick` once a second; with a key that works unattended, a session that a pulled-out device let
    lapse is therefore back within two seconds of the device's return.

    Args:
        root: The hardware key; whether it works unattended it says itself.
        subject: In whose name.
        clock: The service's.
        timestamp_version: Asked at each issue.
        policy: How long and when; by the key's kind when None.
        in_hardware: Whether the session key should live in the hardware, where it can hold one. A chip signs a few
            times a second, so a node that sends more than that keeps the session key in memory.
    """

    def __init__(
        self,
        root: HardwareKey,
        subject: Subject,
        *,
        clock: Clock,
        timestamp_version: TimestampSource,
        policy: RenewalPolicy | None = None,
        in_hardware: bool = True,
    ) -> None:
        self._root = root
        self._subject = subject
        self._clock = clock
        self._timestamp_version = timestamp_version
        self._policy = policy or RENEWAL_FOR_KIND[root.kind]
        self._in_hardware = in_hardware
        self._session: ActiveSession | None = None
        self._failure: SecureHealthError | None = None
        self._renewing = Lock()

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
                self._renew(self._root)
            finally:
                self._renewing.release()
        return self.status()

    def renew(self, root: HardwareKey | None = None) -> ActiveSession:
        """Renew now, asking the person whom the key was opened with.

        Args:
            root: The same key, opened with somebody at the box; the keeper's own when None.

        Raises:
            SecureHealthError: The key is gone, foreign or refuses, or the person did not come.
        """
        with self._renewing:
            self._renew(root or self._root)
            if self._failure is not None:
                raise self._failure
        return self.current()

    def status(self) -> SessionStatus:
        """What the node can prove now, and what it needs."""
        session, failure = self._session, self._failure
        valid = session is not None and self._counts(session)
        expires_s = session.expires_s if session else None
        if valid and not self._is_due():
            return SessionStatus(SessionState.VALID, expires_s)
        if not self._root.capabilities.unattended:
            return self._wants_person(expires_s)
        state = SessionState.DUE if valid else SessionState.LAPSED
        sentence, next_step = (
            (failure.sentence, failure.next_step) if failure else ("The session is being renewed.", "")
        )
        return SessionStatus(state, expires_s, sentence, next_step)

    def _wants_person(self, expires_s: int | None) -> SessionStatus:
        presence = self._root.presence()
        next_step = presence.next_step or "Run `seh-agent key test` at the box, and touch the key."
        sentence = f"{presence.device} must vouch for this box again, and that takes a person."
        if presence.state is PresenceState.ABSENT:
            sentence = f"{presence.device} is needed to vouch for this box again, and is not there."
        return SessionStatus(SessionState.NEEDS_PERSON, expires_s, sentence, next_step)

    def _renew(self, root: HardwareKey) -> None:
        try:
            self._check_same(root)
            session = self._issue(root)
        except (HardwareError, OperatorError) as failure:
            if self._failure is None or self._failure.code != failure.code:
                log.warning("session_renewal_failed", error=failure)
            self._failure = failure
            return
        self._session, self._failure = session, None
        log.info("session_renewed", expires_s=session.expires_s, key_kind=root.kind.value)

    def _issue(self, root: HardwareKey) -> ActiveSession:
        key = root.new_session_key() if self._in_hardware else ec.generate_private_key(ec.SECP256R1())
        issued_s = self._now_s()
        certificate = SessionCertificate(
            consortium=self._subject.consortium,
            site=self._subject.site,
            node=self._subject.node,
            root_key=root.key_id,
            session_key=public_key_bytes(key.public_key()).hex(),
            issued_s=issued_s,
            expires_s=issued_s + self._policy.lifetime_s,
            timestamp_version=self._timestamp_version(),
        )
        return ActiveSession(key, encode_proof(root.prove(certificate)), issued_s, certificate.expires_s)

    def _check_same(self, root: HardwareKey) -> None:
        if root.key_id != self._root.key_id:
            raise OperatorError(
                "identity.another_key",
                "That is another key than the one that this box is enrolled with.",
                next_step="Use this box's own key, or enrol the box again with the new one.",
            )

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
