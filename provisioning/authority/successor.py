"""Whether a proposed state of the repository may follow the one before. Bytes in, values out.

The publisher asks before it writes, and the cosigner before it signs: whoever holds the registrar's host alone can
neither take anything back, nor hold time still for longer than a timestamp counts, nor speak in a hospital's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from agent.core.errors import PeerProtocolError
from agent.trust.delegations import (
    ISSUED_FIELD,
    SITES,
    check_delegates,
    check_listed,
    check_no_delegates,
    check_paths,
    delegated_sites,
    verify_role,
    verify_roots,
)
from agent.trust.records import SitePaths
from agent.trust.tuf_faults import translated
from provisioning.authority.repository import Proposal, RepositoryState
from provisioning.authority.roles import CONSORTIUM, LIFETIME, RepositoryKind, lifetime

CLOCK_SLACK: Final = timedelta(minutes=5)
"""How far the clocks of two organisations, or of a hospital and the registrar, may lie apart."""


def check_successor(
    before: RepositoryState, proposal: Proposal, *, now: datetime, kind: RepositoryKind = CONSORTIUM
) -> RepositoryState:
    """Check that `proposal` may follow `before`; signatures of the online roles are the caller's to check.

    Args:
        before: Verified; the empty state where nothing was published yet.
        proposal: What is to follow.
        now: The time here.
        kind: Of the repository.

    Returns:
        The state after it.

    Raises:
        PeerProtocolError: It may not.
    """
    with translated():
        return _check_successor(before, proposal, now, kind)


def _check_successor(
    before: RepositoryState, proposal: Proposal, now: datetime, kind: RepositoryKind
) -> RepositoryState:
    after = proposal.applied(before)
    # 1. Root: every version signed by its own quorum and by that of the one before.
    root, _ = verify_roots(after.roots)
    snapshot = Metadata[Snapshot].from_bytes(after.snapshot).signed
    timestamp = Metadata[Timestamp].from_bytes(after.timestamp).signed
    # 2. Timestamp: the next one, made now, for no longer than a day, naming this snapshot.
    _check_timestamp(before, timestamp, now)
    if timestamp.snapshot_meta.version != snapshot.version:
        raise _may_not("its timestamp names another snapshot")
    # 3. Snapshot: the same, or the next one; nothing that it lists runs backwards.
    changed = _check_snapshot(before, after, proposal, snapshot, now)
    # 4. Roles: every one that changed, or whose delegator did, verifies; none lists what belongs to a hospital.
    _check_roles(before, after, root, snapshot.meta, changed, kind)
    _check_lifetimes(after, changed, root, proposal, now)
    return after


def _check_timestamp(before: RepositoryState, timestamp: Timestamp, now: datetime) -> None:
    if timestamp.version != before.timestamp_version + 1:
        raise _may_not(f"timestamp {timestamp.version} does not follow timestamp {before.timestamp_version}")
    issued = _issued(timestamp)
    if abs(issued - now) > CLOCK_SLACK:
        raise _may_not("its timestamp says that it was signed at another time")
    if before.timestamp and issued < _issued(Metadata[Timestamp].from_bytes(before.timestamp).signed):
        raise _may_not("its timestamp says that it was signed before the one before it")
    if not now < timestamp.expires <= issued + LIFETIME[Timestamp.type]:
        raise _may_not("its timestamp has another lifetime than a day")


def _check_snapshot(
    before: RepositoryState, after: RepositoryState, proposal: Proposal, snapshot: Snapshot, now: datetime
) -> frozenset[str]:
    """Check that nothing runs backwards; returns the names of the roles that changed."""
    if not proposal.snapshot:
        if proposal.roles or proposal.roots:
            raise _may_not("it changes roles without a snapshot that lists them")
        if snapshot.expires <= now:
            raise _may_not("its snapshot has expired")
        return frozenset()
    if snapshot.version != before.snapshot_version + 1:
        raise _may_not(f"snapshot {snapshot.version} does not follow snapshot {before.snapshot_version}")
    if not now < snapshot.expires <= now + CLOCK_SLACK + LIFETIME[Snapshot.type]:
        raise _may_not("its snapshot has another lifetime than a week")
    old = Metadata[Snapshot].from_bytes(before.snapshot).signed.meta if before.snapshot else {}
    changed = frozenset(name for name in after.roles if snapshot.meta[f"{name}.json"] != old.get(f"{name}.json"))
    if set(snapshot.meta) != {f"{name}.json" for name in after.roles}:
        raise _may_not("its snapshot lists metadata that nobody has seen")
    if changed != frozenset(proposal.roles):
        raise _may_not("its snapshot lists other versions than those that were shown")
    for name in changed & set(before.roles):
        _check_version(name, old[f"{name}.json"].version, snapshot.meta[f"{name}.json"].version)
    return changed


def _check_roles(
    before: RepositoryState,
    after: RepositoryState,
    root: Root,
    meta: Mapping[str, MetaFile],
    changed: frozenset[str],
    kind: RepositoryKind,
) -> None:
    """Verify what changed, and what changed delegators delegate."""
    targets = _verify_targets(after, root, meta)
    if check_delegates(targets, kind.delegated) != kind.delegated:
        raise _may_not(f"its targets do not delegate to {', '.join(kind.delegated)}")
    for name in kind.delegated:
        if {name, Targets.type} & changed:
            _verify_delegate(after, targets, name, meta)
    hospitals = _check_hospitals(after, meta, changed) if SITES in kind.delegated else frozenset()
    known = {Targets.type, *kind.delegated, *hospitals}
    # A hospital that was taken out stays as it was: clients refuse a snapshot that lists less (TUF 5.5.5).
    if unknown := set(after.roles) - known - (set(before.roles) - changed):
        raise _may_not(f"nobody delegates to {min(unknown)[:80]!r}")
    if hidden := set(before.roles) - set(after.roles):
        raise _may_not(f"its snapshot hides {min(hidden)!r}")


def _check_hospitals(after: RepositoryState, meta: Mapping[str, MetaFile], changed: frozenset[str]) -> frozenset[str]:
    """Verify the hospitals' roles; returns the names of all of them."""
    sites = Metadata[Targets].from_bytes(_role(after, SITES)).signed
    hospitals = {SitePaths(site).role: site for site in delegated_sites(sites)}
    for name, site in hospitals.items():
        if name in after.roles and {name, SITES} & changed:
            _verify_delegate(after, sites, name, meta, own=f"{SITES}/{site}/")
    return frozenset(hospitals)


