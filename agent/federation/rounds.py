"""Answers frames: finds the study, checks that it may run here now, and hands over to the stage's handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from agent.core.errors import Fault, PeerProtocolError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.board import RoundBoard
from agent.federation.faults import RefusedError
from agent.federation.studies import StudyRun, StudyShelf, broken_rule


class StageHandler(Protocol):
    """Answers the frames of one stage, or of several that belong together."""

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        """Answer a frame of an open study.

        Raises:
            PeerProtocolError: A rule of the protocol was broken; the other side learns no more than that.
            RefusedError: Any other refusal, e.g. `declined` for whatever depends on data.
        """
        ...

    def forget(self, run: StudyRun) -> None:
        """Let go of whatever is kept for a run: it has ended."""
        ...


class OpenHandler:
    """Stage OPEN: the study is the same on both sides, and a local data set fits it. Nothing about it leaves."""

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        """Compare the study; that it is open already says that the data fit."""
        digest = frame.header.get("study_digest")
        if not isinstance(digest, str):
            raise broken_rule("an opening without a study digest")
        if digest != run.folder.digest:
            cause = broken_rule(f"another version of the study {run.study.id}")
            raise RefusedError(Refusal.UNKNOWN_STUDY, cause)
        return Frame(frame.study, frame.stage, frame.round, frame.attempt)

    def forget(self, run: StudyRun) -> None:
        """Nothing is kept."""


class LateHandler:
    """A handler that is made with the first frame for it: until then an agent holds nothing of its protocol."""

    def __init__(self, make: Callable[[], StageHandler]) -> None:
        """Prepare.

        Args:
            make: Makes it; called once, by the thread that answers.
        """
        self._make = make
        self._made: StageHandler | None = None

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        """As the handler does."""
        if self._made is None:
            self._made = self._make()
        return self._made.handle(run, frame)

    def forget(self, run: StudyRun) -> None:
        """As the handler does; before the first frame there is nothing to let go of."""
        if self._made is not None:
            self._made.forget(run)


class Rounds:
    """The table of stages. Stage CLOSE is answered here: it must work whatever has become of the study."""

    def __init__(
        self, shelf: StudyShelf, handlers: Mapping[Stage, StageHandler], board: RoundBoard | None = None
    ) -> None:
        """Prepare.

        Args:
            shelf: The studies.
            handlers: Who answers which stage; a stage without handler is refused.
            board: Told of every leg, for people to watch.
        """
        self._shelf = shelf
        self._board = board
        self._handlers = dict(handlers)

    def answer(self, frame: Frame) -> Frame:
        """Answer one frame.

        Raises:
            RefusedError: With what the other side may know, and the cause for the log.
        """
        if frame.stage is Stage.CLOSE:
            self._shelf.close_run(frame.study, on_close=self._forget)
            return Frame(frame.study, frame.stage, frame.round, frame.attempt)
        try:
            handler = self._handlers.get(frame.stage)
            if handler is None:
                raise broken_rule(f"a message of stage {frame.stage.value}, which this node does not take part in")
            run = self._shelf.run_of(frame.study, on_close=self._forget)
            return self._watched(run, frame, handler)
        except PeerProtocolError as error:
            self._shelf.note_refused(frame.study, error)
            raise RefusedError(Refusal.PROTOCOL, error) from error
        except RefusedError as refused:
            if refused.refusal not in {Refusal.BUSY, Refusal.UNKNOWN_STUDY}:
                self._shelf.note_refused(frame.study, refused.cause)
            # A worker that broke is not asked again; the study opens with a fresh one.
            if refused.refusal is Refusal.DECLINED and refused.cause.fault in {Fault.SOFTWARE, Fault.HARDWARE}:
                self._shelf.close_run(frame.study, on_close=self._forget)
            raise

    def check_still_stands(self, frame: Frame) -> None:
        """Check that an answer which could not be sent at once may still leave.

        Raises:
            RefusedError: What let it be given was withdrawn, or has ended.
        """
        if frame.stage is Stage.CLOSE:
            return
        try:
            self._shelf.check_still_open(frame.study)
        except RefusedError as refused:
            self._shelf.note_refused(frame.study, refused.cause)
            raise

    def _watched(self, run: StudyRun, frame: Frame, handler: StageHandler) -> Frame:
        if self._board is None or frame.stage is Stage.OPEN:
            return handler.handle(run, frame)
        study = run.study
        self._board.note_leg(frame, title=study.title, dataset=run.dataset.id, rounds=study.rounds)
        answer = handler.handle(run, frame)
        self._board.note_answered(frame)
        return answer

    def _forget(self, run: StudyRun) -> None:
        # One handler may serve several stages.
        for handler in set(self._handlers.values()):
            handler.forget(run)

    def close(self) -> None:
        """End all training, also what another thread waits for."""
        self._shelf.close()
