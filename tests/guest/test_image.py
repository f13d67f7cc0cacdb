"""The appliance's image, signed and started as it is delivered: nobody can log in, its disk opens in one box and for
the maker's systems only, and a slot that breaks makes way for the other one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.image import MIB, Box, load_image
from tests.guest.package import OLD
from tests.simulators.stick import find_tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LOADER = "EFI/BOOT/BOOTX64.EFI"
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
        # All that the box keeps is sealed behind this: one restart, before any system has started.
        assert box.firmware_says().count("Enrolling secure boot keys") == 1
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


def test_the_same_box_opens_it_again_and_heeds_nothing_that_nobody_signed(box: Box, started: tuple[Box, str]) -> None:
    # Each would switch the box off: a boot entry's options, and a credential in the tables that firmware hands over.
    options = f"title stranger\nefi /EFI/Linux/{box.boot_entries()[0]}\noptions systemd.unit=poweroff.target\n"
    entries, settings = box.place / "entries", box.place / "loader.conf"
    entries.mkdir()
    (entries / "stranger.conf").write_text(options)
    settings.write_text("timeout 0\ndefault stranger.conf\n")
    box.put_on_esp(entries, "loader/entries")
    box.put_on_esp(settings, "loader/loader.conf")
    credential = b64encode(b"w /proc/sysrq-trigger - - - - o\n").decode()
    box.firmware_strings = (f"io.systemd.credential.binary:tmpfiles.extra={credential}",)
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


def test_attack_another_system_with_secure_boot_off_finds_the_disk_locked(box: Box, started: tuple[Box, str]) -> None:
    for name in (LOADER, *(f"EFI/Linux/{entry}" for entry in box.boot_entries())):
        box.strip_signature(name)
    box.remove_from_esp("loader/keys")  # else systemd-boot would give the emptied firmware the same keys again
    box.reset_firmware()
    box.start()
    shown = box.wait_for_text("THE DISK STAYS LOCKED", "Secure Boot is off")
    assert name_on(started[1]) not in shown


def test_it_sets_no_disk_up_before_secure_boot_is_on() -> None:
    place = new_place()
    with Box.assemble(load_image(), place) as box:
        box.remove_from_esp("loader/keys")  # as where the firmware is in no setup mode, or a key was pressed
        box.start()
        box.wait_for_text("THE DISK STAYS LOCKED", "Secure Boot is off")
        assert "seh-data" not in {part.name for part in box.partitions()}
    shutil.rmtree(place)


def test_attack_a_boot_loader_that_nobody_signed_does_not_start(box: Box) -> None:
    box.strip_signature(LOADER)
    box.start()
    box.wait_for_firmware("failed to load", "Access Denied")


def test_attack_a_system_whose_command_line_was_altered_does_not_start(box: Box) -> None:
    entry = f"EFI/Linux/{box.boot_entries()[0]}"
    program = box.place / "program.efi"
    box.take_from_esp(entry, program)
    program.write_bytes(program.read_bytes().replace(b"quiet loglevel=3", b"debug loglevel=7"))
    box.put_on_esp(program, entry)
    box.start()
    box.wait_for_firmware("Error loading", "Access Denied")
