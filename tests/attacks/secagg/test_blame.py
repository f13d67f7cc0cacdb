"""Hospitals that cheat: the round yields the exact sum, or no model at all, and the right name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from agent.core.wire import Frame
from agent.secagg import dealing, exchange, round_secrets
from agent.secagg.attempt import sign_statement, upload_statement
from agent.secagg.dealing import HeldShares
from agent.secagg.messages import (
    MaskedInputReply,
    RevealReply,
    Revelation,
    parse_agree_reply,
    parse_masked_input_reply,
    parse_reveal_reply,
)
from agent.secagg.round_secrets import masked_digest, seeds_digest
from agent.secagg.server import ServerRound
from agent.secagg.terms import Dropout
from tests.simulators.cohort import Cohort, make_signer, make_terms, relay
from tests.simulators.malicious_server import refused

CHEAT = "site-002"
OTHER = "site-001"

Cheat = Callable[[MaskedInputReply], MaskedInputReply]


@pytest.fixture
def cohort() -> Cohort:
    made = Cohort(make_terms(5, dropout=Dropout.CONTINUE, accept_differencing=True))
    made.advertise()
    return made


def collect(cohort: Cohort, cheat: Cheat | None = None, *, silent: tuple[str, ...] = ()) -> ServerRound:
    """Leg 1, with one hospital that alters its own upload and signs what it altered."""
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    request, inputs = relay(opened.masked_input_request()), cohort.inputs()
    for site in cohort.terms.sites:
        if site in silent:
            continue
        session = cohort.hospitals[site].session
        session.accept(request)
        frame = session.masked_input(inputs[site]).frame
        if site == CHEAT and cheat is not None:
            frame = signed(cohort, opened, frame, cheat)
        opened.receive_masked_input(site, relay(frame))
    return opened


def signed(cohort: Cohort, opened: ServerRound, frame: Frame, cheat: Cheat) -> Frame:
    reply = cheat(parse_masked_input_reply(dict(frame.header), frame.payload))
    statement = upload_statement(opened.attempt.context, reply.upload)
    upload = replace(reply.upload, signature=sign_statement(make_signer(cohort.hospitals[CHEAT].key), statement))
    cohort.hospitals[CHEAT].session._upload = upload
    return replace(frame, header=replace(reply, upload=upload).header(), payload=reply.masked)


def corrupt_shares(cohort: Cohort, monkeypatch: pytest.MonkeyPatch, *holders: str) -> None:
    """The cheat deals garbage to these holders, committed to properly or not at all."""
    real = exchange.seal_share

    def seal(root: bytes, context: bytes, dealer: str, holder: str, plaintext: bytes) -> bytes:
        garbage = bytes(len(plaintext)) if dealer == CHEAT and holder in holders else plaintext
        return real(root, context, dealer, holder, garbage)

    monkeypatch.setattr(round_secrets, "seal_share", seal)


def test_bad_commitment_names_its_author(cohort: Cohort) -> None:
    opened = collect(cohort, lambda reply: replace(reply, upload=replace(reply.upload, commitment=b"x" * 32)))
    cohort.agree(opened)
    with refused("bad_commitment") as error:
        opened.finish()
    assert error[0].details["peer"] == CHEAT


def test_inconsistent_shares_name_their_dealer(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of no polynomial of degree T - 1, each committed to: they recover another seed than the one promised."""
    real = dealing.deal_shares

    def deal(*args: object, **settings: object) -> tuple[HeldShares, ...]:
        dealt = real(*args, **settings)  # type: ignore[arg-type]
        if settings["dealer"] != CHEAT:
            return dealt
        return (HeldShares(CHEAT, dict.fromkeys(dealt[0].slots, bytes(32))), *dealt[1:])

    monkeypatch.setattr(round_secrets, "deal_shares", deal)
    opened = collect(cohort)
    cohort.agree(opened)
    with refused("bad_commitment") as error:
        opened.finish()
    assert error[0].details["peer"] == CHEAT


