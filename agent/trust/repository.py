"""The consortium's trust repository as a box sees it: fetched, verified, kept, and read into a typed snapshot.

python-tuf's client brings the top-level roles (root rotation, rollback, freeze); delegated roles and their files are
read by `agent.trust.reading`; what is kept on the disk is verified again whenever it is loaded.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, MetaFile, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.delegations import (
    MAX_ROLE_BYTES,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    SITES,
    TopLevel,
    delegated_keys,
    delegated_sites,
    verify_roots,
    verify_top_level,
)
from agent.trust.pins import SitePin
from agent.trust.reading import Reading, read_repository
from agent.trust.snapshot import TrustSnapshot
from agent.trust.store import MAX_STATE_BYTES, StoredState, TrustStore, pin_root
from agent.trust.study import MAX_MODEL_BYTES
from agent.trust.tuf_faults import bad_repository, check_not_expired, translated

REFRESH_LIMIT_S: Final = 300.0
"""How long one refresh may take in all, however many files there are."""
MAX_FETCHED_BYTES: Final = MAX_STATE_BYTES // 2
_MISSING: Final = {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=256,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_ROLE_BYTES,
)


def bootstrap(directory: Path, root: bytes, root_digest: str) -> None:
    """Pin a consortium: from now on, this directory believes what follows from `root`.

    Args:
        directory: Made where it is missing.
        root: `1.root.json` as fetched from anywhere.
        root_digest: SHA-256 of it, hex, from the enrolment token.

    Raises:
        PeerProtocolError: It is another root than the digest names (`trust.wrong_root`), or none at all.
        OperatorError: The directory belongs to another consortium (`trust.other_root`).
        HardwareError: It cannot be written.
    """
    if hashlib.sha256(root).hexdigest() != root_digest:
        raise PeerProtocolError(
            "trust.wrong_root",
            "The registrar shows another trust root than the enrolment token names.",
            next_step="Nothing of it is used. Ask the consortium's operator for a new token, and tell what happened.",
        )
    verify_roots([root])
    pin_root(directory, root)


class TrustRepository:
    """One consortium's repository in one directory; a `TrustSource`. Thread-safe; one instance a directory."""

    def __init__(self, directory: Path, url: str, fetcher: FetcherInterface, clock: Clock) -> None:
        """Take hold of a directory that `bootstrap` made; nothing is fetched or loaded yet.

        Args:
            directory: Written by this instance alone, until it is closed.
            url: Of the repository: `https://<registrar>/repository/`.
            fetcher: Fetches files, in several threads at once; its owner closes it.
            clock: For expiry and limits.

        Raises:
            OperatorError: Another process holds the directory, or it was never made.
            HardwareError: It cannot be used.
        """
        self._url = url.removesuffix("/") + "/"
        self._fetcher = fetcher
        self._clock = clock
        self._lock = threading.Lock()
        self._store = TrustStore(directory)
        self._root_digest = hashlib.sha256(self._store.root).hexdigest()
        self._absent: set[str] = set()
        self._state: StoredState | None = None
        self._reading: Reading | None = None
        self._floor_s = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        self._store.close()

    @property
    def root_digest(self) -> str:
        """SHA-256 of the pinned root metadata, hex."""
        return self._root_digest

    def now_s(self) -> int:
        """The present, in seconds since 1970: not before the latest signed time, whatever the clock says."""
        return max(int(self._clock.now().timestamp()), self._floor_s)

    def current(self) -> TrustSnapshot:
        """The newest snapshot loaded or fetched here. Whether it still counts: `is_current(now_s())`.

        Raises:
            OperatorError: There is none yet (`trust.nothing_yet`).
        """
        return self._known().snapshot

    def load(self) -> TrustSnapshot:
        """Verify what the disk holds, without any network. It may have expired: `is_current(now_s())`.

        Raises:
            OperatorError: There is nothing yet (`trust.nothing_yet`), or it is damaged (`trust.bad_state`).
            PeerProtocolError: It does not verify.
            HardwareError: It cannot be read.
        """
        with self._lock:
            state = self._store.load_state()
            if state is None:
                raise _nothing_yet()
            if state.roots[:1] != (self._store.root,):
                raise bad_repository("what is kept begins at another root")
            top = verify_top_level(state.roots, state.timestamp, state.snapshot, state.targets)
            now_s = self._present_s(top)
            reading = read_repository(top, _Kept(state), state.pins, root_digest=self._root_digest, now_s=now_s)
            self._accept(state, reading, top)
            return reading.snapshot

    def refresh(self) -> TrustSnapshot:
        """Fetch what is new, verify all of it, and keep it; whatever fails leaves the state before as it was.

        Raises:
            NetworkError: The repository cannot be reached, or sends too slowly.
            PeerProtocolError: What it sends does not verify, or has expired.
            HardwareError: The disk does not take it.
            OperatorError: What is remembered here is damaged (`trust.bad_pins`).
        """
        with self._lock:
            pins = self._store.load_pins()
            files = _Fetched(self._url, self._fetcher, self._clock, self._state, self._absent)
            state = self._fetch_top_level()
            top = verify_top_level(state.roots, state.timestamp, state.snapshot, state.targets)
            now_s = self._present_s(top)
            reading = read_repository(top, files, pins, root_digest=self._root_digest, now_s=now_s)
            check_not_expired("a role of the consortium itself", reading.snapshot.expires_s, now_s)
            state = replace(state, roles=files.roles, records=files.records, pins=reading.pins)
            if state != self._state:
                self._store.keep(state)
            self._accept(state, reading, top)
            return reading.snapshot

    def download(self, path: str) -> bytes:
        """Fetch a file that the current snapshot's roles list, `studies/<id>/model.onnx` say; it is not kept.

        Args:
            path: As listed.

        Raises:
            OperatorError: No role lists it (`trust.no_such_file`).
            NetworkError: It cannot be fetched.
            PeerProtocolError: It is not the file listed, or too large.
        """
        target = self._known().targets.get(path)
        if target is None:
            raise OperatorError(
                "trust.no_such_file",
                f"The consortium's trust repository lists no file {path[:200]!r}.",
                next_step="It was withdrawn, or never published: ask the consortium's operator.",
            )
        return _download(self._fetcher, self._url, target)

    def metadata(self, role: str) -> bytes | None:
        """Metadata of a targets role as the current snapshot lists it; None where it has signed nothing yet.

        Args:
            role: `targets`, or a delegated role; one that is set aside is given as it was fetched.

        Raises:
            OperatorError: There is no snapshot yet (`trust.nothing_yet`).
        """
        state = self._state
        if state is None:
            raise _nothing_yet()
        return state.targets if role == Targets.type else state.roles.get(role)

    def digest(self, path: str) -> str | None:
        """SHA-256 (hex) of a file as the current snapshot's roles list it; None where none does.

        Raises:
            OperatorError: There is no snapshot yet (`trust.nothing_yet`).
        """
        target = self._known().targets.get(path)
        return None if target is None else _sha256(target)

    def accept_site_keys(self, site: SiteID, key_ids: Collection[str]) -> None:
        """Pin other keys for a hospital that lost its old ones; they count from the next refresh on.

        Args:
            site: The hospital.
            key_ids: SHA-256 (hex) of each key's SubjectPublicKeyInfo, as a person here had them confirmed by that
                hospital itself, by another way than the repository.

        Raises:
            OperatorError: The consortium names other keys for it (`trust.other_site_keys`), or nothing is known yet.
            HardwareError: The disk does not take it.
        """
        with self._lock:
            if self._state is None:
                raise _nothing_yet()
            pin = _named_keys(self._state, site)
            if pin is None or set(map(key_id, pin.public_keys)) != set(key_ids):
                raise OperatorError(
                    "trust.other_site_keys",
                    f"The consortium does not name these keys for {site}.",
                    next_step=f"Nothing was changed. Ask {site} and the consortium's operator which keys are right.",
                )
            self._store.keep_pins(self._store.load_pins().with_site(site, pin))

    def _known(self) -> Reading:
        if self._reading is None:
            raise _nothing_yet()
        return self._reading

    def _present_s(self, top: TopLevel) -> int:
        # The time floor; `Pins.with_online` sees that it never falls.
        return max(int(self._clock.now().timestamp()), top.issued_s)

    def _accept(self, state: StoredState, reading: Reading, top: TopLevel) -> None:
        self._state, self._reading, self._floor_s = state, reading, top.issued_s

    def _fetch_top_level(self) -> StoredState:
        # python-tuf holds expiry against the system's clock; the caller does so again, against the present known here.
        cache = self._store.cache
        with translated():
            updater = Updater(str(cache), self._url, fetcher=self._fetcher, config=_CONFIG, bootstrap=self._store.root)
            updater.refresh()
            newest = int((cache / "root.json").readlink().name.split(".")[0])
            roots = [(cache / "root_history" / f"{number}.root.json").read_bytes() for number in range(1, newest + 1)]
            timestamp, snapshot, targets = (
                (cache / f"{role}.json").read_bytes() for role in ("timestamp", "snapshot", "targets")
            )
        return StoredState(tuple(roots), timestamp, snapshot, targets)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The files of a kept state."""

    state: StoredState

    def role(self, name: str, _: MetaFile) -> bytes:
        return _present(self.state.roles.get(name), name)

    def older_role(self, _: str, __: int) -> bytes | None:
        return None

    def target(self, target: TargetFile) -> bytes:
        data = _present(self.state.records.get(_sha256(target)), target.path)
        with translated():
            target.verify_length_and_hashes(data)
        return data


@dataclass(slots=True)
class _Fetched:
    """Files from the network; those that are kept already are not fetched again."""

    url: str
    fetcher: FetcherInterface
    clock: Clock
    kept: StoredState | None
    absent: set[str]
    roles: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.end_s = self.clock.monotonic_s() + REFRESH_LIMIT_S

    def role(self, name: str, listing: MetaFile) -> bytes:
        data = self.kept.roles.get(name) if self.kept else None
        if data is None or hashlib.sha256(data).hexdigest() != (listing.hashes or {}).get("sha256"):
            length = min(listing.length or MAX_ROLE_BYTES, MAX_ROLE_BYTES)
            with translated():
                data = self._download(f"{listing.version}.{name}.json", length)
        self.roles[name] = self._taken(data)
        return data

    def older_role(self, name: str, version: int) -> bytes | None:
        file = f"{version}.{name}.json"
        if file in self.absent:
            return None
        with translated():
            try:
                return self._download(file, MAX_ROLE_BYTES)
            except DownloadHTTPError as error:
                if error.status_code not in _MISSING:
                    raise
                self.absent.add(file)
                return None

    def target(self, target: TargetFile) -> bytes:
        digest = _sha256(target)
        data = self.kept.records.get(digest) if self.kept else None
        if data is None:
            self._check_time()
            data = _download(self.fetcher, self.url, target)
        self.records[digest] = self._taken(data)
        return data

    def _download(self, file: str, limit_bytes: int) -> bytes:
        self._check_time()
        return bytes(self.fetcher.download_bytes(f"{self.url}{file}", limit_bytes))

    def _taken(self, data: bytes) -> bytes:
        self.size += len(data)
        if self.size > MAX_FETCHED_BYTES:
            raise bad_repository(f"it is larger than {MAX_FETCHED_BYTES} bytes")
        return data

    def _check_time(self) -> None:
        if self.clock.monotonic_s() > self.end_s:
            raise NetworkError(
                "trust.slow_refresh",
                f"The consortium's trust repository could not be read within {REFRESH_LIMIT_S:g} s.",
                next_step="The state known before stays in force, and it is tried again.",
            )


def _download(fetcher: FetcherInterface, url: str, target: TargetFile) -> bytes:
    """Fetch a target file under its hash-prefixed name (TUF 6.2), and verify it."""
    if target.length > MAX_MODEL_BYTES:
        raise bad_repository(f"{target.path} is larger than any file that a box takes")
    folder, slash, name = target.path.rpartition("/")
    with translated():
        data = fetcher.download_bytes(f"{url}{folder}{slash}{_sha256(target)}.{name}", target.length)
        target.verify_length_and_hashes(data)
    return bytes(data)


def _named_keys(state: StoredState, site: SiteID) -> SitePin | None:
    """The keys that a state's `sites` role names for a hospital."""
    data = state.roles.get(SITES)
    if data is None:
        return None
    sites = Metadata[Targets].from_bytes(data).signed
    role = delegated_sites(sites).get(site)
    return None if role is None else delegated_keys(sites, role, 1)


def _sha256(target: TargetFile) -> str:
    digest = target.hashes.get("sha256")
    if digest is None:
        raise bad_repository(f"{target.path} is listed without its SHA-256")
    return digest


def _present(data: bytes | None, what: str) -> bytes:
    if data is None:
        raise bad_repository(f"{what} is missing from what this box keeps")
    return data


def _nothing_yet() -> OperatorError:
    return OperatorError(
        "trust.nothing_yet",
        "This box has not read its consortium's trust repository yet.",
        next_step="It is fetched as soon as the registrar can be reached; check the network.",
    )
