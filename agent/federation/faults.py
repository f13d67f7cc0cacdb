"""What can go wrong around a message, as the node's state machine tells it apart."""

from __future__ import annotations

from typing import ClassVar

from agent.core.errors import Fault, SecureHealthError
from agent.core.wire import Refusal


class LinkError(SecureHealthError):
    """Something between this node and its SuperLink failed; no message is at fault."""


class UnreachableError(LinkError):
    """The SuperLink did not answer, or only a proxy before it did; trying again is right."""

    fault: ClassVar[Fault] = Fault.NETWORK


class NotRecognisedError(LinkError):
    """The SuperLink rejects our signature or our node id: it forgot us, or one of the two clocks is wrong."""

    fault: ClassVar[Fault] = Fault.PEER


class ActivationRefusedError(LinkError):
    """The SuperLink does not let our key in: it does not know it, or holds an old session (it does not say which)."""

    fault: ClassVar[Fault] = Fault.PEER


class RunEndedError(LinkError):
    """The run that a message belongs to is over: nobody waits for the answer."""

    fault: ClassVar[Fault] = Fault.PEER


class CallRefusedError(LinkError):
    """The SuperLink refuses one call for another reason."""

    fault: ClassVar[Fault] = Fault.PEER


class OversizeAnswerError(CallRefusedError):
    """The SuperLink's answer was larger than we take; it was cut off."""


class StoppedError(Exception):
    """This node was told to stop while it waited; no failure, and never shown."""


class RefusedError(Exception):
    """A message is answered with a refusal.

    Args:
        refusal: All that the other side learns.
        cause: What happened, for the local log only.
    """

    def __init__(self, refusal: Refusal, cause: SecureHealthError) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
        self.cause = cause
