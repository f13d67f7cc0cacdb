"""Attacks on leg 3, and what the server cannot unmask with all that it gathered."""

from __future__ import annotations

import numpy as np
import pytest

from agent.secagg.masking import Mask
from agent.secagg.messages import Answer, RevealReply
from agent.secagg.shamir import combine_shares
from agent.secagg.stages import NodeState
from tests.simulators.malicious_server import MaliciousServer, Opened, refused

VICTIM = "site-000"
GONE = "site-004"


@pytest.fixture
def loose(lenient: MaliciousServer) -> Opened:
    """Everyone uploaded; the server may call the fifth vanished and hold its upload all the same."""
    made = lenient.open()
    lenient.upload_all(made)
    return made


def agreed(server: MaliciousServer, opened: Opened, survivors: tuple[str, ...]) -> list[tuple[str, bytes]]:
    replies = {site: server.agree(site, opened, survivors) for site in survivors}
    assert {reply.answer for reply in replies.values()} == {Answer.AGREED}
    return [(site, reply.signature) for site, reply in replies.items()]


def test_too_few_signatures(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    with refused("too_few_agreements") as error:
        lenient.reveal(VICTIM, loose, signatures[:3])
    assert error[0].details == {"found": 3, "needed": 4}
    assert lenient.cohort.hospitals[VICTIM].session.state is NodeState.AGREED


def test_copied_signatures(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    with refused("duplicate_site"):
        lenient.reveal(VICTIM, loose, [*signatures[:3], signatures[0]])
    with refused("bad_agreement"):
        lenient.reveal(VICTIM, loose, [*signatures[:3], ("site-003", signatures[0][1])])


def test_signatures_over_other_survivors(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    others = (*lenient.sites[:3], GONE)
    foreign = ("site-003", lenient.agree_as("site-003", loose, others))
    with refused("bad_agreement"):
        lenient.reveal(VICTIM, loose, [*signatures[:3], foreign])


def test_signature_of_a_hospital_that_is_no_survivor(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    colluder = (GONE, lenient.agree_as(GONE, loose, lenient.sites[:4]))
    with refused("bad_agreement") as error:
        lenient.reveal(VICTIM, loose, [*signatures[:3], colluder])
    assert error[0].details["peer"] == GONE


def test_reveal_without_agreement(lenient: MaliciousServer, loose: Opened) -> None:
    with refused("out_of_turn"):
        lenient.reveal(VICTIM, loose, [])


def test_reveal_twice(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    lenient.reveal(VICTIM, loose, signatures)
    with refused("revealed_already"):
        lenient.reveal(VICTIM, loose, signatures)
    assert lenient.cohort.hospitals[VICTIM].session._secrets is None


def test_reveal_after_the_whole_cohort_was_revealed(lenient: MaliciousServer, loose: Opened) -> None:
    lenient.agree(VICTIM, loose)
    with refused("revealed_already"):
        lenient.reveal(VICTIM, loose, [])


def test_reveal_after_a_restart(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    lenient.cohort.hospitals[VICTIM].restart()
    with refused("revealed_already"):
        lenient.reveal(VICTIM, loose, signatures)


def test_reveal_in_a_foreign_context(lenient: MaliciousServer, loose: Opened) -> None:
    signatures = agreed(lenient, loose, lenient.sites[:4])
    with refused("foreign_context"):
        lenient.reveal(VICTIM, loose, signatures, context=b"c" * 32)


def revealed(server: MaliciousServer, opened: Opened) -> dict[str, RevealReply]:
    survivors = server.sites[:4]
    signatures = agreed(server, opened, survivors)
    return {site: server.reveal(site, opened, signatures) for site in survivors}


def test_a_falsely_dropped_hospital_stays_masked_after_all_its_pairwise_seeds_are_removed(
    lenient: MaliciousServer, loose: Opened
) -> None:
    replies = revealed(lenient, loose)
    session = lenient.cohort.hospitals[GONE].session._secrets
    assert session is not None
    pairwise = {site: reply.revelation.own_seeds for site, reply in replies.items()}
    assert pairwise == {site: session.seeds[site] for site in lenient.sites[:4]}
    bare = lenient.unmask(
        loose,
        GONE,
        [Mask(seed, subtract=True) for site, seed in pairwise.items() if site > GONE]
        + [Mask(seed) for site, seed in pairwise.items() if site < GONE],
    )
    truth = loose.attempt.codec.encode(None, key=bytes(32), check_key=loose.attempt.check_key)
    # What is left is the self mask over the input: high bits of the lanes, which an input never sets, are random.
    assert np.mean(bare >> np.uint64(60) == truth >> np.uint64(60)) < 0.3
    # And the self seed is out of reach: nobody gave a share of it, one colluder's own is below T.
    for reply in replies.values():
        assert len(reply.revelation.self_shares) == 4 * 32


def test_a_survivor_stays_masked_although_its_self_seed_is_known(lenient: MaliciousServer, loose: Opened) -> None:
    replies = revealed(lenient, loose)
    shares = {index + 1: reply.revelation.self_shares[:32] for index, reply in enumerate(replies.values())}
    self_seed = combine_shares(shares)
    secrets_of_colluder = lenient.cohort.hospitals[GONE].session._secrets
    assert secrets_of_colluder is not None
    known = [Mask(self_seed, subtract=True), Mask(secrets_of_colluder.seeds[VICTIM], subtract=True)]
    bare = lenient.unmask(loose, VICTIM, known)
    assert np.unique(bare).size > bare.size * 0.9


def test_the_reveal_carries_no_slot_between_survivors(lenient: MaliciousServer, loose: Opened) -> None:
    """No share of a seed between two survivors leaves: T of them beside the self seed would unmask one hospital."""
    for site, reply in revealed(lenient, loose).items():
        hospital_shares = reply.revelation
        assert len(hospital_shares.pair_shares) == 4 * 32
        assert len(hospital_shares.own_seeds) == 32
        assert len(hospital_shares.slot_digests) == 4 * 3 * 32
        assert not hospital_shares.complaints, site


def test_split_view_in_leg_2(lenient: MaliciousServer, loose: Opened) -> None:
    """The whole cohort to some, a part to the others: neither side yields T shares."""
    complete = [lenient.agree(site, loose) for site in lenient.sites[:2]]
    partial = [lenient.agree(site, loose, lenient.sites[:4]) for site in lenient.sites[2:4]]
    assert [reply.answer for reply in complete + partial] == [Answer.COMPLETE] * 2 + [Answer.AGREED] * 2
    signatures = [(site, reply.signature) for site, reply in zip(lenient.sites[2:4], partial, strict=True)]
    # The fifth hospital colludes: it signs what it likes, and gives its shares of everything.
    with refused("bad_agreement"):
        lenient.reveal("site-002", loose, [*signatures, (GONE, lenient.agree_as(GONE, loose, lenient.sites[:4]))])
    with refused("too_few_agreements"):
        lenient.reveal("site-002", loose, signatures)
    assert len(complete) + 1 < loose.attempt.threshold


def test_split_view_in_leg_1(lenient: MaliciousServer) -> None:
    """Two contexts of one attempt: the uploads of one are no survivors of the other."""
    left, right = lenient.open(configuration=b"l"), lenient.open(configuration=b"r")
    for site in lenient.sites[:2]:
        lenient.upload(site, left)
    for site in lenient.sites[2:]:
        lenient.upload(site, right)
    reply = lenient.agree(VICTIM, left, lenient.sites[:2])
    assert reply.answer is Answer.ABORTED
