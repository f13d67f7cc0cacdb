"""The stages of secure aggregation at a node: the protocol core, fed from worker, journal and session key."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError, NetworkError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.faults import RefusedError, StoppedError
from agent.federation.journal import FileJournal
from agent.federation.plain import parse_moments
from agent.federation.studies import StudyRun, broken_rule, declining
from agent.governance.admission import PASSING, Gate, Receipt
from agent.secagg.codec import Contribution
from agent.secagg.messages import parse_advertise_request
from agent.secagg.node import AcceptedRound, NodeIdentity, NodeSession
from agent.trust.metrics import Moments, moments_layout, training_layout
from agent.trust.peers import Peers
from agent.trust.terms import aggregation_terms, check_privacy, least_evidence

MAX_CONFIGURATION_BYTES = 1 << 20
MASK_THREADS = max(1, min(4, os.cpu_count() or 1))

log = structlog.get_logger()


class CertifiedKey(Protocol):
    """A session key and the certificate that makes others believe it."""

    @property
    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """P-256."""
        ...

    @property
    def certificate(self) -> bytes:
        """The envelope to send along."""
        ...


SessionSource = Callable[[], CertifiedKey]
"""The session to sign with now; raises `HardwareError` when the box cannot prove who it is."""


@dataclass(slots=True)
class _OpenStudy:
    """One study's session on this box."""

    session: NodeSession
    journal: FileJournal
    run: bytes = b""


@dataclass(frozen=True, slots=True)
class Governed:
    """What lets an update leave.

    Args:
        gate: Reserves and writes down.
        still_permitted: Asked once more before an update leaves; raises `RefusedError`.
    """

    gate: Gate
    still_permitted: Callable[[StudyRun], None]


@dataclass(frozen=True, slots=True)
class SecureSettings:
    """What the handler needs beside the studies.

    Args:
        site: This hospital.
        state: The agent's state directory; the journals lie below it.
        peers: Whom this hospital trusts to speak for whom.
        coordinator: Who may ask.
        session: The key that signs for this box.
        stopping: Whether the agent was told to stop: training that a stop cut short is no failure of the study.
        journal_key: Protects the journals against other hands (`agent.federation.journal`).
        governed: What budget, receipts and permits are asked of; None on a box that governs no studies.
        on_sent: Told study, cohort and bytes of what is about to leave, for people to watch.
    """

    site: str
    state: Path
    peers: Peers
    coordinator: ec.EllipticCurvePublicKey
    session: SessionSource = field(repr=False)
    stopping: Callable[[], bool] = field(repr=False)
    journal_key: bytes = field(repr=False)
    governed: Governed | None = None
    on_sent: Callable[[str, tuple[str, ...], int], None] = field(default=lambda *_: None, repr=False)


