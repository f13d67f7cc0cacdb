"""From what a hospital signed to a box that is let in: published, endorsed, registered, enrolled, in this order.

An enrolment that is endorsed and not yet enrolled is the outbox: whatever stops the registrar between two of these
steps, the next start finds in the repository and in the database how far it came, and goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, MetaFile, TargetFile, Targets

from agent.core.clock import Clock
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.ids import SiteID
from agent.statements.roots import load_public_key
from agent.trust.delegations import SITES, delegated_keys, delegated_sites, verify_top_level
from agent.trust.peers import node_name
from agent.trust.pins import Pins
from agent.trust.reading import read_repository
from agent.trust.records import parse_public_pem
from agent.trust.snapshot import TrustSnapshot
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import RepositoryFiles, RepositoryState
from provisioning.registrar.challenge import WAITING, Enrolment, State, endorse, finish, is_endorsed_by
from provisioning.registrar.store import StaleError, Store

ONLINE_EVERY: Final = timedelta(hours=1)
"""How often the online roles are signed anew, at most: boxes see by it that the repository lives."""
RETRY_S: Final = 5.0
IDLE_S: Final = 60.0
_KNOWN_ALREADY: Final = "already in use"  # what Flower says of a key that it registered before

_log = structlog.get_logger(__name__)


class Door(Protocol):
    """Lets boxes in: the SuperLink (`provisioning.authority.superlink.SuperLinkConnection`)."""

    def register_node(self, public_key: ec.EllipticCurvePublicKey, *, name: str | None = None) -> int:
        """Let the box that holds this key in; returns its id there.

        Raises:
            OperatorError: The key is refused, e.g. because it was let in already.
            NetworkError: The SuperLink does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """What the repository says now.

    Args:
        snapshot: In our own terms.
        site_keys: Of every hospital that the consortium names, those included that have signed nothing yet.
    """

    snapshot: TrustSnapshot
    site_keys: Mapping[SiteID, tuple[ec.EllipticCurvePublicKey, ...]]


