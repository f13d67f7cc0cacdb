"""The release repository as a box sees it: python-tuf's client from the root that the package brought, and a memory.

root -> timestamp, snapshot, targets -> releases (threshold): releases/<version>/*
                                     -> channels (own keys):  channels/<name>.json

What python-tuf lacks is beside it (`seen.json`): versions that never run backwards although its cache was lost, and
the latest signed time, below which this box's clock counts for nothing.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from agent.core.clock import Clock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32, Seconds
from agent.trust.channels import CHANNELS_ROLE, MAX_CHANNEL_BYTES, RELEASES_ROLE, Channel, channel_path, parse_channel
from agent.trust.delegations import (
    ISSUED_FIELD,
    MAX_ROLE_BYTES,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    MAX_TIMESTAMP_LIFE_S,
    expiry_s,
    keys_digest,
)
from agent.trust.fetcher import BoundedFetcher
from agent.trust.tuf_faults import Subject, bad_repository, check_not_expired, translated

MAKER: Final = Subject("release repository", "the maker of the software")
PATTERNS: Final = MappingProxyType({RELEASES_ROLE: "releases/*/*", CHANNELS_ROLE: "channels/*"})
MAX_SEEN_BYTES: Final = 1 << 16
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=4,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_ROLE_BYTES,
)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SeenRole(_Stored):
    """The newest version of a role, under the keys with this digest: other keys, rotated in above, begin anew."""

    keys: Hex32
    version: Annotated[int, Field(gt=0, lt=1 << 53)]


class Seen(_Stored):
    """What never runs backwards.

    Args:
        issued_s: The latest signed time.
        roles: By name.
    """

    format: Literal["secur-e-health/releases-seen/1"]
    issued_s: Seconds
    roles: Annotated[dict[str, SeenRole], Field(max_length=8)]

    def followed_by(self, after: Seen) -> Self:
        """The memory after another state was read.

        Raises:
            PeerProtocolError: Something in it is older (`update.rolled_back`).
        """
        for name, before in self.roles.items():
            now = after.roles.get(name)
            if now is None or (now.keys == before.keys and now.version < before.version):
                raise _rolled_back(f"version {now.version if now else 0} of {name} after version {before.version}")
        return self.model_copy(update={"issued_s": max(self.issued_s, after.issued_s), "roles": after.roles})


class ReleaseRepository:
    """The repository, and what is kept of it in one directory, which its caller holds (`UpdateFolder.held`)."""

    def __init__(self, directory: Path, url: str, root: bytes, fetcher: BoundedFetcher, clock: Clock) -> None:
        """Make the directory; nothing is fetched yet.

        Args:
            directory: Made where it is missing.
            url: Of the repository.
            root: Root metadata that the package brought; all trust begins there.
            fetcher: Its owner closes it.
            clock: For expiry.

        Raises:
            HardwareError: It cannot be used.
        """
        self.url = url.removesuffix("/") + "/"
        self.fetcher = fetcher
        self._root = root
        self._clock = clock
        self._directory = directory
        self._cache = directory / "tuf"
        self._updater: Updater | None = None
        with translated(MAKER):
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self._cache.glob("tmp*"):
                leftover.unlink()

    def refresh(self) -> None:
        """Fetch and verify the metadata; what runs here and what was seen before stay as they are where that fails.

        Raises:
            NetworkError: The repository cannot be reached, or sends too slowly.
            PeerProtocolError: It does not verify, has expired, or is older than what was seen.
            HardwareError: The disk does not take it.
            OperatorError: What is remembered is damaged (`update.bad_memory`).
        """
        seen = self._load_seen()
        with translated(MAKER):
            updater = Updater(str(self._cache), self.url, fetcher=self.fetcher, config=_CONFIG, bootstrap=self._root)
            updater.refresh()
            for role in PATTERNS:
                # Asked for a file that nobody lists: python-tuf fetches a delegated role only so.
                updater.get_targetinfo(f"{role}/-" if role == CHANNELS_ROLE else f"{role}/-/-")
            shown = self._shown()
        after = shown if seen is None else seen.followed_by(shown)
        if after != seen:
            # Before anything follows from it: no power cut may take back what was seen.
            with translated(MAKER):
                store_atomically(self._directory / "seen.json", after.model_dump_json().encode(), mode=0o600)
        self._check_current(after.issued_s)
        self._updater = updater

    def target(self, path: str) -> TargetFile | None:
        """A file as its role lists it; None where it does not.

        Raises:
            PeerProtocolError: It is listed without SHA-256.
        """
        if self._updater is None:
            raise RuntimeError("nothing was read yet")
        with translated(MAKER):
            found = self._updater.get_targetinfo(path)
        if found is not None and "sha256" not in found.hashes:
            raise bad_repository(f"{path} is listed without its SHA-256", MAKER)
        return found

    def small_file(self, path: str, limit_bytes: int) -> bytes:
        """Fetch a file that its role lists.

        Raises:
            NetworkError: It cannot be fetched.
            PeerProtocolError: Its role does not list it (`update.not_listed`), it is larger than `limit_bytes`, or it
                is another file than was listed.
        """
        target = self.target(path)
        if target is None:
            raise PeerProtocolError(
                "update.not_listed",
                f"The release repository lists no file {path[:200]}.",
                next_step="The release that runs stays. Check the channel's name in the configuration, or ask the "
                "maker of the software.",
            )
        if target.length > limit_bytes:
            raise bad_repository(f"{path} is larger than {limit_bytes} bytes", MAKER)
        with translated(MAKER):
            data = self.fetcher.download_bytes(self.url_of(target), target.length)
            target.verify_length_and_hashes(data)
        return bytes(data)

    def channel(self, name: str) -> Channel:
        """A channel.

        Raises:
            NetworkError: It cannot be fetched.
            PeerProtocolError: There is no such channel, or its file is damaged.
        """
        return parse_channel(self.small_file(channel_path(name), MAX_CHANNEL_BYTES), name)

    def url_of(self, target: TargetFile) -> str:
        """Where a file lies: under its hash-prefixed name (TUF 6.2)."""
        folder, slash, name = target.path.rpartition("/")
        return f"{self.url}{folder}{slash}{target.hashes['sha256']}.{name}"

    def _shown(self) -> Seen:
        """What the verified metadata in python-tuf's cache shows."""
        root = Metadata[Root].from_bytes((self._cache / "root.json").read_bytes()).signed
        targets = self._load(Targets.type)
        check_built(targets)
        delegators: dict[str, Root | Targets] = dict.fromkeys((Timestamp.type, Snapshot.type, Targets.type), root)
        delegators |= dict.fromkeys(PATTERNS, targets)
        roles = {
            name: SeenRole(keys=keys_digest(delegator, (name,)), version=self._version(name))
            for name, delegator in delegators.items()
        }
        stamp = Metadata[Timestamp].from_bytes((self._cache / "timestamp.json").read_bytes()).signed
        return Seen(format="secur-e-health/releases-seen/1", issued_s=_issued_s(stamp), roles=roles)

    def _check_current(self, floor_s: int) -> None:
        # python-tuf holds expiry against the system's clock alone, which somebody may have set back.
        now_s = max(int(self._clock.now().timestamp()), floor_s)
        for name in (Root.type, Timestamp.type, Snapshot.type, Targets.type, *PATTERNS):
            signed = Metadata[Targets].from_bytes((self._cache / f"{name}.json").read_bytes()).signed
            check_not_expired(name, expiry_s(signed), now_s, MAKER)

    def _load(self, role: str) -> Targets:
        return Metadata[Targets].from_bytes((self._cache / f"{role}.json").read_bytes()).signed

    def _version(self, role: str) -> int:
        return self._load(role).version

    def _load_seen(self) -> Seen | None:
        path = self._directory / "seen.json"
        try:
            with path.open("rb") as stream:
                return Seen.model_validate_json(stream.read(MAX_SEEN_BYTES))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise OperatorError(
                "update.bad_memory",
                "What this box remembers of the release repository cannot be used: "
                f"{explain_invalid(error, whole='file')}.",
                next_step=f"A newer release wrote it, or the disk is damaged. Restore {path}: without it an older "
                "state could pass for the newest.",
            ) from error


