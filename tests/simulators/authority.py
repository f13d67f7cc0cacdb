"""A consortium founded for a test, with every key at hand, and boxes that read its repository over HTTP."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, Signer
from tuf.ngclient import Updater

from agent.core.clock import Clock
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind, key_id
from agent.trust.delegations import SITES
from agent.trust.fetcher import BoundedFetcher
from agent.trust.peers import node_name
from agent.trust.records import NodeFile, public_pem
from agent.trust.repository import TrustRepository, bootstrap
from agent.trust.snapshot import Environment, TrustSnapshot
from provisioning.authority.ceremony import Ceremony, add_site
from provisioning.authority.consortium import COSIGNER_STATE, Founding, FoundingPlan
from provisioning.authority.cosigner import Cosigner
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner, OnlineSigner, add_signatures
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import Proposal, parse_proposal
from provisioning.authority.roles import RoleKeys
from provisioning.authority.signers import elliptic_key, listed_key
from provisioning.authority.site import LocalSource, SiteDesk, StagedSite
from tests.simulators.clock import SetClock

PASSPHRASES = ("one organisation's long passphrase", "another organisation's long passphrase")


def plan(**changes: Any) -> FoundingPlan:  # noqa: ANN401 - any part of a plan
    """One organisation's test consortium, unless told otherwise."""
    fields: dict[str, Any] = {
        "id": "consortium-a",
        "name": "Consortium A",
        "registrar": "127.0.0.1:8443",
        "superlink": "127.0.0.1:9092",
        "environment": Environment.TEST,
        "minimum_evidence": "none",
    }
    return FoundingPlan.model_validate(fields | changes)


def no_secrets(what: str) -> str:
    """Nobody is there to be asked."""
    raise AssertionError(f"asked for the {what}")


@dataclass
class FoundedConsortium:
    """The authority's directory, and hospitals with keys in memory.

    Args:
        layout: The directory.
        clock: Of everybody.
        online: The organisations' online keys.
    """

    layout: AuthorityLayout
    clock: Clock
    online: Sequence[OnlineSigner]
    sites: dict[str, list[Signer]] = field(default_factory=dict)
    cosigner: Cosigner | None = None

    @classmethod
    def found(cls, directory: Path, clock: Clock | None = None, **changes: Any) -> FoundedConsortium:  # noqa: ANN401 - the same
        """Found it; its keys lie open."""
        clock = clock or SetClock(datetime.now(UTC))
        Founding(AuthorityLayout(directory), plan(**changes), (), no_secrets, clock).run(lambda _: None)
        return cls.reopen(directory, clock)

    @classmethod
    def reopen(cls, directory: Path, clock: Clock | None = None) -> FoundedConsortium:
        """One that was founded before; hospitals' keys are not at hand."""
        layout, clock = AuthorityLayout(directory), clock or SetClock(datetime.now(UTC))
        online: list[OnlineSigner] = [LocalOnlineSigner(Keyring(layout, no_secrets).open("file:keys/online.pem"))]
        consortium = cls(layout, clock, online)
        if layout.second_organisation.path.exists():
            consortium.cosigner = consortium.start_cosigner()
            online.append(DirectCosigner(consortium))
        return consortium

    def start_cosigner(self, clock: Clock | None = None) -> Cosigner:
        """The second organisation's, from what it remembers."""
        second = self.layout.second_organisation
        key = Keyring(second, no_secrets).open("file:keys/online.pem")
        return Cosigner(second.path / COSIGNER_STATE, key, clock or self.clock)

    @property
    def publisher(self) -> Publisher:
        """As the registrar has one."""
        return Publisher(self.layout, self.online, self.clock)

    @property
    def ceremony(self) -> Ceremony:
        """With every offline key at hand."""
        return Ceremony(self.layout, Keyring(self.layout, no_secrets), self.publisher, self.clock)

    def role_signers(self, role: str) -> list[Signer]:
        """Both keys of an offline role."""
        second = "organisation-2/" if self.cosigner is not None else ""
        places = (f"file:keys/{role}-1.pem", f"file:{second}keys/{role}-2.pem")
        return [Keyring(self.layout, no_secrets).open(uri) for uri in places]

    def add_site(self, name: str, *signers: Signer) -> SiteDesk:
        """Take a hospital in; it has signed nothing yet."""
        own = list(signers) or [new_signer()]
        keys = RoleKeys(tuple(listed_key(elliptic_key(signer.public_key)) for signer in own), len(own))
        self.ceremony.change(SITES, add_site(SiteID(name), keys))
        self.sites[name] = own
        return self.desk(name)

    def desk(self, name: str, *signers: Signer) -> SiteDesk:
        """The hospital's desk at the newest state."""
        own = list(signers) or self.sites[name]
        return SiteDesk(SiteID(name), LocalSource(self.publisher.files), own, self.clock)

    def publish(self, staged: StagedSite) -> None:
        """Publish what a hospital signed."""
        self.publisher.publish_site(staged.site, staged.metadata, staged.targets)

    def enrol(self, site: str, **changes: Any) -> NodeFile:  # noqa: ANN401 - any part of a record
        """Put a box on record."""
        node = new_node(site, enrolled=self.clock.now(), **changes)
        self.publish(self.desk(site).endorse(node))
        return node

    @contextmanager
    def box(self, directory: Path, clock: Clock | None = None) -> Iterator[TrustRepository]:
        """A box that reads the repository over HTTP, and was pinned to this consortium."""
        clock = clock or self.clock
        root = (self.layout.repository / "1.root.json").read_bytes()
        bootstrap(directory, root, self.publisher.load().root_digest)
        with served(self.layout.repository) as url:
            fetcher = BoundedFetcher(clock)
            try:
                with TrustRepository(directory, url, fetcher, clock) as repository:
                    yield repository
            finally:
                fetcher.close()

    def read(self, directory: Path) -> TrustSnapshot:
        """What a new box reads."""
        with self.box(directory) as box:
            return box.refresh()

    def stock_client(self, directory: Path, url: str) -> Updater:
        """python-tuf's own client, pinned to this consortium."""
        directory.mkdir(exist_ok=True)
        root = (self.layout.repository / "1.root.json").read_bytes()
        return Updater(str(directory), url, target_base_url=url, target_dir=str(directory), bootstrap=root)


@dataclass(frozen=True, slots=True)
class DirectCosigner:
    """The cosigner without a network between; what reaches it is bytes all the same."""

    consortium: FoundedConsortium

    def sign(self, proposal: Proposal) -> Proposal:
        """As `CosignerLine.sign`."""
        assert self.consortium.cosigner is not None
        made = self.consortium.cosigner.cosign(parse_proposal(proposal.encode()))
        return add_signatures(proposal, snapshot=made.snapshot, timestamp=made.timestamp)


def new_signer() -> CryptoSigner:
    """A P-256 key in memory."""
    return CryptoSigner(ec.generate_private_key(ec.SECP256R1()))


def new_node(site: str, **changes: Any) -> NodeFile:  # noqa: ANN401 - any part of a record
    """A box's record with a new key."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    fields: dict[str, Any] = {
        "site": site,
        "node": node_name(key_id(key)),
        "kind": KeyKind.SOFTWARE,
        "evidence": "none",
        "public_key": public_pem(key),
        "link_key": public_pem(key),
        "enrolled": datetime.now(UTC),
    }
    return NodeFile.model_validate(fields | changes)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory over HTTP; gives the URL."""
    handler: Callable[..., _Quiet] = functools.partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
