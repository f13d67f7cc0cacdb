"""Reads a whole repository: from verified top-level roles through each delegated role to the typed snapshot.

The files come from the network or from the box's own disk; what is done with them is the same.

Whose fault it is decides what happens: a hospital whose own role does not hold (expired, unsigned, another key, a bad
record) is set aside, and all others count. A file that is not the one listed, a version that runs backwards, or a role
that speaks for another hospital ends the reading: the state known before stays in force.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from tuf.api.metadata import DelegatedRole, MetaFile, TargetFile, Targets

from agent.core.errors import PeerProtocolError
from agent.core.ids import IDENTIFIER_PATTERN, SiteID
from agent.statements.roots import key_id
from agent.trust.delegations import (
    RELEASES,
    SITES,
    STUDIES,
    TopLevel,
    check_delegates,
    check_listed,
    check_no_delegates,
    check_paths,
    delegated_keys,
    delegated_sites,
    expiry_s,
    follow_keys,
    keys_digest,
    verify_role,
)
from agent.trust.pins import Moment, Pins, SitePin, check_not_older
from agent.trust.records import (
    CONSORTIUM_TARGET,
    MAX_RECORD_BYTES,
    ConsortiumRecord,
    SitePaths,
    parse_record,
)
from agent.trust.site_records import parse_site, site_files
from agent.trust.snapshot import SiteRecord, TrustSnapshot
from agent.trust.tuf_faults import bad_repository, check_not_expired

MAX_MISSED_VERSIONS: Final = 256
"""How many versions of a hospital's metadata a box that was away looks through for a change of its keys."""
_STUDY = "study.json"


class Files(Protocol):
    """Where the files come from."""

    def role(self, name: str, listing: MetaFile) -> bytes:
        """A delegated role's metadata, in the version listed.

        Raises:
            SecureHealthError: It cannot be had.
        """
        ...

    def older_role(self, name: str, version: int) -> bytes | None:
        """A delegated role's metadata in an older version, or None where it cannot be had."""
        ...

    def target(self, target: TargetFile) -> bytes:
        """A target file, verified by length and SHA-256.

        Raises:
            SecureHealthError: It cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a repository says.

    Args:
        snapshot: In our own terms.
        pins: What to remember from now on.
        targets: Every file that a role may list and does, by path.
    """

    snapshot: TrustSnapshot
    pins: Pins
    targets: Mapping[str, TargetFile] = field(repr=False)


def read_repository(top: TopLevel, files: Files, pins: Pins, *, root_digest: str, now_s: int) -> Reading:
    """Read and verify all that the top-level roles lead to.

    Args:
        top: Verified; that it counts at `now_s` is the caller's to check.
        files: Where the rest comes from.
        pins: What was remembered so far.
        root_digest: SHA-256 of the pinned root, hex.
        now_s: Seconds since 1970, not before the pins' time floor.

    Raises:
        PeerProtocolError: See the module.
        SecureHealthError: A file cannot be had.
    """
    return _Reader(top, files, pins, now_s).read(root_digest)


