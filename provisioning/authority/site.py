"""A hospital's desk: what the hospital itself signs about its boxes, its stewards, and what it revoked.

It works from the repository's newest state, wherever that was read; what it returns goes to `Publisher.publish_site`,
on the registrar's host or through the registrar.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.trust.delegations import ROLE_KEYS_FIELD, SITES, delegated_sites, role_keys
from agent.trust.records import (
    CONSORTIUM_TARGET,
    ConsortiumRecord,
    NodeFile,
    Revocation,
    RevocationsFile,
    SitePaths,
    StewardFile,
    parse_record,
)
from agent.trust.site_records import site_files
from provisioning.authority.did import DIDNames, membership, node_document, site_document
from provisioning.authority.repository import RepositoryFiles
from provisioning.authority.roles import SITE_LIFETIME, new_role, next_version, sign
from provisioning.authority.signers import elliptic_key

RENEWED_BEFORE: Final = timedelta(days=60)
"""A hospital signs anew when what it signed has no more time left than this."""


class SiteSource(Protocol):
    """The repository's newest state, verified by whoever read it."""

    @property
    def root_digest(self) -> str:
        """SHA-256 of the first root metadata, hex."""
        ...

    def role(self, name: str) -> bytes | None:
        """Newest metadata of a targets role; None where it has signed nothing yet."""
        ...

    def target(self, target: TargetFile) -> bytes:
        """A target file."""
        ...


@dataclass(frozen=True, slots=True)
class StagedSite:
    """What a hospital signed, ready to be published.

    Args:
        site: The hospital.
        version: Of the metadata.
        metadata: Of its role, signed.
        targets: Contents of the files that it lists anew, by target path.
    """

    site: SiteID
    version: int
    metadata: bytes = field(repr=False)
    targets: Mapping[str, bytes] = field(repr=False)


