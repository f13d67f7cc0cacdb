"""The appliance's image, started as it is delivered: nobody can log in, its disk opens in one box only, and a slot that
breaks makes way for the other one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.image import MIB, Box, load_image
from tests.guest.package import OLD
from tests.simulators.stick import find_tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WAITS = ("SECUR-E-HEALTH", "This box is not enrolled.", "Put the consortium's stick in")


def new_place() -> Path:
    return Path(tempfile.mkdtemp(prefix="seh-i-"))


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Box, str]]:
    """A box after its first start, switched off, and what its screen showed."""
    place = new_place()
    with Box.assemble(load_image(), place) as box:
        begin = time.monotonic()
        box.start()
        shown = box.wait_for_text(*WAITS)
        print(f"image: first start to the screen: {time.monotonic() - begin:.1f} s")  # noqa: T201 - measured
        box.press("ctrl-alt-f2", "ret", "r", "o", "o", "t", "ret", "ctrl-alt-f1", "ctrl-c", "ret")
        again = box.wait_for_text(*WAITS)
        assert "login" not in again
        assert "assword" not in again
        box.switch_off()
        yield box, shown
    shutil.rmtree(place)


@pytest.fixture
def box(started: tuple[Box, str]) -> Iterator[Box]:
    """The same box, to be broken."""
    place = new_place()
    with started[0].copy(place) as copy:
        yield copy
    shutil.rmtree(place)


def name_on(screen: str) -> str:
    return screen.partition("box ")[2].split()[0]


def test_it_starts_to_a_screen_that_says_what_to_do(started: tuple[Box, str]) -> None:
    _, shown = started
    assert OLD in shown
    assert len(name_on(shown)) == len("0123456789abcdef")
    assert "This box's words:" in shown
    assert "10.0.2.15" in shown


def test_the_slot_that_started_well_has_its_tries_again(started: tuple[Box, str]) -> None:
    assert started[0].boot_entries() == ["seh-a+3.efi", "seh-b+3.efi"]


def test_its_data_fill_the_disk_encrypted_with_a_key_of_its_tpm_alone(started: tuple[Box, str]) -> None:
    box, _ = started
    data = box.partition("seh-data")
    assert data.begin + data.length > box.disk.stat().st_size - 4 * MIB
    assert box.read("seh-data", 6) == b"LUKS\xba\xbe"
    header = box.place / "header"
    header.write_bytes(box.read("seh-data", 16 * MIB))
    command = (find_tool("cryptsetup"), "luksDump", str(header))
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "systemd-tpm2" in dump
    assert dump.count(": luks2\n") == 1


def test_the_same_box_opens_it_again(box: Box, started: tuple[Box, str]) -> None:
    box.start()
    assert name_on(box.wait_for_text(*WAITS)) == name_on(started[1])


def test_in_another_box_it_stays_locked_and_the_screen_says_so(box: Box, started: tuple[Box, str]) -> None:
    box.change_tpm()
    box.start()
    shown = box.wait_for_text("THE DISK STAYS LOCKED", "belongs to another box")
    assert name_on(started[1]) not in shown
    assert "login" not in shown


def test_a_slot_that_breaks_makes_way_for_the_other_one_and_the_box_goes_on(box: Box, started: tuple[Box, str]) -> None:
    box.damage("seh-root-a", length=4 * MIB)
    begin = time.monotonic()
    box.start()
    shown = box.wait_for_text(*WAITS)
    print(f"image: broken slot to the screen of the other one: {time.monotonic() - begin:.1f} s")  # noqa: T201 - measured
    assert name_on(shown) == name_on(started[1])
    box.switch_off()
    assert box.boot_entries() == ["seh-a+0-3.efi", "seh-b+3.efi"]
