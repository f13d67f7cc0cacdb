"""A cohort of hospitals in memory: real node sessions, a real server session, and who falls silent when."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.wire import Frame, encode_frame, parse_frame
from agent.secagg import refusals
from agent.secagg.attempt import Signer
from agent.secagg.codec import Contribution
from agent.secagg.journal import MemoryJournal
from agent.secagg.node import NodeIdentity, NodeSession
from agent.secagg.server import RoundSum, ServerRound, ServerSession
from agent.secagg.terms import Terms, default_colluders
from agent.secagg.transcript import NO_DIGEST

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

PARAMETERS = 40
WORDS = 3
ROUNDS = 5


def make_terms(count: int = 4, /, **changes: object) -> Terms:
    """Terms of a small study; `changes` replace single bounds."""
    names = tuple(f"site-{index:03d}" for index in range(count))
    colluders = default_colluders(count)
    terms = Terms(
        study_id="study",
        study_digest=hashlib.sha256(b"study").digest(),
        sites=names,
        colluders=colluders,
        minimum_sites=colluders + 2,
        rounds=ROUNDS,
        parameters=PARAMETERS,
        words=WORDS,
        moment_words=2,
    )
    return replace(terms, **changes)  # type: ignore[arg-type]


class SeededRandomness:
    """Random bytes that a failing test can repeat; for tests only."""

    def __init__(self, seed: object) -> None:
        self._state = hashlib.sha256(repr(seed).encode()).digest()

    def __call__(self, count: int) -> bytes:
        self._state = hashlib.sha256(self._state).digest()
        return hashlib.shake_256(self._state).digest(count)


def make_key(seed: object) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that depends on `seed` alone."""
    value = int.from_bytes(hashlib.sha512(repr(seed).encode()).digest(), "big")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return ec.derive_private_key(value % (order - 1) + 1, ec.SECP256R1())


def make_signer(key: ec.EllipticCurvePrivateKey) -> Signer:
    """Signs with `key`."""
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


def certificate_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key itself, DER: what a pinned roster holds."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class PinnedRoster:
    """One public key a hospital."""

    def __init__(self, certificates: Mapping[str, bytes]) -> None:
        self._keys: dict[tuple[str, bytes], ec.EllipticCurvePublicKey] = {}
        for site, certificate in certificates.items():
            key = serialization.load_der_public_key(certificate)
            assert isinstance(key, ec.EllipticCurvePublicKey)
            self._keys[site, certificate] = key

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """See `agent.secagg.attempt.Roster`."""
        if (site, certificate) not in self._keys:
            raise refusals.untrusted_certificate(site)
        return self._keys[site, certificate]


class Hospital:
    """One node, with what survives its restarts."""

    def __init__(self, site: str, terms: Terms, roster: PinnedRoster, coordinator: ec.EllipticCurvePublicKey) -> None:
        self.site = site
        self.key = make_key(site)
        self.journal = MemoryJournal()
        self._terms = terms
        self._roster = roster
        self._coordinator = coordinator
        self._starts = 0
        self.session = self._start()

    def restart(self) -> None:
        """Lose all that lived in memory."""
        self._starts += 1
        self.session = self._start()

    def _start(self) -> NodeSession:
        return NodeSession(
            identity=NodeIdentity(self.site, certificate_of(self.key), make_signer(self.key)),
            terms=self._terms,
            roster=self._roster,
            coordinator=self._coordinator,
            journal=self.journal,
            initial_model=np.zeros(self._terms.parameters, np.float32),
            randomness=SeededRandomness((self.site, self._starts)),
        )


@dataclass(frozen=True, slots=True)
class Silence:
    """Who falls silent before answering which leg."""

    upload: Collection[str] = ()
    agree: Collection[str] = ()
    reveal: Collection[str] = ()


