"""Sticks put into a booted box: the right one is read, a hostile one is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.enrolment.drop import READING_FILE, StickReading
from agent.trust.token import STICK_FILE, STICK_LABEL
from tests.guest.rig import Guest
from tests.simulators.stick import find_tool, make_stick, run
from tests.simulators.tokens import token_text

DROPPED = f"/run/secur-e-health/token/{READING_FILE}"
READERS = "seh-enrol-stick@*"
READ_LIMIT_S = 90.0  # 10 s on an idle machine of two processors
TOKEN = token_text()


def token_stick(place: Path, *, label: str = STICK_LABEL) -> Path:
    return make_stick(place / "token.img", {STICK_FILE: TOKEN.encode()}, label=label, partition=True)


def reading(box: Guest) -> StickReading:
    box.wait_for(f"test -e {DROPPED}", limit_s=READ_LIMIT_S)
    return StickReading.model_validate_json(box.read(DROPPED))


def interfaces(box: Guest, usb_class: str) -> list[str]:
    """`<authorised> <driver>` of each USB interface of that class."""
    every = "/sys/bus/usb/devices/*:*"
    said = box.run(
        f"udevadm settle; for i in {every}; do echo $(cat $i/bInterfaceClass $i/authorized)"
        " $(basename $(readlink $i/driver)); done"
    )
    return [line.removeprefix(f"{usb_class} ") for line in said.splitlines() if line.startswith(f"{usb_class} ")]


def test_a_token_on_a_stick_lies_in_the_drop_directory(box: Guest, tmp_path: Path) -> None:
    box.plug(token_stick(tmp_path))
    assert reading(box) == StickReading(token=TOKEN)
    owner = box.run(f"stat -c '%a %G' {DROPPED}").split()
    assert owner == ["640", "secur-e-health-token"]
    box.wait_for(f"! systemctl is-active '{READERS}' | grep -q activating", limit_s=READ_LIMIT_S)
    assert box.run(f"systemctl list-units --no-legend --failed '{READERS}'") == ""
    assert "/dev/sd" not in box.run("cat /proc/mounts")


def test_a_stick_that_is_a_keyboard_too_gets_no_driver_for_it(box: Guest, tmp_path: Path) -> None:
    before = box.run("ls /dev/input")
    box.plug(token_stick(tmp_path))
    box.plug_device("usb-kbd")
    box.wait_for("test $(ls -d /sys/bus/usb/devices/*-*:1.0 | wc -l) -ge 4", limit_s=30)
    assert interfaces(box, "03") == ["0"]
    assert box.run("ls /dev/input") == before
    assert reading(box) == StickReading(token=TOKEN)


def test_a_stick_that_is_a_network_card_gets_no_driver(box: Guest) -> None:
    before = box.run("ls /sys/class/net")
    box.plug_device("usb-net")
    box.wait_for("ls -d /sys/bus/usb/devices/1-*:*.1", limit_s=30)
    assert [line for kind in ("02", "0a") for line in interfaces(box, kind)] == ["0", "0"]
    assert box.run("ls /sys/class/net") == before


def test_a_device_that_poses_as_a_security_key_and_points_is_inhibited(box: Guest) -> None:
    box.plug_device("usb-tablet")  # HID, of no boot protocol: as a security key shows itself
    box.wait_for("grep -q 'QEMU USB Tablet' /sys/class/input/input*/name", limit_s=30)
    assert interfaces(box, "03") == ["1 usbhid"]
    name = box.run("grep -l 'QEMU USB Tablet' /sys/class/input/input*/name").strip()
    assert box.read(name.replace("/name", "/inhibited")) == b"1\n"


@pytest.mark.parametrize("other", ["label", "file system"])
def test_a_stick_that_holds_no_token_starts_nothing(box: Guest, tmp_path: Path, other: str) -> None:
    if other == "label":
        image = token_stick(tmp_path, label="HOLIDAYS")
    else:
        image = tmp_path / "ext.img"
        run(find_tool("mke2fs"), "-q", "-t", "ext4", "-L", STICK_LABEL, str(image), "16M")
    box.plug(image)
    box.wait_for("test -b /dev/sda", limit_s=30)
    box.run("udevadm settle")
    assert "ID_BUS=usb" in box.run("udevadm info /dev/sda")
    assert box.run(f"systemctl list-units --all --no-legend '{READERS}'") == ""
    assert "/dev/sd" not in box.run("cat /proc/mounts")
    assert box.ask(f"test -e {DROPPED}").status == 1


def test_a_stick_pulled_out_while_it_is_read_leaves_no_reader_and_the_next_one_is_read(
    box: Guest, tmp_path: Path
) -> None:
    stick = box.plug(token_stick(tmp_path))
    box.wait_for(f"systemctl list-units --all --no-legend '{READERS}' | grep -q activating", limit_s=READ_LIMIT_S)
    unit = box.run(f"systemctl list-units --all --no-legend --plain '{READERS}'").split()[0]
    box.slow_down(stick, bytes_per_s=1)
    reads = f"grep -q '^State:.D' /proc/$(systemctl show -P MainPID '{unit}')/status"
    box.wait_for(reads, limit_s=READ_LIMIT_S)  # it waits for the disk
    box.unplug(stick)
    box.wait_for(f"test $(systemctl show -P MainPID '{unit}') = 0", limit_s=READ_LIMIT_S)
    box.run(f"rm -f {DROPPED}")
    box.plug(token_stick(tmp_path))
    assert reading(box) == StickReading(token=TOKEN)


def test_a_keyboard_that_was_there_before_the_box_started_types_nothing(box: Guest) -> None:
    box.plug_device("usb-kbd")
    box.reboot()
    box.wait_for("systemctl is-active multi-user.target", limit_s=120)
    # The kernel may have found it before udev ran: then it has a driver, and says nothing all the same.
    keyboards = box.ask("grep -l 'QEMU USB Keyboard' /sys/class/input/input*/name").output.split()
    inhibited = [box.read(name.replace("/name", "/inhibited")) for name in keyboards]
    assert all(state == b"1\n" for state in inhibited)
    assert [line.split()[0] for line in interfaces(box, "03")] == (["1"] if keyboards else ["0"])