def test_a_dealer_of_garbage_to_more_than_can_collude_is_convicted(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_shares(cohort, monkeypatch, "site-000", "site-001")
    opened = collect(cohort)
    cohort.agree(opened)
    with refused("bad_dealer") as error:
        opened.finish()
    assert error[0].details == {"peer": CHEAT, "complaints": 2}


def test_a_dealer_of_garbage_to_one_only_does_not_stop_the_round(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_shares(cohort, monkeypatch, "site-000")
    opened = collect(cohort)
    cohort.agree(opened)
    check_exact(cohort, opened)


def test_a_complainer_cannot_stop_the_round_either(cohort: Cohort) -> None:
    def complain(revelation: Revelation) -> Revelation:
        # Without the share of the second dealer, whom it complains about.
        shares, rests = revelation.self_shares, revelation.rests
        return Revelation((OTHER,), shares[:32] + shares[64:], rests[:32] + rests[64:])

    assert check_exact(cohort, tampered_agreement(cohort, complain)) == ()


def tampered_agreement(cohort: Cohort, alter: Callable[[Revelation], Revelation]) -> ServerRound:
    """Both legs; in the second the cheat answers first, and wrongly."""
    opened = collect(cohort)
    requests = opened.agree_requests()
    for site in (CHEAT, *(site for site in cohort.terms.sites if site != CHEAT)):
        frame = relay(cohort.hospitals[site].session.agree(relay(requests[site])))
        if site == CHEAT:
            reply = parse_agree_reply(frame.header, b"")
            assert reply.revelation is not None
            frame = replace(frame, header=replace(reply, revelation=alter(reply.revelation)).header())
        opened.receive_agreement(site, relay(frame))
    return opened


def check_exact(cohort: Cohort, opened: ServerRound) -> tuple[str, ...]:
    """The sum is exact; returns who was blamed on the way."""
    result = opened.finish()
    inputs = cohort.inputs()
    expected = np.sum([inputs[site].words for site in result.survivors], axis=0, dtype=np.uint64)
    assert np.array_equal(result.total.words, expected)
    return tuple(str(error.details["peer"]) for error in result.blamed)


def test_a_holder_that_reveals_a_wrong_share_is_named_and_the_round_goes_on(cohort: Cohort) -> None:
    opened = tampered_agreement(
        cohort, lambda revelation: replace(revelation, self_shares=b"\0" * 32 + revelation.self_shares[32:])
    )
    assert check_exact(cohort, opened) == (CHEAT,)


def tampered_reveal(cohort: Cohort, alter: Callable[[RevealReply], RevealReply]) -> ServerRound:
    """All legs without site-004; in the last one the cheat answers first, and wrongly."""
    opened = collect(cohort, silent=("site-004",))
    cohort.agree(opened)
    request = relay(opened.reveal_request())
    for site in (CHEAT, *(site for site in opened.uploaded if site != CHEAT)):
        frame = relay(cohort.hospitals[site].session.reveal(request))
        if site == CHEAT:
            frame = replace(frame, header=alter(parse_reveal_reply(frame.header, b"")).header())
        opened.receive_reveal(site, relay(frame))
    return opened


def test_a_wrong_pairwise_seed_names_its_owner_and_slices_replace_it(cohort: Cohort) -> None:
    opened = tampered_reveal(
        cohort, lambda reply: replace(reply, revelation=replace(reply.revelation, own_seeds=b"\1" * 32))
    )
    assert check_exact(cohort, opened) == (CHEAT,)


def test_wrong_slices_are_not_even_needed(cohort: Cohort) -> None:
    opened = tampered_reveal(
        cohort, lambda reply: replace(reply, revelation=replace(reply.revelation, pair_shares=bytes(4 * 32)))
    )
    assert check_exact(cohort, opened) == ()


def test_a_survivor_that_vanishes_in_leg_3_is_replaced_by_the_slices_of_the_others() -> None:
    cohort = Cohort(make_terms(8, dropout=Dropout.CONTINUE, accept_differencing=True, colluders=1, minimum_sites=3))
    cohort.advertise()
    opened = collect(cohort, silent=("site-007",))
    cohort.agree(opened)
    cohort.reveal(opened, silent=[CHEAT])
    assert check_exact(cohort, opened) == ()


def test_a_holder_that_lies_about_the_slices_of_a_vanished_survivor_is_named() -> None:
    cohort = Cohort(make_terms(8, dropout=Dropout.CONTINUE, accept_differencing=True, colluders=1, minimum_sites=3))
    cohort.advertise()
    opened = collect(cohort, silent=("site-007",))
    cohort.agree(opened)
    request = relay(opened.reveal_request())
    for site in opened.uploaded:
        if site == OTHER:
            continue
        frame = relay(cohort.hospitals[site].session.reveal(request))
        if site == "site-000":
            reply = parse_reveal_reply(frame.header, b"")
            zeros = bytes(len(reply.revelation.pair_shares))
            revelation = replace(reply.revelation, pair_shares=zeros)
            frame = replace(frame, header=replace(reply, revelation=revelation).header())
        opened.receive_reveal(site, relay(frame))
    assert check_exact(cohort, opened) == ("site-000",)


def test_seeds_that_do_not_match_name_the_pair_before_anybody_agrees(cohort: Cohort) -> None:
    def other_seed(reply: MaskedInputReply) -> MaskedInputReply:
        commitments = b"y" * 32 + reply.seed_commitments[32:]
        upload = replace(reply.upload, seeds=seeds_digest(commitments))
        return replace(reply, upload=upload, seed_commitments=commitments)

    opened = collect(cohort, other_seed)
    with refused("seed_mismatch") as error:
        opened.agree_requests()
    assert error[0].details["peers"] == ("site-000", CHEAT)
    cohort.abort(opened)
    assert opened.abort_certificate() is not None


def test_a_vector_that_was_masked_wrongly_yields_no_model(cohort: Cohort) -> None:
    def garbage(reply: MaskedInputReply) -> MaskedInputReply:
        masked = bytearray(reply.masked)
        masked[3] ^= 1
        digest = masked_digest(reply.context, memoryview(bytes(masked)))
        return replace(reply, masked=bytes(masked), upload=replace(reply.upload, masked=digest))

    opened = collect(cohort, garbage)
    cohort.agree(opened)
    with refused("bad_check_word"):
        opened.finish()


def test_a_vector_that_is_not_the_signed_one_names_its_sender(cohort: Cohort) -> None:
    def altered(reply: MaskedInputReply) -> MaskedInputReply:
        masked = bytearray(reply.masked)
        masked[-9] ^= 128
        return replace(reply, masked=bytes(masked))

    opened = collect(cohort, altered)
    cohort.agree(opened)
    with refused("masked_digest") as error:
        opened.finish()
    assert error[0].details["peer"] == CHEAT


@pytest.mark.parametrize(
    "cheat",
    [
        lambda reply: replace(reply, shares=reply.shares[:-1] + b"?"),
        lambda reply: replace(reply, shares=reply.shares[:-16]),
        lambda reply: replace(reply, masked=bytes(len(reply.masked) + 8)),
        lambda reply: replace(reply, seed_commitments=bytes(len(reply.seed_commitments))),
        lambda reply: replace(reply, upload=replace(reply.upload, entries=reply.upload.entries[:64])),
    ],
    ids=["share", "shares", "vector", "seeds", "entries"],
)
def test_an_upload_that_does_not_match_its_header_is_not_counted(cohort: Cohort, cheat: Cheat) -> None:
    with refused("bad_upload_signature") as error:
        collect(cohort, cheat)
    assert error[0].details["peer"] == CHEAT


def test_one_hospital_answers_in_the_name_of_another(cohort: Cohort) -> None:
    opened = collect(cohort)
    requests = opened.agree_requests()
    frame = cohort.hospitals[CHEAT].session.agree(relay(requests[CHEAT]))
    with refused("foreign_context"):
        opened.receive_agreement(OTHER, relay(frame))
    with refused("foreign_context"):
        opened.receive_agreement(OTHER, relay(replace(frame, header={**frame.header, "context": b"c" * 32})))
    reply = parse_agree_reply(frame.header, b"")
    assert reply.revelation is not None
    short = replace(reply.revelation, self_shares=reply.revelation.self_shares[32:])
    with refused("malformed"):
        opened.receive_agreement(CHEAT, relay(replace(frame, header=replace(reply, revelation=short).header())))


def test_a_hospital_uploads_twice(cohort: Cohort) -> None:
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    session = cohort.hospitals[CHEAT].session
    session.accept(relay(opened.masked_input_request()))
    frame = relay(session.masked_input(None).frame)
    opened.receive_masked_input(CHEAT, frame)
    with refused("duplicate_site"):
        opened.receive_masked_input(CHEAT, frame)
