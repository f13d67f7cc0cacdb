"""An update on its way: by delta or whole, over a bad line, onto a full disk, asked for by a person."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from agent.core.errors import HardwareError, NetworkError, OperatorError
from agent.statements.release import Version
from agent.update.download import FRUITLESS_ATTEMPTS, SPARE_BYTES
from agent.update.handover import Handover
from tests.simulators.release_repository import Misbehaviour
from tests.simulators.superlink import wait_until
from tests.simulators.update_scene import NEW, NEW_IMAGE, OLD, WINDOW, UpdateScene, update_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[UpdateScene]:
    with update_scene(tmp_path) as made:
        yield made


def test_the_timer_brings_a_release_by_its_delta_and_only_once(scene: UpdateScene) -> None:
    assert scene.run() == Version.parse(NEW)
    assert scene.handed_over() == Handover("install", NEW, WINDOW)
    assert scene.image() == NEW_IMAGE
    assert scene.server.asked_for("app.raw") == []
    assert scene.run() is None
    state = scene.folder.load_state()
    assert (state.offered, state.code) == (NEW, "")
    assert not scene.folder.downloads.exists()


def test_a_release_that_was_given_up_is_not_brought_again(scene: UpdateScene) -> None:
    scene.box = replace(scene.box, failed=Version.parse(NEW))
    assert scene.run() is None
    with scene.updater() as updater:
        assert updater.take_named("stable", None, None) == Version.parse(NEW)


def test_a_release_that_waits_for_its_window_is_not_brought_again(scene: UpdateScene) -> None:
    scene.run()
    (scene.folder.incoming.path / "ready").unlink()
    scene.box = replace(scene.box, staged=Version.parse(NEW))
    assert scene.run() is None


def test_a_release_that_is_halted_while_it_waits_for_its_window_is_let_go(scene: UpdateScene) -> None:
    scene.run()
    scene.box = replace(scene.box, staged=Version.parse(NEW))
    scene.maker.offer("stable", (OLD, 100), (NEW, 100), halted=(NEW,))
    assert scene.run(automatic=False) is None
    assert scene.handed_over() == Handover("drop", NEW)


def test_nothing_is_taken_while_a_release_is_on_trial(scene: UpdateScene) -> None:
    scene.box = replace(scene.box, on_trial=True)
    assert scene.run() is None
    with scene.updater() as updater, pytest.raises(OperatorError, match="on trial"):
        updater.take_named("stable", None, None)


def test_what_is_installed_is_cleared_away(scene: UpdateScene) -> None:
    scene.run()
    scene.box = replace(scene.box, running=replace(scene.box.running, version=Version.parse(NEW)))
    assert scene.run() is None
    assert [path.name for path in scene.folder.incoming.path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("lost", ["app.raw", "release.json"])
def test_what_a_power_cut_left_half_is_brought_again(scene: UpdateScene, lost: str) -> None:
    scene.run()
    (scene.folder.incoming.path / NEW / lost).unlink()
    (scene.folder.incoming.path / "ready").unlink()
    (scene.folder.path / "updater.json").unlink()
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE
    assert (scene.folder.incoming.path / NEW / "release.json").exists()
    assert scene.handed_over() == Handover("install", NEW, WINDOW)


def test_a_person_decides_where_the_box_is_not_to(scene: UpdateScene) -> None:
    assert scene.run(automatic=False) is None
    assert scene.folder.load_state().offered == NEW
    with scene.updater() as updater:
        assert updater.take_named("stable", Version.parse(NEW), None) == Version.parse(NEW)
    assert scene.handed_over() == Handover("install", NEW, None)


def test_a_pin_holds_the_box_back(scene: UpdateScene) -> None:
    scene.folder.store_pin(Version.parse("1.3.5"))
    assert scene.run() is None
    scene.folder.store_pin(None)
    assert scene.run() == Version.parse(NEW)


def test_a_release_is_asked_for_by_name_past_its_percentage_but_not_past_a_halt(scene: UpdateScene) -> None:
    scene.maker.offer("stable", (NEW, 0))
    with scene.updater() as updater:
        with pytest.raises(OperatorError, match="does not offer it"):
            updater.take_named("stable", Version.parse("1.9.0"), None)
        assert updater.take_named("stable", Version.parse(NEW), None) == Version.parse(NEW)


def test_one_instance_at_a_time(scene: UpdateScene) -> None:
    with scene.updater(), pytest.raises(OperatorError) as refused:
        scene.run()
    assert refused.value.code == "update.in_use"


# The line.


def test_a_line_that_breaks_every_few_kibibytes(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.server.wrong = Misbehaviour(break_after=40_000)
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE
    spans = scene.server.asked_for("app.raw")
    assert spans == ["", *(f"bytes={start}-" for start in range(40_000, len(NEW_IMAGE), 40_000))]
    assert len(scene.pauses) == len(spans) - 1
    done = [place for place, _ in scene.told]
    assert (done, scene.told[-1]) == (sorted(done), (len(NEW_IMAGE), len(NEW_IMAGE)))


def test_a_line_that_stays_broken_is_given_up_and_gone_on_with_next_time(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.server.wrong = Misbehaviour(break_after=100_000, ignore_range=True)
    with pytest.raises(NetworkError):
        scene.run()
    assert len(scene.pauses) == FRUITLESS_ATTEMPTS
    scene.server.wrong = Misbehaviour()
    assert scene.run() == Version.parse(NEW)
    assert scene.server.asked_for("app.raw")[-1] == "bytes=100000-"


def test_a_server_that_ignores_range(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.server.wrong = Misbehaviour(break_after=100_000)
    with scene.updater() as updater:
        scene.pauses.append(0)
        updater.look("stable")
    scene.server.wrong = Misbehaviour(ignore_range=True)
    (target,) = [target for path, target in scene.maker.releases.targets.items() if path == f"releases/{NEW}/app.raw"]
    scene.folder.downloads.mkdir()
    part = scene.folder.downloads / f"{target.hashes['sha256']}.partial"
    part.write_bytes(NEW_IMAGE[:100_000])
    assert scene.run() == Version.parse(NEW)
    assert scene.server.asked_for("app.raw") == ["bytes=100000-"]
    assert scene.image() == NEW_IMAGE


# The disk and the power.


def test_a_disk_that_is_too_full_is_seen_before_the_first_byte(
    scene: UpdateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(scene.folder.path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SPARE_BYTES + 1000))
    assert scene.refused() == "update.disk_full"
    assert scene.server.asked_for("app.raw") == scene.server.asked_for(f"from-{OLD}.zst") == []


def test_a_disk_that_fills_up_on_the_way_gets_its_space_back(
    scene: UpdateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.without_delta()

    def full(stream: BinaryIO, chunks: Iterator[bytes], *_: object) -> None:
        stream.write(next(chunks))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.update.download._write", full)
        with pytest.raises(HardwareError) as refused:
            scene.run()
    assert refused.value.code == "update.not_stored"
    assert list(scene.folder.downloads.iterdir()) == []
    assert scene.run() == Version.parse(NEW)


def _run_and_report(scene: UpdateScene) -> None:
    scene.run()


def test_killed_in_mid_download_it_goes_on_where_it_was(scene: UpdateScene) -> None:
    scene.without_delta()
    scene.limits = replace(scene.limits, start_s=60.0)
    scene.server.wrong = Misbehaviour(stall_after=100_000)
    child = multiprocessing.get_context("fork").Process(target=_run_and_report, args=(scene,))
    child.start()
    pid = child.pid
    assert pid is not None
    wait_until(lambda: _size(scene.folder.downloads) == 100_000, limit_s=20, what="a part of the image")
    os.kill(pid, signal.SIGKILL)
    child.join()
    assert scene.handed_over() is None
    scene.server.wrong = Misbehaviour()
    scene.server.go_on.set()
    assert scene.run() == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE
    assert scene.server.asked_for("app.raw") == ["", "bytes=100000-"]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.partial"))