@dataclass
class Cohort:
    """All hospitals of a study and their coordinator.

    Args:
        terms: The study's.
        seed: Of everything random.
    """

    terms: Terms
    seed: object = 0
    hospitals: dict[str, Hospital] = field(init=False)
    server: ServerSession = field(init=False)

    def __post_init__(self) -> None:
        self.coordinator = make_key("coordinator")
        self.roster = PinnedRoster({site: certificate_of(make_key(site)) for site in self.terms.sites})
        public = self.coordinator.public_key()
        self.hospitals = {site: Hospital(site, self.terms, self.roster, public) for site in self.terms.sites}
        self.server = self.new_server(1)

    def new_server(self, run: int) -> ServerSession:
        """A coordinator that starts a run."""
        return ServerSession(
            terms=self.terms,
            run=run.to_bytes(16, "big"),
            roster=self.roster,
            sign=make_signer(self.coordinator),
        )

    def advertise(self, sites: Sequence[str] | None = None) -> None:
        """Leg 0 with these hospitals."""
        for site in sites if sites is not None else self.terms.sites:
            reply = self.hospitals[site].session.advertise(relay(self.server.advertise_request()))
            assert self.server.receive_bundle(relay(reply)) == site

    def upload(
        self, opened: ServerRound, inputs: Mapping[str, Contribution | None], silent: Collection[str] = ()
    ) -> None:
        """Leg 1 with all but the silent."""
        request = relay(opened.masked_input_request())
        for site in opened.attempt.cohort:
            if site not in silent:
                session = self.hospitals[site].session
                session.accept(request)
                opened.receive_masked_input(site, relay(session.masked_input(inputs[site]).frame))

    def agree(self, opened: ServerRound, silent: Collection[str] = ()) -> None:
        """Leg 2 with all survivors but the silent."""
        for site, request in opened.agree_requests().items():
            if site not in silent:
                opened.receive_agreement(site, relay(self.hospitals[site].session.agree(relay(request))))

    def reveal(self, opened: ServerRound, silent: Collection[str] = ()) -> None:
        """Leg 3 with all survivors but the silent."""
        request = relay(opened.reveal_request())
        for site in opened.uploaded:
            if site not in silent:
                opened.receive_reveal(site, relay(self.hospitals[site].session.reveal(request)))

    def abort(self, opened: ServerRound, silent: Collection[str] = ()) -> None:
        """Give an attempt up with all but the silent."""
        request = relay(opened.abort_request())
        for site in opened.attempt.cohort:
            if site not in silent:
                opened.receive_agreement(site, relay(self.hospitals[site].session.agree(request)))

    def run_round(
        self,
        round_number: int,
        inputs: Mapping[str, Contribution | None],
        *,
        silence: Silence | None = None,
        model: Floats | None = None,
        cohort: Sequence[str] | None = None,
        previous: bytes = NO_DIGEST,
    ) -> RoundSum:
        """All legs of one attempt; whoever is silent in a leg stays silent."""
        gone = silence or Silence()
        opened = self.server.begin_round(
            round_number, self.model_bytes(round_number, model), cohort=cohort, previous=previous
        )
        self.upload(opened, inputs, gone.upload)
        self.agree(opened, gone.agree)
        if opened.needs_reveal:
            self.reveal(opened, {*gone.agree, *gone.reveal})
        return opened.finish()

    def model_bytes(self, round_number: int, model: Floats | None = None) -> bytes:
        """The model of a round's request; by default the study's first."""
        if not self.terms.model_length(round_number):
            return b""
        vector = np.zeros(self.terms.parameters, np.float32) if model is None else model
        return vector.astype("<f4").tobytes()

    def inputs(self, round_number: int = 1, *, seed: int = 0) -> dict[str, Contribution]:
        """A random contribution a hospital, within the clip."""
        source = np.random.default_rng(seed)
        length, words = self.terms.vector_length(round_number), self.terms.word_count(round_number)
        return {
            site: Contribution(
                source.uniform(-0.9, 0.9, length).astype(np.float32) * self.terms.clip,
                int(source.integers(1, self.terms.weight_cap)),
                source.integers(0, 1 << 40, words, dtype=np.uint64),
            )
            for site in self.terms.sites
        }


def relay(frame: Frame) -> Frame:
    """Over the wire and back, as the transport does."""
    return parse_frame(encode_frame(frame))
