"""The files of a change: each is the one that its metadata lists, and a hospital's records say what their places do."""

from __future__ import annotations

from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.core.errors import PeerProtocolError
from agent.core.ids import SiteID
from agent.trust.delegations import SITES, delegated_keys, delegated_sites
from agent.trust.records import CONSORTIUM_TARGET, ConsortiumRecord, RevocationsFile, SitePaths, parse_record
from agent.trust.site_records import parse_site, site_files
from agent.trust.tuf_faults import translated
from provisioning.authority.repository import (
    MAX_TARGET_BYTES,
    SITE_ROLE_PREFIX,
    Change,
    RepositoryFiles,
    RepositoryState,
)
from provisioning.authority.roles import CONSORTIUM, RepositoryKind

MAX_SITE_FILE_BYTES = 1 << 20


def check_targets(
    before: RepositoryState, change: Change, files: RepositoryFiles, kind: RepositoryKind = CONSORTIUM
) -> None:
    """Check the files of a change; that its metadata may follow is checked before.

    Args:
        before: What is published now.
        change: New metadata and files.
        files: Where those lie that stay.
        kind: Of the repository.

    Raises:
        PeerProtocolError: One is missing, is another than listed, is listed by nobody, or is a bad record.
    """
    listed: set[str] = set()
    roles = {**before.roles, **change.roles}
    for name, data in change.roles.items():
        role = Metadata[Targets].from_bytes(data).signed
        limit = MAX_SITE_FILE_BYTES if name.startswith(SITE_ROLE_PREFIX) else MAX_TARGET_BYTES
        for path, target in role.targets.items():
            _check_target(target, change.targets.get(path), files, limit)
        listed |= role.targets.keys()
        _check_records(name, role, roles, change, files, kind)
        if name.startswith(SITE_ROLE_PREFIX) and name in before.roles:
            _check_revocations(name, before.roles[name], role, change, files)
    if unlisted := change.targets.keys() - listed:
        raise _bad_target(f"nobody lists {min(unlisted)[:200]!r}")


def _check_target(target: TargetFile, data: bytes | None, files: RepositoryFiles, limit_bytes: int) -> None:
    if set(target.hashes) != {"sha256"}:
        raise _bad_target(f"{target.path[:200]!r} is not listed by SHA-256 alone")
    if target.length > limit_bytes:
        raise _bad_target(f"{target.path[:200]!r} is larger than {limit_bytes} bytes")
    if any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in target.path.split("/")):
        raise _bad_target(f"{target.path[:200]!r} is no path")
    if data is not None:
        with translated():
            target.verify_length_and_hashes(data)
    elif not files.has_target(target.path, target.hashes["sha256"]):
        raise _bad_target(f"{target.path[:200]!r} did not come with it")


def _check_records(
    name: str,
    role: Targets,
    roles: dict[str, bytes],
    change: Change,
    files: RepositoryFiles,
    kind: RepositoryKind,
) -> None:
    if name.startswith(SITE_ROLE_PREFIX):
        site = SiteID(name.removeprefix(SITE_ROLE_PREFIX))
        paths = SitePaths(site)
        sites = Metadata[Targets].from_bytes(roles[SITES]).signed
        found = site_files(paths, role)
        contents = {path: _content(role.targets[path], change, files) for path in found.all}
        parse_site(paths, role, delegated_keys(sites, delegated_sites(sites)[site], role.version), found, contents)
    elif name == Targets.type and kind.record is None:
        if role.targets:
            raise _bad_target("the top-level targets of a maker list no file")
    elif name == Targets.type:
        if CONSORTIUM_TARGET not in role.targets:
            raise _bad_target(f"{CONSORTIUM_TARGET} is missing")
        parse_record(ConsortiumRecord, _content(role.targets[CONSORTIUM_TARGET], change, files))


def _check_revocations(name: str, before: bytes, role: Targets, change: Change, files: RepositoryFiles) -> None:
    """No key comes back, whoever signs: not even a hospital's own tool that was shown an old state."""
    path = SitePaths(name.removeprefix(SITE_ROLE_PREFIX)).revocations
    old = Metadata[Targets].from_bytes(before).signed.targets.get(path)
    if old is None or role.targets.get(path) == old:
        return
    kept = _revoked(_content(role.targets[path], change, files)) if path in role.targets else frozenset()
    if missing := _revoked(files.target(path, old.hashes["sha256"])) - kept:
        raise _bad_target(f"the key {min(missing)[:16]} was revoked, and cannot come back")


def _revoked(data: bytes) -> frozenset[str]:
    return frozenset(entry.key_id for entry in parse_record(RevocationsFile, data).revocations)


def _content(target: TargetFile, change: Change, files: RepositoryFiles) -> bytes:
    data = change.targets.get(target.path)
    return files.target(target.path, target.hashes["sha256"]) if data is None else data


def _bad_target(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "authority.bad_target",
        f"The files of this change cannot be published: {what}.",
        next_step="Nothing was changed. Correct it, sign it again, and send it with all its files.",
    )
