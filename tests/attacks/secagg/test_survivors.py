"""Attacks on leg 2: who survived, with which upload, and one decision an attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.secagg.attempt import upload_statement
from agent.secagg.messages import Answer, RelayedUpload, UploadHeader
from agent.secagg.rules import OPEN_LOCK
from agent.secagg.stages import NodeState
from tests.simulators.malicious_server import MaliciousServer, Opened, Tamper, refused

VICTIM = "site-000"
PEER = "site-001"
COLLUDER = "site-003"


@pytest.fixture
def opened(server: MaliciousServer) -> Opened:
    made = server.open()
    server.upload_all(made)
    return made


@pytest.fixture
def loose(lenient: MaliciousServer) -> Opened:
    made = lenient.open()
    lenient.upload_all(made)
    return made


def on(site: str, /, **changes: object) -> Tamper:
    """Alter one survivor's entry, its signature left as it was."""

    def tamper(entries: list[RelayedUpload]) -> list[RelayedUpload]:
        share = changes.get("share")
        header = {name: value for name, value in changes.items() if name != "share"}
        return [
            entry
            if entry.upload.site != site
            else RelayedUpload(replace(entry.upload, **header), entry.share if share is None else share)  # type: ignore[arg-type]
            for entry in entries
        ]

    return tamper


def still_open(server: MaliciousServer, site: str = VICTIM) -> bool:
    """Whether a refusal left everything as it was."""
    hospital = server.cohort.hospitals[site]
    record = hospital.journal.latest_attempt()
    return hospital.session.state is NodeState.UPLOADED and record is not None and record.lock == OPEN_LOCK


def test_too_few_survivors_get_an_abort_and_no_share(lenient: MaliciousServer, loose: Opened) -> None:
    reply = lenient.agree(VICTIM, loose, lenient.sites[:3])
    assert (reply.answer, reply.revelation) == (Answer.ABORTED, None)
    with refused("out_of_turn"):
        lenient.agree(VICTIM, loose)


def test_my_upload_removed(server: MaliciousServer, opened: Opened) -> None:
    with refused("own_upload_missing"):
        server.agree(VICTIM, opened, server.sites[1:])
    assert still_open(server)


@pytest.mark.parametrize("name", ["masked", "commitment", "seeds"])
def test_my_upload_altered(server: MaliciousServer, opened: Opened, name: str) -> None:
    with refused("own_upload_changed"):
        server.agree(VICTIM, opened, tamper=on(VICTIM, **{name: b"x" * 32}))
    assert still_open(server)


def test_my_upload_resigned_by_a_malleable_signature(server: MaliciousServer, opened: Opened) -> None:
    with refused("own_upload_changed"):
        server.agree(VICTIM, opened, tamper=on(VICTIM, signature=server.abort_as(COLLUDER, opened)))


@pytest.mark.parametrize("name", ["masked", "commitment", "seeds"])
def test_peer_s_upload_altered(server: MaliciousServer, opened: Opened, name: str) -> None:
    with refused("bad_upload_signature") as error:
        server.agree(VICTIM, opened, tamper=on(PEER, **{name: b"x" * 32}))
    assert error[0].details["peer"] == PEER
    assert still_open(server)


@pytest.mark.parametrize("size", [64, 64 * 3, 64 * 5])
def test_peer_s_entries_of_another_length(server: MaliciousServer, opened: Opened, size: int) -> None:
    with refused("bad_upload_signature"):
        server.agree(VICTIM, opened, tamper=on(PEER, entries=b"x" * size))


def test_peer_s_upload_forged_by_a_colluder(server: MaliciousServer, opened: Opened) -> None:
    def forge(entries: list[RelayedUpload]) -> list[RelayedUpload]:
        peer = next(entry for entry in entries if entry.upload.site == PEER)
        made = replace(peer.upload, masked=b"x" * 32)
        signature = server.sign(COLLUDER, upload_statement(opened.attempt.context, made))
        return on(PEER, masked=b"x" * 32, signature=signature)(entries)

    with refused("bad_upload_signature"):
        server.agree(VICTIM, opened, tamper=forge)


def test_peer_s_upload_from_another_attempt(server: MaliciousServer, opened: Opened) -> None:
    other = server.open(2)
    old = server.uploads[opened.attempt.context, PEER].upload
    server.upload_all(other)
    with refused("bad_upload_signature"):
        server.agree(VICTIM, other, tamper=on(PEER, **{name: getattr(old, name) for name in UploadHeader.__slots__}))


def test_survivor_that_is_not_of_the_cohort(server: MaliciousServer, opened: Opened) -> None:
    def add(entries: list[RelayedUpload]) -> list[RelayedUpload]:
        return [*entries, replace(entries[1], upload=replace(entries[1].upload, site="site-999"))]

    with refused("unknown_site"):
        server.agree(VICTIM, opened, tamper=add)


