"""A box's heartbeats: every few minutes, at no other moment, it tells its registrar how it does.

What is said depends on link, key and release alone (`agent.statements.kinds.Heartbeat`), and when it is said depends
on nothing: a heartbeat sent because something happened would tell when it happened.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.errors import SecureHealthError
from agent.core.version import software_version
from agent.enrolment.line import RegistrarLine, Request, trust_in
from agent.federation.node import Link
from agent.identity.session import ActiveSession, SessionKeeper, SessionState, Subject
from agent.service.affiliation import Affiliation
from agent.service.periodic import Periodic
from agent.service.state import AgentStatus, StatusBoard
from agent.statements.envelope import encode_proof
from agent.statements.kinds import Heartbeat
from agent.trust.records import ServerRecord

HEARTBEAT_S: Final = 180.0
FIRST_S: Final = 10.0
"""After a start: by then a link that can be had is there."""
PLACE: Final = "/v1/heartbeats"
_JITTER: Final = 0.2
_TOLD: Final = ("fleet.", "identity.")
"""Of which rooms' failures the code is told: link and key. No other room's failure has any effect on a heartbeat, so
that none can tell anything of data."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a box sends heartbeats.

    Args:
        every_s: How often, give or take a fifth.
        began_s: When the agent was started, on the clock's monotonic scale.
    """

    every_s: float
    began_s: float


class Line(Protocol):
    """Carries a heartbeat to the registrar."""

    def __call__(self, registrar: ServerRecord, body: bytes) -> None:
        """Send it.

        Raises:
            SecureHealthError: It did not arrive, or is refused.
        """
        ...


def registrar_line(clock: Clock, proxy: str | None) -> Line:
    """The line over HTTPS, under the registrar's own roots.

    Args:
        clock: For limits.
        proxy: The hospital's HTTP proxy.
    """

    def send(registrar: ServerRecord, body: bytes) -> None:
        trust = trust_in(registrar.root_certificates.encode())
        with closing(RegistrarLine(registrar.address, trust, proxy=proxy, clock=clock)) as line:
            line.call(Request("POST", PLACE, body))

    return send


def describe(status: AgentStatus, subject: Subject, *, uptime_s: int, now_s: int) -> Heartbeat:
    """What a heartbeat says.

    Args:
        status: How the agent does; of all that it holds, link, session and the code of a trouble with them are told.
        subject: Whose it is.
        uptime_s: How long the agent has been running.
        now_s: Seconds since 1970.
    """
    trouble = status.trouble if status.trouble.startswith(_TOLD) else ""
    session: Literal["valid", "due", "needs-person"] = "valid"
    if status.session == SessionState.NEEDS_PERSON:
        session = "needs-person"
    elif status.session == SessionState.DUE:
        session = "due"
    well = status.link == Link.ONLINE and session == "valid" and not trouble
    return Heartbeat(
        consortium=subject.consortium,
        site=subject.site,
        node=subject.node,
        release=software_version(),
        link=Link(status.link).value,
        session=session,
        health="needs-person" if session == "needs-person" else "well" if well else "degraded",
        trouble=trouble,
        uptime_s=uptime_s,
        issued_s=now_s,
    )


def encode_heartbeat(heartbeat: Heartbeat, session: ActiveSession) -> bytes:
    """The request's body: the statement, signed by the session key, and the certificate that makes it count."""
    signed = encode_proof(session.prove(heartbeat))
    return json.dumps({"certificate": session.certificate.decode(), "heartbeat": signed.decode()}).encode()


class Heart:
    """Sends heartbeats.

    Args:
        subject: Whose.
        session: The session to sign with; raises where there is none, and then nothing is sent.
        status: How the agent does.
        registrar: Where to, as the consortium's repository says now.
        send: Carries it there.
        on_taken: Told when the registrar took one, in seconds since 1970.
        clock: For the statement's times.
        dice: Source of jitter, so that a consortium's boxes do not fall into step.
        pulse: How often.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        session: Callable[[], ActiveSession],
        status: Callable[[], AgentStatus],
        registrar: Callable[[], ServerRecord],
        send: Line,
        on_taken: Callable[[int], None],
        clock: Clock,
        dice: random.Random,
        pulse: Pulse,
    ) -> None:
        self._subject = subject
        self._session = session
        self._status = status
        self._registrar = registrar
        self._send = send
        self._on_taken = on_taken
        self._clock = clock
        self._dice = dice
        self._pulse = pulse
        self._failed = ""

    def beat(self) -> None:
        """Send one heartbeat; nothing that goes wrong with it goes any further."""
        try:
            session = self._session()
            now_s = int(self._clock.now().timestamp())
            uptime_s = int(self._clock.monotonic_s() - self._pulse.began_s)
            heartbeat = describe(self._status(), self._subject, uptime_s=uptime_s, now_s=now_s)
            self._send(self._registrar(), encode_heartbeat(heartbeat, session))
        except SecureHealthError as error:
            if self._failed != error.code:  # said once, not every few minutes
                log.warning("heartbeat_not_taken", error=error)
            self._failed = error.code
        except Exception:  # a fault of ours in one heartbeat must end neither the others nor the agent
            log.exception("heartbeat_broke")
        else:
            self._failed = ""
            self._on_taken(now_s)

    def beating(self) -> Periodic:
        """Beats for as long as the `with` block lasts."""
        return Periodic(
            "heart",
            self.beat,
            every_s=self._pulse.every_s,
            first_s=FIRST_S,
            stretch=lambda: self._dice.uniform(1 - _JITTER, 1 + _JITTER),
        )


def heart_of(
    config: AgentConfig,
    affiliation: Affiliation,
    keeper: SessionKeeper | None,
    board: StatusBoard,
    clock: Clock,
    pulse: Pulse,
) -> AbstractContextManager[object]:
    """The heart of a box that is enrolled; one without session or registrar has none, nor one that shall be silent.

    Args:
        config: The box's.
        affiliation: Where it belongs.
        keeper: Of its session.
        board: Says how it does, and hears what the registrar took.
        clock: The service's.
        pulse: How often.
    """
    company, registrar = affiliation.company, affiliation.registrar
    if keeper is None or company is None or registrar is None or not config.federation.heartbeats:
        return nullcontext()
    return Heart(
        Subject(company.digest, affiliation.site, company.node),
        session=keeper.current,
        status=board.current,
        registrar=registrar,
        send=registrar_line(clock, config.network.proxy),
        on_taken=board.note_heard,
        clock=clock,
        dice=random.Random(),  # noqa: S311 - jitter, no secret
        pulse=pulse,
    ).beating()
