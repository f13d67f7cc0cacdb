"""What the registrar does for boxes and hospitals, apart from how they reach it. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.credential import Credential, RandomBytes
from agent.core.base64url import encode_bytes
from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind, key_id
from agent.trust.records import parse_public_pem
from provisioning.authority.appraisal import Terms
from provisioning.registrar import challenge
from provisioning.registrar.access import REQUEST_LIFETIME_S, Asked, not_authorised, verify_site_request
from provisioning.registrar.challenge import WAITING, Enrolment, Occasion, Opening, Refusal, State
from provisioning.registrar.heartbeats import verify_heartbeat
from provisioning.registrar.limits import HEARTBEAT_RATE, PUBLICATION_RATE, SITE_RATE, TOKEN_RATE, RateLimiter
from provisioning.registrar.publish import PublishedReader, PublishingDesk
from provisioning.registrar.store import StaleError, Store
from provisioning.tokens.token import TokenEntry

MAX_TRIES: Final = 10
MAX_WAITING: Final = 64
MAX_PUBLISHING: Final = 8
"""At once: each waits for the one before, and boxes must not wait for all of them."""
MAX_LIST_BYTES: Final = 8 << 20
"""Of evidence in one list of waiting boxes; the rest comes with the next one."""
NAME_BYTES: Final = 16

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the desk works with.

    Args:
        store: Its memory.
        reader: The published repository.
        publishing: Publishes.
        wake: Says that a box is endorsed.
        clock: For times.
        random_bytes: `secrets.token_bytes`.
    """

    store: Store
    reader: PublishedReader
    publishing: PublishingDesk
    wake: Callable[[], None]
    clock: Clock
    random_bytes: RandomBytes


