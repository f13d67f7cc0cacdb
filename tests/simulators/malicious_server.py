"""A coordinator that sends whatever it likes, and holds its colluders' keys, against real node sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame, Stage
from agent.secagg.attempt import (
    Attempt,
    Statement,
    abort_statement,
    agree_statement,
    coordinator_statement,
    open_attempt,
    sign_statement,
    survivors_digest,
)
from agent.secagg.codec import Contribution
from agent.secagg.masking import Mask, sum_masked
from agent.secagg.messages import (
    AbortCertificate,
    AgreeReply,
    AgreeRequest,
    Bundle,
    MaskedInputReply,
    MaskedInputRequest,
    RelayedUpload,
    RevealReply,
    RevealRequest,
    parse_advertise_reply,
    parse_agree_reply,
    parse_masked_input_reply,
    parse_reveal_reply,
)
from agent.secagg.node import AcceptedRound
from agent.secagg.stages import NodeState
from agent.secagg.transcript import NO_DIGEST
from tests.simulators.cohort import Cohort, make_signer, relay

Words = npt.NDArray[np.uint64]
Tamper = Callable[[list[RelayedUpload]], list[RelayedUpload]]


@contextmanager
def refused(code: str) -> Iterator[list[PeerProtocolError]]:
    """The block is refused by the rule `secagg.<code>`; yields where the error will stand."""
    caught: list[PeerProtocolError] = []
    with pytest.raises(PeerProtocolError) as raised:
        yield caught
    caught.append(raised.value)
    assert raised.value.code == f"secagg.{code}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A context that the server made up."""

    attempt: Attempt
    frame: Frame


