"""Boxes without a camera: the box shows a code, a technician signs in with a passkey and types it, and a token is made.

All of it lives for minutes and in memory only: after a restart, the box begins anew.

    box         POST /v1/pairings                 its names and a secret of its own -> id, the registrar's commitment
    box         PUT  /v1/pairings/<id>/nonce      its nonce -> the registrar's; both know the code now
    technician  the code, signed by a passkey     one attempt
    box         GET  /v1/pairings/<id>            the token, once it was approved; enrolment goes on as with any other
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from typing import Any, Final, Protocol

import structlog

from agent.attestation.credential import RandomBytes
from agent.attestation.pairing import NONCE_BYTES, commitment, pairing_code, plain_code
from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError
from agent.core.ids import SiteID
from agent.trust.fingerprint import box_words
from provisioning.authority.appraisal import Subject
from provisioning.registrar.passkeys import Ceremony, Passkey, PasskeyServer, credential_id

PAIRING_LIFETIME_S: Final = 300.0
INVITATION_LIFETIME_S: Final = 900.0
MAX_PAIRINGS: Final = 1000
MAX_INVITATIONS: Final = 1000
NAME_BYTES: Final = 16
_CHALLENGE_LABEL: Final = b"secur-e-health pairing approval v1"

_log = structlog.get_logger(__name__)


class PairingState(StrEnum):
    """How far a pairing is."""

    COMMITTED = auto()
    WAITING = auto()
    APPROVED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Pairing:
    """One box that waits for a technician.

    Args:
        secret_digest: (32,), of what proves that it is the box that asks.
        subject: Its key.
        link_key: SubjectPublicKeyInfo (DER).
        registrar_nonce: (32,).
        end_s: On the monotonic clock.
        box_nonce: (32,), once it came.
        state: How far it is.
        token: For the box, once it was approved.
        asked: The last asking for a passkey: the code as typed, and what the answer is checked against.
    """

    secret_digest: bytes
    subject: Subject
    link_key: bytes
    registrar_nonce: bytes = field(repr=False)
    end_s: float
    box_nonce: bytes = b""
    state: PairingState = PairingState.COMMITTED
    token: str = field(default="", repr=False)
    asked: tuple[str, Mapping[str, Any]] | None = None

    @property
    def code(self) -> str:
        """What the box shows."""
        subject = self.subject
        return pairing_code(
            subject.ek_name,
            subject.key_name,
            self.link_key,
            registrar_nonce=self.registrar_nonce,
            box_nonce=self.box_nonce,
        )


@dataclass(frozen=True, slots=True)
class Invitation:
    """A hospital lets a technician make a passkey, once.

    Args:
        site: The hospital.
        end_s: On the monotonic clock.
        state: What the browser's answer is checked against, once it was asked.
    """

    site: SiteID
    end_s: float
    state: Mapping[str, Any] | None = None


class PasskeyStore(Protocol):
    """Where passkeys are kept."""

    def add_passkey(self, passkey: Passkey) -> None:
        """Keep a new one."""
        ...

    def passkey(self, credential_id: str) -> Passkey | None:
        """One by its credential's id (hex)."""
        ...

    def count_passkey(self, before: Passkey, count: int) -> bool:
        """Remember a signature's count, if nobody else did meanwhile."""
        ...

    def forget_passkeys(self, site: SiteID) -> int:
        """Forget all of a hospital; returns how many there were."""
        ...


IssueToken = Callable[[SiteID, bytes], str]
"""Issues a token of the registrar's own for a hospital, bound to the endorsement key of this name if there is one."""


