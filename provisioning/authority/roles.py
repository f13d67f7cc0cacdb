"""The roles of a consortium's repository: who delegates what to whom, for how long each counts, how each is made anew.

Source: The Update Framework 1.0, 4.3 to 4.6; lifetimes and delegations are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, TypeVar

from securesystemslib.signer import Signer, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.trust.channels import CHANNELS_ROLE
from agent.trust.delegations import ENVIRONMENT_FIELD, ISSUED_FIELD, RELEASES, SITES, STUDIES
from agent.trust.records import CONSORTIUM_TARGET, SitePaths
from agent.trust.snapshot import Environment

LIFETIME: Final[Mapping[str, timedelta]] = MappingProxyType(
    {
        Root.type: timedelta(days=730),
        Targets.type: timedelta(days=365),
        SITES: timedelta(days=365),
        STUDIES: timedelta(days=365),
        RELEASES: timedelta(days=365),
        Snapshot.type: timedelta(days=7),
        Timestamp.type: timedelta(days=1),
    }
)
SITE_LIFETIME: Final = timedelta(days=90)
"""Of every other role: a hospital's, and a maker's channels."""


@dataclass(frozen=True, slots=True)
class RepositoryKind:
    """How a repository is built.

    Args:
        paths: What the top-level targets delegate, by role, in the order in which a client asks.
        record: The file that the top-level targets must list; None where they list none at all.
    """

    paths: Mapping[str, tuple[str, ...]]
    record: str | None

    @property
    def delegated(self) -> tuple[str, ...]:
        """To whom the top-level targets delegate."""
        return tuple(self.paths)


CONSORTIUM: Final = RepositoryKind(
    MappingProxyType(
        {SITES: SitePaths("*").patterns, STUDIES: ("studies/*/*",), RELEASES: ("releases/*/*",)},
    ),
    CONSORTIUM_TARGET,
)
MAKER: Final = RepositoryKind(
    MappingProxyType({RELEASES: ("releases/*/*",), CHANNELS_ROLE: ("channels/*",)}),
    None,
)
"""The repository of the software's maker, whose root comes with the software itself."""
DELEGATED: Final = CONSORTIUM.delegated
OFFLINE: Final = (Root.type, Targets.type, *DELEGATED)
"""Roles of a consortium whose keys touch no server."""

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who signs a role.

    Args:
        keys: Public keys.
        threshold: How many of them must.
    """

    keys: tuple[SSlibKey, ...]
    threshold: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len({key.keyid for key in self.keys}):
            raise ValueError("a role needs at least as many distinct keys as must sign it")


def lifetime(role: str) -> timedelta:
    """For how long a version of `role` counts."""
    return LIFETIME.get(role, SITE_LIFETIME)


def new_root(keys: Mapping[str, RoleKeys], environment: Environment, *, version: int, now: datetime) -> Metadata[Root]:
    """Root metadata, unsigned.

    Args:
        keys: Of root, targets, snapshot and timestamp.
        environment: What the consortium is for.
        version: Of the metadata.
        now: When it is made.
    """
    roles = {name: Role([key.keyid for key in keys[name].keys], keys[name].threshold) for name in keys}
    listed = {key.keyid: key for role in keys.values() for key in role.keys}
    root = Root(
        version=version,
        expires=now + LIFETIME[Root.type],
        keys=dict(listed),
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={ENVIRONMENT_FIELD: environment.value},
    )
    return Metadata(root)


def new_targets(
    keys: Mapping[str, RoleKeys], files: Mapping[str, bytes], *, now: datetime, kind: RepositoryKind = CONSORTIUM
) -> Metadata[Targets]:
    """The first top-level targets metadata, unsigned.

    Args:
        keys: Of the roles that it delegates to.
        files: Contents by target path.
        now: When it is made.
        kind: Of the repository.
    """
    delegations = Delegations(
        keys={key.keyid: key for role in keys.values() for key in role.keys},
        roles={name: delegate(name, keys[name], paths) for name, paths in kind.paths.items()},
    )
    targets = {path: TargetFile.from_data(path, data) for path, data in files.items()}
    return Metadata(Targets(expires=now + LIFETIME[Targets.type], targets=targets, delegations=delegations))


def new_sites(*, now: datetime) -> Metadata[Targets]:
    """The first metadata of the `sites` role, with no site yet, unsigned."""
    return Metadata(Targets(expires=now + LIFETIME[SITES], delegations=Delegations(keys={}, roles={})))


def new_role(role: str, *, now: datetime) -> Metadata[Targets]:
    """The first metadata of a role that delegates to none and lists nothing, unsigned."""
    return Metadata(Targets(expires=now + lifetime(role)))


def new_snapshot(roles: Mapping[str, bytes], *, version: int, now: datetime) -> Metadata[Snapshot]:
    """Snapshot metadata, unsigned.

    Args:
        roles: Every targets role's metadata by name.
        version: Of the snapshot.
        now: When it is made.
    """
    meta = {f"{name}.json": listing(data) for name, data in roles.items()}
    return Metadata(Snapshot(version=version, expires=now + LIFETIME[Snapshot.type], meta=meta))


def new_timestamp(snapshot_version: int, *, version: int, now: datetime) -> Metadata[Timestamp]:
    """Timestamp metadata, unsigned.

    It names the snapshot by version alone: so one answer of each organisation signs both, and each of them sees to it
    that no two snapshots of one version are signed.

    Args:
        snapshot_version: The snapshot's.
        version: Of the timestamp.
        now: When it is made; carried inside, so that verifiers' idea of time can rise from it.
    """
    issued = now.replace(microsecond=0)
    timestamp = Timestamp(
        version=version,
        expires=now + LIFETIME[Timestamp.type],
        snapshot_meta=MetaFile(snapshot_version),
        unrecognized_fields={ISSUED_FIELD: issued.isoformat()},
    )
    return Metadata(timestamp)


def listing(data: bytes) -> MetaFile:
    """How a snapshot lists metadata."""
    version = Metadata[Targets].from_bytes(data).signed.version
    return MetaFile.from_data(version, data, ["sha256"])


def delegate(name: str, keys: RoleKeys, paths: Sequence[str]) -> DelegatedRole:
    """A terminating delegation of `paths`."""
    return DelegatedRole(name, [key.keyid for key in keys.keys], keys.threshold, terminating=True, paths=list(paths))


def next_version(data: bytes, *, role: str, now: datetime) -> Metadata[Targets]:
    """The next version of a targets role with its time begun anew; signatures are still to be made."""
    metadata = Metadata[Targets].from_bytes(data)
    metadata.signatures.clear()
    metadata.signed.version += 1
    metadata.signed.expires = now + lifetime(role)
    return metadata


def sign(metadata: Metadata[SignedT], signers: Iterable[Signer]) -> Metadata[SignedT]:
    """Add signatures; returns `metadata`."""
    # Not `Metadata.sign`: it hides what a key has to say (a wrong PIN, a card that is away) in an error of its own.
    for signer in signers:
        signature = signer.sign(metadata.signed_bytes)
        metadata.signatures[signature.keyid] = signature
    return metadata
