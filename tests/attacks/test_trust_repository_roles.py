"""Attacks on the trust repository by whoever holds roles of the consortium, or of a hospital."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Delegations, Targets

from agent.core.errors import SecureHealthError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.delegations import MAX_SITES, MAX_TARGETS, ROLE_KEYS_FIELD, role_keys
from agent.trust.repository import bootstrap
from agent.trust.site_records import MAX_NODES_PER_SITE, MAX_SITE_BYTES
from tests.simulators.repository import (
    DAY,
    PlayedRepository,
    delegate,
    new_signer,
    public_key,
)
from tests.simulators.trust_scene import DAY_S, A, B, Scene, new_key, trust_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as made:
        yield made


# Whoever holds roles of the consortium itself, or a hospital's.


def test_site_signs_another_sites_node(scene: Scene) -> None:
    scene.site.put(scene.other.paths.node("invented"), b"{}")
    scene.publish_site()
    assert scene.refused() == "trust.foreign_file"


@pytest.mark.parametrize("name", ["targets", "sites", "studies"])
def test_another_role_lists_a_sites_node(scene: Scene, name: str) -> None:
    repository = scene.repository
    role: Targets = getattr(repository, name)
    repository.put(role, scene.site.paths.node("invented"), b"{}")
    repository.sign_role(name, role)
    repository.publish()
    assert scene.refused() == "trust.foreign_file"


@pytest.mark.parametrize("name", ["extra", "site-hospital-a"])
def test_role_that_no_consortium_has(scene: Scene, name: str) -> None:
    repository, signer = scene.repository, new_signer()
    delegate(repository.targets, name, ["sites/*/nodes/*/*"], [signer], threshold=1)
    repository.sign_targets()
    repository.sign_role(name, Targets(expires=repository.in_(DAY)), signer)
    repository.publish()
    assert scene.refused() == "trust.bad_repository"


@pytest.mark.parametrize("paths", [["sites/*/*"], ["sites/hospital-b/nodes/*/*"], []])
def test_site_delegated_with_other_paths(scene: Scene, paths: list[str]) -> None:
    repository = scene.repository
    delegate(repository.sites, scene.site.paths.role, paths, scene.site.signers, threshold=1)
    repository.sign_sites()
    repository.publish()
    assert scene.refused() == "trust.bad_repository"


def test_site_delegates_further(scene: Scene) -> None:
    scene.site.role.delegations = Delegations({}, {})
    delegate(scene.site.role, "sub", ["sites/hospital-a/*"], [new_signer()], threshold=1)
    scene.publish_site()
    assert "delegates to further roles" in scene.set_aside()


def test_one_of_two_keys_of_the_sites_role(scene: Scene) -> None:
    repository = scene.repository
    repository.sign_role("sites", repository.sites, repository.signers["sites"][0], new_signer())
    repository.publish()
    assert scene.refused() == "trust.not_signed"


def test_one_of_two_keys_of_a_site(scene: Scene) -> None:
    first, second = new_signer(), new_signer()
    scene.site.move_to(first, second, threshold=2)
    scene.repository.publish()
    assert len(scene.box.refresh().sites[A].keys) == 2
    scene.publish_site(first)
    assert "was signed by 1/2 keys" in scene.set_aside()


def test_one_key_under_two_ids(scene: Scene) -> None:
    """A threshold of two is no threshold where both keys are one."""
    key = ec.generate_private_key(ec.SECP256R1())
    twins = [new_signer(key, "0" * 64), new_signer(key, "1" * 64)]
    site = scene.repository.add_site("hospital-c")
    scene.repository.delegate_site(site.name, *twins, threshold=2)
    site.sign(*twins)
    scene.repository.publish()
    assert "keys that no hospital signs with" in scene.box.refresh().set_aside[SiteID(site.name)]


def test_site_key_swapped_without_the_old_key(scene: Scene) -> None:
    thief = new_signer()
    scene.repository.delegate_site(A, thief)
    scene.site.add_node(new_key())
    scene.publish_site(thief)
    assert "did not say so with its old ones" in scene.set_aside()


def test_site_key_swapped_beside_an_old_signature(scene: Scene) -> None:
    """What the old key signed says nothing about new keys; a stranger's signature put beside it changes nothing."""
    thief = new_signer()
    scene.site.sign()
    scene.repository.delegate_site(A, thief)
    scene.repository.store_role(scene.site.paths.role, scene.site.role, *scene.site.signers, thief)
    scene.repository.publish()
    assert "did not say so with its old ones" in scene.set_aside()
    scene.site.add_node(new_key())
    scene.publish_site(thief)
    assert "did not say so with its old ones" in scene.set_aside()


def test_site_key_swapped_by_a_statement_of_the_new_key(scene: Scene) -> None:
    thief = new_signer()
    scene.site.role.unrecognized_fields[ROLE_KEYS_FIELD] = role_keys([public_key(thief)], 1)
    scene.repository.delegate_site(A, thief)
    scene.publish_site(thief)
    assert "did not say so with its old ones" in scene.set_aside()


def test_site_key_swapped_then_put_back(scene: Scene) -> None:
    """A hospital that was set aside counts again once its own key speaks for it."""
    scene.repository.delegate_site(A, thief := new_signer())
    scene.publish_site(thief)
    scene.set_aside()
    scene.repository.delegate_site(A, *scene.site.signers)
    scene.publish_site()
    assert set(scene.box.refresh().sites) == {A, B}


