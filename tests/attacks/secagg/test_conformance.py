"""The model and the real node sessions answer and refuse the same messages, along random walks of a lying server."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.errors import PeerProtocolError
from agent.secagg.messages import AbortCertificate
from agent.secagg.rules import ABORT_LOCK, OPEN_LOCK
from agent.secagg.stages import NodeState
from agent.secagg.terms import Dropout
from tests.attacks.secagg.model import ABORTED, OPEN, Context, Knowledge, Model, Node, Sites, State
from tests.simulators.cohort import Cohort, make_terms
from tests.simulators.malicious_server import MaliciousServer, Opened


class Walk:
    """One walk through both: the model's state beside real sessions."""

    def __init__(self, sites: int, colluders: int, dropout: Dropout) -> None:
        terms = make_terms(
            sites, colluders=colluders, minimum_sites=colluders + 2, dropout=dropout, accept_differencing=True
        )
        self.model = Model(terms, attempts=2, variants="ab")
        self.server = MaliciousServer.over(Cohort(terms))
        self.state: State = tuple(Node() for _ in self.model.honest)
        self.opened: dict[Context, Opened] = {}
        self.aborts: dict[Context, dict[str, bytes]] = {context: {} for context in self.model.contexts}
        self.agreements: dict[tuple[Context, Sites], dict[str, bytes]] = {}

    def context(self, context: Context) -> Opened:
        """The real context behind a name, with uploads of all colluders."""
        if context not in self.opened:
            opened = self.opened[context] = self.request(context, None)
            for site in sorted(self.model.colluders):
                self.server.upload_as(site, opened)
        return self.opened[context]

    def request(self, context: Context, abort: AbortCertificate | None) -> Opened:
        """A leg 1 request; its context does not depend on the proof that it carries."""
        attempt, variant = context
        return self.server.open(1, attempt, configuration=variant.encode(), abort=abort)

    def certificates(self, context: Context) -> list[AbortCertificate | None]:
        """Every proof that the server has of a dead attempt before this one, or none."""
        found: list[AbortCertificate | None] = []
        for variant in "ab":
            before = (context[0] - 1, variant)
            if before in self.opened and self.aborts[before]:
                opened = self.opened[before]
                colluders = {site: self.server.abort_as(site, opened) for site in self.model.colluders}
                found.append(AbortCertificate(opened.attempt.context, {**self.aborts[before], **colluders}))
        return found or [None]

    def upload(self, site: str, context: Context) -> None:
        """Try every proof in turn."""
        self.context(context)
        certificates = self.certificates(context)
        for number, abort in enumerate(certificates):
            try:
                self.server.upload(site, self.request(context, abort))
            except PeerProtocolError:
                if number == len(certificates) - 1:
                    raise
            else:
                return

    def both(self, index: int, step: str, *arguments: object) -> None:
        """Take a step in both and compare."""
        site = self.model.honest[index]
        try:
            after = self._model_step(index, step, *arguments)
        except PeerProtocolError:
            after = None
        try:
            self._real_step(site, step, *arguments)
            answered = True
        except PeerProtocolError:
            answered = False
        assert answered is (after is not None), (step, site, arguments)
        if after is not None:
            self.state = (*self.state[:index], after, *self.state[index + 1 :])
        self.compare(index)

    def _model_step(self, index: int, step: str, *arguments: object) -> Node:
        node, site = self.state[index], self.model.honest[index]
        if step == "upload":
            return self.model.upload(self.state, node, site, *arguments)  # type: ignore[arg-type]
        if step == "abort":
            return self.model.abort(node, *arguments)  # type: ignore[arg-type]
        if step == "agree":
            return self.model.agree(self.state, node, *arguments)  # type: ignore[arg-type]
        return self.model.reveal(self.state, node)

    def _real_step(self, site: str, step: str, *arguments: object) -> None:
        node = self.state[self.model.honest.index(site)]
        if step == "upload":
            (context,) = arguments
            self.upload(site, context)  # type: ignore[arg-type]
        elif step == "abort":
            (context,) = arguments
            opened = self.context(context)  # type: ignore[arg-type]
            reply = self.server.abort(site, 1, opened.attempt.attempt, opened.attempt.context)
            self.aborts[context][site] = reply.signature  # type: ignore[index]
        elif step == "agree":
            (survivors,) = arguments
            self._agree(site, node, survivors)  # type: ignore[arg-type]
        else:
            self._reveal(site, node)

    def _agree(self, site: str, node: Node, survivors: Sites) -> None:
        context = node.context or (1, "a")
        opened = self.context(context)
        missing = [other for other in survivors if (opened.attempt.context, other) not in self.server.uploads]
        if missing:
            # The server has no signed upload to show: any other is refused, which the attacks test.
            raise PeerProtocolError("secagg.bad_upload_signature", "", next_step="")
        reply = self.server.agree(site, opened, sorted(survivors))
        if reply.answer == "aborted":
            self.aborts[context][site] = reply.signature
        else:
            self.agreements.setdefault((context, survivors), {})[site] = reply.signature

    def _reveal(self, site: str, node: Node) -> None:
        context = node.context or (1, "a")
        survivors = node.lock(context)
        chosen = survivors if isinstance(survivors, frozenset) else frozenset(self.model.cohort)
        opened = self.context(context)
        signed = dict(self.agreements.get((context, chosen), {}))
        for colluder in self.model.colluders & chosen:
            with suppress(KeyError):
                signed[colluder] = self.server.agree_as(colluder, opened, sorted(chosen))
        self.server.reveal(site, opened, sorted(signed.items()))

    def compare(self, index: int) -> None:
        """State and lock of the real node are those of the model."""
        node, hospital = self.state[index], self.server.cohort.hospitals[self.model.honest[index]]
        assert hospital.session.state is node.state
        record = hospital.journal.latest_attempt()
        if node.locks and record is not None:
            context, lock = node.locks[-1]
            assert record.context == self.opened[context].attempt.context
            assert (record.lock == ABORT_LOCK) is (lock == ABORTED)
            assert (record.lock == OPEN_LOCK) is (lock == OPEN)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_real_nodes_answer_and_refuse_what_the_model_does(data: st.DataObject) -> None:
    walk = Walk(*data.draw(st.sampled_from([(4, 1), (4, 2), (5, 1)])), data.draw(st.sampled_from(list(Dropout))))
    honest = len(walk.model.honest)
    for _ in range(data.draw(st.integers(5, 30))):
        index = data.draw(st.integers(0, honest - 1))
        step = data.draw(st.sampled_from(["upload", "upload", "agree", "agree", "reveal", "abort"]))
        arguments: tuple[object, ...] = ()
        if step in {"upload", "abort"}:
            arguments = (data.draw(st.sampled_from(walk.model.contexts[:1] * 4 + walk.model.contexts)),)
        if step == "agree":
            least = data.draw(st.sampled_from([walk.model.cohort, walk.model.cohort[:-1], walk.model.cohort[1:]]))
            arguments = (frozenset(least) | {walk.model.honest[index]},)
        walk.both(index, step, *arguments)
        assert walk.model.violation(walk.state) is None