class PublishedReader:
    """Reads the repository on this host; thread-safe.

    Args:
        files: The repository.
        clock: For expiry.
    """

    def __init__(self, files: RepositoryFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._timestamp = b""
        self._published: Published | None = None

    def current(self) -> Published:
        """What it says; read anew only where its timestamp changed.

        Raises:
            OperatorError: It is damaged (`authority.bad_repository`), or nothing was published yet.
            PeerProtocolError: It does not verify.
        """
        with self._lock:
            try:
                timestamp = (self._files.path / "timestamp.json").read_bytes()
            except OSError as error:
                raise OperatorError(
                    "registrar.nothing_published",
                    "The consortium's repository holds nothing yet.",
                    next_step="Found the consortium with `seh-provision consortium init` first.",
                ) from error
            if self._published is None or timestamp != self._timestamp:
                self._published = self._read(self._files.load())
                self._timestamp = timestamp
            return self._published

    def _read(self, state: RepositoryState) -> Published:
        top = verify_top_level(state.roots, state.timestamp, state.snapshot, state.roles[Targets.type])
        now_s = int(self._clock.now().timestamp())
        reading = read_repository(
            top, _Local(self._files, state), Pins(), root_digest=state.root_digest, now_s=max(now_s, top.issued_s)
        )
        sites = Metadata[Targets].from_bytes(state.roles[SITES]).signed
        keys = {
            site: tuple(parse_public_pem(pem) for pem in delegated_keys(sites, role, 1).keys)
            for site, role in delegated_sites(sites).items()
        }
        return Published(reading.snapshot, keys)


@dataclass(frozen=True, slots=True)
class _Local:
    """The repository's files, for the reader that boxes have."""

    files: RepositoryFiles
    state: RepositoryState = field(repr=False)

    def role(self, name: str, _: MetaFile) -> bytes:
        return self.state.roles[name]

    def older_role(self, _: str, __: int) -> bytes | None:
        return None

    def target(self, target: TargetFile) -> bytes:
        return self.files.target(target.path, target.hashes["sha256"])


class PublishingDesk:
    """Publishes what hospitals signed, and moves enrolments on by what stands in the repository.

    Args:
        publisher: Writes the repository.
        reader: Reads it.
        store: Of enrolments.
        door: Lets boxes in.
        clock: For the age of the online roles.
    """

    def __init__(self, publisher: Publisher, reader: PublishedReader, store: Store, door: Door, clock: Clock) -> None:
        self._publisher = publisher
        self._reader = reader
        self._store = store
        self._door = door
        self._clock = clock

    def publish(self, site: SiteID, metadata: bytes, targets: Mapping[str, bytes]) -> list[Enrolment]:
        """Publish what a hospital signed; the same again changes nothing.

        Returns:
            Enrolments that are endorsed by it.

        Raises:
            PeerProtocolError: It may not follow what was published before.
            NetworkError: The second organisation does not answer; the same again goes on from there.
            HardwareError: The disk does not take it.
        """
        self._publisher.publish_site(site, metadata, targets)
        _log.info("site_published", site=site)
        return self.settle(site)

    def settle(self, site: SiteID | None = None) -> list[Enrolment]:
        """Endorse every enrolment whose box stands in its hospital's published record.

        Args:
            site: Only of this hospital.

        Raises:
            SecureHealthError: The repository or the database cannot be read.
        """
        snapshot = self._reader.current().snapshot
        endorsed = []
        for enrolment in self._store.in_states(WAITING, site=site):
            record = snapshot.sites.get(enrolment.site)
            if record is None or not any(is_endorsed_by(enrolment, node) for node in record.nodes):
                continue
            try:
                endorsed.append(self._store.swap(enrolment, endorse(enrolment)))
            except StaleError:
                _log.info("settled_elsewhere", enrolment=enrolment.id)
        return endorsed

    def register(self) -> int:
        """Have the SuperLink let in every box that is endorsed.

        Returns:
            How many could not be; the caller comes again.
        """
        left = 0
        for enrolment in self._store.in_states({State.ENDORSED}):
            try:
                self._let_in(enrolment)
            except SecureHealthError as error:
                left += 1
                _log.warning("registration_delayed", enrolment=enrolment.id, error=error)
        return left

    def renew_online(self) -> None:
        """Sign the online roles anew where they are an hour old.

        Raises:
            SecureHealthError: An organisation or the disk does not answer.
        """
        issued_s = self._reader.current().snapshot.issued_s
        if self._clock.now().timestamp() - issued_s >= ONLINE_EVERY.total_seconds():
            self._publisher.refresh_online()

    def resume(self) -> None:
        """Go on from where the registrar stopped.

        Raises:
            SecureHealthError: The repository or the database cannot be read.
        """
        self._publisher.resume()
        self.settle()

    def _let_in(self, enrolment: Enrolment) -> None:
        key, name = load_public_key(enrolment.link_key), node_name(enrolment.key_id)
        try:
            node = str(self._door.register_node(key, name=name))
        except OperatorError as error:
            if _KNOWN_ALREADY not in error.sentence.lower():
                raise
            node = ""  # it was let in before the registrar could note it, or before it was enrolled anew
        try:
            self._store.swap(enrolment, finish(enrolment, node))
        except StaleError:
            _log.info("registered_elsewhere", enrolment=enrolment.id)


class Registrations:
    """Lets endorsed boxes in, and keeps the online roles young, in a thread of its own; a context manager.

    Args:
        desk: Does the work.
    """

    def __init__(self, desk: PublishingDesk) -> None:
        self._desk = desk
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="registrations")

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._ending:
                return
            pause_s = self._work()

    def _work(self) -> float:
        """One round; returns how long the next one may wait, in seconds."""
        try:
            left = self._desk.register()
            self._desk.renew_online()
        except SecureHealthError as error:
            _log.warning("work_delayed", error=error)
            return RETRY_S
        except Exception:  # noqa: BLE001 - a fault of ours with one box must not keep all others waiting
            _log.exception("work_failed")
            return RETRY_S
        return RETRY_S if left else IDLE_S
