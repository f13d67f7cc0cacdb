"""Attacks on leg 0 and on the keys that leg 1 relays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.secagg.attempt import bundle_statement
from agent.secagg.exchange import RunKey
from agent.secagg.messages import Bundle
from agent.secagg.stages import NodeState
from tests.simulators.cohort import certificate_of, make_key, relay
from tests.simulators.malicious_server import MaliciousServer, refused

VICTIM = "site-000"
PEER = "site-001"
PRIME = 2**255 - 19
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    PRIME - 1,
]


def signed(server: MaliciousServer, site: str, key: bytes, *, signer: str | None = None) -> Bundle:
    """A bundle in a site's name, signed by whichever hospital's key the attacker holds."""
    hospital = server.cohort.hospitals[signer or site]
    unsigned = Bundle(site, key, certificate_of(hospital.key), b"")
    statement = bundle_statement(server.cohort.terms, server.run, unsigned)
    return replace(unsigned, signature=server.sign(hospital.site, statement))


def accept(server: MaliciousServer, **bundles: Bundle) -> None:
    opened = server.open(bundles={site.replace("_", "-"): bundle for site, bundle in bundles.items()})
    server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))


def test_peer_key_substituted(server: MaliciousServer) -> None:
    ours = RunKey(bytes(range(32))).public
    with refused("bad_bundle_signature") as error:
        accept(server, site_001=replace(server.bundles[PEER], key=ours))
    assert error[0].details["peer"] == PEER


def test_peer_key_substituted_and_signed_by_another_hospital(server: MaliciousServer) -> None:
    forged = signed(server, PEER, RunKey(bytes(range(32))).public, signer="site-003")
    with refused("untrusted_certificate"):
        accept(server, site_001=forged)


def test_own_key_substituted(server: MaliciousServer) -> None:
    with refused("own_bundle_changed"):
        accept(server, site_000=signed(server, VICTIM, RunKey(bytes(range(32))).public))


def test_own_old_key_kept_after_a_restart(server: MaliciousServer) -> None:
    old = server.bundles[VICTIM]
    server.cohort.hospitals[VICTIM].restart()
    server.advertise([VICTIM])
    with refused("own_bundle_changed"):
        accept(server, site_000=old)


def test_sybil_that_the_study_does_not_name(server: MaliciousServer) -> None:
    key = make_key("sybil")
    sybil = Bundle("site-999", RunKey(bytes(32)).public, certificate_of(key), b"signature")
    opened = server.open(bundles={"site-999": sybil})
    with refused("unknown_site") as error:
        server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))
    assert error[0].details["peer"] == "site-999"


def test_sybil_under_a_known_name(server: MaliciousServer) -> None:
    sybil = replace(server.bundles[PEER], certificate=certificate_of(make_key("sybil")))
    with refused("untrusted_certificate"):
        accept(server, site_001=sybil)


def test_bundle_replayed_from_an_old_run(server: MaliciousServer) -> None:
    old = dict(server.bundles)
    server.advertise(run=2)
    with refused("bad_bundle_signature") as error:
        accept(server, site_001=old[PEER])
    assert error[0].details["peer"] == PEER


def test_whole_old_run_replayed_to_a_node_that_left_it(server: MaliciousServer) -> None:
    opened = server.open()
    server.cohort.hospitals[VICTIM].restart()
    server.advertise([VICTIM], run=2)
    with refused("foreign_run"):
        server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))


def test_one_hospital_listed_twice(server: MaliciousServer) -> None:
    opened = server.open(sites=[VICTIM, PEER, PEER, "site-002", "site-003"])
    with refused("duplicate_site") as error:
        server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))
    assert error[0].details["peer"] == PEER


def test_one_key_in_two_names(server: MaliciousServer) -> None:
    with refused("repeated_key"):
        accept(server, site_001=signed(server, PEER, server.bundles["site-002"].key))


def test_a_peer_shows_our_own_key_as_its_own(server: MaliciousServer) -> None:
    with refused("repeated_key"):
        accept(server, site_001=signed(server, PEER, server.bundles[VICTIM].key))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_low_order_point(server: MaliciousServer, point: int) -> None:
    with refused("weak_key") as error:
        accept(server, site_001=signed(server, PEER, point.to_bytes(32, "little")))
    assert error[0].details["peer"] == PEER


def test_the_high_bit_copy_of_a_key(server: MaliciousServer) -> None:
    key = bytearray(server.bundles[PEER].key)
    key[31] |= 0x80
    with refused("weak_key"):
        accept(server, site_001=signed(server, PEER, bytes(key)))


@pytest.mark.parametrize("excess", [0, 1, 2, 18])
def test_keys_beyond_the_prime_are_second_spellings(server: MaliciousServer, excess: int) -> None:
    with refused("weak_key"):
        accept(server, site_001=signed(server, PEER, (PRIME + excess).to_bytes(32, "little")))


def test_bundles_are_checked_again_at_each_leg_1(server: MaliciousServer) -> None:
    opened = server.open()
    session = server.cohort.hospitals[VICTIM].session
    session.accept(relay(opened.frame))
    assert session.state is NodeState.ACCEPTED
    # The roster drops a node between two requests of one run.
    server.cohort.roster._keys.pop((PEER, server.bundles[PEER].certificate))
    with refused("untrusted_certificate"):
        session.accept(relay(opened.frame))


def test_a_bundle_of_another_study(server: MaliciousServer) -> None:
    foreign = replace(server.cohort.terms, study_digest=bytes(32))
    unsigned = replace(server.bundles[PEER], signature=b"")
    signature = server.sign(PEER, bundle_statement(foreign, server.run, unsigned))
    with refused("bad_bundle_signature"):
        accept(server, site_001=replace(unsigned, signature=signature))