def check_built(targets: Targets) -> None:
    """Check that the top-level targets delegate as a maker's do, and list nothing themselves.

    Raises:
        PeerProtocolError: They do otherwise (`trust.bad_repository`).
    """
    roles = {} if targets.delegations is None else targets.delegations.roles or {}
    delegated = {name: (role.terminating, role.paths) for name, role in roles.items()}
    if targets.targets or delegated != {name: (True, [pattern]) for name, pattern in PATTERNS.items()}:
        raise bad_repository("it is not built as a release repository is", MAKER)


def _issued_s(timestamp: Timestamp) -> int:
    try:
        issued = datetime.fromisoformat(str(timestamp.unrecognized_fields[ISSUED_FIELD]))
    except (KeyError, ValueError):
        raise bad_repository("its timestamp does not say when it was signed", MAKER) from None
    if issued.tzinfo is None:
        raise bad_repository("its timestamp names no time zone", MAKER)
    issued_s = int(issued.timestamp())
    if not 0 < expiry_s(timestamp) - issued_s <= MAX_TIMESTAMP_LIFE_S:
        raise bad_repository(f"its timestamp counts for longer than {MAX_TIMESTAMP_LIFE_S // 3600} h", MAKER)
    return issued_s


def _rolled_back(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.rolled_back",
        f"The release repository is older than what this box has seen: {what}.",
        next_step="The release that runs stays. Tell the maker of the software: a backup was restored, or somebody "
        "shows this box the past.",
    )
