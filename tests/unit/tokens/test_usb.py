"""A token's stick: what others' tools and the box make of it, and what is never written to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.core.errors import HardwareError, OperatorError
from agent.core.fat import DescriptorDevice, read_root_file
from agent.enrolment.medium import token_from_stick
from agent.trust.token import STICK_FILE, STICK_LABEL, parse_token
from provisioning.tokens.usb import Stick, describe_stick, write_stick, write_volume
from provisioning.tokens.volume import SECTORS, stick_volume
from tests.simulators.stick import find_tool, make_stick
from tests.simulators.tokens import BOUND, TOKEN, token_text

TEXT = token_text(BOUND)
SERIAL = 0x5E1F0000
DEVICE = os.makedev(8, 16)
GIGABYTES = 4 * 2_000_000  # in sysfs' sectors of 512 bytes: 4 GB


def no_question(question: str) -> bool:
    raise AssertionError(question)


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "stick.img"
    write_stick(path, TEXT, serial=SERIAL, erase=False, confirm=no_question)
    return path


@pytest.mark.parametrize("sector_bytes", [512, 1024, 2048, 4096])
def test_the_box_reads_what_was_written(tmp_path: Path, sector_bytes: int) -> None:
    path = tmp_path / "stick.img"
    path.write_bytes(stick_volume(TEXT, serial=SERIAL, sector_bytes=sector_bytes))
    assert parse_token(token_from_stick(path)).token == BOUND


def test_other_people_s_tools_find_no_fault(image: Path) -> None:
    assert "1/16223 clusters" in call(find_tool("fsck.fat"), "-n", "-v", str(image))
    assert call(find_tool("mtype"), "-i", str(image), f"::{STICK_FILE}").strip() == TEXT
    assert STICK_LABEL in call(find_tool("mlabel"), "-i", str(image), "-s", "::")
    assert "5E1F-0000" in call(find_tool("mdir"), "-i", str(image), "::")


def test_what_udev_will_see(image: Path) -> None:
    seen = call(find_tool("blkid"), "-p", "-o", "export", str(image)).splitlines()
    assert f"LABEL={STICK_LABEL}" in seen
    assert "TYPE=vfat" in seen


def test_an_image_is_its_owner_s_alone_and_not_overwritten_unasked(image: Path) -> None:
    assert image.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OperatorError) as caught:
        write_stick(image, token_text(TOKEN), serial=SERIAL, erase=False, confirm=no_question)
    assert caught.value.code == "usb.holds_something"
    write_stick(image, token_text(TOKEN), serial=SERIAL, erase=True, confirm=no_question)
    assert parse_token(token_from_stick(image)).token == TOKEN


def test_a_full_disk_or_no_permission_is_said(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        write_stick(tmp_path / "nowhere" / "image", TEXT, serial=SERIAL, erase=False, confirm=no_question)
    assert caught.value.code == "usb.cannot_open"
    with pytest.raises(HardwareError) as failed, Path("/dev/full").open("r+b", buffering=0) as full:
        write_volume(full.fileno(), stick_volume(TEXT, serial=SERIAL), Stick("full", 1 << 30, 512, ()))
    assert failed.value.code == "usb.write_failed"


def kernel(place: Path, **facts: str) -> Path:
    """A sysfs in which the device is a stick, but for `facts`."""
    block = place / "dev" / "block" / "8:16"
    told = {
        "removable": "1",
        "size": str(GIGABYTES),
        "queue/logical_block_size": "512",
        "device/vendor": "SanDisk ",
        "device/model": "Ultra  Fit ",
    } | {name.replace("__", "/"): value for name, value in facts.items()}
    for name, value in told.items():
        (block / name).parent.mkdir(parents=True, exist_ok=True)
        (block / name).write_text(value + "\n")
    return place


def test_a_stick_is_described_as_its_maker_calls_it(tmp_path: Path) -> None:
    stick = describe_stick(DEVICE, Path("/dev/sdb"), sysfs=kernel(tmp_path, sdb1__partition="1", sdb2__partition="2"))
    assert stick == Stick("SanDisk Ultra Fit", 4_096_000_000, 512, ("sdb1", "sdb2"))


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"removable": "0"}, "usb.not_removable"),
        ({"removable": ""}, "usb.not_removable"),
        ({"partition": "1"}, "usb.is_partition"),
        ({"size": "0"}, "usb.too_small"),
        ({"size": "16000"}, "usb.too_small"),
        ({"queue__logical_block_size": "4096", "size": "16384"}, "usb.too_small"),
    ],
)
def test_what_is_surely_no_stick_is_never_written_to(tmp_path: Path, facts: dict[str, str], code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        describe_stick(DEVICE, Path("/dev/sdb"), sysfs=kernel(tmp_path, **facts))
    assert caught.value.code == code


def test_a_device_that_the_kernel_does_not_know_is_never_written_to(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        describe_stick(DEVICE, Path("/dev/sdb"), sysfs=tmp_path)
    assert caught.value.code == "usb.not_removable"


def test_nothing_of_a_stick_s_former_tables_is_left(tmp_path: Path) -> None:
    path = tmp_path / "device"
    make_stick(path, {"letter.txt": b"private"}, mebibytes=40, partition=True)
    with path.open("r+b") as stream:
        stream.seek(-512, os.SEEK_END)
        stream.write(b"EFI PART" + bytes(504))
    volume = stick_volume(TEXT, serial=SERIAL)
    descriptor = os.open(path, os.O_RDWR)
    try:
        write_volume(descriptor, volume, Stick("stick", path.stat().st_size, 512, ()))
        assert read_root_file(DescriptorDevice(descriptor), STICK_FILE, limit=4096).decode().strip() == TEXT
    finally:
        os.close(descriptor)
    data = path.read_bytes()
    assert data.startswith(volume)
    assert b"EFI PART" not in data
    assert b"private" not in data


def test_an_interrupted_stick_holds_no_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "device"
    make_stick(path, {"letter.txt": b"private"})
    written = 0
    pwrite = os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(5, "Input/output error")
        return pwrite(descriptor, data[: 1 << 16], offset)

    monkeypatch.setattr(os, "pwrite", failing)
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(HardwareError):
            write_volume(descriptor, stick_volume(TEXT, serial=SERIAL), Stick("stick", path.stat().st_size, 512, ()))
    finally:
        os.close(descriptor)
    with pytest.raises(OperatorError) as caught:
        token_from_stick(path)
    assert caught.value.code == "stick.not_fat"


def test_a_stick_that_forgets_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "device"
    with path.open("wb") as stream:
        stream.truncate(SECTORS * 1024)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: bytes(len(pread(*arguments))))
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(HardwareError, match="something else") as caught:
            write_volume(descriptor, stick_volume(TEXT, serial=SERIAL), Stick("stick", path.stat().st_size, 512, ()))
    finally:
        os.close(descriptor)
    assert caught.value.code == "usb.write_failed"