class SecureHandler:
    """Answers the four legs. Only masked words leave; whatever fails on the data still sends a masked nothing."""

    def __init__(self, settings: SecureSettings) -> None:
        self._settings = settings
        self._open: dict[str, _OpenStudy] = {}

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        """Answer one leg; a box whose key or disk does not answer is busy, and asked again."""
        try:
            return self._answer(run, frame)
        except HardwareError as error:
            raise RefusedError(Refusal.BUSY, error) from error

    def _answer(self, run: StudyRun, frame: Frame) -> Frame:
        if frame.stage is Stage.ADVERTISE:
            return self._advertise(run, frame)
        study = self._open.get(run.folder.digest) or self._begin(run)
        if frame.stage is Stage.MASKED_INPUT:
            return self._masked_input(run, study, frame)
        if frame.stage is Stage.AGREE:
            return study.session.agree(frame)
        return study.session.reveal(frame)

    def forget(self, run: StudyRun) -> None:
        """Drop the session with its secrets; the journal stays on the disk."""
        self._open.pop(run.folder.digest, None)

    def _advertise(self, run: StudyRun, frame: Frame) -> Frame:
        """Leg 0, always with a fresh session: its certificate is then the newest, its secrets are the run's alone."""
        wanted = parse_advertise_request(frame.header, frame.payload).run
        before = self._open.get(run.folder.digest)
        study = self._begin(run)
        try:
            check_privacy(aggregation_terms(run.study, run.folder.digest))
        except OperatorError as error:
            raise RefusedError(Refusal.NOT_PERMITTED, error) from error
        if before is None or before.run != wanted:
            self._check_not_paused(run, study)
        self._reserve(run)
        study.run = wanted
        return study.session.advertise(frame)

    def _reserve(self, run: StudyRun) -> None:
        """Set the budget aside before leg 1; a box whose witness is away is asked again."""
        governed = self._settings.governed
        if governed is None or run.permit is None:
            return
        with _witnessed():
            governed.gate.reserve(run.permit, run.study)

    def _check_not_paused(self, run: StudyRun, study: _OpenStudy) -> None:
        """Refuse a run after one that failed on data; a run under way goes on, with nothing to add."""
        try:
            study.journal.check_not_paused()
        except OperatorError as error:
            # The cause depends on data, and so the word is the one that says no more.
            self.forget(run)
            raise RefusedError(Refusal.DECLINED, error) from error

    def _begin(self, run: StudyRun) -> _OpenStudy:
        settings = self._settings
        certified = settings.session()
        directory = journal_directory(settings.state, run.folder.digest, run.dataset.id)
        journal = FileJournal(directory, settings.journal_key)
        session = NodeSession(
            identity=NodeIdentity(settings.site, certified.certificate, _signer(certified.signing_key)),
            terms=aggregation_terms(run.study, run.folder.digest),
            roster=settings.peers.demanding(least_evidence(run.study)),
            coordinator=settings.coordinator,
            journal=journal,
            initial_model=run.worker.initial_parameters,
            randomness=os.urandom,
            permit_minimum=0 if run.permit is None else run.permit.minimum_cohort,
            workers=MASK_THREADS,
        )
        self._open[run.folder.digest] = study = _OpenStudy(session, journal)
        return study

    def _masked_input(self, run: StudyRun, study: _OpenStudy, frame: Frame) -> Frame:
        self._check_uploads()
        accepted = study.session.accept(frame)
        moments = self._moments(run, study, accepted)
        contribution = self._contribute(run, study, accepted, moments)
        self._check_uploads()  # training and masking take their time, in which a steward or the witness may say no
        upload = study.session.masked_input(contribution)
        governed = self._settings.governed
        if governed is not None:
            governed.still_permitted(run)
        if governed is not None and run.permit is not None:
            with _witnessed():
                governed.gate.note_sent(run.permit, _receipt(run, accepted, upload.frame), run.study)
        self._settings.on_sent(run.study.id, accepted.attempt.cohort, len(upload.frame.payload))
        if upload.declined is not None and contribution is not None:
            self._pause(run, study, "rounds.not_encodable")
        log.info(
            "masked_input_sent",
            study=run.study.id,
            round=accepted.attempt.round_number,
            attempt=accepted.attempt.attempt,
            cohort=len(accepted.attempt.cohort),
            bytes=len(upload.frame.payload),
            context=accepted.attempt.context.hex(),
        )
        return upload.frame

    def _check_uploads(self) -> None:
        if self._settings.governed is not None:
            with _witnessed():
                self._settings.governed.gate.check_uploads()

    def _moments(self, run: StudyRun, study: _OpenStudy, accepted: AcceptedRound) -> Mapping[str, Moments] | None:
        """The moments to standardise by, the same in every round."""
        if accepted.attempt.round_number == 0:
            if accepted.configuration:
                raise broken_rule("moments in the round that asks for them")
            return None
        moments = parse_moments(run.study, _parse_configuration(accepted.configuration))
        study.journal.pin_configuration(accepted.configuration)
        return moments

    def _contribute(
        self, run: StudyRun, study: _OpenStudy, accepted: AcceptedRound, moments: Mapping[str, Moments] | None
    ) -> Contribution | None:
        """Train; None where that failed, for a cause that stays here and pauses the study before its next run."""
        try:
            with declining(run.study):
                return _compute(run, accepted, moments)
        except RefusedError as refused:
            if self._settings.stopping():
                raise StoppedError from refused
            self._pause(run, study, refused.cause.code, error=refused.cause)
            return None

    def _pause(self, run: StudyRun, study: _OpenStudy, code: str, *, error: SecureHealthError | None = None) -> None:
        log.error("study_paused", study=run.study.id, cause=code, error=error)
        try:
            study.journal.pause(code)
        except OSError as failure:
            # The answer must not show that something failed here; the next start finds no pause, and tries again.
            log.exception("pause_not_kept", study=run.study.id, cause=str(failure))


def journal_directory(state: Path, study_digest: str, dataset: str) -> Path:
    """Where the journal of a study on a data set lies, below the agent's state directory."""
    return state / "rounds" / study_digest[:32] / dataset


def journals_of_study(state: Path, study_digest: str) -> list[Path]:
    """The journals of a study, one a data set that it ran on."""
    return sorted(path for path in journal_directory(state, study_digest, "*").parent.glob("*") if path.is_dir())


@contextmanager
def _witnessed() -> Iterator[None]:
    """Turn what keeps anything from leaving into a refusal; a box whose witness is away is asked again."""
    try:
        yield
    # A witness that saw another history is a peer too, and not the one that sent this message.
    except (NetworkError, OperatorError, PeerProtocolError) as error:
        passing = isinstance(error, NetworkError) or error.code in PASSING
        raise RefusedError(Refusal.BUSY if passing else Refusal.NOT_PERMITTED, error) from error


def _receipt(run: StudyRun, accepted: AcceptedRound, frame: Frame) -> Receipt:
    attempt = accepted.attempt
    return Receipt(
        round_number=attempt.round_number,
        attempt=attempt.attempt,
        context=attempt.context,
        cohort=attempt.cohort,
        size=len(frame.payload),
        sha256=hashlib.sha256(frame.payload).hexdigest(),
        last=attempt.round_number > run.study.rounds,
    )


def _compute(run: StudyRun, accepted: AcceptedRound, moments: Mapping[str, Moments] | None) -> Contribution:
    number, nothing = accepted.attempt.round_number, np.empty(0, dtype=np.float32)
    if number == 0:
        result = run.worker.moments()
        return Contribution(nothing, 0, moments_layout(run.study).encode(result.metrics))
    layout = training_layout(run.study)
    if number > run.study.rounds:
        result = run.worker.evaluate(accepted.model, moments=moments)
        return Contribution(nothing, 0, layout.encode(result.metrics))
    result = run.worker.train(accepted.model, round_number=number, moments=moments)
    return Contribution(result.update, result.weight, layout.encode(result.metrics))


def _parse_configuration(configuration: bytes) -> object:
    if not configuration:
        return None
    if len(configuration) > MAX_CONFIGURATION_BYTES:
        raise broken_rule("moments beyond the limit")
    try:
        return json.loads(configuration)
    except (ValueError, RecursionError):
        raise broken_rule("moments that are not JSON") from None


def _signer(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))
