"""A restarted coordinator's way back: prove that an attempt which it no longer knows is dead."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.wire import Frame, Stage
from agent.secagg import refusals, rules
from agent.secagg.attempt import abort_statement
from agent.secagg.exchange import verify_signature
from agent.secagg.messages import AbortCertificate, AgreeRequest, Answer, parse_agree_reply
from agent.secagg.terms import Terms


class LostAttempt:
    """An attempt of which only round and number are left, as nodes told in leg 0.

    Args:
        terms: The study's.
        round_number: Which round.
        attempt: Which attempt.
        keys: Who speaks for which hospital of its cohort.
    """

    def __init__(
        self, terms: Terms, round_number: int, attempt: int, keys: Mapping[str, ec.EllipticCurvePublicKey]
    ) -> None:
        self._terms = terms
        self._turn = (round_number, attempt)
        self._keys = keys
        self._aborts: dict[bytes, dict[str, bytes]] = {}

    def request(self) -> Frame:
        """The request to give it up, the same for every hospital."""
        header = AgreeRequest(b"", abort=True).header()
        return Frame(self._terms.study_id, Stage.AGREE, *self._turn, header)

    def receive(self, site: str, frame: Frame) -> None:
        """Take a hospital's abort; hospitals tell its context, and only equal ones add up.

        Raises:
            PeerProtocolError: It is no abort of this attempt by this hospital.
        """
        reply = parse_agree_reply(frame.header, frame.payload)
        statement = abort_statement(self._terms, site, *self._turn, reply.context)
        known = reply.answer is Answer.ABORTED and reply.site == site and site in self._keys
        if not known or not verify_signature(self._keys[site], reply.signature, *statement):
            raise refusals.bad_abort(site)
        self._aborts.setdefault(reply.context, {})[site] = reply.signature

    def certificate(self) -> AbortCertificate | None:
        """Proof that it is dead, once T hospitals gave it up."""
        for context, signatures in self._aborts.items():
            if rules.has_quorum(signatures, self._keys, self._terms.colluders):
                return AbortCertificate(context, signatures)
        return None
