"""A consortium's trust repository in memory that is its own fetcher, and obeys whoever holds it: honest or not.

repository = PlayedRepository.found(clock)
site = repository.add_site("hospital-a")
site.add_node(...)
repository.publish()
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import DownloadHTTPError
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
from tuf.ngclient import FetcherInterface

from agent.core.clock import Clock
from agent.statements.roots import KeyKind, key_id
from agent.trust.delegations import ROLE_KEYS_FIELD, role_keys
from agent.trust.peers import node_name
from agent.trust.records import (
    CONSORTIUM_TARGET,
    ConsortiumRecord,
    EvidenceTerms,
    NodeFile,
    Revocation,
    RevocationsFile,
    ServerRecord,
    SitePaths,
    parse_public_pem,
    public_pem,
)
from agent.trust.repository import TrustRepository, bootstrap

URL = "https://registrar.example:8443/repository/"
DAY = timedelta(days=1)
LASTS: Mapping[str, timedelta] = {"timestamp": DAY, "snapshot": 7 * DAY, "site": 90 * DAY, "root": 730 * DAY}
YEAR = 365 * DAY


def new_signer(key: ec.EllipticCurvePrivateKey | None = None, keyid: str | None = None) -> CryptoSigner:
    """A P-256 key that signs metadata."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid))


def public_key(signer: CryptoSigner) -> ec.EllipticCurvePublicKey:
    """Its public half."""
    return parse_public_pem(signer.public_key.keyval["public"])


def sign(metadata: Metadata[Any], *signers: CryptoSigner) -> bytes:
    """Sign with these keys alone."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


@dataclass(slots=True)
class PlayedSite:
    """A hospital's own hands: its key and what it signs."""

    repository: PlayedRepository
    name: str
    signers: list[CryptoSigner]
    role: Targets
    revoked: list[Revocation] = field(default_factory=list)

    @property
    def paths(self) -> SitePaths:
        return SitePaths(self.name)

    def add_node(self, key: ec.EllipticCurvePublicKey, **changes: object) -> NodeFile:
        """Endorse a box."""
        pem = public_pem(key)
        fields: dict[str, object] = {
            "site": self.name,
            "node": node_name(key_id(key)),
            "kind": KeyKind.TPM,
            "evidence": "hardware",
            "public_key": pem,
            "link_key": pem,
            "enrolled": self.repository.clock.now(),
        }
        node = NodeFile.model_validate(fields | changes)
        self.put(self.paths.node(node.node), node.encode())
        return node

    def revoke(self, key: ec.EllipticCurvePublicKey) -> None:
        """Revoke a box's key."""
        self.revoked.append(Revocation(key_id=key_id(key), reason="lost", revoked=self.repository.clock.now()))
        self.put(self.paths.revocations, RevocationsFile(site=self.name, revocations=tuple(self.revoked)).encode())

    def put(self, path: str, data: bytes) -> None:
        """List a file, and lay it where it is fetched from."""
        self.repository.put(self.role, path, data)

    def sign(self, *signers: CryptoSigner) -> None:
        """Sign the next version, with the site's own keys unless told otherwise."""
        self.role.version += 1
        self.role.expires = self.repository.clock.now().replace(microsecond=0) + LASTS["site"]
        self.repository.store_role(self.paths.role, self.role, *(signers or self.signers))

    def announce(self, *successors: CryptoSigner, threshold: int = 1) -> None:
        """Name the keys that shall sign from the next version on."""
        keys = [public_key(signer) for signer in successors]
        self.role.unrecognized_fields[ROLE_KEYS_FIELD] = role_keys(keys, threshold)

    def move_to(self, *successors: CryptoSigner, threshold: int = 1) -> None:
        """Change keys as a hospital should: the old ones say who comes after them."""
        self.announce(*successors, threshold=threshold)
        before, self.signers = self.signers, list(successors)
        self.repository.delegate_site(self.name, *successors, threshold=threshold)
        self.sign(*before, *successors)