def _verify_targets(after: RepositoryState, root: Root, meta: Mapping[str, MetaFile]) -> Targets:
    data = _role(after, Targets.type)
    check_listed(_listing(meta, Targets.type), data)
    metadata = Metadata[Targets].from_bytes(data)
    root.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    check_paths(Targets.type, metadata.signed, own="")
    return metadata.signed


def _verify_delegate(
    after: RepositoryState, delegator: Targets, name: str, meta: Mapping[str, MetaFile], *, own: str = ""
) -> None:
    data, listing = _role(after, name), _listing(meta, name)
    check_listed(listing, data)
    signed = verify_role(delegator, name, data, listing).signed
    check_paths(name, signed, own=own)
    if name != SITES:
        check_no_delegates(name, signed)


def _check_lifetimes(
    after: RepositoryState, changed: frozenset[str], root: Root, proposal: Proposal, now: datetime
) -> None:
    shown = [(name, Metadata[Targets].from_bytes(after.roles[name]).signed.expires) for name in sorted(changed)]
    if proposal.roots:
        shown.append((Root.type, root.expires))
    for name, expires in shown:
        if not now < expires <= now + CLOCK_SLACK + lifetime(name):
            raise _may_not(f"{name} is to count until {expires:%Y-%m-%d}; it may for {lifetime(name).days} days")


def _check_version(name: str, old: int, new: int) -> None:
    # Exactly the next one: whoever has a key for an hour cannot run versions ahead until nothing may follow.
    if new != old + 1:
        raise _may_not(f"version {new} of {name} does not follow version {old}")


def _role(state: RepositoryState, name: str) -> bytes:
    try:
        return state.roles[name]
    except KeyError:
        raise _may_not(f"it has no metadata of {name}") from None


def _listing(meta: Mapping[str, MetaFile], name: str) -> MetaFile:
    listing = meta[f"{name}.json"]
    if listing.length is None or "sha256" not in (listing.hashes or {}):
        raise _may_not(f"its snapshot lists {name} without length and SHA-256")
    return listing


def _issued(timestamp: Timestamp) -> datetime:
    try:
        issued = datetime.fromisoformat(timestamp.unrecognized_fields[ISSUED_FIELD])
    except (KeyError, TypeError, ValueError):
        raise _may_not("its timestamp does not say when it was signed") from None
    if issued.tzinfo is None:
        raise _may_not("its timestamp names no time zone")
    return issued


def _may_not(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "authority.may_not_follow",
        f"This may not be published after what was published before: {what}.",
        next_step="Nothing was changed. Begin again from the repository's newest state.",
    )
