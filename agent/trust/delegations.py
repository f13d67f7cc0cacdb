"""Verifies the repository's metadata: bytes in, values out; each step by python-tuf's own classes.

Delegated roles are walked here and not by python-tuf: its walk does not say which role answered, and one hospital that
did not renew would end it for all.

Source: The Update Framework 1.0, 5.3 to 5.6.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from agent.core.errors import PeerProtocolError
from agent.core.ids import IDENTIFIER_PATTERN, SiteID
from agent.statements.roots import hash_for
from agent.trust.pins import MAX_SITE_KEYS, SitePin
from agent.trust.records import SitePaths, parse_public_pem, public_pem
from agent.trust.snapshot import Environment
from agent.trust.tuf_faults import bad_repository, translated

MAX_ROOT_BYTES: Final = 1 << 18
MAX_TIMESTAMP_BYTES: Final = 1 << 14
MAX_SNAPSHOT_BYTES: Final = 1 << 20
MAX_ROLE_BYTES: Final = 1 << 20
MAX_SITES: Final = 1000
MAX_TARGETS: Final = 4096
"""How many files one role may list."""
MAX_TIMESTAMP_LIFE_S: Final = 2 * 86400
"""For how long, in seconds, a timestamp may count, whatever it says: a repository that stands still is seen by then."""
ENVIRONMENT_FIELD: Final = "environment"
ISSUED_FIELD: Final = "issued"
ROLE_KEYS_FIELD: Final = "role_keys"
"""Where a hospital's metadata names the keys that sign its role from then on (`role_keys`)."""
SITES, STUDIES, RELEASES = "sites", "studies", "releases"
_ONLINE = (Timestamp.type, Snapshot.type)
_MAX_SIGNATURES = 32

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class TopLevel:
    """The verified top-level roles; that they count now is not checked yet.

    Args:
        root: The newest.
        timestamp, snapshot, targets: What it leads to.
        environment: What every version of the root says.
        online_keys: Digest of the keys of timestamp and snapshot.
        issued_s: When the timestamp says that it was signed, in seconds since 1970.
    """

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    environment: Environment
    online_keys: str
    issued_s: int

    @property
    def expires_s(self) -> int:
        """Until when all of them count, exclusive, in seconds since 1970."""
        return min(map(expiry_s, (self.root, self.timestamp, self.snapshot, self.targets)))

    def listing(self, role: str) -> MetaFile:
        """What the snapshot says of a role's file.

        Raises:
            PeerProtocolError: It does not list the file, or not by length and SHA-256 (`trust.bad_repository`).
        """
        listing = self.snapshot.meta.get(f"{role}.json")
        if listing is None or listing.length is None or "sha256" not in (listing.hashes or {}):
            raise bad_repository(f"its snapshot does not list {role}.json by length and SHA-256")
        return listing


def verify_top_level(roots: Sequence[bytes], timestamp: bytes, snapshot: bytes, targets: bytes) -> TopLevel:
    """Verify the top-level roles, from the pinned root on.

    Args:
        roots: Every root version from 1 on; the first is believed.
        timestamp: Newest metadata of that role.
        snapshot: As the timestamp lists it.
        targets: As the snapshot lists it.

    Raises:
        PeerProtocolError: A step does not verify.
    """
    root, environment = verify_roots(roots)
    with translated():
        # TUF 5.4: timestamp.
        stamp = _verified(Timestamp, timestamp, root, Timestamp.type).signed
        # TUF 5.5: snapshot, as the timestamp lists it.
        stamp.snapshot_meta.verify_length_and_hashes(snapshot)
        listed = _verified(Snapshot, snapshot, root, Snapshot.type).signed
        _check_version("snapshot", stamp.snapshot_meta, listed)
        # TUF 5.6: targets, as the snapshot lists it.
        listing = listed.meta.get("targets.json")
        if listing is None:
            raise bad_repository("its snapshot does not list targets.json")
        listing.verify_length_and_hashes(targets)
        top = _verified(Targets, targets, root, Targets.type).signed
        _check_version("targets", listing, top)
        online_keys = keys_digest(root, _ONLINE)
    return TopLevel(root, stamp, listed, top, environment, online_keys, _parse_issued(stamp))


def verify_roots(roots: Sequence[bytes]) -> tuple[Root, Environment]:
    """Verify a chain of root metadata: each version is signed by its own quorum and by that of the one before.

    Args:
        roots: Every version from 1 on; the first is believed.

    Returns:
        The newest, and the environment that all of them name.

    Raises:
        PeerProtocolError: The chain is broken, or leads to another environment (`trust.other_environment`).
    """
    root: Root | None = None
    environment: Environment | None = None
    for number, data in enumerate(roots, start=1):
        with translated():
            metadata = _parsed(Root, data)
            for delegator in (root or metadata.signed, metadata.signed):
                delegator.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
        if metadata.signed.version != number or not metadata.signed.consistent_snapshot:
            raise bad_repository(f"root version {number} is missing, or names no consistent snapshots")
        root, named = metadata.signed, _parse_environment(metadata.signed)
        if environment not in {None, named}:
            raise _other_environment(named)
        environment = named
    if root is None or environment is None:
        raise bad_repository("it has no root")
    return root, environment


