"""What the consortium's witnesses say of this box's log, and whether anything may leave because of it (rule 22)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Final

import httpx
import structlog

from agent.audit.bundle import Voucher
from agent.audit.log import AuditLog
from agent.audit.note import CosignedCheckpoint
from agent.audit.witness import MAX_ANSWER_BYTES, Post, check_witnessed, parse_witness, register, submit
from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError, SecureHealthError
from agent.enrolment.line import ANSWER_LIMIT_S, CONNECT_LIMIT_S, STEP_LIMIT_S, trust_in
from agent.service.periodic import Periodic
from agent.trust.records import WitnessRecord

WITNESS_S: Final = 60.0
"""How often a log that grew is submitted; one that did not is submitted once in `REFRESH_S`."""
REFRESH_S: Final = 3600
RETRY_S: Final = 3.0
"""While the log was not compared with a witness since the start."""
_PATIENCE: Final = int(WITNESS_S / RETRY_S)
BLOCKING: Final = frozenset({"audit.rolled_back", "audit.split_view", "audit.history_hidden"})
"""What no waiting puts right: nothing leaves until a person has looked."""

Submit = Callable[[WitnessRecord], CosignedCheckpoint]
"""Has a witness cosign the log as it is now; raises `SecureHealthError`."""

log = structlog.get_logger()


class WitnessDesk:
    """Submits the log, and remembers what came of it. Thread-safe.

    Args:
        audit: The log.
        witnesses: Those that the consortium names now.
        submit: Has one cosign.
        now_s: Seconds since 1970, not before the latest signed time.
        tell: Told what a person should know; empty where nothing.
    """

    def __init__(
        self,
        audit: AuditLog,
        witnesses: Callable[[], Sequence[WitnessRecord]],
        submit: Submit,
        *,
        now_s: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        self._audit = audit
        self._witnesses = witnesses
        self._submit = submit
        self._now_s = now_s
        self._tell = tell
        self._compared = False
        self._fault: OperatorError | PeerProtocolError | None = None
        self._turns = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Check that anything may leave.

        Raises:
            OperatorError: The disk holds an older log than a witness saw (`audit.rolled_back`), the two were not
                compared since the agent began (`audit.not_compared`), or no cosignature is younger than a day.
            PeerProtocolError: A witness saw another history of this log.
        """
        self._check(0)

    def blocked(self) -> str:
        """Why nothing may leave; empty where it may."""
        try:
            self.check()
        except SecureHealthError as error:
            return error.sentence
        return ""

    def last(self) -> CosignedCheckpoint | None:
        """The latest cosignature by a witness that the consortium names; None where there is none."""
        found = [self._audit.cosigned(parse_witness(witness.vkey)) for witness in self._witnesses()]
        return max((one for one in found if one is not None), key=lambda one: one.time_s, default=None)

    def cover(self, size: int) -> None:
        """Have at least the first `size` leaves cosigned, where there is a witness.

        Raises:
            OperatorError: They are not.
            PeerProtocolError: A witness saw another history of this log.
        """
        self.bring_up_to(size)
        self._check(size)

    def bring_up_to(self, size: int) -> None:
        """Submit the log if no witness has cosigned so much of it yet; that it fails is no failure here."""
        last = self.last()
        if self._witnesses() and (last is None or last.size < size):
            self.look()

    def look(self) -> None:
        """Submit the log to every witness."""
        failure: SecureHealthError | None = None
        with self._lock:
            for witness in self._witnesses():
                try:
                    cosigned = self._submit(witness)
                except SecureHealthError as error:
                    log.warning("log_not_cosigned", witness=witness.name, error=error)
                    failure = error
                    if isinstance(error, OperatorError | PeerProtocolError) and error.code in BLOCKING:
                        self._fault = error
                else:
                    self._compared = True
                    log.info("log_cosigned", witness=witness.name, size=cosigned.size)
        failure = self._fault or failure
        self._tell("" if failure is None else f"{failure.sentence} {failure.next_step}")

    def witnesses(self) -> Sequence[WitnessRecord]:
        """Those that the consortium names now."""
        return self._witnesses()

    def watching(self) -> Periodic:
        """Submits the log as it grows, for as long as the `with` block lasts."""
        return Periodic("witness", self._tend, every_s=RETRY_S, first_s=0.0)

    @property
    def names(self) -> str:
        """Of the witnesses."""
        return ", ".join(witness.name for witness in self._witnesses())

    def _check(self, size: int) -> None:
        if self._fault is not None:
            raise self._fault
        witnesses = [parse_witness(witness.vkey) for witness in self._witnesses()]
        if not witnesses:
            return
        if not self._compared:
            raise _not_compared()
        refusal: OperatorError | None = None
        for witness in witnesses:
            try:
                check_witnessed(self._audit, witness, size=size, now_s=self._now_s())
            except OperatorError as error:
                refusal = error
            else:
                return
        if refusal is not None:
            raise refusal

    def _tend(self) -> None:
        try:
            if self._is_due():
                self.look()
        except Exception:  # a fault of ours in one look must not end all others
            log.exception("witness_look_broke")

    def _is_due(self) -> bool:
        """Often until the first comparison, then once a minute at most."""
        self._turns += 1
        is_minute = self._turns % _PATIENCE == 0
        if not self._witnesses() or (self._compared and not is_minute):
            return False
        last = self.last()
        if not self._compared or last is None:
            return is_minute or (self._turns < _PATIENCE and self._fault is None)
        return last.size < self._audit.size or self._now_s() - last.time_s > REFRESH_S


