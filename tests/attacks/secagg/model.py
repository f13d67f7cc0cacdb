"""An explicit-state model of legs 1 to 3 with a server that lies at will and up to c colluding hospitals.

Every honest node decides by the very functions and the very table that `agent.secagg.node` uses (`agent.secagg.rules`,
`NODE_TRANSITIONS`); cryptography is replaced by what it stands for: signatures of honest nodes cannot be forged, shares
below the threshold say nothing, a seed is known if one of its ends or T of its shares revealed it. The server may send
any request to any node at any time, split the cohort between two contexts of one attempt, and start a second attempt on
the same updates whenever nodes let it. The search visits every reachable state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from agent.core.errors import PeerProtocolError
from agent.secagg import refusals, rules, stages
from agent.secagg.stages import NodeEvent, NodeState, advance
from agent.secagg.terms import Terms

Sites = frozenset[str]
Context = tuple[int, str]
"""Attempt, and which of the two contexts that a split view gives one attempt."""

ABORTED = "aborted"
OPEN = "open"
Lock = str | Sites


@dataclass(frozen=True, slots=True)
class Node:
    """What a run of the protocol has made of one honest node.

    Args:
        state: Of the real table.
        context: Of the open round.
        locks: What was decided about each context it took part in, or gave up unseen, in order.
        uploaded: Contexts in which its masked input went out.
        signed: Decisions that it signed, by context; a signature given is never taken back.
        revealed: Contexts and survivors for which it revealed shares.
    """

    state: NodeState = NodeState.READY
    context: Context | None = None
    locks: tuple[tuple[Context, Lock], ...] = ()
    uploaded: frozenset[Context] = frozenset()
    signed: frozenset[tuple[Context, Lock]] = frozenset()
    revealed: frozenset[tuple[Context, Sites]] = frozenset()

    def lock(self, context: Context) -> Lock | None:
        """The decision about a context, None if it is unknown here."""
        return dict(self.locks).get(context)

    @property
    def last(self) -> tuple[int, int] | None:
        """Round and attempt used last."""
        return (1, max(context[0] for context, _ in self.locks)) if self.locks else None

    def decided(self, context: Context, wanted: Lock) -> Node:
        """The node after a lock, if the rule allows it."""
        rules.settle_lock(_lock_bytes(self.lock(context)), _lock_bytes(wanted))
        locks = tuple((known, wanted if known == context else was) for known, was in self.locks)
        return replace(self, locks=locks, signed=self.signed | {(context, wanted)})


State = tuple[Node, ...]


def _lock_bytes(lock: Lock | None) -> bytes:
    """A lock as the node's journal holds it."""
    if lock is None or lock == OPEN:
        return rules.OPEN_LOCK
    return rules.ABORT_LOCK if lock == ABORTED else repr(sorted(lock)).encode()


