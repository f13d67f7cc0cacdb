"""A hospital's records, from the role that its own key signs: bytes in, a typed record out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import Targets

from agent.core.ids import SiteID
from agent.trust.delegations import SITES, expiry_s
from agent.trust.pins import SitePin
from agent.trust.records import (
    NodeFile,
    RevocationsFile,
    SitePaths,
    StewardFile,
    parse_record,
)
from agent.trust.snapshot import SiteRecord
from agent.trust.tuf_faults import bad_repository

MAX_NODES_PER_SITE: Final = 64
MAX_STEWARDS_PER_SITE: Final = 64
MAX_SITE_BYTES: Final = 1 << 20
"""Greatest size of all records of a hospital together: none fills the others' boxes."""


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """Which files of a hospital's role are its records; all else there is for others to read.

    Args:
        nodes: Paths of boxes' records, sorted.
        stewards: Paths of stewards' records, sorted.
        revocations: Path of what it revoked; empty where it revoked nothing.
    """

    nodes: tuple[str, ...]
    stewards: tuple[str, ...]
    revocations: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every path."""
        return (*self.nodes, *self.stewards, *self.revocations)


def site_files(paths: SitePaths, role: Targets) -> SiteFiles:
    """Find a hospital's records.

    Args:
        paths: Of the hospital.
        role: Its verified metadata.

    Raises:
        PeerProtocolError: There are too many, or they are too large.
    """
    own = f"{SITES}/{paths.site}"
    found = SiteFiles(
        _matching(role.targets, f"{own}/nodes/", "/node.json", MAX_NODES_PER_SITE),
        _matching(role.targets, f"{own}/stewards/", ".json", MAX_STEWARDS_PER_SITE),
        tuple({paths.revocations} & role.targets.keys()),
    )
    if sum(role.targets[path].length for path in found.all) > MAX_SITE_BYTES:
        raise bad_repository(f"the records of {paths.site} are larger than {MAX_SITE_BYTES} bytes")
    return found


def parse_site(
    paths: SitePaths, role: Targets, pin: SitePin, files: SiteFiles, data: Mapping[str, bytes]
) -> SiteRecord:
    """Parse a hospital's records.

    Args:
        paths: Of the hospital.
        role: Its verified metadata.
        pin: The keys that it was verified with.
        files: What `site_files` found.
        data: The bytes of all of them, by path, verified against `role`.

    Raises:
        PeerProtocolError: One is malformed, or says something else than its place does.
    """
    nodes = tuple(parse_record(NodeFile, data[path]) for path in files.nodes)
    stewards = tuple(parse_record(StewardFile, data[path]) for path in files.stewards)
    revocations = [parse_record(RevocationsFile, data[path]) for path in files.revocations]
    places = (*(paths.node(node.node) for node in nodes), *(paths.steward(steward.steward) for steward in stewards))
    named = {node.site for node in nodes} | {steward.site for steward in stewards} | {file.site for file in revocations}
    if places != (*files.nodes, *files.stewards) or not named <= {paths.site}:
        raise bad_repository(f"a record of {paths.site} names another hospital, box or person than its place does")
    if len({node.root.key_id for node in nodes}) != len(nodes):
        raise bad_repository(f"two boxes of {paths.site} have one key")
    return SiteRecord(
        site=SiteID(paths.site),
        version=role.version,
        nodes=nodes,
        stewards=stewards,
        revoked=frozenset(entry.key_id for file in revocations for entry in file.revocations),
        expires_s=expiry_s(role),
        keys=pin.public_keys,
        threshold=pin.threshold,
    )


def _matching(paths: Iterable[str], start: str, end: str, limit: int) -> tuple[str, ...]:
    found = tuple(sorted(path for path in paths if path.startswith(start) and path.endswith(end)))
    if len(found) > limit:
        raise bad_repository(f"there are more than {limit} files below {start}")
    return found
