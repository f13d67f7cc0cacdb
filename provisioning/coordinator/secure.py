"""Secure aggregation over an exchange: the legs of each round, attempts that are given up, rounds that are spent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.core.wire import Frame, Refusal
from agent.secagg.messages import AbortCertificate, parse_advertise_reply
from agent.secagg.rules import Verdict
from agent.secagg.server import RoundSum as SecureSum
from agent.secagg.server import ServerRound, ServerSession
from agent.secagg.terms import Dropout
from agent.secagg.transcript import NO_DIGEST
from agent.trust.peers import Peers
from agent.trust.terms import aggregation_terms, check_privacy, encode_configuration
from provisioning.coordinator.aggregation import Report, RoundSum, RoundTask, refused_by
from provisioning.coordinator.directory import Assignment
from provisioning.coordinator.exchange import (
    Arrival,
    Exchange,
    Faulty,
    Inquiry,
    Refused,
    Reply,
    missing_sites,
    stray_answer,
)

MAX_ATTEMPTS = 5
"""How often one round is tried before the study is paused in a state that can be resumed."""
SPENT_TOLERATED = 1
"""How many rounds in a row may yield no sum."""
LEG_S = 60.0
"""How long the legs after the masked input may take; no training happens in them."""
KEYS_AGE_S = 1800.0
"""How old keys may grow before all are asked for new ones; well below the life of a session certificate."""

log = structlog.get_logger()


class SecureAggregation:
    """Obtains a cohort's sum without ever holding one hospital's part of it in the clear."""

    def __init__(self, assignment: Assignment, report: Report, peers: Peers | None) -> None:
        """Prepare a session with a fresh run id: a coordinator that is started again asks for new keys.

        Args:
            assignment: What is to be done.
            report: Told of everything that comes.
            peers: Who speaks for which hospital.

        Raises:
            OperatorError: The study's terms cannot be kept, or roster or key are missing.
        """
        protection = assignment.protection
        if protection is None or peers is None:
            raise OperatorError(
                "coordinator.unprotected",
                "Secure aggregation needs the consortium's roster and the coordinator's key.",
                next_step="Prepare the directory anew, with both.",
            )
        self._study = assignment.study
        self._report = report
        self._file = protection.open_attempt
        terms = aggregation_terms(assignment.study, assignment.digest)
        check_privacy(terms)
        self._session = ServerSession(
            terms=terms,
            run=os.urandom(16),
            roster=peers,
            sign=_signer(protection.key),
            workers=max(1, min(4, os.cpu_count() or 1)),
        )
        self._previous = NO_DIGEST
        self._spent = 0
        self._keys_until_s = 0.0
        self._stale: set[str] = set()
        self._rejected: PeerProtocolError | None = None
        self._legs = 0

    def state(self) -> Mapping[str, object]:
        """The digest of the last sum, which the next round binds."""
        return {"previous": self._previous.hex(), "spent": self._spent}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take up what `state` gave."""
        self._previous = bytes.fromhex(str(state.get("previous", NO_DIGEST.hex())))
        self._spent = int(str(state.get("spent", 0)))

    def run(self, task: RoundTask, exchange: Exchange) -> RoundSum:
        """Run one round: legs 0 to 3, attempt after attempt.

        Returns:
            The sum; of weight 0 where the round is spent without one, and the next begins with the same model.

        Raises:
            SecureHealthError: No sum came about; the round can be run again.
        """
        self._legs = 0
        attempt, certificate = self._take_up(task, exchange)
        for number in range(attempt, attempt + MAX_ATTEMPTS):
            self._ensure_keys(task, exchange)
            server = self._begin(task, number, certificate)
            try:
                self._collect(task, server, exchange)
                if server.verdict is not Verdict.ABORT:
                    result = self._settle(task, server, exchange)
                    if result is not None:
                        return self._released(result, number)
                certificate = self._abort(task, server, exchange)
            except PeerProtocolError as error:
                log.warning("round_attempt_failed", round=task.round, attempt=number, error=error)
                certificate = self._abort(task, server, exchange)
            if certificate is None:
                return self._spend(task, number)
        raise _round_failed(task.round, MAX_ATTEMPTS)

    def _take_up(self, task: RoundTask, exchange: Exchange) -> tuple[int, AbortCertificate | None]:
        """Where the round stands: a first attempt, or the one after an attempt that an earlier process left open."""
        left = _OpenAttempt.load(self._file)
        if left is None or left.round != task.round:
            return 1, None
        certificate = self._prove_dead(task, left, exchange)
        if certificate is None:
            raise _round_failed(task.round, left.attempt)
        return left.attempt + 1, certificate

    def _ensure_keys(self, task: RoundTask, exchange: Exchange) -> None:
        """Leg 0, for those whose keys are missing, stale or old."""
        now_s = exchange.clock.monotonic_s()
        wanted = set(task.sites) - set(self._session.ready_sites()) | (self._stale & set(task.sites))
        if now_s >= self._keys_until_s:
            wanted = set(task.sites)
        if not wanted:
            return
        self._rejected = None
        frames = dict.fromkeys(sorted(wanted), self._session.advertise_request())
        missing = self._hear(task, exchange, frames, self._take_bundle, wait=True)
        if missing and self._waits:
            # Once one is rejected the round cannot be, whoever else is missing.
            missed = missing_sites(sorted(missing), within_s=task.deadline_s - now_s, round_number=task.round)
            raise self._rejected or missed
        for site in missing:
            self._session.forget_bundle(site)
        self._stale -= wanted
        self._keys_until_s = exchange.clock.monotonic_s() + KEYS_AGE_S

    def _take_bundle(self, site: str, frame: Frame) -> None:
        """Take a hospital's keys; nobody answers for another."""
        if parse_advertise_reply(frame.header, frame.payload).bundle.site != site:
            raise stray_answer(site, "it speaks for another hospital")
        self._session.receive_bundle(frame)

    def _begin(self, task: RoundTask, number: int, certificate: AbortCertificate | None) -> ServerRound:
        cohort = sorted(set(task.sites) & set(self._session.ready_sites()))
        server = self._session.begin_round(
            task.round,
            task.parameters.astype("<f4", copy=False).tobytes(),
            attempt=number,
            previous=self._previous,
            configuration=encode_configuration(task.moments),
            abort=certificate,
            cohort=cohort,
        )
        kept = _OpenAttempt(task.round, number, server.attempt.context, tuple(cohort))
        store_atomically(self._file, kept.encode())
        return server

    def _collect(self, task: RoundTask, server: ServerRound, exchange: Exchange) -> None:
        """Leg 1: masked inputs."""
        frames = dict.fromkeys(server.attempt.cohort, server.masked_input_request())
        begin_s = exchange.clock.monotonic_s()
        missing = self._hear(task, exchange, frames, server.receive_masked_input, wait=self._waits)
        late = exchange.clock.monotonic_s() >= task.deadline_s
        if missing and late and server.verdict is Verdict.ABORT:
            raise missing_sites(sorted(missing), within_s=task.deadline_s - begin_s, round_number=task.round)

    def _settle(self, task: RoundTask, server: ServerRound, exchange: Exchange) -> SecureSum | None:
        """Legs 2 and 3; None where the nodes gave the attempt up.

        Raises:
            PeerProtocolError: Somebody lied, or too few answered.
        """
        self._hear(task, exchange, server.agree_requests(), server.receive_agreement, wait=False)
        if server.abort_certificate() is not None:
            return None
        if server.needs_reveal:
            frames = dict.fromkeys(server.uploaded, server.reveal_request())
            self._hear(task, exchange, frames, server.receive_reveal, wait=False)
        return server.finish()

    def _abort(self, task: RoundTask, server: ServerRound, exchange: Exchange) -> AbortCertificate | None:
        """Proof that the attempt is dead; None where it is not to be had, so that the round's number is spent."""
        self._stale |= set(server.attempt.cohort)
        certificate = server.abort_certificate()
        if certificate is not None:
            return certificate
        try:
            server.abort_request()
        except PeerProtocolError:  # nodes were asked to reveal already: nothing can be taken back
            return None
        attempt = server.attempt
        left = _OpenAttempt(attempt.round_number, attempt.attempt, attempt.context, attempt.cohort)
        return self._prove_dead(task, left, exchange)

    def _prove_dead(self, task: RoundTask, left: _OpenAttempt, exchange: Exchange) -> AbortCertificate | None:
        """Have an attempt given up under the keys that hospitals sign with now: those that restarted have others.

        The next attempt needs new keys from all in any case, and the same hospitals.

        Raises:
            NetworkError: One of them is gone.
        """
        begin_s = exchange.clock.monotonic_s()
        self._ensure_keys(task, exchange)
        gone = set(left.cohort) - set(self._session.ready_sites())
        if gone:
            raise missing_sites(sorted(gone), within_s=task.deadline_s - begin_s, round_number=task.round)
        dead = self._session.reopen(left.round, left.attempt, left.context, left.cohort)
        frames = dict.fromkeys(left.cohort, dead.abort_request())
        self._hear(task, exchange, frames, dead.receive_agreement, wait=False)
        return dead.abort_certificate()

    def _hear(
        self,
        task: RoundTask,
        exchange: Exchange,
        frames: Mapping[str, Frame],
        receive: Callable[[str, Frame], object],
        *,
        wait: bool,
    ) -> set[str]:
        """One leg: ask, take what comes, and say who gave nothing that counts."""
        self._legs += 1
        now_s = exchange.clock.monotonic_s()
        deadline_s = task.deadline_s if wait else max(task.deadline_s, now_s + LEG_S)
        missing = set(frames)
        inquiry = exchange.ask(frames, deadline_s=deadline_s, persist=wait)
        for arrival in inquiry:
            heard = self._take(task, arrival, receive)
            if heard:
                missing.discard(arrival.site)
            elif isinstance(arrival, (Refused, Faulty)):
                self._stale.add(arrival.site)
                if wait and self._waits:
                    _give_up(inquiry)
        return missing

    def _take(self, task: RoundTask, arrival: Arrival, receive: Callable[[str, Frame], object]) -> bool:
        if isinstance(arrival, Reply):
            try:
                receive(arrival.site, arrival.frame)
            except PeerProtocolError as error:
                arrival = Faulty(arrival.site, error)
        self._report(task.round, arrival)
        if isinstance(arrival, Faulty):
            self._rejected = self._rejected or arrival.error
        if isinstance(arrival, Refused) and self._waits and arrival.refusal is not Refusal.PROTOCOL:
            raise refused_by(arrival, round_number=task.round)
        return isinstance(arrival, Reply)

    def _released(self, result: SecureSum, attempts: int) -> RoundSum:
        self._previous, self._spent = result.digest, 0
        for error in result.blamed:
            log.warning("hospital_lied", error=error)
        self._file.unlink(missing_ok=True)
        total = result.total
        return RoundSum(total.update, total.weight, total.words, result.survivors, self._legs, attempts)

    def _spend(self, task: RoundTask, attempts: int) -> RoundSum:
        """Count a round without a sum; the next one begins with the same model."""
        self._spent += 1
        if self._spent > SPENT_TOLERATED:
            raise _round_failed(task.round, attempts)
        log.warning("round_spent", round=task.round, attempts=attempts)
        self._file.unlink(missing_ok=True)
        words = np.zeros(self._session.terms.word_count(task.round), dtype=np.uint64)
        return RoundSum(np.zeros_like(task.parameters), 0, words, (), self._legs, attempts)

    @property
    def _waits(self) -> bool:
        return self._session.terms.dropout is Dropout.WAIT


