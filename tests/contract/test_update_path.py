"""From the maker's command to the slot that runs: each end takes what the one before it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.config import load_config
from agent.core.errors import SecureHealthError
from agent.statements.release import Version
from agent.update.handover import parse_handover
from agent.update.programs import run_program
from agent.update.release import ReleaseKeys, parse_release_keys
from agent.update.state import Phase
from agent.update.stick import read_stick
from agent.update.updater import opened_updater
from agent.update.window import parse_window
from tests.simulators.maker import Hands
from tests.simulators.release_repository import new_image, served_files
from tests.simulators.releases import Publisher
from tests.simulators.slots import QUICK, PlayedCounters, SlotBox
from tests.simulators.stick import make_stick

OLD, NEW = new_image(1, 256), new_image(2, 256)


class Shipped(Publisher):
    """The maker as the box's package knows it."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._file = directory / "release-keys.json"

    @property
    def keys(self) -> ReleaseKeys:
        return parse_release_keys(self._file.read_bytes())


@pytest.fixture
def maker(tmp_path: Path) -> Hands:
    hands = Hands(tmp_path)
    hands.do("init", "--environment", "test")
    hands.release("1.0.0", OLD)
    hands.release("1.1.0", NEW, "--from", "1.0.0", "--epoch", "1")
    hands.do("promote", "1.1.0", "--percentage", "100")
    return hands


@pytest.fixture
def box(maker: Hands, tmp_path: Path) -> SlotBox:
    """A box that was installed with 1.0.0."""
    made = SlotBox(tmp_path / "box", Shipped(maker.directory), counters=PlayedCounters(), run=run_program)
    maker.do("stick", made.payload, "1.0.0")
    made.installer.init(made.payload)
    made.activate()
    return made


def configure(box: SlotBox, maker: Hands, url: str) -> Path:
    path = box.root / "agent.toml"
    path.write_text(
        f"""
        [node]
        state_directory = "state"
        [key]
        uri = "tpm:device:/dev/tpmrm0"
        [data]
        catalog = "catalog.toml"
        [update]
        url = "{url}"
        directory = "{box.incoming.parent}"
        slots = "{box.slots}"
        slots_status = "{box.volatile}"
        root_file = "{maker.directory}/release-root.json"
        keys_file = "{maker.directory}/release-keys.json"
        """
    )
    return path


def install(box: SlotBox) -> Phase:
    handover = parse_handover((box.incoming / "ready").read_bytes())
    return box.installer.install(box.incoming, handover)


def test_over_the_network(maker: Hands, box: SlotBox) -> None:
    with served_files(maker.directory / "repository") as server:
        config = load_config(configure(box, maker, server.url))
        with opened_updater(config, SystemClock(), wait=lambda _: None, progress=lambda *_: None) as updater:
            window = parse_window("02:00-05:00")
            assert updater.run("stable", window, automatic=True) == Version.parse("1.1.0")
        assert server.asked_for("app.raw") == []
    assert install(box) is Phase.STAGED
    assert box.running() == "1.0.0"
    box.time = box.time.replace(hour=3)
    box.installer.confirm(QUICK)
    assert box.services.restarts == 1
    box.activate()
    assert box.running() == "1.1.0"


def test_by_stick(maker: Hands, box: SlotBox, tmp_path: Path) -> None:
    config = load_config(configure(box, maker, "http://127.0.0.1:9/"))
    place = tmp_path / "files"
    place.mkdir()
    maker.do("stick", place, "1.1.0")
    stick = make_stick(tmp_path / "stick.img", {path.name: path.read_bytes() for path in place.iterdir()})
    with stick.open("rb") as stream:
        assert read_stick(stream.fileno(), config).version == Version.parse("1.1.0")
    assert install(box) is Phase.STAGED
    maker.do("stick", place, "1.0.0")
    stick = make_stick(tmp_path / "stick.img", {path.name: path.read_bytes() for path in place.iterdir()})
    with stick.open("rb") as stream, pytest.raises(SecureHealthError, match="not newer"):
        read_stick(stream.fileno(), config)
