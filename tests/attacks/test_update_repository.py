"""Attacks on updates by whoever serves the release repository, stands on the way, or holds some of its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from agent.statements.release import Version
from agent.trust.channels import Channel, Offer, bucket_of, channel_path
from agent.trust.fetcher import FetchLimits
from agent.update.channel import Running
from agent.update.download import FRUITLESS_ATTEMPTS, LEAST_SHARE
from tests.simulators.release_repository import Misbehaviour, make_delta, new_image, release_of, signed_record
from tests.simulators.repository import delegate, new_signer, sign
from tests.simulators.update_scene import NEW, NEW_IMAGE, OLD, OLD_IMAGE, UpdateScene, update_scene

DAY_S = 86_400
OTHER_FILE = {"trust.altered_file", "trust.oversize_file"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[UpdateScene]:
    with update_scene(tmp_path) as made:
        yield made


# Whoever serves the files.


def test_rollback_of_the_repository(scene: UpdateScene) -> None:
    old = dict(scene.maker.files)
    scene.maker.offer("stable", (NEW, 0))
    assert scene.run() is None
    scene.maker.files = old
    assert scene.refused() == "trust.wrong_version"


@pytest.mark.parametrize("lost", ["timestamp.json", "*.json"])
def test_rollback_after_a_power_cut_took_the_cache(scene: UpdateScene, lost: str) -> None:
    old = dict(scene.maker.files)
    scene.maker.offer("stable", (NEW, 0))
    scene.run()
    for path in (scene.folder.trust / "tuf").glob(lost):
        path.unlink()
    scene.maker.files = old
    assert scene.refused() in {"update.rolled_back", "trust.wrong_version"}


def test_freeze(scene: UpdateScene) -> None:
    assert scene.run() is not None
    scene.clock.move(2 * DAY_S)
    assert scene.refused() == "trust.expired"


def test_timestamp_that_counts_for_long(scene: UpdateScene) -> None:
    scene.maker.publish_timestamp(lasts=timedelta(days=30))
    assert scene.refused() == "trust.bad_repository"


def test_freeze_behind_a_clock_that_was_set_back(scene: UpdateScene) -> None:
    old = dict(scene.maker.files)
    scene.clock.move(3 * DAY_S)
    scene.maker.offer("stable", (NEW, 0))
    scene.run()
    scene.clock.set_wall(-3 * DAY_S)
    # The keys of the online roles are new, so that versions alone do not show that this is the past.
    for path in (scene.folder.trust / "tuf").glob("*.json"):
        path.unlink()
    seen = json.loads((scene.folder.trust / "seen.json").read_bytes())
    for role in seen["roles"].values():
        role["keys"] = "0" * 64
    (scene.folder.trust / "seen.json").write_text(json.dumps(seen))
    scene.maker.files = old
    assert scene.refused() == "trust.expired"


def test_mix_and_match_of_two_states(scene: UpdateScene) -> None:
    version = scene.maker.releases.version
    scene.maker.sign_all()
    scene.maker.files[f"{version + 1}.releases.json"] = scene.maker.files[f"{version}.releases.json"]
    assert scene.refused() in OTHER_FILE


def test_endless_data(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.server.wrong = Misbehaviour(endless=True)
    assert scene.refused() == "update.endless_file"
    assert sum(path.stat().st_size for path in scene.folder.downloads.iterdir()) <= len(NEW_IMAGE)


def test_endless_metadata(scene: UpdateScene) -> None:
    scene.maker.files["timestamp.json"] = bytes(1 << 20)
    assert scene.refused() == "trust.oversize_file"


def test_slow_data(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.limits = FetchLimits(step_s=2.0, start_s=0.3, bytes_per_s=1e6)
    scene.server.wrong = Misbehaviour(byte_every_s=0.01)
    assert scene.refused() == "trust.slow"


def test_data_in_crumbs(scene: UpdateScene) -> None:
    # Each answer brings something, so that none is in vain: the updater would be kept busy for days.
    scene.without_delta()
    scene.server.wrong = Misbehaviour(break_after=len(NEW_IMAGE) // (10 * LEAST_SHARE))
    assert scene.refused() == "trust.unreachable"
    assert len(scene.pauses) <= FRUITLESS_ATTEMPTS


def test_altered_delta_costs_only_the_delta(scene: UpdateScene) -> None:
    served = scene.maker.releases.targets[f"releases/{NEW}/from-{OLD}.zst"].get_prefixed_paths()[0]
    scene.maker.files[served] = bytes(len(scene.maker.files[served]))
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE


def test_signed_delta_that_makes_another_image(scene: UpdateScene) -> None:
    scene.maker.add_release(NEW, new_image(3), base=(OLD, OLD_IMAGE))
    delta = scene.maker.releases.targets[f"releases/{NEW}/from-{OLD}.zst"]
    scene.maker.add_release(NEW, NEW_IMAGE)
    scene.maker.releases.targets[f"releases/{NEW}/from-{OLD}.zst"] = delta
    scene.maker.sign_all()
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE


def test_delta_that_swells(scene: UpdateScene) -> None:
    bomb = make_delta(OLD_IMAGE, bytes(16 << 20))
    assert len(bomb) < len(NEW_IMAGE)
    scene.maker.put(scene.maker.releases, f"releases/{NEW}/from-{OLD}.zst", bomb)
    scene.maker.sign_all()
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE


def test_altered_image(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.server.wrong = Misbehaviour(alter=True)
    assert scene.refused() == "update.altered_file"
    assert list(scene.folder.downloads.iterdir()) == []


# Whoever holds some of the keys.


def test_wrong_threshold(scene: UpdateScene) -> None:
    scene.maker.sign_role("releases", scene.maker.releases, scene.maker.signers["releases"][0])
    scene.maker.publish()
    assert scene.refused() == "trust.not_signed"


def test_one_key_that_signs_twice(scene: UpdateScene) -> None:
    releases = scene.maker.releases
    releases.version += 1
    metadata = Metadata(releases)
    data = json.loads(sign(metadata, scene.maker.signers["releases"][0]))
    data["signatures"].append(data["signatures"][0])
    raw = json.dumps(data).encode()
    scene.maker.files[f"{releases.version}.releases.json"] = raw
    scene.maker.snapshot.meta["releases.json"] = MetaFile.from_data(releases.version, raw, ["sha256"])
    scene.maker.publish()
    assert scene.refused() in {"trust.not_signed", "trust.bad_repository"}


def test_revoked_key(scene: UpdateScene) -> None:
    lost = scene.maker.signers["releases"][0]
    scene.maker.signers["releases"][0] = new_signer()
    delegate(scene.maker.targets, "releases", ["releases/*/*"], scene.maker.signers["releases"], threshold=2)
    scene.maker.sign_targets()
    scene.maker.sign_role("releases", scene.maker.releases, lost, scene.maker.signers["releases"][1])
    scene.maker.publish()
    assert scene.refused() == "trust.not_signed"


def test_unsigned_record(scene: UpdateScene) -> None:
    scene.maker.add_release(NEW, NEW_IMAGE, signers=scene.maker.signers["releases"][:1])
    scene.maker.sign_all()
    assert scene.refused() == "update.unsigned_release"


def test_record_signed_by_strangers(scene: UpdateScene) -> None:
    scene.maker.add_release(NEW, NEW_IMAGE, signers=[new_signer(), new_signer()])
    scene.maker.sign_all()
    assert scene.refused() == "update.unsigned_release"


def test_record_of_another_image(scene: UpdateScene) -> None:
    record = signed_record(release_of(NEW, new_image(9)), scene.maker.signers["releases"][:2])
    scene.maker.put(scene.maker.releases, f"releases/{NEW}/release.json", record)
    scene.maker.sign_all()
    assert scene.refused() == "update.other_image"


def test_record_of_an_older_release_under_a_new_name(scene: UpdateScene) -> None:
    record = signed_record(release_of(OLD, OLD_IMAGE), scene.maker.signers["releases"][:2])
    scene.maker.put(scene.maker.releases, f"releases/{NEW}/release.json", record)
    scene.maker.sign_all()
    assert scene.refused() == "update.other_release"


def test_channels_role_names_an_unsigned_release(scene: UpdateScene) -> None:
    scene.maker.offer("stable", ("1.5.0", 100))
    assert scene.refused() == "update.not_listed"


@pytest.mark.parametrize("path", ["releases/1.5.0/release.json", "releases/1.5.0/app.raw", "channels/../releases/x"])
def test_channels_role_lists_a_release_itself(scene: UpdateScene, path: str) -> None:
    image = new_image(5)
    record = signed_record(release_of("1.5.0", image), scene.maker.signers["channels"])
    scene.maker.put(scene.maker.channels, path, record)
    scene.maker.offer("stable", ("1.5.0", 100))
    assert scene.refused() == "update.not_listed"


def test_channels_role_offers_an_older_release(scene: UpdateScene) -> None:
    scene.box = replace(scene.box, running=Running(Version.parse("2.0.0"), 1))
    assert scene.run() is None
    assert scene.handed_over() is None


def test_release_below_the_floor(scene: UpdateScene) -> None:
    scene.change_box(epoch=2)
    assert scene.refused() == "update.below_floor"


def test_top_level_targets_that_list_a_release_past_its_threshold(scene: UpdateScene) -> None:
    path = f"releases/{NEW}/app.raw"
    scene.maker.targets.targets[path] = TargetFile.from_data(path, new_image(7), ["sha256"])
    scene.maker.sign_targets()
    scene.maker.publish()
    assert scene.refused() == "trust.bad_repository"


def test_channel_in_the_place_of_another(scene: UpdateScene) -> None:
    data = Channel(channel="candidate", releases=(Offer(version=NEW, percentage=100, sites=("*",)),)).encode()
    scene.maker.put(scene.maker.channels, channel_path("stable"), data)
    scene.maker.sign_all()
    assert scene.refused() == "update.bad_channel"


# Who was away.


def test_root_rotated_while_the_box_was_off(scene: UpdateScene) -> None:
    assert scene.run(automatic=False) is None
    for _ in range(3):
        before = scene.maker.signers["root"]
        scene.maker.signers |= {name: [new_signer(), new_signer()] for name in ("root", "targets", "timestamp")}
        scene.maker.publish_root(*before, *scene.maker.signers["root"])
    scene.clock.move(400 * DAY_S)
    scene.maker.publish_root()
    scene.maker.sign_targets()
    scene.maker.sign_all()
    assert scene.run() == Version.parse(NEW)


def test_root_rotated_without_the_old_quorum(scene: UpdateScene) -> None:
    scene.maker.signers["root"] = [new_signer(), new_signer()]
    scene.maker.publish_root()
    assert scene.refused() == "trust.not_signed"


def test_downgraded_updater_does_not_begin_anew(scene: UpdateScene) -> None:
    """What a newer release remembers in a form of its own is not thrown away by an older one."""
    scene.run(automatic=False)
    (scene.folder.trust / "seen.json").write_text('{"format": "secur-e-health/releases-seen/2"}')
    assert scene.refused() == "update.bad_memory"


def test_who_is_not_meant_is_not_reached(scene: UpdateScene) -> None:
    scene.maker.offer("stable", (NEW, 100), sites=("hospital-b",))
    assert scene.run() is None
    percentage = bucket_of("k", NEW)
    scene.maker.offer("stable", (NEW, percentage))
    assert scene.run() is None
    scene.change_box(site=None, key_id=None)
    scene.maker.offer("stable", (NEW, 99))
    assert scene.run() is None
    scene.change_box()
    scene.maker.offer("stable", (NEW, percentage + 1))
    assert scene.run() == Version.parse(NEW)


def test_signed_long_ago(scene: UpdateScene) -> None:
    """A timestamp that counts for long does not keep the roles below it alive."""
    scene.clock.move(366 * DAY_S)
    scene.maker.publish_timestamp(lasts=timedelta(days=1))
    assert scene.refused() == "trust.expired"


# Whoever broke into the agent, and wants no update.


def test_disk_filled_up_while_a_release_is_installed(scene: UpdateScene) -> None:
    assert scene.run() == Version.parse(NEW)
    assert scene.run() is None
    # The slot tool could not write, and the same request is not made to it for ever.
    (scene.folder.incoming.path / "ready").unlink()
    assert scene.run() == Version.parse(NEW)
    assert scene.handed_over() is not None
    assert scene.image() == NEW_IMAGE