def test_expired_site_excludes_that_site_only(scene: Scene) -> None:
    scene.clock.move(91 * DAY_S)
    scene.other.sign()
    scene.repository.publish()
    assert "what hospital-a signed has expired" in scene.set_aside()


def test_hospital_takes_anothers_key(scene: Scene) -> None:
    """Hospital B can neither take a box of A over, nor revoke it, nor have it left out."""
    scene.other.add_node(scene.key)
    scene.other.revoke(scene.key)
    scene.other.sign()
    scene.repository.publish()
    snapshot, stolen = scene.box.refresh(), key_id(scene.key)
    assert snapshot.view(A).records[stolen].site == A
    assert stolen not in snapshot.view(A).revoked
    assert snapshot.node(stolen, site=A) is not None
    assert snapshot.node(stolen, site=B) is None
    assert snapshot.view(B).records[stolen].site == B
    assert stolen in snapshot.view(B).revoked


def test_root_rotated_without_both_quorums(scene: Scene) -> None:
    repository, old = scene.repository, scene.repository.signers["root"]
    repository.signers["root"] = new = [new_signer(), new_signer()]
    for signers in ([*new], [*old], [old[0], *new], [*old, new[0]]):
        repository.publish_root(*signers)
        repository.root.version -= 1
        assert scene.refused() == "trust.not_signed"
    repository.publish_root(*old, *new)
    assert scene.box.refresh().root_version == 2


def test_environment_switched(scene: Scene) -> None:
    scene.repository.root.unrecognized_fields["environment"] = "test"
    scene.repository.publish_root()
    assert scene.refused() == "trust.other_environment"
    scene.repository.root.unrecognized_fields["environment"] = "production"
    scene.repository.publish_root()
    assert scene.refused() == "trust.other_environment"


def test_too_many_delegations(scene: Scene) -> None:
    repository = scene.repository
    for number in range(MAX_SITES):
        delegate(repository.sites, f"site-{number}", ["x"], scene.site.signers, threshold=1)
    repository.sign_sites()
    repository.publish()
    assert scene.refused() == "trust.bad_repository"


def test_too_many_targets(scene: Scene) -> None:
    for number in range(MAX_TARGETS + 1):
        scene.site.put(f"sites/hospital-a/{number}", b"")
    scene.publish_site()
    assert f"more than {MAX_TARGETS} files" in scene.set_aside()


def test_too_many_nodes(scene: Scene) -> None:
    for number in range(MAX_NODES_PER_SITE + 1):
        scene.site.put(scene.site.paths.node(str(number)), b"{}")
    scene.publish_site()
    assert f"more than {MAX_NODES_PER_SITE} files" in scene.set_aside()


def test_hospital_that_would_fill_the_others_disks(scene: Scene) -> None:
    for number in range(3):
        scene.site.put(scene.site.paths.node(str(number)), bytes(MAX_SITE_BYTES // 2))
    scene.publish_site()
    assert f"larger than {MAX_SITE_BYTES} bytes" in scene.set_aside()
    assert (scene.directory / "trusted.cbor").stat().st_size < MAX_SITE_BYTES


def test_more_than_a_box_keeps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.trust.repository.MAX_FETCHED_BYTES", 10_000)
    for _ in range(20):
        scene.site.add_node(new_key())
    scene.publish_site()
    assert scene.refused() == "trust.bad_repository"


def test_record_under_another_name(scene: Scene) -> None:
    node = scene.site.add_node(new_key())
    scene.site.put(scene.site.paths.node("another"), node.encode())
    scene.publish_site()
    assert "names another hospital, box or person" in scene.set_aside()


def test_token_for_another_root(scene: Scene, tmp_path: Path) -> None:
    stranger = PlayedRepository.found(scene.clock)
    with pytest.raises(SecureHealthError) as failure:
        bootstrap(tmp_path / "new", stranger.files["1.root.json"], scene.repository.root_digest)
    assert failure.value.code == "trust.wrong_root"
    assert not (tmp_path / "new").exists()
    with pytest.raises(SecureHealthError) as failure:
        bootstrap(scene.directory, stranger.files["1.root.json"], stranger.root_digest)
    assert failure.value.code == "trust.other_root"
    assert scene.restarted().root_digest == scene.repository.root_digest


# A year away.


def test_root_rotated_several_times_while_the_box_was_off_for_a_year(scene: Scene) -> None:
    repository = scene.repository
    for _ in range(5):
        scene.clock.move(73 * DAY_S)
        old = repository.signers["root"]
        repository.signers["root"] = [new_signer(), new_signer()]
        repository.publish_root(*old, *repository.signers["root"])
        scene.site.move_to(new_signer())
        scene.site.sign()
        scene.other.sign()
        repository.sign_targets()
        repository.publish()
    scene.restarted()
    snapshot = scene.box.refresh()
    assert snapshot.root_version == 6
    assert set(snapshot.sites) == {A, B}
    assert snapshot.sites[A].keys == (public_key(scene.site.signers[0]),)
    assert scene.restarted() == snapshot


def test_site_key_swapped_while_the_box_was_off(scene: Scene) -> None:
    scene.site.move_to(new_signer())
    scene.repository.publish()
    scene.repository.delegate_site(A, thief := new_signer())
    scene.publish_site(thief)
    scene.restarted()
    assert "did not say so with its old ones" in scene.set_aside()