class _Reader:
    def __init__(self, top: TopLevel, files: Files, pins: Pins, now_s: int) -> None:
        self._top = top
        self._files = files
        self._now_s = now_s
        moment = Moment(version=top.timestamp.version, issued_s=top.issued_s)
        self._pins = pins.with_online(top.online_keys, moment, top.snapshot.version)
        self._targets: dict[str, TargetFile] = {}
        self._expires_s = top.expires_s

    def read(self, root_digest: str) -> Reading:
        top = self._top
        self._pins = self._pins.with_role("targets", keys_digest(top.root, ["targets"]), top.targets.version)
        check_paths("targets", top.targets, own="")
        self._take(top.targets, [CONSORTIUM_TARGET])
        consortium = self._consortium()
        names = check_delegates(top.targets, (SITES, STUDIES, RELEASES))
        for name in {STUDIES, RELEASES}.intersection(names):
            self._read_leaf(name)
        sites: dict[SiteID, SiteRecord] = {}
        set_aside: dict[SiteID, str] = {}
        if SITES in names:
            for site, record in self._read_sites():
                if isinstance(record, SiteRecord):
                    sites[site] = record
                else:
                    set_aside[site] = record
        snapshot = TrustSnapshot(
            root_digest=root_digest,
            environment=top.environment,
            root_version=top.root.version,
            timestamp_version=top.timestamp.version,
            oldest_timestamp=self._pins.oldest_timestamp(top.online_keys),
            issued_s=top.issued_s,
            expires_s=self._expires_s,
            consortium=consortium,
            sites=sites,
            set_aside=set_aside,
            studies=tuple(sorted(self._study_ids())),
        )
        return Reading(snapshot, self._pins, self._targets)

    def _read_leaf(self, name: str) -> None:
        """Studies or releases: once expired, it lists nothing."""
        role = self._role(self._top.targets, name)
        check_paths(name, role, own="")
        check_no_delegates(name, role)
        if expiry_s(role) > self._now_s:
            self._take(role, [path for path in role.targets if path.startswith(f"{name}/")])

    def _read_sites(self) -> Iterator[tuple[SiteID, SiteRecord | str]]:
        sites = self._role(self._top.targets, SITES)
        check_paths(SITES, sites, own="")
        self._expires_s = min(self._expires_s, expiry_s(sites))
        for site, delegation in delegated_sites(sites).items():
            yield site, self._read_site(sites, site, delegation)

    def _read_site(self, sites: Targets, site: SiteID, delegation: DelegatedRole) -> SiteRecord | str:
        """The hospital's record, or why it is set aside."""
        paths = SitePaths(site)
        if f"{paths.role}.json" not in self._top.snapshot.meta:
            return f"{site} has signed nothing yet."
        data = self._fetch(paths.role)
        try:
            role = verify_role(sites, paths.role, data, self._top.listing(paths.role)).signed
            pin = self._follow_keys(site, delegated_keys(sites, delegation, role.version), data)
            check_no_delegates(paths.role, role)
            records = site_files(paths, role)
        except PeerProtocolError as error:
            return error.sentence
        check_paths(paths.role, role, own=f"{SITES}/{site}/")
        self._pins = self._pins.with_site(site, pin)
        self._take(role, role.targets)
        # Outside of `try`: a file that is not the one listed is nothing that the hospital did.
        contents = {path: self._files.target(role.targets[path]) for path in records.all}
        try:
            # Last, so that all is kept of a hospital that only the present decides about.
            check_not_expired(f"what {site} signed", expiry_s(role), self._now_s)
            record = parse_site(paths, role, pin, records, contents)
        except PeerProtocolError as error:
            return error.sentence
        self._pins = self._pins.with_revoked(site, record.revoked & {node.root.key_id for node in record.nodes})
        return replace(record, revoked=record.revoked.union(self._pins.sites[site].revoked))

    def _follow_keys(self, site: SiteID, delegated: SitePin, data: bytes) -> SitePin:
        """Check that the keys that the `sites` role names now are the pinned ones, or their approved successors."""
        pin = self._pins.sites.get(site)
        if pin is None:
            return delegated
        if pin.has_keys_of(delegated):
            check_not_older(f"what {site} signed", pin.version, delegated.version)
            return delegated
        if not follow_keys(pin, [data]).has_keys_of(delegated):
            first = max(pin.version, delegated.version - MAX_MISSED_VERSIONS)
            older = [self._files.older_role(SitePaths(site).role, number) for number in range(first, delegated.version)]
            if not follow_keys(pin, [known for known in (*older, data) if known]).has_keys_of(delegated):
                raise _swapped_keys(site, delegated)
        return delegated

    def _role(self, delegator: Targets, name: str) -> Targets:
        """A role of the consortium itself: it must hold, and its version must not run backwards."""
        role = verify_role(delegator, name, self._fetch(name), self._top.listing(name)).signed
        self._pins = self._pins.with_role(name, keys_digest(delegator, [name]), role.version)
        return role

    def _fetch(self, name: str) -> bytes:
        """The role's file exactly as listed; by whom it is signed is open yet."""
        listing = self._top.listing(name)
        data = self._files.role(name, listing)
        check_listed(listing, data)
        return data

    def _take(self, role: Targets, paths: Iterable[str]) -> None:
        self._targets |= {path: role.targets[path] for path in paths if path in role.targets}

    def _consortium(self) -> ConsortiumRecord:
        target = self._targets.get(CONSORTIUM_TARGET)
        if target is None or target.length > MAX_RECORD_BYTES:
            raise bad_repository(f"{CONSORTIUM_TARGET} is missing, or too large")
        return parse_record(ConsortiumRecord, self._files.target(target))

    def _study_ids(self) -> Iterator[str]:
        for path in self._targets:
            parts = path.split("/")
            # Names of directories, later: nothing but an identifier is a study.
            if (
                len(parts) == 3
                and (parts[0], parts[2]) == (STUDIES, _STUDY)
                and re.fullmatch(IDENTIFIER_PATTERN, parts[1])
            ):
                yield parts[1]


def _swapped_keys(site: SiteID, named: SitePin) -> PeerProtocolError:
    keys = ", ".join(map(key_id, named.public_keys))
    return PeerProtocolError(
        "trust.swapped_keys",
        f"The consortium names other keys for {site} than this box knows ({keys}), and {site} did not say so with its "
        "old ones.",
        next_step=f"The boxes of {site} are left out. Ask {site} by another way whether it changed its keys; if so, "
        "`seh-agent accept-keys`.",
        site=site,
    )
