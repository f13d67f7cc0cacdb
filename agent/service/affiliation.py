"""What the agent is told of the consortium that it works for: by the repository of an enrolled box, or pinned."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.config import AgentConfig, Pinned
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.core.ids import SiteID
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord, revoked_key
from agent.governance.stewards import RepositoryStewards, RosterStewards, StewardSource
from agent.identity.key import HardwareKey
from agent.service.shelf import StudyLibrary
from agent.service.trust import REFRESH_S, OpenedRepository, TrustKeeper
from agent.trust.counters import COUNTERS_FILE_NAME, CounterStore
from agent.trust.peers import Peers, PinnedPeers, RepositoryPeers, consortium_digest, node_name
from agent.trust.records import ConsortiumRecord, ServerRecord, parse_public_pem
from agent.trust.roster import load_roster
from agent.trust.snapshot import Environment, TrustSnapshot

Note = Callable[[str, str], None]
"""Told, by topic, what a technician should know; an empty text withdraws what was said."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Company:
    """Those with whom a box aggregates securely.

    Args:
        digest: What session certificates name as their consortium, hex.
        node: This box's name among them.
        peers: Who speaks for which hospital.
        coordinator: Who may ask.
        timestamp_version: The newest timestamp of the trust repository that this box has seen; 0 without one.
        stewards: Who decides at this hospital.
        consortium: Its record now; None where it is pinned.
        now_s: Seconds since 1970, not before the latest signed time.
    """

    digest: str
    node: str
    peers: Peers
    coordinator: ec.EllipticCurvePublicKey
    timestamp_version: Callable[[], int]
    stewards: StewardSource
    consortium: Callable[[], ConsortiumRecord | None]
    now_s: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Affiliation:
    """Where this box belongs.

    Args:
        site: The hospital.
        superlink: `host:port`.
        root_certificates: PEM file of the only roots that the SuperLink's certificate may come from.
        studies: Directory of this box's studies.
        company: None without a roster, where only unprotected demonstrations run.
        allows_plain: Whether unprotected updates may leave at all; the configuration has to allow them too.
        moved: Set once any of this has changed, so that the agent has to be wired anew.
        accept_keys: Believes a hospital's other keys, by their ids; None without a repository.
        registrar: Where the repository says now that heartbeats go; None without one.
    """

    site: str
    superlink: str
    root_certificates: Path
    studies: Path
    company: Company | None
    allows_plain: bool
    moved: Event = field(default_factory=Event)
    accept_keys: Callable[[SiteID, Collection[str]], None] | None = None
    registrar: Callable[[], ServerRecord] | None = None


def pinned_affiliation(config: AgentConfig, pinned: Pinned, key: HardwareKey, clock: Clock) -> Affiliation:
    """What the configuration says.

    Raises:
        OperatorError: The roster cannot be used.
    """
    company = None
    roster = None if pinned.roster is None else load_roster(pinned.roster)
    if roster is not None and roster.coordinator is not None:
        company = Company(
            digest=consortium_digest(roster.coordinator),
            node=node_name(key.key_id),
            peers=PinnedPeers(roster, clock, _counters(config)),
            coordinator=roster.coordinator,
            timestamp_version=lambda: 0,
            stewards=RosterStewards(roster, SiteID(pinned.site)),
            consortium=lambda: None,
            now_s=lambda: int(clock.now().timestamp()),
        )
    return Affiliation(
        site=pinned.site,
        superlink=pinned.superlink.address,
        root_certificates=pinned.superlink.root_certificates,
        studies=pinned.studies,
        company=company,
        allows_plain=config.node.environment == "demo",
    )


@contextmanager
def enrolled_affiliation(
    config: AgentConfig,
    record: EnrolmentRecord,
    clock: Clock,
    note: Note,
    *,
    refresh_s: float = REFRESH_S,
) -> Iterator[Affiliation]:
    """What the consortium's repository says, kept fresh inside the block.

    Args:
        config: The box's.
        record: Where it is enrolled.
        clock: The service's.
        note: Told what a technician should know.
        refresh_s: How often it is asked.

    Raises:
        SecureHealthError: The repository on the disk cannot be used, and no other can be had now.
    """
    repository = _open_repository(config, record, clock)
    snapshot = repository.trust.current()
    dice = random.Random()  # noqa: S311 - jitter, no secret
    moved = Event()
    superlink = EnrolmentFolder.of(config.node.state_directory).path / "superlink.pem"
    library = StudyLibrary(config.studies_directory, record.site, repository.trust)
    follower = _Follower(_essence(snapshot), record, superlink, library, moved, note)
    follower.store_certificates(snapshot)
    with TrustKeeper(
        repository, dice, on_news=partial(note, "trust"), on_snapshot=follower.follow, every_s=refresh_s
    ) as keeper:
        company = Company(
            digest=record.root_digest,
            node=record.node,
            peers=RepositoryPeers(keeper, _counters(config)),
            coordinator=parse_public_pem(snapshot.consortium.coordinator),
            timestamp_version=lambda: keeper.current().timestamp_version,
            stewards=RepositoryStewards(keeper, SiteID(record.site)),
            consortium=lambda: keeper.current().consortium,
            now_s=keeper.now_s,
        )
        yield Affiliation(
            site=record.site,
            superlink=snapshot.consortium.superlink.address,
            root_certificates=superlink,
            studies=config.studies_directory,
            company=company,
            allows_plain=config.node.environment == "demo" and snapshot.environment is Environment.TEST,
            moved=moved,
            accept_keys=keeper.accept_site_keys,
            registrar=lambda: keeper.current().consortium.registrar,
        )


