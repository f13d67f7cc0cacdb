"""Who speaks for which hospital, as the coordinator sees it, to name culprits; nodes rely on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.errors import NetworkError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, public_key_bytes
from agent.trust.counters import CounterStore
from agent.trust.fetcher import BoundedFetcher
from agent.trust.peers import Peers, PinnedPeers, RepositoryPeers
from agent.trust.records import parse_public_pem
from agent.trust.repository import TrustRepository
from agent.trust.roster import Roster
from agent.trust.snapshot import TrustSnapshot
from agent.trust.terms import least_evidence
from provisioning.coordinator.directory import Assignment, Protection, TrustPlace, bad_setting

REFRESH_S: Final = 60.0

log = structlog.get_logger()


SiteNames = Callable[[], Mapping[str, str]]
"""For which site each node speaks now, by the node's name at the SuperLink."""


@dataclass(frozen=True, slots=True)
class Company:
    """Who takes part in a study.

    Args:
        peers: Verifies who speaks for which hospital; None where nothing is protected.
        names: Which node to ask for which hospital.
    """

    peers: Peers | None
    names: SiteNames


@contextmanager
def opened_company(assignment: Assignment, clock: Clock) -> Iterator[Company]:
    """Who takes part: by the consortium's repository, or by a roster, where nodes have their hospital's name.

    Args:
        assignment: What is to be done.
        clock: For certificates' times.

    Raises:
        OperatorError: The repository names another coordinator's key.
        SecureHealthError: The repository can be read neither from the network nor from the disk.
    """
    protection = assignment.protection
    own_names = dict(zip(assignment.study.sites, assignment.study.sites, strict=True))
    if protection is None:
        yield Company(None, lambda: own_names)
        return
    counters = CounterStore(protection.counters)
    minimum = least_evidence(assignment.study)
    if isinstance(protection.trust, Roster):
        yield Company(PinnedPeers(protection.trust, clock, counters, minimum=minimum), lambda: own_names)
        return
    with _opened_repository(protection.trust, protection, clock) as repository:
        source = _FreshSource(repository, clock)
        peers = RepositoryPeers(source, counters, minimum=minimum)
        yield Company(peers, lambda: _speakers(source.current(), assignment, minimum))


def _speakers(snapshot: TrustSnapshot, assignment: Assignment, minimum: EvidenceClass) -> dict[str, str]:
    """Of a hospital's several boxes, the one that peers take an answer from."""
    boxes = {site: snapshot.speaker(SiteID(site), minimum) for site in assignment.study.sites}
    return {box.node: site for site, box in boxes.items() if box is not None}


@dataclass(slots=True)
class _FreshSource:
    """Asks the repository again where the last time was a while ago: a run may last for days.

    Args:
        repository: Opened, with a snapshot.
        clock: For the while.
    """

    repository: TrustRepository
    clock: Clock
    asked_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.asked_s = self.clock.monotonic_s()

    def current(self) -> TrustSnapshot:
        """The newest snapshot, at most a minute old where the repository answers."""
        now_s = self.clock.monotonic_s()
        if now_s - self.asked_s >= REFRESH_S:
            self.asked_s = now_s
            return _newest(self.repository)
        return self.repository.current()

    def refresh(self) -> TrustSnapshot:
        """Ask now."""
        return self.repository.refresh()

    def now_s(self) -> int:
        """The present, in seconds since 1970, not before the latest signed time."""
        return self.repository.now_s()


@contextmanager
def _opened_repository(place: TrustPlace, protection: Protection, clock: Clock) -> Iterator[TrustRepository]:
    with (
        closing(BoundedFetcher(clock)) as fetcher,
        TrustRepository(place.directory, place.url, fetcher, clock) as repository,
    ):
        _check_key(_newest(repository), protection.key)
        yield repository


def _newest(repository: TrustRepository) -> TrustSnapshot:
    try:
        return repository.refresh()
    except NetworkError as error:
        log.warning("trust_not_refreshed", error=error)
        return repository.load()


def _check_key(snapshot: TrustSnapshot, key: ec.EllipticCurvePrivateKey) -> None:
    named = parse_public_pem(snapshot.consortium.coordinator)
    if public_key_bytes(named) != public_key_bytes(key.public_key()):
        raise bad_setting("coordinator.key", "the consortium's repository names another coordinator")