def verify_role(delegator: Targets, name: str, data: bytes, listing: MetaFile) -> Metadata[Targets]:
    """Verify a delegated role's metadata; that it counts now is not checked.

    Args:
        delegator: Who delegates to it.
        name: The role.
        data: As `check_listed` found it to be the file that the snapshot lists.
        listing: From the snapshot.

    Raises:
        PeerProtocolError: Its keys did not sign it, or it is no such metadata.
    """
    with translated():
        metadata = _verified(Targets, data, delegator, name)
    _check_version(name, listing, metadata.signed)
    if len(metadata.signed.targets) > MAX_TARGETS:
        raise bad_repository(f"{name} lists more than {MAX_TARGETS} files")
    return metadata


def check_listed(listing: MetaFile, data: bytes) -> None:
    """Check that `data` is the file that the snapshot lists: whoever serves another is not who signs.

    Raises:
        PeerProtocolError: It is another (`trust.altered_file`).
    """
    with translated():
        listing.verify_length_and_hashes(data)


def check_paths(role: str, targets: Targets, *, own: str) -> None:
    """Check that a role lists no file of a hospital that is not its own.

    Args:
        role: Its name.
        targets: Its verified metadata.
        own: `sites/<site>/` for a hospital's role; empty for every other.

    Raises:
        PeerProtocolError: It does (`trust.foreign_file`).
    """
    for path in targets.targets:
        if path.startswith(f"{SITES}/") and not (own and path.startswith(own)):
            raise _foreign_file(role, path)


def check_delegates(targets: Targets, allowed: Iterable[str]) -> tuple[str, ...]:
    """The roles that the top-level targets delegate to.

    Raises:
        PeerProtocolError: One has another name than a consortium's have: what it lists would be nobody's.
    """
    names = tuple(role.name for role in _delegated(targets))
    unknown = set(names) - set(allowed)
    if unknown:
        raise bad_repository(f"it delegates to {min(unknown)[:80]!r}, which no consortium has")
    return names


def delegated_sites(sites: Targets) -> Mapping[SiteID, DelegatedRole]:
    """The hospitals that the `sites` role delegates to, sorted.

    Raises:
        PeerProtocolError: A delegation is not one of a hospital, or there are too many.
    """
    roles = _delegated(sites)
    if len(roles) > MAX_SITES:
        raise bad_repository(f"it has more than {MAX_SITES} hospitals")
    return {_site_of(role): role for role in sorted(roles, key=lambda role: role.name)}


def check_no_delegates(role: str, targets: Targets) -> None:
    """Check that a role delegates to none.

    Raises:
        PeerProtocolError: It does.
    """
    if targets.delegations is not None:
        raise bad_repository(f"{role} delegates to further roles")


def delegated_keys(delegator: Targets, role: DelegatedRole, version: int) -> SitePin:
    """The keys that a delegation names for a hospital.

    Args:
        delegator: The `sites` role.
        role: The delegation.
        version: Of the hospital's metadata.

    Raises:
        PeerProtocolError: They are not distinct keys on P-256 or P-384.
    """
    try:
        keys = [parse_public_pem(_pem(delegator.get_key(keyid))) for keyid in role.keyids]
        return site_pin(keys, role.threshold, version)
    except ValueError as error:
        raise bad_repository(f"{role.name} has keys that no hospital signs with ({str(error)[:200]})") from error


def site_pin(keys: Iterable[ec.EllipticCurvePublicKey], threshold: int, version: int) -> SitePin:
    """A hospital's keys, in the one form in which they are compared.

    Raises:
        ValueError: One stands there twice, there are none or too many, or fewer than the threshold.
    """
    pems = [public_pem(key) for key in keys]
    if len(set(pems)) != len(pems) or not threshold <= len(pems) <= MAX_SITE_KEYS:
        raise ValueError(f"{len(set(pems))} distinct keys, of which {threshold} must sign")
    return SitePin(keys=tuple(sorted(pems)), threshold=threshold, version=version)


def role_keys(keys: Iterable[ec.EllipticCurvePublicKey], threshold: int) -> dict[str, object]:
    """What a hospital's metadata carries under `ROLE_KEYS_FIELD` to move to these keys.

    The version that carries it is signed by the old keys: they say who comes after them. A signature of theirs under
    anything else says nothing about the new keys, and could be put beside a stranger's.
    """
    pin = site_pin(keys, threshold, 1)
    return {"keys": list(pin.keys), "threshold": pin.threshold}