@dataclass
class MaliciousServer:
    """Relays, withholds, alters and invents messages.

    Args:
        cohort: Hospitals and their coordinator's key.
    """

    cohort: Cohort
    bundles: dict[str, Bundle] = field(default_factory=dict)
    uploads: dict[tuple[bytes, str], MaskedInputReply] = field(default_factory=dict)

    @classmethod
    def over(cls, cohort: Cohort, *, run: int = 1) -> MaliciousServer:
        """A server to which every hospital advertised its key."""
        server = cls(cohort)
        server.advertise(run=run)
        return server

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites of the study."""
        return self.cohort.terms.sites

    def advertise(self, sites: Sequence[str] | None = None, *, run: int = 1) -> None:
        """Leg 0."""
        self.run = run.to_bytes(16, "big")
        for site in sites if sites is not None else self.sites:
            request = Frame(self.cohort.terms.study_id, Stage.ADVERTISE, header={"run": self.run})
            reply = relay(self.cohort.hospitals[site].session.advertise(relay(request)))
            self.bundles[site] = parse_advertise_reply(reply.header, reply.payload).bundle

    def sign(self, site: str, statement: Statement) -> bytes:
        """A colluder's signature over anything."""
        return sign_statement(make_signer(self.cohort.hospitals[site].key), statement)

    def open(
        self,
        round_number: int = 1,
        attempt: int = 1,
        *,
        sites: Sequence[str] | None = None,
        bundles: Mapping[str, Bundle] | None = None,
        model: npt.NDArray[np.float32] | None = None,
        previous: bytes = NO_DIGEST,
        configuration: bytes = b"",
        abort: AbortCertificate | None = None,
        run: bytes | None = None,
    ) -> Opened:
        """A leg 1 request of this server's making, properly signed by the coordinator."""
        chosen = {**self.bundles, **(bundles or {})}
        listed = tuple(chosen[site] for site in (sites if sites is not None else sorted(chosen)))
        vector = self.cohort.model_bytes(round_number, model)
        made = open_attempt(
            self.cohort.terms,
            run=run or self.run,
            round_number=round_number,
            attempt=attempt,
            bundles=listed,
            model=vector,
            previous=previous,
            configuration=configuration,
        )
        signature = sign_statement(make_signer(self.cohort.coordinator), coordinator_statement(made.context))
        request = MaskedInputRequest(run or self.run, listed, previous, configuration, signature, abort, vector)
        return Opened(made, self._frame(made, Stage.MASKED_INPUT, request.header(), vector))

    def upload(
        self, site: str, opened: Opened, contribution: Contribution | None = None, *, default: bool = True
    ) -> MaskedInputReply:
        """Leg 1 at one hospital, with its usual contribution by default."""
        session = self.cohort.hospitals[site].session
        session.accept(relay(opened.frame))
        if contribution is None and default:
            contribution = self.cohort.inputs(opened.attempt.round_number)[site]
        frame = relay(session.masked_input(contribution).frame)
        reply = parse_masked_input_reply(frame.header, frame.payload)
        self.uploads[opened.attempt.context, site] = reply
        return reply

    def upload_as(self, site: str, opened: Opened) -> MaskedInputReply:
        """A colluder's upload to any context: it skips every check."""
        session = self.cohort.hospitals[site].session
        session._accepted = AcceptedRound(opened.attempt, np.zeros(0, np.float32), b"", b"")
        session._peer_keys = {bundle.site: bundle.key for bundle in self.bundles.values()}
        session._state = NodeState.ACCEPTED
        frame = relay(session.masked_input(None).frame)
        self.uploads[opened.attempt.context, site] = parse_masked_input_reply(frame.header, frame.payload)
        return self.uploads[opened.attempt.context, site]

    def upload_all(self, opened: Opened, *, silent: Sequence[str] = ()) -> None:
        """Leg 1 at every hospital of the cohort but the silent."""
        for site in opened.attempt.cohort:
            if site not in silent:
                self.upload(site, opened)

    def relayed(self, reader: str, opened: Opened, survivors: Sequence[str]) -> list[RelayedUpload]:
        """What an honest server would relay to `reader` about these survivors."""
        cohort = opened.attempt.cohort
        size = opened.attempt.sealed_bytes
        entries = []
        for site in sorted(survivors):
            reply = self.uploads[opened.attempt.context, site]
            place = cohort.index(reader) - (reader > site)
            share = b"" if site == reader else reply.shares[place * size : (place + 1) * size]
            entries.append(RelayedUpload(reply.upload, share))
        return entries

    def agree(
        self,
        reader: str,
        opened: Opened,
        survivors: Sequence[str] | None = None,
        *,
        tamper: Tamper | None = None,
        context: bytes | None = None,
    ) -> AgreeReply:
        """Leg 2 at one hospital, with whatever the tamperer makes of the survivors."""
        entries = self.relayed(reader, opened, survivors if survivors is not None else opened.attempt.cohort)
        request = AgreeRequest(
            context or opened.attempt.context, abort=False, survivors=tuple((tamper or list)(entries))
        )
        frame = self._frame(opened.attempt, Stage.AGREE, request.header())
        reply = relay(self.cohort.hospitals[reader].session.agree(relay(frame)))
        return parse_agree_reply(reply.header, reply.payload)

    def abort(self, site: str, round_number: int, attempt: int, context: bytes) -> AgreeReply:
        """Ask one hospital to give an attempt up."""
        header = AgreeRequest(context, abort=True).header()
        frame = Frame(self.cohort.terms.study_id, Stage.AGREE, round_number, attempt, header)
        reply = relay(self.cohort.hospitals[site].session.agree(relay(frame)))
        return parse_agree_reply(reply.header, reply.payload)

    def abort_as(self, site: str, opened: Opened) -> bytes:
        """A colluder's abort."""
        made = opened.attempt
        statement = abort_statement(self.cohort.terms, site, made.round_number, made.attempt, made.context)
        return self.sign(site, statement)

    def agree_as(self, site: str, opened: Opened, survivors: Sequence[str]) -> bytes:
        """A colluder's agreement."""
        uploads = [self.uploads[opened.attempt.context, other].upload for other in sorted(survivors)]
        locked = survivors_digest(opened.attempt.context, uploads)
        return self.sign(site, agree_statement(opened.attempt.context, site, locked))

    def reveal(
        self, site: str, opened: Opened, agreements: Sequence[tuple[str, bytes]], *, context: bytes | None = None
    ) -> RevealReply:
        """Leg 3 at one hospital."""
        request = RevealRequest(context or opened.attempt.context, tuple(agreements))
        frame = self._frame(opened.attempt, Stage.REVEAL, request.header())
        reply = relay(self.cohort.hospitals[site].session.reveal(relay(frame)))
        return parse_reveal_reply(reply.header, reply.payload)

    def unmask(self, opened: Opened, site: str, masks: Sequence[Mask]) -> Words:
        """One hospital's masked vector after the server took away the masks that it knows."""
        total = np.zeros(opened.attempt.codec.total_words, np.uint64)
        sum_masked(total, [self.uploads[opened.attempt.context, site].masked], masks)
        return total

    def _frame(self, attempt: Attempt, stage: Stage, header: dict[str, object], payload: bytes = b"") -> Frame:
        return Frame(self.cohort.terms.study_id, stage, attempt.round_number, attempt.attempt, header, payload)


def resigned(bundle: Bundle, **changes: object) -> Bundle:
    """A bundle with fields replaced, its signature left as it was."""
    return replace(bundle, **changes)  # type: ignore[arg-type]