class Model:
    """All reachable states of a cohort of all the study's sites.

    Args:
        terms: The study's; the last c sites collude.
        attempts: How many attempts the server may try on the same updates.
        variants: Names of the contexts within one attempt; two for a split view.
    """

    def __init__(self, terms: Terms, *, attempts: int = 1, variants: str = "a") -> None:
        self.terms = terms
        self.cohort = terms.sites
        self.honest = terms.sites[: len(terms.sites) - terms.colluders]
        self.colluders = frozenset(terms.sites[len(self.honest) :])
        self.contexts = [(attempt, variant) for attempt in range(1, attempts + 1) for variant in variants]

    @cached_property
    def survivor_sets(self) -> list[Sites]:
        """Every set that a server may call survivors."""
        sizes = range(1, len(self.cohort) + 1)
        return [frozenset(chosen) for size in sizes for chosen in combinations(self.cohort, size)]

    def search(self) -> Iterator[State]:
        """Every reachable state, each once."""
        start = tuple(Node() for _ in self.honest)
        seen, waiting = {start}, [start]
        while waiting:
            state = waiting.pop()
            yield state
            for after in self.successors(state):
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)

    def successors(self, state: State) -> Iterator[State]:
        """States after any message of the server that some honest node answers."""
        for index, site in enumerate(self.honest):
            for step, arguments in self._steps(state, state[index], site):
                try:
                    after = step(*arguments)
                except PeerProtocolError:
                    continue
                if after != state[index]:
                    yield (*state[:index], after, *state[index + 1 :])

    def _steps(self, state: State, node: Node, site: str) -> Iterator[tuple[Callable[..., Node], tuple[object, ...]]]:
        """Every message to one node."""
        for context in self.contexts:
            yield self.upload, (state, node, site, context)
            yield self.abort, (node, context)
        for survivors in self.survivor_sets:
            if site in survivors:
                yield self.agree, (state, node, survivors)
        yield self.reveal, (state, node)

    def upload(self, state: State, node: Node, site: str, context: Context) -> Node:
        """Leg 1: accept and upload; see `NodeSession.accept` and `masked_input`."""
        accepted = advance(stages.NODE_TRANSITIONS, node.state, NodeEvent.ACCEPT)
        rules.check_cohort(self.terms, self.cohort, own=site)
        rules.check_turn(node.last, (1, context[0]))
        if context[0] > 1:
            self._check_certificate(state, node, context)
        uploaded = advance(stages.NODE_TRANSITIONS, accepted, NodeEvent.UPLOAD)
        return replace(
            node,
            state=uploaded,
            context=context,
            locks=(*node.locks, (context, OPEN)),
            uploaded=node.uploaded | {context},
        )

    def _check_certificate(self, state: State, node: Node, context: Context) -> None:
        """See `node_checks.check_turn`: T aborts of one context, the one that this node knows if it knows one."""
        before = context[0] - 1
        for candidate in self.contexts:
            known = [known for known, _ in node.locks if known[0] == before]
            if candidate[0] != before or (known and known != [candidate]):
                continue
            if rules.has_quorum(
                self._signers(state, candidate, ABORTED) | self.colluders, self.cohort, self.terms.colluders
            ):
                return
        raise refusals.abort_missing()

    def agree(self, state: State, node: Node, survivors: Sites) -> Node:
        """Leg 2: see `NodeSession.agree`. Uploads of honest survivors must exist; colluders sign whatever is wanted."""
        context = node.context
        if context is None:
            raise refusals.out_of_turn(node.state, "agree")
        for site, other in zip(self.honest, state, strict=True):
            if site in survivors and context not in other.uploaded:
                raise refusals.bad_upload_signature(site)
        verdict = rules.judge_survivors(self.terms, self.cohort, survivors)
        if verdict is rules.Verdict.ABORT:
            return self.abort(node, context)
        complete = verdict is rules.Verdict.COMPLETE
        event = NodeEvent.COMPLETE if complete else NodeEvent.AGREE
        after = replace(node.decided(context, survivors), state=advance(stages.NODE_TRANSITIONS, node.state, event))
        return replace(after, context=None, revealed=after.revealed | {(context, survivors)}) if complete else after

    def abort(self, node: Node, context: Context) -> Node:
        """Leg 2, giving up: see `NodeSession._abort`."""
        turn = (1, context[0])
        rules.check_turn(node.last, turn, same_attempt=True)
        if node.last != turn:
            if node.locks:
                rules.check_undecided(_lock_bytes(node.locks[-1][1]))
            node = replace(node, locks=(*node.locks, (context, OPEN)))
        if node.lock(context) is None:
            raise refusals.foreign_context()
        after = node.decided(context, ABORTED)
        return replace(after, state=advance(stages.NODE_TRANSITIONS, node.state, NodeEvent.ABORT), context=None)

    def reveal(self, state: State, node: Node) -> Node:
        """Leg 3: see `NodeSession.reveal`. Whoever locked the same survivors signed them; colluders among them too."""
        after = advance(stages.NODE_TRANSITIONS, node.state, NodeEvent.REVEAL)
        context = node.context
        survivors = node.lock(context) if context else None
        if context is None or not isinstance(survivors, frozenset):
            raise refusals.out_of_turn(node.state, "reveal")
        signers = self._signers(state, context, survivors) | self.colluders
        if not rules.has_quorum(signers & survivors, self.cohort, self.terms.colluders):
            raise refusals.too_few_agreements(0, 0)
        return replace(node, state=after, context=None, revealed=node.revealed | {(context, survivors)})

    def _signers(self, state: State, context: Context, decision: Lock) -> set[str]:
        """The honest hospitals that signed a decision."""
        return {site for site, node in zip(self.honest, state, strict=True) if (context, decision) in node.signed}

    def violation(self, state: State) -> str | None:
        """What the server and its colluders could compute that they must not, or None."""
        sums = set()
        for context in self.contexts:
            knowledge = Knowledge(self, state, context)
            for site in knowledge.uploaded:
                if knowledge.knows_self(site) and all(
                    knowledge.knows_pair(site, other) for other in self.honest if other != site
                ):
                    return f"{site} unmasked in {context}"
            sums |= knowledge.sums()
        if len(sums) > 1:
            return f"sums over {sorted(map(sorted, sums))} of the same updates"
        return None


class Knowledge:
    """What server and colluders know together in one context."""

    def __init__(self, model: Model, state: State, context: Context) -> None:
        self._model = model
        self._nodes = dict(zip(model.honest, state, strict=True))
        # Shares are dealt with the threshold in force.
        self._threshold = rules.agreement_threshold(len(model.cohort), model.terms.colluders)
        self.uploaded = [site for site, node in self._nodes.items() if context in node.uploaded]
        self.shown = [
            (holder, survivors)
            for holder, node in self._nodes.items()
            for known, survivors in node.revealed
            if known == context
        ]

    def knows_self(self, site: str) -> bool:
        """Whether b_i is known: T holders showed their shares."""
        return self._holders(site, site) >= self._threshold

    def knows_pair(self, site: str, other: str) -> bool:
        """Whether s_ij of two honest hospitals is known: an end showed it, or T holders a share of either dealing."""
        cohort = self._model.cohort
        for holder, survivors in self.shown:
            gone = rules.vanished_sites(cohort, survivors)
            if (holder == site and other in gone) or (holder == other and site in gone):
                return True
        return max(self._holders(site, other), self._holders(other, site)) >= self._threshold

    def sums(self) -> set[Sites]:
        """Every set of honest hospitals whose inputs' sum can be unmasked."""
        found = set()
        for size in range(1, len(self.uploaded) + 1):
            for chosen in combinations(self.uploaded, size):
                others = [site for site in self._model.honest if site not in chosen]
                if all(
                    self.knows_self(site) and all(self.knows_pair(site, other) for other in others) for site in chosen
                ):
                    found.add(frozenset(chosen))
        return found

    def _holders(self, dealer: str, slot: str) -> int:
        """How many holders showed a slot of a dealer's shares; colluders always do."""
        cohort = self._model.cohort
        shown = {
            holder
            for holder, survivors in self.shown
            if dealer in survivors and slot in rules.revealed_slots(cohort, survivors, dealer)
        }
        return len(shown) + len(self._model.colluders)
