"""A coordinator that lies in secure aggregation, over a real SuperLink, to agents that run as in a hospital.

It holds everything that the consortium's coordinator holds, the signing key included. Whatever it tries, a box answers
with one word, and the box's own log says which rule was broken.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import SystemClock
from agent.core.ids import SiteID
from agent.core.wire import Frame, Refusal, Stage
from agent.identity.key import init_key
from agent.identity.session import SessionKeeper, Subject
from agent.secagg.journal import MemoryJournal
from agent.secagg.messages import (
    AgreeReply,
    AgreeRequest,
    Answer,
    RelayedUpload,
    RevealRequest,
    parse_agree_reply,
    parse_masked_input_reply,
    parse_reveal_reply,
)
from agent.secagg.node import NodeIdentity, NodeSession
from agent.secagg.server import ServerRound, ServerSession
from agent.statements.roots import EvidenceClass
from agent.trust.counters import CounterStore
from agent.trust.peers import PinnedPeers, consortium_digest, node_name
from agent.trust.roster import Roster, encode_roster, roster_node
from agent.trust.terms import aggregation_terms
from tests.simulators.grid import TestGrid
from tests.simulators.hospital import RunningHospital
from tests.simulators.secure_consortium import SecureConsortium, roster_of
from tests.simulators.superlink import RunningSuperLink
from tests.simulators.swtpm import SwtpmMaker

pytestmark = pytest.mark.slow

ROUNDS = itertools.count(2)  # in round 1 only the study's own model counts
"""Every test takes rounds of its own: a box never goes back."""
CONTINUING = {"dropout": "continue", "accept_differencing": True, "minimum_sites": 3}


@dataclass(slots=True)
class HostileCoordinator:
    """Runs the protocol's own server side as far as it likes, and sends whatever it likes."""

    grid: TestGrid
    consortium: SecureConsortium
    roster: Roster
    key: ec.EllipticCurvePrivateKey
    session: ServerSession = field(init=False)

    def __post_init__(self) -> None:
        self.begin_run()

    def begin_run(self) -> None:
        """A fresh run, in which nobody has advertised a key yet."""
        assignment = self.consortium.assignment
        self.session = ServerSession(
            terms=aggregation_terms(assignment.study, assignment.digest),
            run=os.urandom(16),
            roster=PinnedPeers(
                self.roster, SystemClock(), CounterStore(self.consortium.directory.path / "counters.json")
            ),
            sign=lambda data: self.key.sign(data, ec.ECDSA(hashes.SHA256())),
        )

    def ask(self, frames: Mapping[str, Frame]) -> dict[str, object]:
        """Ask several boxes at once; what each says."""
        sent = {site: self.grid.push(self.consortium.boxes[site].node_id, frame) for site, frame in frames.items()}
        return {site: self.grid.pull(message) for site, message in sent.items()}

    def ask_all(self, frame: Frame, sites: Collection[str] = ()) -> dict[str, object]:
        """Ask the same of all boxes, or of some."""
        return self.ask(dict.fromkeys(sites or self.consortium.sites, frame))

    def gather_keys(self, *, but: str = "") -> None:
        """Leg 0; what the site `but` answers is thrown away."""
        for site, frame in self.ask_all(self.session.advertise_request()).items():
            assert isinstance(frame, Frame)
            if site != but:
                self.session.receive_bundle(frame)

    def begin(self, number: int, *, shift: float = 0.0, cohort: Collection[str] = ()) -> ServerRound:
        """Open a round on the study's model, each parameter moved by `shift`."""
        model = np.full(self.session.terms.parameters, 1.0 + shift, dtype="<f4").tobytes()
        return self.session.begin_round(number, model, cohort=sorted(cohort or self.consortium.sites))

    def upload(self, server: ServerRound) -> dict[str, Frame]:
        """Leg 1, of everybody in the cohort; nothing is taken by `server` yet."""
        answers = self.ask_all(server.masked_input_request(), server.attempt.cohort)
        return {site: answer for site, answer in answers.items() if isinstance(answer, Frame)}

    def survivors(self, letters: str) -> list[str]:
        """Sites by their last letters."""
        return [self.consortium.box(letter).site for letter in letters]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with RunningSuperLink.start(tmp_path_factory.mktemp("superlink")) as running:
        yield running