def test_an_unseen_attempt_cannot_be_given_up_once_survivors_were_agreed_to() -> None:
    walk = Walk(4, 2, Dropout.WAIT)
    everybody = frozenset(walk.model.cohort)
    for index, step, *arguments in [(0, "upload", (1, "a")), (1, "upload", (1, "a")), (0, "agree", everybody)]:
        walk.both(index, step, *arguments)
    decided = walk.state[0]
    walk.both(0, "abort", (2, "a"))
    assert walk.state[0] == decided


def test_a_walk_reaches_all_legs() -> None:
    walk = Walk(5, 1, Dropout.CONTINUE)
    survivors = frozenset(walk.model.cohort[1:])
    for index in range(4):
        walk.both(index, "upload", (1, "a"))
    for index in range(1, 4):
        walk.both(index, "agree", survivors)
    for index in range(1, 4):
        walk.both(index, "reveal")
    assert [node.state for node in walk.state] == [NodeState.UPLOADED, *[NodeState.READY] * 3]
    assert Knowledge(walk.model, walk.state, (1, "a")).sums() == {survivors - walk.model.colluders}
    walk.both(0, "abort", (1, "a"))
    walk.both(1, "abort", (1, "a"))


def test_a_walk_reaches_the_second_attempt() -> None:
    walk = Walk(4, 1, Dropout.WAIT)
    for index in range(3):
        walk.both(index, "upload", (1, "a"))
    walk.both(0, "upload", (2, "b"))
    for index in (0, 1):
        walk.both(index, "agree", frozenset(walk.model.cohort[:2]))
    for index in range(3):
        walk.both(index, "upload", (2, "b"))
    for index in range(3):
        walk.both(index, "agree", frozenset(walk.model.cohort))
    assert [node.last for node in walk.state] == [(1, 2)] * 3
    assert Knowledge(walk.model, walk.state, (2, "b")).sums() == {frozenset(walk.model.honest)}
