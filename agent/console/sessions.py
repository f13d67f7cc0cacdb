"""Who sits at the browser: sessions in memory, gone with the process."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.core.base64url import encode_bytes
from agent.core.box_view import ChallengeView
from agent.core.clock import Clock

MAX_STRANGERS: Final = 500
"""Sessions of nobody in particular; the one used longest ago makes room."""
MAX_KNOWN: Final = 100
IDLE_LIMIT_S: Final = 900.0
WHOLE_LIMIT_S: Final = 8 * 3600.0
MAX_PENDING: Final = 8
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits for a steward's key in this session.

    Args:
        act: What is signed.
        study: About which study.
        challenge: As the box asked it.
        title: The study's, where it still lies here.
    """

    act: Literal["approve", "withdraw"]
    study: str
    challenge: ChallengeView
    title: str = ""


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A WebAuthn ceremony under way; it takes one answer.

    Args:
        kind: What it is for.
        state: What the answer is checked against.
        steward: Of a new key: its short name.
        person: Of a new key: whose it is.
    """

    kind: Literal["key", "sign-in"]
    state: Mapping[str, object]
    steward: str = ""
    person: str = ""


@dataclass(slots=True)
class Session:
    """One browser's.

    Args:
        name: Random; the cookie.
        token: Random; every form carries it.
        began_s: When, monotonic.
        seen_s: When it was used last.
        language: Chosen by hand; empty: the browser's.
        steward: Who signed in, or acts; empty before.
        signed_in: Whether a key has shown that.
        pending: By sequence.
        ceremony: The one under way.
        record: A new key's record, for the hospital to endorse.
    """

    name: str = field(repr=False)
    token: str = field(repr=False)
    began_s: float
    seen_s: float
    language: str = ""
    steward: str = ""
    signed_in: bool = False
    pending: OrderedDict[int, Pending] = field(default_factory=OrderedDict)
    ceremony: Ceremony | None = None
    record: str = ""

    def keep(self, sequence: int, pending: Pending) -> None:
        """Note what waits; the oldest makes room."""
        self.pending[sequence] = pending
        while len(self.pending) > MAX_PENDING:
            self.pending.popitem(last=False)

    def take_ceremony(self) -> Ceremony | None:
        """The ceremony under way, which is over with that."""
        ceremony, self.ceremony = self.ceremony, None
        return ceremony

    def accepts(self, token: str) -> bool:
        """Whether a form is this session's own."""
        return hmac.compare_digest(self.token.encode(), token.encode())


class SessionShelf:
    """All sessions. Thread-safe.

    Args:
        clock: For ends.
        random: Makes so many random bytes.
    """

    def __init__(self, clock: Clock, random: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def find(self, name: str, *, used: bool = True) -> Session | None:
        """The session of a cookie; None where there is none, or its time is over.

        Args:
            name: The cookie.
            used: Whether a person uses it; else a page updates itself.
        """
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                return None
            now_s = self._clock.monotonic_s()
            if now_s - session.seen_s > IDLE_LIMIT_S or now_s - session.began_s > WHOLE_LIMIT_S:
                del self._sessions[name]
                return None
            if used:
                session.seen_s = now_s
                self._sessions.move_to_end(name)
            return session

    def begin(self) -> Session:
        """A new session, of nobody."""
        now_s = self._clock.monotonic_s()
        session = Session(self._secret(), self._secret(), now_s, now_s)
        with self._lock:
            self._sessions[session.name] = session
            self._make_room(MAX_STRANGERS, signed_in=False)
        return session

    def sign_in(self, session: Session, steward: str) -> None:
        """A key has shown who this is: the session goes on under another name, which nobody could have planted."""
        with self._lock:
            self._sessions.pop(session.name, None)
            session.name, session.token = self._secret(), self._secret()
            session.steward, session.signed_in = steward, True
            session.ceremony = None
            session.began_s = session.seen_s = self._clock.monotonic_s()
            self._sessions[session.name] = session
            self._make_room(MAX_KNOWN, signed_in=True)

    def end(self, session: Session) -> None:
        """Forget a session."""
        with self._lock:
            self._sessions.pop(session.name, None)

    def _make_room(self, most: int, *, signed_in: bool) -> None:
        """Strangers never push out those whom a key has shown."""
        names = [name for name, session in self._sessions.items() if session.signed_in == signed_in]
        for name in names[: max(len(names) - most, 0)]:
            del self._sessions[name]

    def _secret(self) -> str:
        return encode_bytes(self._random(_SECRET_BYTES))