class SiteDesk:
    """Signs for one hospital; it writes nothing.

    Args:
        site: The hospital.
        source: The repository's newest state.
        signers: Keys of the hospital's role, as many as must sign; the first signs memberships.
        clock: For times.
    """

    def __init__(self, site: SiteID, source: SiteSource, signers: Sequence[Signer], clock: Clock) -> None:
        self._site = site
        self._source = source
        self._signers = tuple(signers)
        self._clock = clock
        self._paths = SitePaths(site)

    @property
    def metadata(self) -> Targets | None:
        """The newest that the hospital signed; None where that is nothing yet."""
        data = self._source.role(self._paths.role)
        return None if data is None else Metadata[Targets].from_bytes(data).signed

    @property
    def nodes(self) -> tuple[NodeFile, ...]:
        """Boxes on record, sorted by name, revoked ones included."""
        role = self.metadata
        if role is None:
            return ()
        return tuple(parse_record(NodeFile, self._read(role, path)) for path in site_files(self._paths, role).nodes)

    @property
    def stewards(self) -> tuple[StewardFile, ...]:
        """Stewards' keys on record, sorted by name, revoked ones included."""
        role = self.metadata
        if role is None:
            return ()
        return tuple(
            parse_record(StewardFile, self._read(role, path)) for path in site_files(self._paths, role).stewards
        )

    @property
    def revocations(self) -> tuple[Revocation, ...]:
        """What was revoked so far."""
        role = self.metadata
        if role is None or self._paths.revocations not in role.targets:
            return ()
        return parse_record(RevocationsFile, self._read(role, self._paths.revocations)).revocations

    @property
    def needs_renewal(self) -> bool:
        """Whether the hospital should sign anew, lest its boxes count no more."""
        role = self.metadata
        return role is None or role.expires - self._clock.now() < RENEWED_BEFORE

    def stage(self, added: Mapping[str, bytes] | None = None, removed: Collection[str] = ()) -> StagedSite:
        """Sign the next version of the hospital's role.

        Args:
            added: Contents of new or changed files, by target path below `sites/<site>/`.
            removed: Target paths that are listed no more.

        Raises:
            OperatorError: A key is not one of the hospital's (`authority.not_the_sites_key`), or too few are here.
            HardwareError: A key's device does not answer.
        """
        return self._stage(added or {}, removed)

    def _stage(
        self,
        added: Mapping[str, bytes],
        removed: Collection[str],
        *,
        keys: Mapping[str, object] | None = None,
        cosigners: tuple[Signer, ...] = (),
    ) -> StagedSite:
        self._check_signers()
        files = {self._names.site_document: self._document(), **added}
        before = self._source.role(self._paths.role)
        now = self._clock.now()
        role = self._paths.role
        metadata = new_role(role, now=now) if before is None else next_version(before, role=role, now=now)
        listed = metadata.signed.targets
        for path in removed:
            listed.pop(path, None)
        targets = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()}
        fresh = {path: files[path] for path, target in targets.items() if listed.get(path) != target}
        listed.update(targets)
        if keys is not None:
            metadata.signed.unrecognized_fields[ROLE_KEYS_FIELD] = dict(keys)
        data = sign(metadata, (*self._signers, *cosigners)).to_bytes()
        return StagedSite(self._site, metadata.signed.version, data, fresh)

    def endorse(self, node: NodeFile) -> StagedSite:
        """Put a box on record; see `endorse_all`."""
        return self.endorse_all([node])

    def endorse_all(self, nodes: Sequence[NodeFile]) -> StagedSite:
        """Put boxes on record, each with its DID document and its membership.

        Args:
            nodes: Of this hospital.

        Raises:
            OperatorError: One is another hospital's box, or its key was revoked (`authority.revoked_key`).
            HardwareError: As `stage` says.
        """
        revoked = {entry.key_id for entry in self.revocations}
        names = self._names
        files: dict[str, bytes] = {}
        for node in nodes:
            if node.site != self._site:
                raise _not_ours(node)
            if node.root.key_id in revoked:
                raise OperatorError(
                    "authority.revoked_key",
                    f"The key of {node.node} was revoked by {self._site}, and cannot come back.",
                    next_step="Make a new key on the box, and enrol it again.",
                )
            files |= {self._paths.node(node.node): node.encode(), **self._papers(names, node)}
        return self.stage(files)

    def revoke(self, key_id: str, reason: str) -> StagedSite:
        """Revoke a key; its box stays on record, so that what it signed before can be understood.

        Args:
            key_id: SHA-256 of its SubjectPublicKeyInfo, hex.
            reason: In plain words.

        Raises:
            OperatorError, HardwareError: As `stage` says.
        """
        known = self.revocations
        if key_id not in {entry.key_id for entry in known}:
            known += (Revocation(key_id=key_id, reason=reason, revoked=self._clock.now()),)
        names = self._names
        boxes = [node.node for node in self.nodes if node.root.key_id == key_id]
        papers = [path for box in boxes for path in (names.node_document(box), names.membership(box))]
        return self.stage(
            {self._paths.revocations: RevocationsFile(site=self._site, revocations=known).encode()}, papers
        )

    def add_steward(self, steward: StewardFile) -> StagedSite:
        """Put a steward's key on record.

        Raises:
            OperatorError: It is another hospital's, or no box would let the key decide (`authority.unfit_steward`).
            HardwareError: As `stage` says.
        """
        if steward.site != self._site:
            raise _not_ours(steward)
        self._check_fit(steward)
        return self.stage({self._paths.steward(steward.steward): steward.encode()})

    def _check_fit(self, steward: StewardFile) -> None:
        key_id = steward.key_id
        if key_id in {entry.key_id for entry in self.revocations}:
            raise _unfit(steward, "was revoked, and cannot come back")
        if key_id in {node.root.key_id for node in self.nodes}:
            raise _unfit(steward, "is a box's")
        for other in self.stewards:
            if other.steward != steward.steward and other.key_id == key_id:
                raise _unfit(steward, f"is on record as {other.steward} already")

    def move_to(self, successors: Sequence[Signer]) -> StagedSite:
        """Say which keys come after these; both sign it, so that it counts before and after the consortium follows.

        Args:
            successors: The new keys, all of which must sign from then on.

        Raises:
            OperatorError, HardwareError: As `stage` says.
        """
        named = [elliptic_key(signer.public_key) for signer in successors]
        return self._stage({}, (), keys=role_keys(named, len(named)), cosigners=tuple(successors))

    def renew(self) -> StagedSite:
        """Sign the same again, with memberships for the time to come.

        Raises:
            OperatorError, HardwareError: As `stage` says.
        """
        revoked = {entry.key_id for entry in self.revocations}
        names = self._names
        in_force = [node for node in self.nodes if node.root.key_id not in revoked]
        return self.stage({path: data for node in in_force for path, data in self._papers(names, node).items()})

    @property
    def _names(self) -> DIDNames:
        targets = Metadata[Targets].from_bytes(self._required(Targets.type)).signed
        consortium = parse_record(ConsortiumRecord, self._read(targets, CONSORTIUM_TARGET))
        return DIDNames(consortium.registrar.address, self._paths)

    def _document(self) -> bytes:
        sites = Metadata[Targets].from_bytes(self._required(SITES)).signed
        role = sites.get_delegated_role(self._paths.role)
        return site_document(self._names, [elliptic_key(sites.get_key(keyid)) for keyid in role.keyids])

    def _papers(self, names: DIDNames, node: NodeFile) -> dict[str, bytes]:
        until = self._clock.now() + SITE_LIFETIME
        credential = membership(names, node, self._source.root_digest, self._signers[0], until=until)
        return {names.node_document(node.node): node_document(names, node), names.membership(node.node): credential}

    def _check_signers(self) -> None:
        sites = Metadata[Targets].from_bytes(self._required(SITES)).signed
        if sites.delegations is None or self._paths.role not in (sites.delegations.roles or {}):
            raise OperatorError(
                "authority.no_such_site",
                f"The consortium knows no hospital {self._site!r}.",
                next_step="Have it added with `seh-provision site add`.",
            )
        role = sites.get_delegated_role(self._paths.role)
        foreign = [signer for signer in self._signers if signer.public_key.keyid not in role.keyids]
        if foreign or len(self._signers) < role.threshold:
            raise OperatorError(
                "authority.not_the_sites_key",
                f"{role.threshold} of the keys that the consortium knows of {self._site} must sign; "
                f"{len(self._signers) - len(foreign)} of those here {'is one' if len(self._signers) == 1 else 'are'}.",
                next_step=f"Use the key that {self._site} was added with.",
            )

    def _read(self, role: Targets, path: str) -> bytes:
        return self._source.target(role.targets[path])

    def _required(self, name: str) -> bytes:
        data = self._source.role(name)
        if data is None:
            raise OperatorError(
                "authority.not_founded",
                f"The repository has no metadata of {name}.",
                next_step="Found the consortium with `seh-provision consortium init` first.",
            )
        return data


