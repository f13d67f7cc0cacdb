"""What the authority publishes is what a box reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Delegations, Metadata, Targets
from tuf.ngclient import FetcherInterface

from agent.core.errors import PeerProtocolError
from agent.statements.roots import KeyKind, key_id
from agent.trust.delegations import ROLE_KEYS_FIELD, SITES, role_keys
from agent.trust.peers import node_name
from agent.trust.records import CONSORTIUM_TARGET, NodeFile, SitePaths, public_pem
from agent.trust.repository import TrustRepository, bootstrap
from agent.trust.snapshot import Environment
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import Change
from provisioning.authority.roles import (
    DELEGATED,
    RoleKeys,
    delegate,
    new_role,
    new_root,
    new_sites,
    new_targets,
    next_version,
    sign,
)
from provisioning.authority.site import LocalSource, SiteDesk
from tests.simulators.clock import SetClock
from tests.simulators.repository import URL, consortium, new_signer, public_key
from tests.simulators.trust_scene import DAY_S, A, new_key

PATHS = SitePaths(A)


@dataclass(slots=True)
class Shelf(FetcherInterface):
    """Serves a directory."""

    directory: Path

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.directory / url.removeprefix(URL)
        if not path.exists():
            raise DownloadHTTPError(f"{url} is not there", 404)
        return iter((path.read_bytes(),))


@dataclass(slots=True)
class Pair:
    """An authority and a box.

    Args:
        offline: Keys of the offline roles, two of which sign each.
        publisher: Of the authority.
        box: Pinned to its root.
        clock: Of both.
    """

    offline: dict[str, list[CryptoSigner]]
    publisher: Publisher
    box: TrustRepository
    clock: SetClock
    site_key: CryptoSigner = field(default_factory=new_signer)

    @property
    def desk(self) -> SiteDesk:
        return SiteDesk(A, LocalSource(self.publisher.files), [self.site_key], self.clock)

    def sites(self, *keys: CryptoSigner) -> bytes:
        """The `sites` role's next version, which names these keys of hospital A; without any, it is taken out."""
        sites = self.next_version(SITES)
        delegations = sites.signed.delegations = Delegations({}, {})
        assert delegations.roles is not None
        if keys:
            named = RoleKeys(tuple(key.public_key for key in keys), len(keys))
            delegations.roles[PATHS.role] = delegate(PATHS.role, named, PATHS.patterns)
            delegations.keys.update({key.public_key.keyid: key.public_key for key in keys})
        return sign(sites, self.offline[SITES]).to_bytes()

    def publish_sites(self, *keys: CryptoSigner) -> None:
        """Publish it."""
        self.publisher.publish_role(SITES, self.sites(*keys), {})

    def endorse(self) -> NodeFile:
        """Hospital A puts a new box on record."""
        key = new_key()
        node = NodeFile(
            site=A,
            node=node_name(key_id(key)),
            kind=KeyKind.TPM,
            evidence="hardware",
            public_key=public_pem(key),
            link_key=public_pem(key),
            enrolled=self.clock.now(),
        )
        staged = self.desk.endorse(node)
        self.publisher.publish_site(A, staged.metadata, staged.targets)
        return node

    def next_version(self, role: str) -> Metadata[Targets]:
        return next_version(self.publisher.load().roles[role], role=role, now=self.clock.now())


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    clock = SetClock(datetime.now(UTC))
    now = clock.now()
    offline = {name: [new_signer(), new_signer()] for name in ("root", "targets", *DELEGATED)}
    online = [new_signer(), new_signer()]
    keys = {
        name: RoleKeys(tuple(signer.public_key for signer in signers), 2)
        for name, signers in (offline | {"timestamp": online, "snapshot": online}).items()
    }
    top = {name: keys[name] for name in ("root", "targets", "snapshot", "timestamp")}
    root = sign(new_root(top, Environment.PRODUCTION, version=1, now=now), offline["root"]).to_bytes()
    files = {CONSORTIUM_TARGET: consortium().encode()}
    made = {"targets": new_targets({name: keys[name] for name in DELEGATED}, files, now=now), SITES: new_sites(now=now)}
    made |= {name: new_role(name, now=now) for name in DELEGATED if name != SITES}
    roles = {name: sign(metadata, offline[name]).to_bytes() for name, metadata in made.items()}
    layout = AuthorityLayout(tmp_path / "authority")
    publisher = Publisher(layout, [LocalOnlineSigner(signer) for signer in online], clock)
    state = publisher.publish(Change((root,), roles, files))
    bootstrap(tmp_path / "box", root, state.root_digest)
    with TrustRepository(tmp_path / "box", URL, Shelf(layout.repository), clock) as box:
        yield Pair(offline, publisher, box, clock)


def test_hospital_is_taken_in_signs_and_is_taken_out(pair: Pair) -> None:
    assert pair.box.refresh().sites == {}
    pair.publish_sites(pair.site_key)
    assert pair.box.refresh().set_aside.keys() == {A}
    node = pair.endorse()
    assert pair.box.refresh().node(node.root.key_id, site=A) == node
    staged = pair.desk.revoke(node.root.key_id, "lost")
    pair.publisher.publish_site(A, staged.metadata, staged.targets)
    assert pair.box.refresh().node(node.root.key_id, site=A) is None
    pair.publish_sites()
    snapshot = pair.box.refresh()
    assert not snapshot.sites
    assert not snapshot.set_aside
    pair.publish_sites(pair.site_key)
    assert pair.box.refresh().sites[A].revoked == {node.root.key_id}


def test_hospital_that_was_taken_out_publishes_no_more(pair: Pair) -> None:
    pair.publish_sites(pair.site_key)
    pair.endorse()
    staged = pair.desk.stage()
    pair.publish_sites()
    with pytest.raises(PeerProtocolError):
        pair.publisher.publish_site(A, staged.metadata, staged.targets)
    assert not pair.box.refresh().sites


def test_hospital_moves_to_another_key(pair: Pair) -> None:
    """It names its next key under the old one; then the consortium does; then the new key signs."""
    pair.publish_sites(pair.site_key)
    node, successor = pair.endorse(), new_signer()
    pair.box.refresh()
    announcement = pair.next_version(PATHS.role)
    announcement.signed.unrecognized_fields[ROLE_KEYS_FIELD] = role_keys([public_key(successor)], 1)
    pair.publisher.publish_site(A, sign(announcement, [pair.site_key]).to_bytes(), {})
    pair.site_key = successor
    role = sign(pair.next_version(PATHS.role), [successor]).to_bytes()
    pair.publisher.publish(Change(roles={SITES: pair.sites(successor), PATHS.role: role}))
    assert pair.box.refresh().sites[A].keys == (public_key(successor),)
    assert pair.endorse().node != node.node
    assert len(pair.box.refresh().sites[A].nodes) == 2


def test_repository_lives_on(pair: Pair) -> None:
    """Refreshed each day, it is read for months without any offline key."""
    pair.publish_sites(pair.site_key)
    pair.endorse()
    for _ in range(30):
        pair.clock.move(DAY_S - 60)
        pair.publisher.refresh_online()
        assert pair.box.refresh().is_current(pair.box.now_s())
    assert pair.box.current().sites[A].nodes