def test_survivor_listed_twice(server: MaliciousServer, opened: Opened) -> None:
    with refused("duplicate_site"):
        server.agree(VICTIM, opened, tamper=lambda entries: [*entries[:2], *entries[1:]])


def test_shares_swapped(server: MaliciousServer, opened: Opened) -> None:
    def swap(entries: list[RelayedUpload]) -> list[RelayedUpload]:
        first, second = entries[1].share, entries[2].share
        return on("site-002", share=first)(on(PEER, share=second)(entries))

    with refused("altered_share") as error:
        server.agree(VICTIM, opened, tamper=swap)
    assert error[0].details["peer"] == PEER
    assert still_open(server)


def test_share_meant_for_another_reader(server: MaliciousServer, opened: Opened) -> None:
    foreign = next(
        entry.share for entry in server.relayed("site-002", opened, server.sites) if entry.upload.site == PEER
    )
    with refused("altered_share"):
        server.agree(VICTIM, opened, tamper=on(PEER, share=foreign))


def test_share_altered_in_one_bit(server: MaliciousServer, opened: Opened) -> None:
    def flip(entries: list[RelayedUpload]) -> list[RelayedUpload]:
        share = bytearray(entries[1].share)
        share[5] ^= 1
        return on(PEER, share=bytes(share))(entries)

    with refused("altered_share"):
        server.agree(VICTIM, opened, tamper=flip)


def test_share_in_my_own_name(server: MaliciousServer, opened: Opened) -> None:
    with refused("altered_share"):
        server.agree(VICTIM, opened, tamper=on(VICTIM, share=b"s" * 48))


def test_foreign_context(server: MaliciousServer, opened: Opened) -> None:
    with refused("foreign_context"):
        server.agree(VICTIM, opened, context=b"c" * 32)
    assert still_open(server)


def test_second_set_of_survivors(lenient: MaliciousServer, loose: Opened) -> None:
    assert lenient.agree(VICTIM, loose, lenient.sites[:4]).answer is Answer.AGREED
    for other in (lenient.sites, (*lenient.sites[:3], lenient.sites[4]), lenient.sites[:4]):
        with refused("second_survivors"):
            lenient.agree(VICTIM, loose, other)


def test_second_set_after_the_whole_one(lenient: MaliciousServer, loose: Opened) -> None:
    assert lenient.agree(VICTIM, loose).answer is Answer.COMPLETE
    with refused("out_of_turn"):
        lenient.agree(VICTIM, loose, lenient.sites[:4])


def test_second_set_after_a_restart(lenient: MaliciousServer, loose: Opened) -> None:
    lenient.agree(VICTIM, loose, lenient.sites[:4])
    lenient.cohort.hospitals[VICTIM].restart()
    with refused("out_of_turn"):
        lenient.agree(VICTIM, loose)


@pytest.mark.parametrize("count", [4, 5])
@pytest.mark.parametrize("restart", [False, True])
def test_abort_after_agreement(lenient: MaliciousServer, loose: Opened, count: int, restart: bool) -> None:
    lenient.agree(VICTIM, loose, lenient.sites[:count])
    if restart:
        lenient.cohort.hospitals[VICTIM].restart()
    with refused("locked_on_survivors"):
        lenient.abort(VICTIM, 1, 1, loose.attempt.context)


def test_agreement_after_abort(lenient: MaliciousServer, loose: Opened) -> None:
    lenient.abort(VICTIM, 1, 1, loose.attempt.context)
    with refused("out_of_turn"):
        lenient.agree(VICTIM, loose)


def test_the_lock_is_durable_before_the_answer(lenient: MaliciousServer, loose: Opened) -> None:
    """If the disk fails, no share leaves and nothing is decided."""
    hospital = lenient.cohort.hospitals[VICTIM]

    def fail(_: object) -> None:
        raise OSError("disk full")

    hospital.journal.record_attempt = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(OSError, match="disk full"):
        lenient.agree(VICTIM, loose)
    assert hospital.session.state is NodeState.UPLOADED


def test_a_malicious_peer_shows_different_uploads_to_different_hospitals(
    lenient: MaliciousServer, loose: Opened
) -> None:
    """An equivocating colluder splits the lock: H(U) names each upload, so neither half reaches T."""
    first = loose.attempt.context
    real = lenient.uploads[first, "site-004"]
    twin = replace(real.upload, masked=b"t" * 32)
    twin = replace(twin, signature=lenient.sign("site-004", upload_statement(first, twin)))
    left = {site: lenient.agree(site, loose, lenient.sites[1:]).signature for site in ("site-001", "site-002")}
    right = lenient.agree(
        "site-003", loose, lenient.sites[1:], tamper=on("site-004", masked=twin.masked, signature=twin.signature)
    )
    agreements = [
        *left.items(),
        ("site-003", right.signature),
        ("site-004", lenient.agree_as("site-004", loose, lenient.sites[1:])),
    ]
    with refused("bad_agreement") as error:
        lenient.reveal("site-001", loose, agreements)
    assert error[0].details["peer"] == "site-003"
