"""Every state and transition of secure aggregation, at the node and at the server, in one table each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from agent.secagg import refusals


class NodeState(StrEnum):
    """Where a node stands within a run."""

    FRESH = "fresh"  # no key of this run in memory
    READY = "ready"  # key advertised, no round under way
    ACCEPTED = "accepted"  # a round's request passed every check; training
    UPLOADED = "uploaded"  # masked input sent; open: survivors or abort
    AGREED = "agreed"  # survivors locked; shares not yet revealed


class NodeEvent(StrEnum):
    """What happens at a node."""

    ADVERTISE = "advertise"  # leg 0 answered
    ACCEPT = "accept"  # leg 1 request checked
    UPLOAD = "upload"  # leg 1 answered
    COMPLETE = "complete"  # leg 2: the whole cohort survived, shares of self seeds sent
    AGREE = "agree"  # leg 2: a part survived, agreement signed
    ABORT = "abort"  # leg 2: attempt given up, abort signed
    REVEAL = "reveal"  # leg 3 answered


_N, _E = NodeState, NodeEvent

NODE_TRANSITIONS: Mapping[tuple[NodeState, NodeEvent], NodeState] = MappingProxyType(
    {
        # A new run, or a restarted coordinator, may ask for keys at any time; secrets of an open round are dropped.
        **{(state, _E.ADVERTISE): _N.READY for state in _N},
        (_N.READY, _E.ACCEPT): _N.ACCEPTED,
        (_N.ACCEPTED, _E.ACCEPT): _N.ACCEPTED,
        (_N.UPLOADED, _E.ACCEPT): _N.ACCEPTED,
        (_N.AGREED, _E.ACCEPT): _N.ACCEPTED,
        (_N.ACCEPTED, _E.UPLOAD): _N.UPLOADED,
        (_N.UPLOADED, _E.COMPLETE): _N.READY,
        (_N.UPLOADED, _E.AGREE): _N.AGREED,
        (_N.AGREED, _E.REVEAL): _N.READY,
        # A node without the round's secrets may still give up an attempt: it promises never to agree to it.
        (_N.FRESH, _E.ABORT): _N.FRESH,
        (_N.READY, _E.ABORT): _N.READY,
        (_N.ACCEPTED, _E.ABORT): _N.READY,
        (_N.UPLOADED, _E.ABORT): _N.READY,
    }
)


class ServerState(StrEnum):
    """Where an attempt stands at the server."""

    COLLECTING = "collecting"  # leg 1
    AGREEING = "agreeing"  # leg 2
    REVEALING = "revealing"  # leg 3
    ABORTING = "aborting"  # gathering abort signatures
    SUMMED = "summed"  # the sum is out
    ABORTED = "aborted"  # an abort certificate is out


class ServerEvent(StrEnum):
    """What happens at the server."""

    UPLOAD = "upload"
    ASK_AGREE = "ask-agree"
    AGREEMENT = "agreement"
    ASK_REVEAL = "ask-reveal"
    REVELATION = "revelation"
    FINISH = "finish"
    ASK_ABORT = "ask-abort"
    ABORT = "abort"
    CERTIFY = "certify"


_S, _V = ServerState, ServerEvent

SERVER_TRANSITIONS: Mapping[tuple[ServerState, ServerEvent], ServerState] = MappingProxyType(
    {
        (_S.COLLECTING, _V.UPLOAD): _S.COLLECTING,
        (_S.COLLECTING, _V.ASK_AGREE): _S.AGREEING,
        (_S.AGREEING, _V.AGREEMENT): _S.AGREEING,
        (_S.AGREEING, _V.ASK_REVEAL): _S.REVEALING,
        (_S.REVEALING, _V.REVELATION): _S.REVEALING,
        (_S.AGREEING, _V.FINISH): _S.SUMMED,
        (_S.REVEALING, _V.FINISH): _S.SUMMED,
        # Nodes may answer a request to agree with an abort of their own.
        (_S.AGREEING, _V.ABORT): _S.AGREEING,
        (_S.COLLECTING, _V.ASK_ABORT): _S.ABORTING,
        (_S.AGREEING, _V.ASK_ABORT): _S.ABORTING,
        (_S.ABORTING, _V.ASK_ABORT): _S.ABORTING,
        (_S.ABORTING, _V.ABORT): _S.ABORTING,
        (_S.AGREEING, _V.CERTIFY): _S.ABORTED,
        (_S.ABORTING, _V.CERTIFY): _S.ABORTED,
    }
)

State = TypeVar("State", NodeState, ServerState)
Event = TypeVar("Event", NodeEvent, ServerEvent)


def advance(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """The state after `event`.

    Raises:
        PeerProtocolError: The table has no such transition.
    """
    after = table.get((state, event))
    if after is None:
        raise refusals.out_of_turn(state.value, event.value)
    return after