class PairingDesk:
    """Pairs boxes with technicians; thread-safe.

    Args:
        server: Of passkeys.
        passkeys: Where they are kept.
        issue: Makes tokens.
        clock: For limits.
        random_bytes: `secrets.token_bytes`.
    """

    def __init__(
        self,
        server: PasskeyServer,
        passkeys: PasskeyStore,
        issue: IssueToken,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._server, self._passkeys, self._issue = server, passkeys, issue
        self._clock, self._random = clock, random_bytes
        self._lock = threading.Lock()
        self._pairings: dict[str, Pairing] = {}
        self._invitations: dict[str, Invitation] = {}

    # Boxes.

    def begin(self, secret: bytes, subject: Subject, link_key: bytes) -> tuple[str, bytes]:
        """A box asks; returns the pairing's name, and the registrar's commitment, (32,).

        Raises:
            NetworkError: Too many wait (`pairing.too_many`).
        """
        name, nonce = self._random(NAME_BYTES).hex(), self._random(NONCE_BYTES)
        with self._lock:
            self._sweep()
            if len(self._pairings) >= MAX_PAIRINGS:
                raise _too_many()
            end_s = self._clock.monotonic_s() + PAIRING_LIFETIME_S
            self._pairings[name] = Pairing(hashlib.sha256(secret).digest(), subject, link_key, nonce, end_s)
        return name, commitment(nonce)

    def reveal(self, name: str, secret: bytes, box_nonce: bytes) -> bytes:
        """The box shows its nonce, once; returns the registrar's, (32,).

        Raises:
            OperatorError: There is no such pairing, or it showed another before (`pairing.gone`).
        """
        with self._lock:
            pairing = self._of_box(name, secret)
            if pairing.state is PairingState.COMMITTED:
                pairing = replace(pairing, box_nonce=box_nonce, state=PairingState.WAITING)
                self._pairings[name] = pairing
            if pairing.box_nonce != box_nonce:
                raise _gone()
            return pairing.registrar_nonce

    def situation(self, name: str, secret: bytes) -> Pairing:
        """How far the box's pairing is.

        Raises:
            OperatorError: There is none (`pairing.gone`).
        """
        with self._lock:
            return self._of_box(name, secret)

    # Technicians.

    def ask(self, name: str, typed: str) -> Ceremony:
        """Ask for a passkey's signature over this pairing and the code as typed.

        Raises:
            OperatorError: Nothing waits there (`pairing.gone`).
        """
        with self._lock:
            pairing = self._waiting(name)
            code = plain_code(typed)
            fields = (_CHALLENGE_LABEL, name.encode(), code.encode(), self._random(NONCE_BYTES))
            ceremony = self._server.ask(hashlib.sha256(b"\0".join(fields)).digest())
            self._pairings[name] = replace(pairing, asked=(code, ceremony.state))
            return ceremony

    def approve(self, name: str, answer: Mapping[str, Any]) -> tuple[SiteID, str]:
        """A technician signed; returns the hospital, and the box's words, which its operator compares.

        Raises:
            OperatorError: Nothing waits there, the passkey is not accepted, or the code is wrong, which ends the
                pairing (`pairing.wrong_code`).
        """
        with self._lock:
            pairing = self._waiting(name)
            if pairing.asked is None:
                raise _gone()
            code, state = pairing.asked
            pairing = replace(pairing, asked=None)  # one answer to each asking
            self._pairings[name] = pairing
            passkey = self._signed(state, answer)
            if not hmac.compare_digest(code, pairing.code):
                self._pairings[name] = replace(pairing, state=PairingState.REFUSED)
                _log.warning("pairing_wrong_code", pairing=name, site=passkey.site)
                raise _wrong_code()
            token = self._issue(passkey.site, pairing.subject.ek_name)
            self._pairings[name] = replace(pairing, state=PairingState.APPROVED, token=token)
        _log.info("pairing_approved", pairing=name, site=passkey.site, passkey=passkey.credential_id[:16])
        return passkey.site, box_words(pairing.subject.ek_name, pairing.subject.key_name, pairing.link_key)

    # Passkeys.

    def invite(self, site: SiteID) -> str:
        """A hospital invites a technician; returns a secret that is good for one passkey, for 15 minutes.

        Raises:
            NetworkError: Too many are invited (`pairing.too_many`).
        """
        with self._lock:
            self._sweep()
            if len(self._invitations) >= MAX_INVITATIONS:
                raise _too_many()
            name = self._random(NAME_BYTES).hex()
            self._invitations[name] = Invitation(site, self._clock.monotonic_s() + INVITATION_LIFETIME_S)
            return name

    def ask_passkey(self, invitation: str) -> Ceremony:
        """Ask the technician's browser for a new passkey.

        Raises:
            OperatorError: Nobody is invited there (`pairing.gone`).
        """
        with self._lock:
            known = self._invited(invitation)
            ceremony = self._server.invite(self._random(NAME_BYTES), known.site, self._random(NONCE_BYTES))
            self._invitations[invitation] = replace(known, state=ceremony.state)
            return ceremony

    def add_passkey(self, invitation: str, answer: Mapping[str, Any]) -> SiteID:
        """Keep a new passkey; returns its hospital. The invitation is used up.

        Raises:
            OperatorError: Nobody is invited there, or it is no passkey.
        """
        with self._lock:
            known = self._invited(invitation)
            if known.state is None:
                raise _gone()
            passkey = self._server.register(known.state, answer, known.site)
            self._passkeys.add_passkey(passkey)
            del self._invitations[invitation]
        _log.info("passkey_added", site=known.site, passkey=passkey.credential_id[:16])
        return known.site

    def forget_passkeys(self, site: SiteID) -> int:
        """Forget every passkey and invitation of a hospital, one on a lost telephone among them.

        Returns:
            How many passkeys there were.
        """
        with self._lock:
            self._invitations = {name: one for name, one in self._invitations.items() if one.site != site}
            return self._passkeys.forget_passkeys(site)

    def _signed(self, state: Mapping[str, Any], answer: Mapping[str, Any]) -> Passkey:
        passkey = self._passkeys.passkey(credential_id(answer))
        if passkey is None:
            raise OperatorError(
                "pairing.unknown_passkey",
                "No hospital of this consortium knows this passkey.",
                next_step="Ask the hospital's operator for an invitation, and make a passkey with it.",
            )
        count = self._server.verify(state, answer, passkey)
        if not self._passkeys.count_passkey(passkey, count):
            raise _gone()
        return passkey

    def _of_box(self, name: str, secret: bytes) -> Pairing:
        pairing = self._live(name)
        if not hmac.compare_digest(hashlib.sha256(secret).digest(), pairing.secret_digest):
            raise _gone()
        return pairing

    def _waiting(self, name: str) -> Pairing:
        pairing = self._live(name)
        if pairing.state is not PairingState.WAITING:
            raise _gone()
        return pairing

    def _live(self, name: str) -> Pairing:
        self._sweep()
        pairing = self._pairings.get(name)
        if pairing is None:
            raise _gone()
        return pairing

    def _invited(self, invitation: str) -> Invitation:
        self._sweep()
        known = self._invitations.get(invitation)
        if known is None:
            raise _gone()
        return known

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        self._pairings = {name: one for name, one in self._pairings.items() if now_s < one.end_s}
        self._invitations = {name: one for name, one in self._invitations.items() if now_s < one.end_s}


def _gone() -> OperatorError:
    return OperatorError(
        "pairing.gone",
        "Nothing waits here: it took longer than it may, was used already, or the registrar was restarted.",
        next_step="Begin again at the box; it shows a new code.",
    )


def _wrong_code() -> OperatorError:
    return OperatorError(
        "pairing.wrong_code",
        "That is not the code on the box's screen. For safety, there is only one attempt.",
        next_step="Begin again at the box; it shows a new code.",
    )


def _too_many() -> NetworkError:
    return NetworkError(
        "pairing.too_many",
        "Too many boxes ask for a code at the same time.",
        next_step="Wait a few minutes, and try again.",
    )