class PlayedRepository(FetcherInterface):
    """The whole repository, and every key of the consortium.

    Attributes:
        clock: Of whoever signs.
        signers: Keys by role.
        files: What is served, by path below the URL.
        requests: What was asked for.
        interfere: Called with each path before it is served; it may return other bytes, or raise.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.signers: dict[str, list[CryptoSigner]] = {
            "root": [new_signer(), new_signer()],
            "timestamp": [new_signer(), new_signer()],
            "snapshot": [new_signer(), new_signer()],
            "targets": [new_signer()],
            "sites": [new_signer(), new_signer()],
            "studies": [new_signer(), new_signer()],
        }
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.interfere: Callable[[str], bytes | None] = lambda _: None
        self.root = Root(expires=self.in_(LASTS["root"]), unrecognized_fields={"environment": "production"})
        self.root.version = 0
        self.timestamp = Timestamp()
        self.timestamp.version = 0
        self.snapshot = Snapshot(meta={})
        self.snapshot.version = 0
        self.targets, self.sites, self.studies = Targets(), Targets(), Targets()
        for role in (self.targets, self.sites, self.studies):
            role.version = 0
        self.played: dict[str, PlayedSite] = {}

    @classmethod
    def found(cls, clock: Clock, *, environment: str = "production") -> Self:
        """Found a consortium without hospitals."""
        repository = cls(clock)
        repository.root.unrecognized_fields["environment"] = environment
        repository.publish_root()
        repository.targets.delegations = Delegations({}, {})
        repository.sites.delegations = Delegations({}, {})
        delegate(repository.targets, "sites", ["sites/*/*"], repository.signers["sites"], threshold=2)
        delegate(repository.targets, "studies", ["studies/*/*"], repository.signers["studies"], threshold=2)
        repository.put(repository.targets, CONSORTIUM_TARGET, consortium().encode())
        repository.sign_role("studies", repository.studies)
        repository.sign_sites()
        repository.sign_targets()
        repository.publish()
        return repository

    @property
    def root_digest(self) -> str:
        """As an enrolment token names it."""
        return hashlib.sha256(self.files["1.root.json"]).hexdigest()

    def in_(self, time: timedelta) -> datetime:
        """So long from now."""
        return self.clock.now().replace(microsecond=0) + time

    def client(
        self, directory: Path, clock: Clock | None = None, fetcher: FetcherInterface | None = None
    ) -> TrustRepository:
        """A box that is pinned to this consortium."""
        bootstrap(directory, self.files["1.root.json"], self.root_digest)
        return TrustRepository(directory, URL, fetcher or self, clock or self.clock)

    def publish_root(self, *signers: CryptoSigner) -> None:
        """Sign the next root version, by default with all keys of `root`."""
        self.root.version += 1
        self.root.expires = self.in_(LASTS["root"])
        names = ("root", "timestamp", "snapshot", "targets")
        keys = [(name, signer.public_key) for name in names for signer in self.signers[name]]
        self.root.keys = {key.keyid: key for _, key in keys}
        self.root.roles = {
            name: Role([key.keyid for owner, key in keys if owner == name], min(2, len(self.signers[name])))
            for name in names
        }
        data = sign(Metadata(self.root), *(signers or self.signers["root"]))
        self.files[f"{self.root.version}.root.json"] = data

    def add_site(self, name: str, *signers: CryptoSigner) -> PlayedSite:
        """Take a hospital in; it has signed nothing yet."""
        own = list(signers) or [new_signer()]
        self.delegate_site(name, *own)
        role = Targets()
        role.version = 0
        self.played[name] = PlayedSite(self, name, own, role)
        return self.played[name]

    def delegate_site(self, name: str, *signers: CryptoSigner, threshold: int = 1) -> None:
        """Name the keys of a hospital's role."""
        paths = SitePaths(name)
        delegate(self.sites, paths.role, list(paths.patterns), signers, threshold=threshold)
        self.sign_sites()

    def sign_sites(self) -> None:
        """Sign the `sites` role's next version."""
        self.sign_role("sites", self.sites)

    def sign_targets(self) -> None:
        """Sign the top-level targets' next version."""
        self.sign_role("targets", self.targets)

    def sign_role(self, name: str, role: Targets, *signers: CryptoSigner) -> None:
        """Sign a role's next version."""
        role.version += 1
        role.expires = self.in_(YEAR)
        self.store_role(name, role, *(signers or self.signers[name]))

    def store_role(self, name: str, role: Targets, *signers: CryptoSigner) -> None:
        """Serve a role's metadata, and list it in the snapshot to come."""
        data = sign(Metadata(role), *signers)
        self.files[f"{role.version}.{name}.json"] = data
        self.snapshot.meta[f"{name}.json"] = MetaFile.from_data(role.version, data, ["sha256"])

    def put(self, role: Targets, path: str, data: bytes) -> None:
        """List a target file, and lay it where it is fetched from."""
        target = role.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.files[target.get_prefixed_paths()[0]] = data

    def publish(self) -> None:
        """Sign the next snapshot and timestamp."""
        self.publish_snapshot()
        self.publish_timestamp()

    def publish_snapshot(self, *signers: CryptoSigner) -> None:
        """Sign the next snapshot."""
        self.snapshot.version += 1
        self.snapshot.expires = self.in_(LASTS["snapshot"])
        data = sign(Metadata(self.snapshot), *(signers or self.signers["snapshot"]))
        self.files[f"{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])

    def publish_timestamp(self, *signers: CryptoSigner, lasts: timedelta = LASTS["timestamp"]) -> None:
        """Sign the next timestamp."""
        self.timestamp.version += 1
        self.timestamp.expires = self.in_(lasts)
        self.timestamp.unrecognized_fields["issued"] = self.in_(timedelta()).isoformat().replace("+00:00", "Z")
        self.files["timestamp.json"] = sign(Metadata(self.timestamp), *(signers or self.signers["timestamp"]))

    def _fetch(self, url: str) -> Iterator[bytes]:
        assert url.startswith(URL)
        path = url.removeprefix(URL)
        self.requests.append(path)
        data = self.interfere(path)
        if data is None:
            data = self.files.get(path)
        if data is None:
            raise DownloadHTTPError(f"{url} is not there", 404)
        return iter((data,))


def delegate(
    role: Targets,
    name: str,
    paths: list[str],
    signers: list[CryptoSigner] | tuple[CryptoSigner, ...],
    *,
    threshold: int,
) -> None:
    """Delegate to `name`, in place of what was delegated to it before."""
    assert role.delegations is not None
    assert role.delegations.roles is not None
    role.delegations.roles[name] = DelegatedRole(name, [], threshold, terminating=True, paths=paths)
    for signer in signers:
        role.add_key(signer.public_key, name)


def consortium() -> ConsortiumRecord:
    """A consortium's record."""
    server = ServerRecord(address="registrar.example:8443", root_certificates="none")
    key = public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    return ConsortiumRecord(
        id="consortium-a",
        name="Consortium A",
        registrar=server,
        superlink=server,
        registrar_key=key,
        coordinator=key,
        evidence=EvidenceTerms(minimum="virtual", kinds=(KeyKind.TPM, KeyKind.PIV)),
    )
