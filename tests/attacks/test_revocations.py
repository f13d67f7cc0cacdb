"""Revocations are to be undone: by a thief of a hospital's key, or by its own tools, shown a state from before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.errors import PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.pins import MAX_REVOKED, Pins, SitePin
from agent.trust.records import RevocationsFile, SitePaths
from tests.simulators.authority import FoundedConsortium
from tests.simulators.repository import new_signer
from tests.simulators.trust_scene import A, Scene, new_key, trust_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as made:
        yield made


def assert_out(scene: Scene) -> None:
    key = key_id(scene.key)
    for snapshot in (scene.box.refresh(), scene.restarted()):
        assert key in snapshot.sites[A].revoked
        assert snapshot.node(key, site=A) is None
        assert key in snapshot.view(A).revoked


def test_revocation_is_left_out_of_the_next_version(scene: Scene) -> None:
    scene.site.revoke(scene.key)
    scene.publish_site()
    assert_out(scene)
    del scene.site.role.targets[scene.site.paths.revocations]
    scene.publish_site()
    assert_out(scene)


def test_registrar_restored_from_a_backup_has_the_same_version_signed_without_the_revocation(scene: Scene) -> None:
    scene.site.revoke(scene.key)
    scene.publish_site()
    assert_out(scene)
    del scene.site.role.targets[scene.site.paths.revocations]
    scene.site.role.version -= 1
    scene.publish_site()
    assert_out(scene)


def test_revocation_is_left_out_after_the_box_and_its_record_were_taken_away(scene: Scene) -> None:
    scene.site.revoke(scene.key)
    scene.publish_site()
    assert_out(scene)
    listed = dict(scene.site.role.targets)
    scene.site.role.targets.clear()
    scene.publish_site()
    assert scene.box.refresh().sites[A].nodes == ()
    scene.site.role.targets |= {path: target for path, target in listed.items() if path.endswith("/node.json")}
    scene.publish_site()
    assert_out(scene)


def test_revocation_is_left_out_once_the_hospital_has_other_keys(scene: Scene) -> None:
    scene.site.revoke(scene.key)
    scene.publish_site()
    assert_out(scene)
    del scene.site.role.targets[scene.site.paths.revocations]
    scene.site.move_to(new_signer())
    scene.repository.publish()
    assert_out(scene)


def test_revocations_without_end_push_none_out() -> None:
    pins = Pins().with_site(A, SitePin(keys=("-",), threshold=1, version=1)).with_revoked(A, [key_id(new_key())])
    (first,) = pins.sites[A].revoked
    pins = pins.with_revoked(A, [f"{number:064x}" for number in range(MAX_REVOKED + 10)])
    assert pins.sites[A].revoked[0] == first
    assert len(pins.sites[A].revoked) == MAX_REVOKED


@pytest.mark.parametrize("emptied", [False, True])
def test_revocation_is_taken_back_at_the_registrar(tmp_path: Path, *, emptied: bool) -> None:
    consortium = FoundedConsortium.found(tmp_path / "authority")
    consortium.add_site(A)
    node = consortium.enrol(A)
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "Stolen."))
    path, desk = SitePaths(A).revocations, consortium.desk(A)
    staged = desk.stage({path: RevocationsFile(site=A).encode()}) if emptied else desk.stage(removed=[path])
    before = consortium.publisher.load()
    with pytest.raises(PeerProtocolError, match="cannot come back"):
        consortium.publisher.publish_site(SiteID(A), staged.metadata, staged.targets)
    assert consortium.publisher.load() == before
