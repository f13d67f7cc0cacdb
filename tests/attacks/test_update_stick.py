"""Sticks that bring updates, and those that bring something else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from agent.core.errors import SecureHealthError
from agent.core.fat import DescriptorDevice
from agent.statements.release import Release, Version
from agent.trust.channels import UPDATE_LABEL
from agent.update.channel import Running
from agent.update.handover import Handover
from agent.update.stick import take_from_stick
from tests.simulators.release_repository import make_delta, new_image, release_of, signed_record
from tests.simulators.repository import new_signer
from tests.simulators.stick import make_stick
from tests.simulators.update_scene import NEW, NEW_IMAGE, OLD, OLD_IMAGE, WINDOW, UpdateScene, update_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[UpdateScene]:
    with update_scene(tmp_path) as made:
        yield made


@pytest.fixture
def stick(scene: UpdateScene, tmp_path: Path) -> Callable[..., Path]:
    """Makes a stick with 1.4.0, or what a test puts in its place."""

    def make(
        release: Release | None = None,
        signers: Sequence[CryptoSigner] | None = None,
        **files: bytes | None,
    ) -> Path:
        record = signed_record(release or release_of(NEW, NEW_IMAGE), signers or scene.maker.signers["releases"][:2])
        content = {"release.json": record, "app.raw": NEW_IMAGE} | {
            name.replace("__", "-").replace("_", "."): data for name, data in files.items()
        }
        kept = {name: data for name, data in content.items() if data is not None}
        return make_stick(tmp_path / "stick.img", kept, label=UPDATE_LABEL)

    return make


def take(scene: UpdateScene, path: Path) -> Release:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return take_from_stick(DescriptorDevice(descriptor), scene.folder, scene.box, WINDOW)
    finally:
        os.close(descriptor)


def refused(scene: UpdateScene, path: Path) -> str:
    with pytest.raises(SecureHealthError) as failure:
        take(scene, path)
    assert scene.handed_over() is None
    assert scene.folder.load_state().code == failure.value.code
    left = [entry for entry in scene.folder.path.rglob("*") if entry.is_file()]
    assert {entry.name for entry in left} <= {"lock", "updater.json"}
    return failure.value.code


def test_a_stick_brings_a_release(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    assert take(scene, stick()).version == Version.parse(NEW)
    assert scene.handed_over() == Handover("install", NEW, WINDOW)
    assert scene.image() == NEW_IMAGE
    assert take(scene, stick(app_raw=None)).version == Version.parse(NEW)


def test_a_stick_brings_a_delta(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    path = stick(app_raw=None, **{f"from__{OLD.replace('.', '_')}_zst": make_delta(OLD_IMAGE, NEW_IMAGE)})
    assert take(scene, path).version == Version.parse(NEW)
    assert scene.image() == NEW_IMAGE
    assert not (scene.folder.path / "stick.zst").exists()


def test_a_stick_with_an_older_release(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    release = release_of("1.2.0", new_image(7))
    assert refused(scene, stick(release, app_raw=new_image(7))) == "update.not_newer"


def test_a_stick_with_the_release_that_runs(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    assert refused(scene, stick(release_of(OLD, OLD_IMAGE), app_raw=OLD_IMAGE)) == "update.not_newer"


def test_a_stick_with_a_release_below_the_floor(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    scene.box = replace(scene.box, running=Running(Version.parse(OLD), 2))
    assert refused(scene, stick()) == "update.below_floor"


def test_a_stick_that_too_few_signed(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    assert refused(scene, stick(signers=scene.maker.signers["releases"][:1])) == "update.unsigned_release"
    assert refused(scene, stick(signers=[new_signer(), new_signer()])) == "update.unsigned_release"


@pytest.mark.parametrize("image", [new_image(9), NEW_IMAGE[:-4096], b""])
def test_a_stick_with_another_image(scene: UpdateScene, stick: Callable[..., Path], image: bytes) -> None:
    assert refused(scene, stick(app_raw=image)) == "update.other_image"


def test_a_stick_with_an_image_that_does_not_end(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    assert refused(scene, stick(app_raw=NEW_IMAGE + bytes(1 << 20))) == "stick.file_too_large"


def test_a_stick_with_an_altered_delta_needs_the_whole_image(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    delta = {f"from__{OLD.replace('.', '_')}_zst": bytes(1000)}
    assert refused(scene, stick(app_raw=None, **delta)) == "stick.no_file"
    assert take(scene, stick(**delta)).version == Version.parse(NEW)


@pytest.mark.parametrize("record", [b"", b"{}", b"[" * 9999, bytes(65536), None])
def test_a_stick_without_a_record(scene: UpdateScene, stick: Callable[..., Path], record: bytes | None) -> None:
    assert refused(scene, stick(release_json=record)) in {"update.bad_record", "stick.no_file"}


def test_a_stick_while_a_release_is_on_trial(scene: UpdateScene, stick: Callable[..., Path]) -> None:
    scene.box = replace(scene.box, on_trial=True)
    assert refused(scene, stick()) == "update.on_trial"