def _give_up(inquiry: Inquiry) -> None:
    """Stop waiting: under `wait` an attempt that one hospital refused can no longer be summed."""
    for site in list(inquiry.pending):
        inquiry.drop(site)


@dataclass(frozen=True, slots=True)
class _OpenAttempt:
    """An attempt under way, as kept for a coordinator that is started again."""

    round: int
    attempt: int
    context: bytes
    cohort: tuple[str, ...]

    def encode(self) -> bytes:
        fields = {"round": self.round, "attempt": self.attempt, "context": self.context.hex(), "cohort": self.cohort}
        return json.dumps(fields).encode()

    @classmethod
    def load(cls, file: Path) -> _OpenAttempt | None:
        if not file.exists():
            return None
        fields = json.loads(file.read_bytes())
        context, cohort = bytes.fromhex(fields["context"]), tuple(fields["cohort"])
        return cls(int(fields["round"]), int(fields["attempt"]), context, cohort)


def _signer(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


def _round_failed(round_number: int, attempts: int) -> PeerProtocolError:
    return PeerProtocolError(
        "coordinator.round_failed",
        f"Round {round_number} gave no sum in {attempts} attempts.",
        next_step="Read the coordinator's log for the hospitals that it names, then resume the study; nothing is lost.",
        round=round_number,
    )
