"""Attacks on what a box keeps of the trust repository: full disks, power cuts, a second process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import SecureHealthError
from agent.statements.roots import key_id
from tests.simulators.repository import (
    new_signer,
)
from tests.simulators.trust_scene import A, B, Scene, trust_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as made:
        yield made


# Whoever pulls the plug, and disks that are full.


class PowerCutError(BaseException):
    """Nothing after this happens."""


class Disk:
    """Fails at one of the operations that put something on it: files made, synced, or named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], BaseException], *, after: bool) -> None:
        self.left = -1
        self._failure = failure
        self._after = after
        for module, name in ((os, "replace"), (os, "fsync"), (tempfile, "NamedTemporaryFile"), (os, "symlink")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))

    def _failing(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the operation takes
            self.left -= 1
            if self.left == 0 and not self._after:
                raise self._failure()
            result = operation(*arguments, **named)
            if self.left == 0:
                raise self._failure()
            return result

        return call


def test_disk_full_at_each_write(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, lambda: OSError(errno.ENOSPC, "No space left on device"), after=False)
    scene.site.revoke(scene.key)
    scene.publish_site()
    codes = []
    for step in range(1, 100):
        disk.left = step
        before = scene.box.current()
        try:
            scene.box.refresh()
        except SecureHealthError as error:
            codes.append(error.code)
            assert scene.box.current() is before
            disk.left = -1
            known = scene.restarted()
            assert known == before or known.timestamp_version == scene.repository.timestamp.version
            continue
        break
    assert len(codes) > 8
    assert set(codes) == {"trust.not_stored"}
    assert scene.restarted().sites[A].revoked == {key_id(scene.key)}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("lost", [False, True], ids=["cache-kept", "cache-lost"])
def test_power_cut_between_writes(scene: Scene, monkeypatch: pytest.MonkeyPatch, *, after: bool, lost: bool) -> None:
    disk = Disk(monkeypatch, PowerCutError, after=after)
    scene.site.move_to(new_signer())
    scene.site.revoke(scene.key)
    scene.publish_site()
    cuts, versions = 0, [scene.box.current().timestamp_version]
    for step in range(1, 100):
        disk.left = step
        try:
            scene.box.refresh()
        except PowerCutError:
            cuts += 1
            disk.left = -1
            for path in (scene.directory / "tuf").rglob("*.json") if lost else ():
                path.write_bytes(b"")  # what was never synced is gone
            snapshot = scene.restarted()
            versions.append(snapshot.timestamp_version)
            assert set(snapshot.sites) == {A, B}
            assert bool(snapshot.sites[A].revoked) == (snapshot.timestamp_version == scene.repository.timestamp.version)
            continue
        break
    assert cuts > 8
    assert versions == sorted(versions)
    assert scene.box.refresh().sites[A].revoked == {key_id(scene.key)}
    assert not list((scene.directory / "tuf").glob("tmp*"))


def test_two_processes(scene: Scene) -> None:
    program = (
        "import sys; from pathlib import Path; from agent.trust.store import TrustStore\n"
        "try: TrustStore(Path(sys.argv[1]))\n"
        "except Exception as error: print(error.code)\n"
    )
    command = [sys.executable, "-c", program, str(scene.directory)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "trust.in_use\n"
    scene.box.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    scene.restarted()
