"""A consortium of two hospitals, and a box that has read its trust repository once: where attacks on it begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner

from agent.core.errors import SecureHealthError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.repository import TrustRepository
from agent.trust.snapshot import TrustSnapshot
from tests.simulators.clock import SetClock
from tests.simulators.repository import DAY, URL, PlayedRepository, PlayedSite, new_signer

A, B = SiteID("hospital-a"), SiteID("hospital-b")
DAY_S = int(DAY.total_seconds())


def new_key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


@dataclass(slots=True)
class Scene:
    """A consortium of two hospitals with a box each, and a box that has read its repository once."""

    directory: Path
    clock: SetClock
    repository: PlayedRepository
    box: TrustRepository
    site: PlayedSite
    other: PlayedSite
    key: ec.EllipticCurvePublicKey

    def refused(self) -> str:
        """The code with which the box refuses what is there now; the state before stays, after a restart too."""
        before = self.box.current()
        with pytest.raises(SecureHealthError) as failure:
            self.box.refresh()
        assert self.box.current() is before
        assert self.restarted() == before
        return failure.value.code

    def set_aside(self) -> str:
        """Why the box leaves hospital A out, when all else is well; it still does after a restart."""
        snapshot = self.box.refresh()
        assert set(snapshot.sites) == {B}
        assert snapshot.node(key_id(self.key), site=A) is None
        assert key_id(self.key) not in snapshot.view(A).records
        assert self.restarted() == snapshot
        return snapshot.set_aside[A]

    def restarted(self) -> TrustSnapshot:
        """What the box knows after a restart, without any network."""
        self.box.close()
        self.box = TrustRepository(self.directory, URL, self.repository, self.clock)
        return self.box.load()

    def publish_site(self, *signers: CryptoSigner) -> None:
        """Hospital A signs its next version, and the registrar publishes it."""
        self.site.sign(*signers)
        self.repository.publish()

    def change_online_keys(self) -> None:
        """The root gives the online roles new keys, as after a theft."""
        repository = self.repository
        repository.signers |= {name: [new_signer(), new_signer()] for name in ("timestamp", "snapshot")}
        repository.publish_root()


@contextmanager
def trust_scene(directory: Path, *, environment: str = "production") -> Iterator[Scene]:
    """Found the consortium; the box keeps what it reads in `directory`."""
    clock = SetClock(datetime.now(UTC))
    repository = PlayedRepository.found(clock, environment=environment)
    key = new_key()
    site, other = repository.add_site(A), repository.add_site(B)
    site.add_node(key)
    other.add_node(new_key())
    site.sign()
    other.sign()
    repository.publish()
    box = repository.client(directory)
    assert set(box.refresh().sites) == {A, B}
    scene = Scene(directory, clock, repository, box, site, other, key)
    try:
        yield scene
    finally:
        scene.box.close()
