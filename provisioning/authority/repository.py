"""The repository's files on disk, and what one publication adds to them.

    <version>.root.json  <version>.snapshot.json  <version>.<role>.json     every version, kept
    timestamp.json                                                          replaced last of all
    <directory>/<sha256>.<name>                                             target files, kept
    <directory>/did.json                                                    a copy, for those who resolve DIDs

Source: The Update Framework 1.0, 3 and 6.2 (consistent snapshots).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import cbor2
from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

from agent.core.cbor import decode_plain
from agent.core.errors import HardwareError, OperatorError
from agent.core.files import store_atomically, sync_directory
from agent.trust.delegations import MAX_ROLE_BYTES, MAX_ROOT_BYTES, MAX_SNAPSHOT_BYTES, MAX_TIMESTAMP_BYTES, SITES
from agent.trust.tuf_faults import translated

MAX_TARGET_BYTES: Final = 1 << 30
DID_FILE: Final = "did.json"
SITE_ROLE_PREFIX: Final = "site-"
_PROPOSAL_FORMAT: Final = "secur-e-health/proposal/1"


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """All metadata of one moment, as bytes.

    Args:
        roots: Every root version from 1 on.
        roles: Newest metadata of every targets role that the snapshot lists, by name.
        snapshot: Newest metadata.
        timestamp: Newest metadata.
    """

    roots: tuple[bytes, ...] = ()
    roles: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    snapshot: bytes = field(default=b"", repr=False)
    timestamp: bytes = field(default=b"", repr=False)

    @property
    def root_digest(self) -> str:
        """SHA-256 of the first root metadata, hex: the consortium's name in certificates and evidence."""
        return hashlib.sha256(self.roots[0]).hexdigest()

    @property
    def snapshot_version(self) -> int:
        """0 where there is none yet."""
        return Metadata[Snapshot].from_bytes(self.snapshot).signed.version if self.snapshot else 0

    @property
    def timestamp_version(self) -> int:
        """0 where there is none yet."""
        return Metadata[Timestamp].from_bytes(self.timestamp).signed.version if self.timestamp else 0


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody wants published.

    Args:
        roots: New root versions, in order.
        roles: New metadata of targets roles, by name.
        targets: Contents of the files that they list anew, by target path.
    """

    roots: tuple[bytes, ...] = ()
    roles: Mapping[str, bytes] = field(default_factory=dict)
    targets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Proposal:
    """The metadata of one publication, signed by some or all that must.

    Args:
        roots: New root versions, in order.
        roles: New metadata of targets roles, by name.
        snapshot: New metadata; empty where the one before stays.
        timestamp: New metadata.
    """

    roots: tuple[bytes, ...]
    roles: Mapping[str, bytes]
    snapshot: bytes
    timestamp: bytes

    def applied(self, state: RepositoryState) -> RepositoryState:
        """The state after it."""
        snapshot = self.snapshot or state.snapshot
        listed = Metadata[Snapshot].from_bytes(snapshot).signed.meta
        roles = {name: data for name, data in {**state.roles, **self.roles}.items() if f"{name}.json" in listed}
        return RepositoryState((*state.roots, *self.roots), roles, snapshot, self.timestamp)

    def encode(self) -> bytes:
        """CBOR; the inverse of `parse_proposal`."""
        fields = {
            "format": _PROPOSAL_FORMAT,
            "roots": list(self.roots),
            "roles": dict(self.roles),
            "snapshot": self.snapshot,
            "timestamp": self.timestamp,
        }
        return cbor2.dumps(fields, canonical=True)


def parse_proposal(data: bytes) -> Proposal:
    """Parse what `Proposal.encode` gave; nothing in it is verified yet.

    Raises:
        ValueError: It is something else.
    """
    fields = decode_plain(data, max_depth=4, text_keys=True)
    if not isinstance(fields, dict) or fields.get("format") != _PROPOSAL_FORMAT:
        raise ValueError("another format")
    roots, roles = fields.get("roots"), fields.get("roles")
    snapshot, timestamp = fields.get("snapshot"), fields.get("timestamp")
    if not isinstance(roots, list) or not isinstance(roles, dict) or not all(isinstance(name, str) for name in roles):
        raise ValueError("no metadata")
    if not isinstance(snapshot, bytes) or not isinstance(timestamp, bytes):
        raise ValueError("no metadata")  # noqa: TRY004 - one error for all that does not fit
    if not all(isinstance(part, bytes) for part in (*roots, *roles.values())):
        raise ValueError("no metadata")
    return Proposal(tuple(roots), roles, snapshot, timestamp)


class RepositoryFiles:
    """The repository in a directory.

    Args:
        path: What is served.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> RepositoryState:
        """The newest state; the empty one where nothing was published yet.

        Raises:
            OperatorError: A file is missing or damaged (`authority.bad_repository`).
        """
        roots = tuple(self._roots())
        if not (self.path / "timestamp.json").exists():
            return RepositoryState(roots)
        timestamp = self._read("timestamp.json", MAX_TIMESTAMP_BYTES)
        with translated():
            version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
            snapshot = self._read(f"{version}.snapshot.json", MAX_SNAPSHOT_BYTES)
            meta = Metadata[Snapshot].from_bytes(snapshot).signed.meta
        roles = {
            name.removesuffix(".json"): self._read(f"{listed.version}.{name}", MAX_ROLE_BYTES)
            for name, listed in meta.items()
        }
        return RepositoryState(roots, roles, snapshot, timestamp)

    def target(self, path: str, sha256: str) -> bytes:
        """A target file.

        Raises:
            OperatorError: It is missing or damaged.
        """
        data = self._read(hashed_name(path, sha256), MAX_TARGET_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _bad_repository(f"{path} was altered")
        return data

    def has_target(self, path: str, sha256: str) -> bool:
        """Whether a target file is there."""
        return (self.path / hashed_name(path, sha256)).is_file()

    def store_targets(self, targets: Mapping[str, bytes]) -> None:
        """Write target files; nobody reads them before metadata lists them.

        Args:
            targets: Contents by target path.

        Raises:
            HardwareError: The disk does not take them (`authority.not_stored`).
        """
        self._write({hashed_name(path, hashlib.sha256(data).hexdigest()): data for path, data in targets.items()})

    def store(self, proposal: Proposal) -> None:
        """Write all metadata that `proposal` adds, its timestamp last; doing it again changes nothing.

        Raises:
            HardwareError: The disk does not take it; the state before stays in force (`authority.not_stored`).
        """
        files = {f"{_version(data)}.root.json": data for data in proposal.roots}
        files |= {f"{_version(data)}.{role}.json": data for role, data in proposal.roles.items()}
        if proposal.snapshot:
            files[f"{_version(proposal.snapshot)}.snapshot.json"] = proposal.snapshot
        self._write(files)
        self._write({"timestamp.json": proposal.timestamp})
        for role, data in proposal.roles.items():
            if role.startswith(SITE_ROLE_PREFIX):
                self._copy_did_documents(role, Metadata[Targets].from_bytes(data).signed)

    def _copy_did_documents(self, role: str, listed: Targets) -> None:
        """Put each listed DID document beside its target under the plain name, and take away those listed no more."""
        paths = {path for path in listed.targets if PurePosixPath(path).name == DID_FILE}
        documents = {path: self.target(path, listed.targets[path].hashes["sha256"]) for path in paths}
        # A hospital with many boxes changes one at a time: the others' copies stay as they are.
        self._write({path: data for path, data in documents.items() if not self._holds(path, data)})
        home = self.path / SITES / role.removeprefix(SITE_ROLE_PREFIX)
        with storing():
            for copy in home.rglob(DID_FILE):
                if copy.relative_to(self.path).as_posix() not in paths:
                    copy.unlink()

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return (self.path / name).read_bytes() == data
        except OSError:
            return False

    def _write(self, files: Mapping[str, bytes]) -> None:
        with storing():
            for name, data in files.items():
                make_directory((self.path / name).parent)
                store_atomically(self.path / name, data)

    def _roots(self) -> Iterator[bytes]:
        version = 1
        while (self.path / f"{version}.root.json").exists():
            yield self._read(f"{version}.root.json", MAX_ROOT_BYTES)
            version += 1

    def _read(self, name: str, limit_bytes: int) -> bytes:
        try:
            with (self.path / name).open("rb") as stream:
                data = stream.read(limit_bytes + 1)
        except OSError as error:
            raise _bad_repository(f"{name} cannot be read ({error.strerror})") from error
        if len(data) > limit_bytes:
            raise _bad_repository(f"{name} is larger than {limit_bytes} bytes")
        return data


@contextmanager
def storing() -> Iterator[None]:
    """Say what a disk that fails means.

    Raises:
        HardwareError: It does not take something (`authority.not_stored`).
    """
    try:
        yield
    except OSError as error:
        raise HardwareError(
            "authority.not_stored",
            f"The authority's directory cannot be written: {error.strerror or error}.",
            next_step="The state before stays in force. Free space on the disk, then try again.",
        ) from error


def hashed_name(path: str, sha256: str) -> str:
    """Where a target file lies."""
    pure = PurePosixPath(path)
    return str(pure.with_name(f"{sha256}.{pure.name}"))


def make_directory(directory: Path) -> None:
    """Make a directory and what is missing above it; on the disk when this returns."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def _version(metadata: bytes) -> int:
    return Metadata[Targets].from_bytes(metadata).signed.version


def _bad_repository(what: str) -> OperatorError:
    return OperatorError(
        "authority.bad_repository",
        f"The repository's own files cannot be used: {what}.",
        next_step="Restore the directory from a backup that is not older than what boxes have seen.",
    )