@pytest.fixture(scope="module")
def grid(superlink: RunningSuperLink) -> Iterator[TestGrid]:
    with TestGrid.start(superlink) as running:
        yield running


@pytest.fixture(scope="module")
def consortium(superlink: RunningSuperLink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureConsortium]:
    place = tmp_path_factory.mktemp("consortium")
    with SecureConsortium.found(superlink, place, rounds=100, secagg=CONTINUING) as founded:
        founded.start()
        yield founded


@pytest.fixture
def liar(grid: TestGrid, consortium: SecureConsortium) -> HostileCoordinator:
    coordinator = HostileCoordinator(grid, consortium, consortium.roster, consortium.key)
    coordinator.gather_keys()
    return coordinator


def _check_refused(consortium: SecureConsortium, answers: Mapping[str, object], rules: str | Mapping[str, str]) -> None:
    """Check that all said `protocol`, no more, and that each box's log names its rule."""
    assert answers == dict.fromkeys(answers, Refusal.PROTOCOL)
    wanted = dict.fromkeys(answers, rules) if isinstance(rules, str) else dict(rules)
    assert {site: consortium.boxes[site].events("message_refused")[-1]["error"] for site in answers} == wanted


def _agree(liar: HostileCoordinator, number: int, letters: str) -> ServerRound:
    """A round up to the lock: all upload, and those named by letter agree to be the only survivors."""
    server = liar.begin(number)
    uploads = liar.upload(server)
    for site in liar.survivors(letters):
        server.receive_masked_input(site, uploads[site])
    for site, answer in liar.ask(server.agree_requests()).items():
        assert isinstance(answer, Frame)
        server.receive_agreement(site, answer)
    return server


