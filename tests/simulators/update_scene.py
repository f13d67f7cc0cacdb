"""A maker with two releases, and a box that runs the older one: where updates, and attacks on them, begin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.errors import SecureHealthError
from agent.statements.release import Release, Version
from agent.trust.fetcher import BoundedFetcher, FetchLimits
from agent.update.box import Box
from agent.update.channel import Audience, Running
from agent.update.delta import Base
from agent.update.handover import Handover, parse_handover
from agent.update.repository import ReleaseRepository
from agent.update.updater import UpdateFolder, Updater
from agent.update.window import parse_window
from tests.simulators.clock import SetClock
from tests.simulators.release_repository import PlayedReleases, ServedReleases, new_image, served_releases

OLD, NEW = "1.3.0", "1.4.0"
OLD_IMAGE, NEW_IMAGE = new_image(1), new_image(2)
WINDOW = parse_window("02:00-05:00")
LIMITS = FetchLimits(step_s=4.0, start_s=3.0)  # a busy machine is no slow sender


@dataclass(slots=True)
class UpdateScene:
    """The maker, its server, and the box.

    Args:
        folder: The updater's directory.
        clock: Of all of them.
        maker: The repository.
        server: Serves it.
        box: What runs on the box.
        root: Root metadata that the box's package brought.
        limits: How long a file may take.
        pauses: How long the updater waited between attempts.
        told: What it said of its progress.
    """

    folder: UpdateFolder
    clock: SetClock
    maker: PlayedReleases
    server: ServedReleases
    box: Box
    root: bytes
    limits: FetchLimits = LIMITS
    pauses: list[float] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def updater(self) -> Iterator[Updater]:
        """The updater, as its unit starts it."""
        fetcher = BoundedFetcher(RealTime(self.clock), limits=self.limits)
        try:
            with self.folder.held():
                repository = ReleaseRepository(self.folder.trust, self.server.url, self.root, fetcher, self.clock)
                yield Updater(
                    self.folder,
                    repository,
                    self.box,
                    self.clock,
                    wait=self.pauses.append,
                    progress=lambda done, total: self.told.append((done, total)),
                )
        finally:
            fetcher.close()

    def run(self, *, automatic: bool = True) -> Version | None:
        """One call of the timer."""
        with self.updater() as updater:
            return updater.run("stable", WINDOW, automatic=automatic)

    def refused(self) -> str:
        """The code with which a run is refused; nothing is handed over, and the refusal is noted."""
        before = self.handed_over()
        with pytest.raises(SecureHealthError) as failure:
            self.run()
        assert self.handed_over() == before
        assert self.folder.load_state().code == failure.value.code
        return failure.value.code

    def handed_over(self) -> Handover | None:
        """What the slot tool would find."""
        ready = self.folder.incoming.path / "ready"
        return parse_handover(ready.read_bytes()) if ready.exists() else None

    def image(self, version: str = NEW) -> bytes:
        """The image that the slot tool would find."""
        return (self.folder.incoming.path / version / "app.raw").read_bytes()

    def change_box(self, *, site: str | None = "hospital-a", key_id: str | None = "k", epoch: int = 1) -> None:
        """Another box."""
        running = replace(self.box.running, epoch=epoch)
        self.box = replace(self.box, audience=Audience(site, key_id), running=running)

    def without_delta(self) -> Release:
        """The newer release without its delta."""
        self.maker.releases.targets.pop(f"releases/{NEW}/from-{OLD}.zst")
        release = self.maker.add_release(NEW, NEW_IMAGE)
        self.maker.sign_all()
        return release


class RealTime:
    """Limits of time are held by the machine's own clock; dates by the scene's."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()

    def monotonic_s(self) -> float:
        return time.monotonic()


@contextmanager
def update_scene(directory: Path) -> Iterator[UpdateScene]:
    """A maker that offers 1.4.0 to all, and a box with 1.3.0."""
    clock = SetClock(datetime.now(UTC))
    maker = PlayedReleases.found_maker(clock)
    maker.add_release(OLD, OLD_IMAGE)
    maker.add_release(NEW, NEW_IMAGE, base=(OLD, OLD_IMAGE))
    maker.offer("stable", (OLD, 100), (NEW, 100))
    base = directory / "current.raw"
    base.write_bytes(OLD_IMAGE + bytes(4096))  # a slot is longer than what it holds
    box = Box(Running(Version.parse(OLD), 1), Base(base, len(OLD_IMAGE)), Audience("hospital-a", "k"), maker.keys)
    folder = UpdateFolder(directory / "update")
    with served_releases(maker) as server:
        yield UpdateScene(folder, clock, maker, server, box, maker.files["1.root.json"])