def _open_repository(config: AgentConfig, record: EnrolmentRecord, clock: Clock) -> OpenedRepository:
    """Open the repository with the newest snapshot that can be had: the disk's, so that a box starts without network.

    Raises:
        SecureHealthError: The disk's cannot be used, and no other can be had.
    """
    directory = EnrolmentFolder.of(config.node.state_directory).trust(record.root_digest)

    def opened(address: str) -> OpenedRepository:
        return OpenedRepository(directory, f"https://{address}/repository/", clock, proxy=config.network.proxy)

    repository = opened(record.registrar)
    try:
        address = _first_snapshot(repository).consortium.registrar.address
    except SecureHealthError:
        repository.close()
        raise
    if address == record.registrar:
        return repository
    repository.close()
    repository = opened(address)  # the registrar moved since this box was enrolled
    repository.trust.load()
    return repository


def _first_snapshot(repository: OpenedRepository) -> TrustSnapshot:
    try:
        return repository.trust.load()
    except SecureHealthError as error:
        log.warning("trust_not_loaded", error=error)
        return repository.refresh()


@dataclass(frozen=True, slots=True)
class _Follower:
    """Does what a new snapshot asks.

    Args:
        essence: What the agent was wired for.
        record: Where the box is enrolled.
        superlink: File of the SuperLink's root certificates.
        library: Of the studies.
        moved: Set where the agent has to be wired anew.
        note: Told what a technician should know.
    """

    essence: tuple[str, ...]
    record: EnrolmentRecord
    superlink: Path
    library: StudyLibrary
    moved: Event
    note: Note

    def follow(self, snapshot: TrustSnapshot) -> None:
        if _essence(snapshot) != self.essence:
            log.info("consortium_changed")
            self.moved.set()
        self.note("standing", standing(snapshot, self.record))
        self.store_certificates(snapshot)
        self.library.follow(snapshot)

    def store_certificates(self, snapshot: TrustSnapshot) -> None:
        """The node reads the file anew when the SuperLink's certificate is refused."""
        pem = snapshot.consortium.superlink.root_certificates.encode()
        try:
            if not self.superlink.exists() or self.superlink.read_bytes() != pem:
                store_atomically(self.superlink, pem)
        except OSError as error:
            raise HardwareError(
                "service.certificates_not_stored",
                f"The SuperLink's root certificates cannot be kept in {self.superlink}: {error.strerror}.",
                next_step="Check the disk, its free space and the directory's owner; it is tried again by itself.",
            ) from error


def _essence(snapshot: TrustSnapshot) -> tuple[str, ...]:
    """What the agent is wired for."""
    consortium = snapshot.consortium
    return (consortium.superlink.address, consortium.registrar.address, consortium.coordinator)


def standing(snapshot: TrustSnapshot, record: EnrolmentRecord) -> str:
    """What the repository says of this box and of others that it leaves out; nothing where all is well."""
    name = SiteID(record.site)
    site, node = snapshot.sites.get(name), snapshot.node(record.key_id, site=name)
    lines = [f"Left out for now: {why}" for other, why in sorted(snapshot.set_aside.items()) if other != name]
    if site is None:
        why = snapshot.set_aside.get(name, f"The consortium no longer knows {record.site}.")
        lines.append(f"This box takes no part: {why}")
    elif record.key_id in site.revoked:
        revoked = revoked_key(record.site)
        lines.append(f"This box takes no part: {revoked.sentence} {revoked.next_step}")
    elif node is None:
        lines.append(f"This box takes no part: {record.site}'s records do not name it. Ask the hospital's operator.")
    elif snapshot.speaker(name) != node:
        lines.append(f"This box is a spare one: another box of {record.site} takes part as long as it is not revoked.")
    return "\n".join(lines)


def check_not_pinned(config: AgentConfig) -> None:
    """A box whose configuration pins a consortium is not enrolled in one.

    Raises:
        OperatorError: It does (`config.pinned`).
    """
    if config.pinned is not None:
        raise OperatorError(
            "config.pinned",
            f"This box's configuration pins its consortium, as {config.pinned.site}: it cannot be enrolled too.",
            next_step="Take node.site, superlink, studies and roster out of the configuration, then enrol.",
        )


def check_single(config: AgentConfig, record: EnrolmentRecord | None) -> None:
    """A box has either an enrolment or a pinned roster.

    Raises:
        OperatorError: It has both (`config.enrolled_and_pinned`).
    """
    if record is not None and config.pinned is not None:
        raise OperatorError(
            "config.enrolled_and_pinned",
            f"This box is enrolled at {record.site}, and its configuration pins another consortium.",
            next_step="Take node.site, superlink, studies and roster out of the configuration, or `seh-agent unenrol`.",
        )


def _counters(config: AgentConfig) -> CounterStore:
    return CounterStore(config.node.state_directory / COUNTERS_FILE_NAME)