def witness_line(audit: AuditLog, vouch: Callable[[], Voucher], clock: Clock, *, proxy: str | None) -> Submit:
    """How the log comes to a witness: over HTTPS, under the roots that the consortium pins for it.

    Args:
        audit: The log.
        vouch: Says why its key is believed; raises where the box cannot prove who it is.
        clock: The service's.
        proxy: The hospital's HTTP proxy.
    """
    known: set[str] = set()

    def hand_in(witness: WitnessRecord) -> CosignedCheckpoint:
        with closing(_client(witness, proxy)) as client:
            post = _poster(client, witness, clock)
            if witness.vkey not in known:
                voucher = vouch()
                register(audit, post, voucher.statement, voucher.certificate)
                known.add(witness.vkey)
            try:
                return submit(audit, post, parse_witness(witness.vkey))
            except PeerProtocolError as error:
                if error.code == "audit.unknown_log":
                    known.discard(witness.vkey)  # it is introduced anew
                raise

    return hand_in


def _client(witness: WitnessRecord, proxy: str | None) -> httpx.Client:
    return httpx.Client(
        base_url=f"https://{witness.address}",
        verify=trust_in(witness.root_certificates.encode()),
        proxy=proxy,
        trust_env=False,
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
        timeout=httpx.Timeout(STEP_LIMIT_S, connect=CONNECT_LIMIT_S),
    )


def _poster(client: httpx.Client, witness: WitnessRecord, clock: Clock) -> Post:
    def post(path: str, body: bytes) -> tuple[int, bytes]:
        end_s, answer = clock.monotonic_s() + ANSWER_LIMIT_S, bytearray()
        try:
            with client.stream("POST", path, content=body) as response:
                for chunk in response.iter_raw():
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES or clock.monotonic_s() > end_s:
                        return HTTPStatus.BAD_GATEWAY, b""
        except httpx.TransportError as error:
            raise NetworkError(
                "audit.witness_unreachable",
                f"The witness {witness.name} at {witness.address} does not answer ({type(error).__name__}).",
                next_step="It is asked again by itself. If it lasts, check the firewall and the proxy, and ask the "
                "witness's operator.",
            ) from error
        return response.status_code, bytes(answer)

    return post


def _not_compared() -> OperatorError:
    return OperatorError(
        "audit.not_compared",
        "Since it started, this box has not compared its audit log with the consortium's witness, so nothing leaves.",
        next_step="Nothing to do at once: it asks again by itself. If it lasts, see that the witness can be reached.",
    )
