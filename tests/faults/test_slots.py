"""Power cuts and full disks at every step of an update: the box always comes up with a whole release that may run."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.core.errors import SecureHealthError
from agent.update.handover import Handover
from agent.update.state import TRIES, parse_state
from tests.simulators.disk import LossyDisk
from tests.simulators.power import Moments, PowerCutError, disk_full, struck
from tests.simulators.releases import Publisher
from tests.simulators.slots import SECRET, PlayedCounters, SlotBox

pytestmark = pytest.mark.slow

RUNS = 200
"""Half of them on a box with a TPM."""
AGENT_FILES = {"identity/key": b"key", "catalog.toml": b"[data]", "journal": b"rounds" * 1000}


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def memory() -> Iterator[Path]:
    """Hundreds of boxes are written, and no disk has to keep one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="module", params=[True, False], ids=["tpm", "no tpm"])
def origin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, publisher: Publisher) -> SlotBox:
    """A box with 1.0.0 in one slot and 1.1.0, committed, in the other, and an agent's state; each run has a copy."""
    counters = PlayedCounters() if request.param else None
    box = SlotBox(tmp_path_factory.mktemp("origin") / "root", publisher, counters=counters)
    for name, content in AGENT_FILES.items():
        path = box.root / "var/lib/secur-e-health" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    box.ship("1.0.0")
    box.installer.init(box.payload)
    box.install("1.1.0")
    box.commit("1.1.0")
    for version, epoch in (("1.2.0", 0), ("1.3.0", 2), ("1.4.0", 2)):
        box.deliver(version, epoch=epoch)
    return box


def copy_of(origin: SlotBox, tmp_path: Path) -> SlotBox:
    shutil.copytree(origin.root, tmp_path / "root", symlinks=True)
    counters = None if origin.counters is None else PlayedCounters(reading=origin.counters.read())
    return SlotBox(tmp_path / "root", origin.publisher, counters=counters)


def run_through(box: SlotBox) -> None:
    """An update that is committed, a person's way back, one with a new epoch, and one that fails: all steps."""
    box.installer.install(box.incoming, Handover("install", "1.2.0"))
    box.commit("1.2.0")
    box.installer.rollback()
    box.activate()
    box.installer.install(box.incoming, Handover("install", "1.3.0"))
    box.commit("1.3.0")
    box.installer.install(box.incoming, Handover("install", "1.4.0"))
    box.activate()
    box.installer.fail()
    box.activate()


@contextmanager
def striking(
    box: SlotBox, monkeypatch: pytest.MonkeyPatch, at: int | None, strike: Callable[[], BaseException] = PowerCutError
) -> Iterator[Moments]:
    """Strike at the disk and, as the power goes for both, at the TPM."""
    with struck(monkeypatch, at, strike) as moments:
        if box.counters is not None and strike is PowerCutError:
            box.tpm.before = moments.pass_one
        yield moments
    if box.counters is not None:
        box.tpm.before = lambda: None


def count_moments(
    box: SlotBox, monkeypatch: pytest.MonkeyPatch, strike: Callable[[], BaseException] = PowerCutError
) -> int:
    with LossyDisk(box.root).watched(monkeypatch), striking(box, monkeypatch, None, strike) as moments:
        run_through(box)
    return moments.count


def check_whole(box: SlotBox) -> None:
    """A release that may run runs, the state is the tool's own, and nobody touched the agent's."""
    box.activate()
    assert box.running() in {"1.1.0", "1.2.0", "1.3.0", "1.4.0"}
    parse_state(box.state_file.read_bytes(), SECRET)
    for name, content in AGENT_FILES.items():
        assert (box.root / "var/lib/secur-e-health" / name).read_bytes() == content


def check_goes_on(box: SlotBox) -> None:
    """Whatever was interrupted, the next update goes through."""
    while box.installer.status()["phase"] == "trial":
        box.installer.fail()
        box.activate()
    box.install("2.0.0", epoch=2)
    box.commit("2.0.0")
    assert (box.running(), box.installer.status()["phase"]) == ("2.0.0", "steady")


def test_power_cuts(memory: Path, origin: SlotBox, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = count_moments(copy_of(origin, memory / "count"), monkeypatch)
    for seed in range(RUNS // 2):
        dice = random.Random(seed)
        box = copy_of(origin, memory / str(seed))
        disk = LossyDisk(box.root)
        with disk.watched(monkeypatch):
            # Some boxes lose their power again as soon as they come up.
            for at in (dice.randrange(moments), dice.randrange(60), None)[: dice.choice((1, 3))]:
                cut(box, disk, monkeypatch, at, dice)
            check_whole(box)
            check_goes_on(box)
        shutil.rmtree(memory / str(seed))


def test_a_trial_on_a_full_disk_is_counted_and_given_up(origin: SlotBox, memory: Path) -> None:
    box = copy_of(origin, memory)
    box.installer.install(box.incoming, Handover("install", "1.2.0"))
    spare = box.slots / "spare"
    with pytest.MonkeyPatch.context() as patch:
        real = os.fsync

        def full(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink()
            if spare.exists() and name.name == "state.json.partial":
                raise disk_full()
            real(descriptor)

        patch.setattr(os, "fsync", full)
        for _ in range(TRIES + 1):
            box.activate()
    assert (box.running(), box.installer.status()["failed"]) == ("1.1.0", "1.2.0")


def cut(box: SlotBox, disk: LossyDisk, monkeypatch: pytest.MonkeyPatch, at: int | None, dice: random.Random) -> None:
    """Run until the power goes, or a step is no longer the right one as an earlier cut undid the one before."""
    with striking(box, monkeypatch, at), suppress(PowerCutError, SecureHealthError, FileNotFoundError):
        run_through(box)
    disk.lose_power(dice)
    box.reboot()


@pytest.mark.parametrize("strike", [PowerCutError, disk_full])
def test_at_every_moment_of_an_update(
    memory: Path, origin: SlotBox, monkeypatch: pytest.MonkeyPatch, strike: Callable[[], BaseException]
) -> None:
    for at in range(count_moments(copy_of(origin, memory / "count"), monkeypatch, strike)):
        box = copy_of(origin, memory / str(at))
        with LossyDisk(box.root).watched(monkeypatch):
            with striking(box, monkeypatch, at, strike), pytest.raises((PowerCutError, OSError)):
                run_through(box)
            check_whole(box)
        shutil.rmtree(memory / str(at))