def test_round_replayed(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = liar.begin(next(ROUNDS))
    assert set(liar.upload(server)) == set(consortium.sites)
    _check_refused(consortium, liar.ask_all(server.masked_input_request()), "secagg.used_round")


def test_round_replayed_in_another_run(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    number = next(ROUNDS)
    assert set(liar.upload(liar.begin(number))) == set(consortium.sites)
    liar.begin_run()
    liar.gather_keys()
    _check_refused(consortium, liar.ask_all(liar.begin(number).masked_input_request()), "secagg.used_round")


def test_round_replayed_across_a_restart(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    number = next(ROUNDS)
    server = liar.begin(number)
    uploads = liar.upload(server)
    box = consortium.box("a")
    box.kill()
    box.start()
    box.wait_for_link()
    _check_refused(consortium, liar.ask({box.site: server.masked_input_request()}), "secagg.out_of_turn")
    # Nor do its new keys bring back what it held in the old ones, though the uploads were never unmasked.
    for site, upload in uploads.items():
        server.receive_masked_input(site, upload)
    _check_refused(consortium, liar.ask({box.site: server.agree_requests()[box.site]}), "secagg.out_of_turn")
    liar.gather_keys()
    _check_refused(consortium, liar.ask({box.site: liar.begin(number).masked_input_request()}), "secagg.used_round")


def test_second_attempt_without_proof_that_the_first_is_dead(
    liar: HostileCoordinator, consortium: SecureConsortium
) -> None:
    number = next(ROUNDS)
    assert set(liar.upload(liar.begin(number))) == set(consortium.sites)
    model = np.ones(liar.session.terms.parameters, dtype="<f4").tobytes()
    again = liar.session.begin_round(number, model, attempt=2)
    _check_refused(consortium, liar.ask_all(again.masked_input_request()), "secagg.abort_missing")


def test_second_cohort_on_one_model(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    shift = 0.001
    assert set(liar.upload(liar.begin(next(ROUNDS), shift=shift))) == set(consortium.sites)
    smaller = liar.begin(next(ROUNDS), shift=shift, cohort=liar.survivors("abc"))
    answers = liar.ask_all(smaller.masked_input_request(), smaller.attempt.cohort)
    _check_refused(consortium, answers, "secagg.second_cohort")


def test_two_models_sent(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    number = next(ROUNDS)
    first, second = liar.begin(number), liar.begin(number, shift=0.01)
    requests = {site: first.masked_input_request() for site in liar.survivors("ab")}
    requests |= {site: second.masked_input_request() for site in liar.survivors("cd")}
    uploads = liar.ask(requests)
    masked = []
    for upload in uploads.values():
        assert isinstance(upload, Frame)
        masked.append(np.frombuffer(upload.payload, np.uint64))
    # The contexts differ, so no pair of masks cancels between the halves: the sum repeats itself nowhere.
    assert len(np.unique(np.sum(masked, axis=0))) == len(masked[0])
    # Unmasking takes survivors that signed one context: relayed together, the halves are told apart.
    for server, letters in ((first, "ab"), (second, "cd")):
        frames = {site: _agree_request(server, uploads, holder=site) for site in liar.survivors(letters)}
        _check_refused(consortium, liar.ask(frames), "secagg.bad_upload_signature")


def test_model_swapped_far_away(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    number = next(ROUNDS)
    far = liar.begin(number, shift=20_000.0)
    _check_refused(consortium, liar.ask_all(far.masked_input_request()), "secagg.model_step")


def test_request_signed_by_another_coordinator(grid: TestGrid, consortium: SecureConsortium) -> None:
    impostor = HostileCoordinator(grid, consortium, consortium.roster, ec.generate_private_key(ec.SECP256R1()))
    impostor.gather_keys()
    answers = impostor.ask_all(impostor.begin(next(ROUNDS)).masked_input_request())
    _check_refused(consortium, answers, "secagg.coordinator_signature")


def test_peer_key_substituted(grid: TestGrid, consortium: SecureConsortium, tmp_path: Path) -> None:
    own_node = init_key(f"software:{tmp_path / 'node.key'}")
    victim = consortium.box("d").site
    # The coordinator believes what it likes; its roster endorses a node of its own in the hospital's name.
    entry = roster_node(SiteID(victim), own_node.kind, EvidenceClass.NONE, own_node.public_key())
    roster = roster_of(consortium.boxes.values(), consortium.key.public_key())
    roster = Roster({**roster.sites, SiteID(victim): (entry,)}, roster.coordinator)
    liar = HostileCoordinator(grid, consortium, roster, consortium.key)
    liar.gather_keys(but=victim)
    subject = Subject(consortium_digest(consortium.key.public_key()), victim, node_name(own_node.key_id))
    keeper = SessionKeeper(own_node, subject, clock=SystemClock(), timestamp_version=lambda: 0)
    keeper.tick()
    liar.session.receive_bundle(_advertise_as(keeper, victim, liar.session, consortium))
    answers = liar.ask_all(liar.begin(next(ROUNDS)).masked_input_request())
    others = dict.fromkeys(liar.survivors("abc"), "secagg.untrusted_certificate")
    _check_refused(consortium, answers, others | {victim: "secagg.own_bundle_changed"})


def test_second_survivors(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = liar.begin(next(ROUNDS))
    uploads = liar.upload(server)
    first, second, whole = (liar.begin(server.attempt.round_number) for _ in range(3))
    for chosen, letters in ((first, "abc"), (second, "abd"), (whole, "abcd")):
        for site in liar.survivors(letters):
            chosen.receive_masked_input(site, uploads[site])
    for answer in liar.ask(first.agree_requests()).values():
        assert _agreement(answer).answer is Answer.AGREED
    two = liar.survivors("ab")
    for other in (second, whole):
        requests = {site: frame for site, frame in other.agree_requests().items() if site in two}
        _check_refused(consortium, liar.ask(requests), "secagg.second_survivors")


def test_too_few_survivors(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = liar.begin(next(ROUNDS))
    uploads = liar.upload(server)
    for site in consortium.sites:
        server.receive_masked_input(site, uploads[site])
    requests = server.agree_requests()
    two = liar.survivors("ab")
    cut = {
        site: Frame(
            frame.study,
            frame.stage,
            frame.round,
            frame.attempt,
            dict(frame.header) | {"survivors": list(frame.header["survivors"])[:2]},  # type: ignore[call-overload]
        )
        for site, frame in requests.items()
        if site in two
    }
    for answer in liar.ask(cut).values():
        reply = _agreement(answer)
        assert reply.answer is Answer.ABORTED
        assert reply.revelation is None
    # The abort is locked: the whole cohort, honestly asked now, comes too late.
    _check_refused(consortium, liar.ask({site: requests[site] for site in two}), "secagg.out_of_turn")


def test_abort_after_the_lock(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = _agree(liar, next(ROUNDS), "abc")
    abort = liar.begin(server.attempt.round_number).abort_request()
    _check_refused(consortium, liar.ask_all(abort, liar.survivors("abc")), "secagg.locked_on_survivors")


def test_reveal_with_too_few_or_copied_agreements(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = _agree(liar, next(ROUNDS), "abc")
    frame = server.reveal_request()
    agreements = frame.header["agreements"]
    assert isinstance(agreements, list)
    (first, signature), *_ = agreements
    few = RevealRequest(server.attempt.context, ((first, signature), (first, signature)))
    three = [(site, signature) for site in liar.survivors("abc")]
    copied = RevealRequest(server.attempt.context, tuple(three))
    site = liar.survivors("a")[0]
    for request, rule in ((few, "secagg.duplicate_site"), (copied, "secagg.bad_agreement")):
        forged = Frame(frame.study, Stage.REVEAL, frame.round, frame.attempt, request.header())
        _check_refused(consortium, liar.ask({site: forged}), rule)


def test_reveal_twice(liar: HostileCoordinator, consortium: SecureConsortium) -> None:
    server = _agree(liar, next(ROUNDS), "abc")
    request = server.reveal_request()
    for site, answer in liar.ask_all(request, liar.survivors("abc")).items():
        assert isinstance(answer, Frame)
        assert parse_reveal_reply(answer.header, answer.payload).site == site
    _check_refused(consortium, liar.ask_all(request, liar.survivors("abc")), "secagg.revealed_already")


def test_plain_stage_asked_of_a_production_box(superlink: RunningSuperLink, grid: TestGrid, tmp_path: Path) -> None:
    with SwtpmMaker() as maker, maker.make() as tpm:
        box = RunningHospital.prepare(
            tmp_path,
            superlink,
            key_uri=tpm.uri,
            environment="production",
            settings={"allow_plain": False},
            sections='[roster]\nfile = "roster.json"',
        )
        roster = roster_of([box], ec.generate_private_key(ec.SECP256R1()).public_key())
        (tmp_path / "roster.json").write_bytes(encode_roster(roster))
        with box:
            box.register(superlink)
            box.start()
            box.wait_for_link()
            ones = np.ones(10, dtype="<f4").tobytes()
            train = Frame("played-study", Stage.PLAIN, 1, header={"kind": "train"}, payload=ones)
            assert grid.ask(box.node_id, train) == Refusal.NOT_PERMITTED
            assert box.events("message_refused")[-1]["error"] == "permit.policy"


def _agree_request(server: ServerRound, uploads: Mapping[str, object], *, holder: str) -> Frame:
    """Leg 2's request for all uploads, whatever context they belong to; the protocol's own server would not make it."""
    reader, relayed = server.attempt.cohort.index(holder), []
    for dealer, site in enumerate(server.attempt.cohort):
        upload = uploads[site]
        assert isinstance(upload, Frame)
        reply = parse_masked_input_reply(upload.header, upload.payload)
        size, place = len(reply.shares) // (len(server.attempt.cohort) - 1), reader - (reader > dealer)
        share = reply.shares[place * size : (place + 1) * size] if reader != dealer else b""
        relayed.append(RelayedUpload(reply.upload, share))
    request = AgreeRequest(server.attempt.context, abort=False, survivors=tuple(relayed))
    attempt, asked = server.attempt, server.masked_input_request()
    return Frame(asked.study, Stage.AGREE, attempt.round_number, attempt.attempt, request.header())


def _advertise_as(keeper: SessionKeeper, site: str, session: ServerSession, consortium: SecureConsortium) -> Frame:
    """A bundle as a node of `site` would make it, by a node that the site never endorsed."""
    current = keeper.current()
    identity = NodeIdentity(
        site, current.certificate, lambda data: current.signing_key.sign(data, ec.ECDSA(hashes.SHA256()))
    )
    node = NodeSession(
        identity=identity,
        terms=session.terms,
        roster=PinnedPeers(consortium.roster, SystemClock(), CounterStore(consortium.directory.path / "counters.json")),
        coordinator=consortium.key.public_key(),
        journal=MemoryJournal(),
        initial_model=np.ones(session.terms.parameters, dtype=np.float32),
        randomness=os.urandom,
    )
    return node.advertise(session.advertise_request())


def _agreement(answer: object) -> AgreeReply:
    assert isinstance(answer, Frame)
    return parse_agree_reply(answer.header, answer.payload)
