"""A box's slots, with everything around them played: TPM, service manager, clock, programs of the system."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent.statements.release import Release, Version
from agent.update.floor import Counters, Reading
from agent.update.handover import Handover
from agent.update.installer import Installer, Machine
from agent.update.programs import Run
from agent.update.release import verify_release
from agent.update.slots import Slots
from agent.update.state import SlotName
from agent.update.store import STATE_FILE, StateStore
from agent.update.trial import Limits
from agent.update.volatile import Volatile
from tests.simulators.releases import Publisher
from tests.simulators.verity import BLOCK_BYTES, play_programs, verity_tree

SECRET = bytes(range(32))
QUICK = Limits(ready_s=20, well_s=10, deadline_s=100)


@dataclass
class PlayedCounters:
    """A TPM's counters. `before` is called before each change, so that the power can go there."""

    before: Callable[[], None] = lambda: None
    reading: Reading | None = None
    found: int = 0
    measured: list[str] = field(default_factory=list)

    @property
    def floor(self) -> int:
        assert self.reading is not None
        return self.reading.floor

    @property
    def generation(self) -> int:
        assert self.reading is not None
        return self.reading.generation

    def jump_to(self, floor: int) -> None:
        """Somebody raised the floor."""
        self.reading = Reading(floor, self.generation)

    def read(self) -> Reading | None:
        return self.reading

    def found_floor(self) -> int:
        return self.found

    def define(self, floor: int) -> Reading:
        self.before()
        # As a TPM that had other counters before.
        self.reading = Reading(floor, 1000)
        return self.reading

    def raise_floor(self) -> None:
        self.before()
        self.reading = Reading(self.floor + 1, self.generation)

    def raise_generation(self) -> None:
        self.before()
        self.reading = Reading(self.floor, self.generation + 1)

    def measure(self, root_hash: bytes) -> None:
        self.measured.append(root_hash.hex())


@dataclass
class PlayedServices:
    """A service manager that notes what it is asked."""

    restarts: int = 0
    watching: bool = False

    def restart_agent(self) -> None:
        self.restarts += 1

    def watch(self, on: bool) -> None:
        self.watching = on


class SlotBox:
    """A box.

    Args:
        root: Of its file system.
        publisher: Whose releases it takes.
        counters: Its TPM; None for a box without one.
        run: Programs of the system.
    """

    def __init__(
        self, root: Path, publisher: Publisher, *, counters: Counters | None = None, run: Run = play_programs
    ) -> None:
        self.root = root
        self.publisher = publisher
        self.counters = counters
        self.services = PlayedServices()
        self.now_s = 100
        self.time = datetime(2026, 1, 1, 12, 0)  # noqa: DTZ001 - a time of day
        self._run = run
        for directory in (self.slots, self.incoming, self.payload, self.volatile, self.health.parent):
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def tpm(self) -> PlayedCounters:
        """Of a box that has a played one."""
        assert isinstance(self.counters, PlayedCounters)
        return self.counters

    @property
    def slots(self) -> Path:
        return self.root / "var/lib/secur-e-health-slots"

    @property
    def incoming(self) -> Path:
        return self.root / "var/lib/secur-e-health-update/incoming"

    @property
    def payload(self) -> Path:
        return self.root / "usr/share/secur-e-health/payload"

    @property
    def volatile(self) -> Path:
        return self.root.parent / "run/slots"

    @property
    def health(self) -> Path:
        return self.root.parent / "run/agent/health.json"

    @property
    def state_file(self) -> Path:
        return self.slots / STATE_FILE

    @property
    def installer(self) -> Installer:
        """As a command begins: it knows nothing but what lies on the disk."""
        return Installer(
            Machine(
                slots=Slots(self.slots, self._run),
                store=StateStore(self.state_file, SECRET, self.counters),
                keys=self.publisher.keys,
                counters=self.counters,
                volatile=Volatile(self.volatile),
                health=self.health,
                services=self.services,
                now_s=lambda: self.now_s,
                local_time=lambda: self.time,
            )
        )

    def ship(self, version: str, *, epoch: int = 0) -> Release:
        """Put a release into the package."""
        return self._put(self.payload, version, epoch)

    def deliver(self, version: str, *, epoch: int = 0) -> Release:
        """Put a release where the updater leaves it."""
        return self._put(self.incoming / version, version, epoch)

    def install(self, version: str, *, epoch: int = 0) -> None:
        """Deliver and install it; on trial afterwards."""
        self.deliver(version, epoch=epoch)
        self.installer.install(self.incoming, Handover("install", version))

    def commit(self, version: str, *, superlink: bool | None = True) -> None:
        """Start it, have it be well, and commit it."""
        self.activate()
        self.report(version, superlink=superlink)
        for _ in range(2):
            self.installer.confirm(QUICK)
            self.now_s += QUICK.well_s

    def activate(self) -> Release:
        """As before a start of the agent."""
        return self.installer.activate(self.payload)

    def report(self, version: str, **checks: bool | None) -> None:
        """The agent speaks of its health; well where nothing else is said."""
        found = {"agent": True, "key": True, "superlink": True, "self_test": True} | checks
        fields = {"version": version, "pid": 7, "since_s": self.now_s, "checks": found, "sentence": "-"}
        self.health.write_text(json.dumps(fields))

    def reboot(self) -> None:
        """What lay in memory is gone."""
        for path in (self.health, *self.volatile.iterdir()):
            path.unlink(missing_ok=True)

    def running(self) -> str:
        """The version to which `current` points, whose bytes are all held against its signed root hash."""
        name = SlotName(str((self.slots / "current").readlink()))
        slots = Slots(self.slots, self._run)
        record = slots.record(name)
        assert record is not None
        release = verify_release(record, self.publisher.keys)
        slots.verify(name, release)
        return str(release.version)

    def _put(self, directory: Path, version: str, epoch: int) -> Release:
        directory.mkdir(parents=True, exist_ok=True)
        release, image = make_release(version, epoch)
        (directory / "app.raw").write_bytes(image)
        (directory / "release.json").write_bytes(self.publisher.record(release))
        return release


def make_release(version: str, epoch: int = 0, blocks: int = 9) -> tuple[Release, bytes]:
    """A release and its image: noise, another for each version, of a few blocks more or less."""
    dice = random.Random(version)
    image = dice.randbytes(BLOCK_BYTES * (blocks + dice.randrange(4)))
    salt = hashlib.sha256(version.encode()).digest()
    root_hash, _ = verity_tree(image, salt)
    digest = hashlib.sha256(image).hexdigest()
    return Release(Version.parse(version), epoch, digest, len(image), root_hash, salt.hex(), "0" * 40, 1), image
