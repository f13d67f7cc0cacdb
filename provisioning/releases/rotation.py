"""Other keys for a maker's roles: who is replaced, and what has to be signed again for it.

Root: the quorum before and the new one sign; the top-level targets, which its keys sign too, go with it.
Releases: the quorum before signs the new list for boxes (`agent.update.keys`); then the root's keys sign the
delegation, and the new ones the role. Releases that too few of the new keys signed are listed no more, and wait as
drafts.
Channels: the root's keys sign the delegation, the new ones the role. Online: the root's quorum signs.

Each part can be called again: a list waits in `pending/`, a change too, and what is published stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key, SSlibKey
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.statements.release import Version
from agent.statements.release_keys import MAX_STEPS, ReleaseKeys, parse_release_keys
from agent.trust.channels import CHANNELS_ROLE, KEYS_PATH, RELEASES_ROLE, release_path
from agent.trust.snapshot import Environment
from provisioning.authority.ceremony import Edit, PendingChange, list_files, unchanged
from provisioning.authority.repository import make_directory, storing
from provisioning.authority.roles import RoleKeys
from provisioning.releases.founding import ONLINE
from provisioning.releases.maker import Maker
from provisioning.releases.record import KeyList, parse_key_list_record

ROTATED: Final = (Root.type, RELEASES_ROLE, CHANNELS_ROLE, ONLINE)
"""Roles whose keys can be replaced: the root's sign the top-level targets too, the online one all else."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What came of replacing a role's keys.

    Args:
        pending: The change to the repository; None where the list for boxes waits for signatures first.
        waiting: That list's file, where it does.
        missing: How many signatures it needs still.
        withdrawn: Releases that are to be signed and published again.
    """

    pending: PendingChange | None
    waiting: Path | None = None
    missing: int = 0
    withdrawn: tuple[Version, ...] = ()


def next_keys(
    maker: Maker, role: str, *, drop: Sequence[str], new: Sequence[Key], threshold: int | None, environment: Environment
) -> RoleKeys:
    """The keys that a role is to have.

    Args:
        maker: Its repository.
        role: One of `ROTATED`.
        drop: Key ids, or their beginnings, of those that count no more.
        new: Those that count from now on.
        threshold: How many must sign; None for as many as before.
        environment: In production no single key may sign root or releases.

    Raises:
        OperatorError: There is no such role or key (`release.no_such_role`, `release.no_such_key`), nothing
            would change (`release.nothing_to_rotate`), or the keys do not suffice (`release.bad_rotation`).
    """
    if role not in ROTATED:
        raise OperatorError(
            "release.no_such_role", f"There is no role {role!r}.", next_step=f"Name one of: {', '.join(ROTATED)}."
        )
    before = maker.role_keys(role)
    dropped = {_named(before, name) for name in drop}
    if role == ONLINE and new:
        dropped = {key.keyid for key in before.keys}  # the host has one, and a second alone would not suffice
    kept = {key.keyid: key for key in before.keys if key.keyid not in dropped}
    keys = kept | {key.keyid: key for key in new if isinstance(key, SSlibKey)}
    least = before.threshold if threshold is None else threshold
    if (set(keys), least) == ({key.keyid for key in before.keys}, before.threshold):
        raise OperatorError(
            "release.nothing_to_rotate",
            f"{role} has these keys already.",
            next_step="Name --drop, --new-key, --new-public-key or --threshold; `seh-provision release status` lists "
            "the keys. To renew a role's time alone: `seh-provision release renew`.",
        )
    if environment is Environment.PRODUCTION and role in {Root.type, RELEASES_ROLE} and least < 2:
        raise _bad_rotation(role, "one key alone must not be able to sign it")
    try:
        return RoleKeys(tuple(keys.values()), least)
    except ValueError as error:
        raise _bad_rotation(role, f"{least} keys must sign it, and it would have {len(keys)}") from error


def rotate(maker: Maker, role: str, keys: RoleKeys) -> Rotation:
    """Give a role other keys, as far as the keys here suffice.

    Raises:
        OperatorError: Something else waits already, or a key cannot be opened.
        SecureHealthError: As `Publisher.publish` says.
    """
    if role == RELEASES_ROLE:
        return _rotate_releases(maker, keys)
    if role == CHANNELS_ROLE:
        return Rotation(maker.ceremony.rotate_delegate(role, keys, unchanged))
    named = (Timestamp.type, Snapshot.type) if role == ONLINE else (Root.type, Targets.type)
    return Rotation(maker.ceremony.rotate_root(dict.fromkeys(named, keys)))


def _rotate_releases(maker: Maker, keys: RoleKeys) -> Rotation:
    chain = maker.key_lists()
    record = _signed_list(maker, _list_for_boxes(keys, 2 + len(chain)))
    known, threshold = maker.release_keys()
    missing = threshold - len(record.signers(known))
    if missing > 0:
        return Rotation(None, _list_file(maker, record.keys), missing)
    stale = maker.unsigned_under(keys)
    for version in stale:
        maker.withdraw(version, keys)
    data = json.dumps([*chain, record.envelope.to_dict()]).encode() + b"\n"
    edit = _relisted(stale, data)
    pending = maker.ceremony.rotate_delegate(RELEASES_ROLE, keys, edit, targets={KEYS_PATH: data})
    return Rotation(pending, withdrawn=tuple(stale))


def _signed_list(maker: Maker, keys: ReleaseKeys) -> KeyList:
    """The list, with the signatures that it has and those of the keys that are here; kept before anything follows."""
    place = _list_file(maker, keys)
    record = parse_key_list_record(place.read_bytes()) if place.exists() else KeyList.of(keys)
    if record.keys.payload() != keys.payload():
        raise OperatorError(
            "authority.already_pending",
            f"Another list of who may sign releases waits for signatures in {place}.",
            next_step="Repeat the options with which it was made, or remove the file to give it up.",
        )
    known, threshold = maker.release_keys()
    missing = threshold - len(done := record.signers(known))
    if missing > 0:
        here = maker.keyring.signers(keyid for keyid in known if keyid not in done)[:missing]
        record = record.signed_by(here)
    with storing():
        make_directory(place.parent)
        store_atomically(place, record.encode())
    return record


def _list_file(maker: Maker, keys: ReleaseKeys) -> Path:
    return maker.layout.pending / f"release-keys-{keys.version}.json"


def _list_for_boxes(keys: RoleKeys, version: int) -> ReleaseKeys:
    if version > 1 + MAX_STEPS:
        raise _bad_rotation(RELEASES_ROLE, f"boxes follow {MAX_STEPS} lists at most")
    fields = {
        "version": version,
        "threshold": keys.threshold,
        "keys": {key.keyid: key.keyval["public"] for key in keys.keys},
    }
    try:
        return parse_release_keys(json.dumps(fields).encode())
    except OperatorError as error:
        raise _bad_rotation(RELEASES_ROLE, "boxes verify releases with keys on P-256 alone") from error


def _relisted(stale: Sequence[Version], chain: bytes) -> Edit:
    def edit(role: Targets) -> None:
        starts = tuple(release_path(str(version), "") for version in stale)
        for path in [path for path in role.targets if path.startswith(starts)]:
            del role.targets[path]
        list_files({KEYS_PATH: chain})(role)

    return edit


def _named(keys: RoleKeys, name: str) -> str:
    found = [key.keyid for key in keys.keys if len(name) >= 8 and key.keyid.startswith(name)]
    if len(found) != 1:
        raise OperatorError(
            "release.no_such_key",
            f"{name[:80]!r} is not the beginning of exactly one of the role's key ids.",
            next_step="`seh-provision release status` lists them; give 8 characters or more.",
        )
    return found[0]


def _bad_rotation(role: str, what: str) -> OperatorError:
    return OperatorError(
        "release.bad_rotation",
        f"{role} cannot have these keys: {what}.",
        next_step="Nothing was changed. Name more keys with --new-key, or another --threshold.",
    )