def follow_keys(pin: SitePin, versions: Iterable[bytes]) -> SitePin:
    """Follow a hospital's changes of keys, each approved by the keys before it.

    Args:
        pin: The keys known here.
        versions: The hospital's metadata from `pin.version` on, oldest first; any may be missing.

    Returns:
        The newest keys that the pinned ones lead to.
    """
    for data in versions:
        try:
            with translated():
                metadata = _parsed(Targets, data)
            named = _parse_role_keys(metadata.signed)
        except PeerProtocolError:
            continue
        if named is not None and metadata.signed.version >= pin.version and _is_signed_by(pin, metadata):
            pin = named
    return pin


def keys_digest(delegator: Root | Targets, roles: Iterable[str]) -> str:
    """Digest (hex) of who must sign for `roles`; ids and order of keys do not matter."""
    named = []
    for name in roles:
        role = delegator.get_delegated_role(name)
        keys = [json.dumps(delegator.get_key(keyid).to_dict(), sort_keys=True) for keyid in role.keyids]
        named.append([name, role.threshold, sorted(keys)])
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def expiry_s(signed: Signed) -> int:
    """Until when metadata counts, exclusive, in seconds since 1970."""
    return int(signed.expires.timestamp())


def _parsed(kind: type[SignedT], data: bytes) -> Metadata[SignedT]:
    metadata = Metadata[SignedT].from_bytes(data)
    if not isinstance(metadata.signed, kind) or type(metadata.signed.version) is not int:
        raise bad_repository(f"a file of kind {kind.type} was expected, and is another")
    return metadata


def _verified(kind: type[SignedT], data: bytes, delegator: Root | Targets, name: str) -> Metadata[SignedT]:
    metadata = _parsed(kind, data)
    delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    return metadata


def _check_version(what: str, listing: MetaFile, signed: Signed) -> None:
    if signed.version != listing.version:
        raise bad_repository(f"{what} is version {signed.version}, and version {listing.version} is listed")


def _delegated(targets: Targets) -> list[DelegatedRole]:
    if targets.delegations is None:
        return []
    if targets.delegations.roles is None:
        raise bad_repository("it delegates by hash bins")
    return list(targets.delegations.roles.values())


def _site_of(role: DelegatedRole) -> SiteID:
    paths = SitePaths(role.name.removeprefix("site-"))
    is_site = role.name == paths.role and re.fullmatch(IDENTIFIER_PATTERN, paths.site)
    if not is_site or not role.terminating or set(role.paths or ()) != set(paths.patterns):
        raise bad_repository(f"{role.name[:80]!r} is not delegated as a hospital's role is")
    return SiteID(paths.site)


def _pem(key: Key) -> str:
    return str(key.keyval.get("public", ""))


def _is_signed_by(pin: SitePin, metadata: Metadata[Targets]) -> bool:
    signatures = list(metadata.signatures.values())[:_MAX_SIGNATURES]
    signed = metadata.signed_bytes
    signers = [
        key for key in pin.public_keys if any(_verifies(key, signature.signature, signed) for signature in signatures)
    ]
    return len(signers) >= pin.threshold


def _verifies(key: ec.EllipticCurvePublicKey, signature: str, data: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature), data, ec.ECDSA(hash_for(key)))
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse_role_keys(signed: Targets) -> SitePin | None:
    fields = signed.unrecognized_fields.get(ROLE_KEYS_FIELD)
    if not isinstance(fields, dict):
        return None
    try:
        pin = SitePin(keys=fields.get("keys"), threshold=fields.get("threshold"), version=signed.version)
        return site_pin(pin.public_keys, pin.threshold, pin.version)
    except (ValidationError, ValueError):
        return None


def _parse_environment(root: Root) -> Environment:
    try:
        return Environment(str(root.unrecognized_fields.get(ENVIRONMENT_FIELD)))
    except ValueError:
        raise bad_repository("its root names no environment") from None


def _parse_issued(timestamp: Timestamp) -> int:
    try:
        issued = datetime.fromisoformat(timestamp.unrecognized_fields[ISSUED_FIELD])
    except (KeyError, TypeError, ValueError):
        raise bad_repository("its timestamp does not say when it was signed") from None
    if issued.tzinfo is None:
        raise bad_repository("its timestamp names no time zone")
    issued_s = int(issued.timestamp())
    if not 0 < expiry_s(timestamp) - issued_s <= MAX_TIMESTAMP_LIFE_S:
        raise bad_repository(f"its timestamp counts for longer than {MAX_TIMESTAMP_LIFE_S // 3600} h")
    return issued_s


def _other_environment(named: Environment) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.other_environment",
        f"The consortium's trust root now says that it is for {named.value}, and said otherwise before.",
        next_step="Nothing of it is used. Tell the consortium's operator: a consortium never changes what it is for.",
    )


def _foreign_file(role: str, path: str) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.foreign_file",
        f"The role {role[:80]} lists {path[:200]!r}, which only that hospital itself may.",
        next_step="The state known before stays in force. Tell the consortium's operator: somebody speaks for a "
        "hospital that is not theirs.",
    )