class LocalSource:
    """The repository in the authority's own directory.

    Args:
        files: The directory.
    """

    def __init__(self, files: RepositoryFiles) -> None:
        self._files = files
        self._state = files.load()

    @property
    def root_digest(self) -> str:
        """SHA-256 of the first root metadata, hex."""
        return self._state.root_digest

    @property
    def sites(self) -> tuple[SiteID, ...]:
        """Hospitals that belong to the consortium, sorted."""
        data = self._state.roles.get(SITES)
        return () if data is None else tuple(delegated_sites(Metadata[Targets].from_bytes(data).signed))

    def keys(self, site: SiteID) -> tuple[Key, ...]:
        """The keys that a hospital's role is signed with."""
        sites = Metadata[Targets].from_bytes(self._state.roles[SITES]).signed
        role = sites.get_delegated_role(SitePaths(site).role)
        return tuple(sites.get_key(keyid) for keyid in role.keyids)

    def role(self, name: str) -> bytes | None:
        """Newest metadata of a targets role."""
        return self._state.roles.get(name)

    def target(self, target: TargetFile) -> bytes:
        """A target file."""
        return self._files.target(target.path, target.hashes["sha256"])


def _unfit(steward: StewardFile, what: str) -> OperatorError:
    return OperatorError(
        "authority.unfit_steward",
        f"The key of {steward.steward} {what}, so it can decide nothing.",
        next_step="Make a key of its own for each steward: `seh-provision steward new`.",
    )


def _not_ours(record: NodeFile | StewardFile) -> OperatorError:
    return OperatorError(
        "authority.another_site",
        f"That record belongs to {record.site}, which signs its own.",
        next_step="Name the right hospital.",
    )