class RegistrarDesk:
    """Answers boxes and hospitals.

    Args:
        tools: What it works with.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._store = tools.store
        self._of_token = RateLimiter(TOKEN_RATE, tools.clock)
        self._of_box = RateLimiter(HEARTBEAT_RATE, tools.clock)
        self._of_site = RateLimiter(SITE_RATE, tools.clock)
        self._of_publisher = RateLimiter(PUBLICATION_RATE, tools.clock)
        self._publishing = threading.BoundedSemaphore(MAX_PUBLISHING)

    # Boxes.

    def open(self, opening: Opening) -> Enrolment:
        """A box begins, or goes on.

        Raises:
            OperatorError: Its token does not count.
            PeerProtocolError: Its keys are none.
            NetworkError: It asks too often.
        """
        known = self._store.of_token(opening.token)
        now_s = self._now_s()
        entry = challenge.check_token(self._store.token(opening.token), opening, now_s, is_open=known is not None)
        self._of_token.take(opening.token)  # not before: who only knows its name must not use up its share
        if known is None:
            name, nonce = self._random(NAME_BYTES).hex(), self._random(challenge.NONCE_BYTES)
            known = self._store.create(challenge.begin(entry, opening, name=name, nonce=nonce, now_s=now_s))
        challenge.check_same_box(known, opening)
        return known

    def enrolment(self, name: str, secret: bytes) -> Enrolment:
        """A box asks how far it is.

        Raises:
            OperatorError: The secret is not of this enrolment's token (`registrar.not_authorised`).
            NetworkError: It asks too often.
        """
        known = self._store.enrolment(name)
        entry = None if known is None else self._store.token(known.token)
        if known is None or entry is None or not challenge.proves_token(entry, secret):
            raise not_authorised("there is no such enrolment, or it is another box's")
        self._of_token.take(known.token)
        self._store.note_seen(name)
        return known

    def take_evidence(self, name: str, secret: bytes, data: bytes) -> Enrolment:
        """A box shows its key.

        Raises:
            PeerProtocolError: It does not hold.
            OperatorError: See `enrolment`.
        """
        random = self._tools.random_bytes
        return self._change(
            self.enrolment(name, secret),
            lambda known: challenge.take_evidence(known, data, self._occasion(known), random_bytes=random),
        )

    def take_activation(self, name: str, secret: bytes, answer: bytes) -> Enrolment:
        """A box opened the registrar's credential.

        Raises:
            PeerProtocolError: It did not.
            OperatorError: See `enrolment`.
        """
        return self._change(
            self.enrolment(name, secret),
            lambda known: challenge.take_activation(known, answer, self._occasion(known)),
        )

    def take_site_evidence(self, name: str, secret: bytes, data: bytes, proof: bytes) -> Enrolment:
        """A box answers its hospital.

        Raises:
            OperatorError: See `enrolment`; or nobody asked.
        """
        return self._change(
            self.enrolment(name, secret), lambda known: challenge.take_site_evidence(known, data, proof)
        )

    def take_site_answer(self, name: str, secret: bytes, answer: bytes) -> Enrolment:
        """A box opened its hospital's credential.

        Raises:
            OperatorError: See `enrolment`; or there was none.
        """
        return self._change(self.enrolment(name, secret), lambda known: challenge.take_site_answer(known, answer))

    def take_heartbeat(self, certificate: bytes, heartbeat: bytes) -> None:
        """A box that is enrolled says how it does.

        Raises:
            PeerProtocolError: It does not count.
            OperatorError: It is not later than the last one.
            NetworkError: It comes too often.
        """
        snapshot = self._tools.reader.current().snapshot
        beat = verify_heartbeat(certificate, heartbeat, snapshot, now_s=self._now_s())
        self._of_box.take(beat.key_id)  # not before: who only knows the key's name must not use up the box's share
        self._store.note_heartbeat(beat)

    # Hospitals.

    def admit(self, site: SiteID, asked: Asked) -> str:
        """Check that a hospital asks, and that it asks once; returns the id of the key that signed.

        Raises:
            OperatorError: It does not (`registrar.not_authorised`), or did so before (`registrar.replayed`).
            NetworkError: It asks too often.
        """
        published = self._tools.reader.current()
        request, signer = verify_site_request(
            asked,
            site,
            published.site_keys.get(site, ()),
            consortium=published.snapshot.root_digest,
            now_s=self._now_s(),
        )
        self._of_site.take(site)
        # Kept for longer than its date lets it count, whichever way the two clocks differ.
        self._store.use_nonce(site, request.nonce, expires_s=request.issued_s + 2 * REQUEST_LIFETIME_S)
        return signer

    def add_token(self, site: SiteID, entry: TokenEntry) -> None:
        """A hospital makes a token known that its own key issued.

        Raises:
            OperatorError: It is another hospital's, or no key of this one issued it (`registrar.foreign_token`).
        """
        issuers = {key_id(key) for key in self._tools.reader.current().site_keys.get(site, ())}
        if entry.site != site or entry.issuer not in issuers:
            raise OperatorError(
                "registrar.foreign_token",
                "The enrolment token is of another hospital, or was not issued by this one's key.",
                next_step="Issue it with the key that the consortium knows of the hospital.",
            )
        self._store.add_token(entry)

    def waiting(self, site: SiteID) -> list[dict[str, str]]:
        """Boxes that wait for a hospital, with what they showed for it: those that are there now come first."""
        shown: list[dict[str, str]] = []
        size = 0
        for known in self._store.heard_of(WAITING, site, limit=MAX_WAITING):
            size += len(known.talk.evidence)
            if size > MAX_LIST_BYTES and shown:
                break
            shown.append(_waiting(known))
        return shown

    def ask(self, site: SiteID, name: str, asker_key: str, nonce: bytes) -> Enrolment:
        """A hospital's tool asks a box.

        Raises:
            OperatorError: It has no such box, or not now.
        """
        return self._change(self._of(site, name), lambda known: challenge.ask(known, asker_key, nonce))

    def give_credential(self, site: SiteID, name: str, credential: Credential) -> Enrolment:
        """A hospital's own credential for a box's TPM.

        Raises:
            OperatorError: It has no such box, or not now.
        """
        return self._change(self._of(site, name), lambda known: challenge.give_credential(known, credential))

    def refuse(self, site: SiteID, name: str, refusal: Refusal) -> Enrolment:
        """A hospital refuses a box.

        Raises:
            OperatorError: It has no such box, or too late.
        """
        return self._change(self._of(site, name), lambda known: challenge.refuse(known, refusal))

    def publish(self, site: SiteID, metadata: bytes, targets: Mapping[str, bytes]) -> list[Enrolment]:
        """Publish what a hospital signed.

        Returns:
            Enrolments that are endorsed by it.

        Raises:
            PeerProtocolError: It may not follow what was published before.
            NetworkError, HardwareError: Not now; the same again goes on from there.
        """
        self._of_publisher.take(site)
        if not self._publishing.acquire(blocking=False):
            raise _contended("publishes at once")
        try:
            endorsed = self._tools.publishing.publish(site, metadata, targets)
        finally:
            self._publishing.release()
        self._tools.wake()
        return endorsed

    # Both.

    def _of(self, site: SiteID, name: str) -> Enrolment:
        known = self._store.enrolment(name)
        if known is None or known.site != site:
            raise OperatorError(
                "registrar.no_such_enrolment",
                "No such box waits for this hospital.",
                next_step="Ask for the list of those that do.",
            )
        return known

    def _change(self, known: Enrolment, step: Callable[[Enrolment], Enrolment]) -> Enrolment:
        """Compare and set, again from what stands there wherever another request came first."""
        for _ in range(MAX_TRIES):
            after = step(known)
            if after == known:
                return known
            try:
                changed = self._store.swap(known, after)
            except StaleError:
                known = self._store.enrolment(known.id) or known
                continue
            if changed.state is not known.state:
                _log.info("enrolment_moved", enrolment=known.id, site=known.site, state=changed.state.value)
            return changed
        raise _contended("changes one enrolment")

    def _occasion(self, known: Enrolment) -> Occasion:
        published = self._tools.reader.current()
        snapshot = published.snapshot
        terms = Terms.of(snapshot)
        if known.subject.kind is KeyKind.TPM and self._is_vouched(known, published.site_keys.get(known.site, ())):
            terms = terms.vouching(known.subject.ek_name)
        registrar = key_id(parse_public_pem(snapshot.consortium.registrar_key))
        return Occasion(registrar, snapshot.root_digest, terms, self._now_s())

    def _is_vouched(self, known: Enrolment, keys: tuple[ec.EllipticCurvePublicKey, ...]) -> bool:
        # That the token names this very EK was checked when the enrolment began.
        entry = self._store.token(known.token)
        return entry is not None and entry.ek_digest is not None and entry.issuer in map(key_id, keys)

    def _random(self, count: int) -> bytes:
        return self._tools.random_bytes(count)

    def _now_s(self) -> int:
        return int(self._tools.clock.now().timestamp())


def _contended(what: str) -> NetworkError:
    return NetworkError(
        "registrar.contended",
        f"Too much of what comes {what}.",
        next_step="Try again.",
    )


def _waiting(known: Enrolment) -> dict[str, str]:
    subject, talk = known.subject, known.talk
    fields = {
        "enrolment": known.id,
        "state": known.state.value,
        "token": known.token,
        "kind": subject.kind.value,
        "public_key": encode_bytes(subject.public_key),
        "link_key": encode_bytes(known.link_key),
        "ek_name": encode_bytes(subject.ek_name),
        "key_name": encode_bytes(subject.key_name),
        "nonce": encode_bytes(talk.nonce),
    }
    if known.state is State.EVIDENCED:
        fields |= {"evidence": encode_bytes(talk.evidence), "proof": encode_bytes(talk.proof)}
    if known.state is State.ANSWERED:
        fields["answer"] = encode_bytes(talk.answer)
    return fields
