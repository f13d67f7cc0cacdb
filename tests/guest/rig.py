"""A whole machine under test: QEMU without KVM, a TPM of software, and a line inside.

    guest = Guest.unpack(load_machine(), place)
    with guest:
        guest.start(BOOTED)                       # from the snapshot: about a second
        guest.run("systemctl is-active dbus")
        stick = guest.plug(image)
        guest.cut_power()
        guest.start()                             # cold, from the same disk: about half a minute

Whatever becomes of the tests, neither QEMU nor swtpm outlives them: the kernel ends both with their parent.
"""

from __future__ import annotations

import base64
import itertools
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.guest.monitor import CommandError, GuestAgent, GuestGoneError, Monitor
from tests.guest.tree import Machine
from tests.simulators.stick import find_tool, run
from tests.simulators.swtpm import SwtpmMaker

BOOTED = "booted"
BOOT_LIMIT_S = 300.0
MEMORY_MB = 2048
PROCESSORS = 2
HOST = "10.0.2.100"  # where the guest finds the ports of this machine's loopback that it was given
_BOOT = "cat /proc/sys/kernel/random/boot_id"
_TIED = ("setpriv", "--pdeathsig", "KILL")
_CHUNK_BYTES = 1 << 20
_KERNEL_LINE = "console=ttyS0 quiet root=/dev/vda rw mitigations=off net.ifnames=0 systemd.show_status=0 panic=1"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest said.

    Args:
        status: Its exit status.
        output: Both streams.
    """

    status: int
    output: str


@dataclass(slots=True)
class Guest:
    """One machine: its disk and its TPM stay when its power goes.

    Args:
        machine: Kernel and first disk.
        place: Its own directory; short, as UNIX socket paths end at 107 bytes.
        ports: Those of this machine's loopback that the guest reaches, at `HOST`.
    """

    machine: Machine
    place: Path
    ports: Sequence[int] = ()
    _qemu: subprocess.Popen[bytes] | None = None
    _swtpm: subprocess.Popen[bytes] | None = None
    _monitor: Monitor | None = None
    _agent: GuestAgent | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _drives: dict[str, str] = field(default_factory=dict)

    @classmethod
    def assemble(cls, machine: Machine, place: Path) -> Self:
        """A new machine, never started."""
        place.mkdir(parents=True, exist_ok=True)
        guest = cls(machine, place)
        guest._overlay()
        SwtpmMaker(machine.makers).copy_state("guest", place / "tpm")
        return guest

    @classmethod
    def unpack(cls, machine: Machine, place: Path, *, stored: Path | None = None) -> Self:
        """A machine with its snapshots, as `store` kept it; by default the one that has only been booted."""
        stored = stored or booted(machine)
        shutil.copytree(stored, place, dirs_exist_ok=True)
        return cls(machine, place)

    @property
    def disk(self) -> Path:
        """What it has written, and its snapshots."""
        return self.place / "disk.qcow2"

    @property
    def console(self) -> str:
        """What its kernel said since its last start."""
        return (self.place / "console.log").read_text(encoding="utf-8", errors="replace")

    @property
    def monitor(self) -> Monitor:
        """QEMU's."""
        assert self._monitor is not None, "it is not running"
        return self._monitor

    def store(self, target: Path) -> None:
        """Keep disk, snapshots and TPM for `unpack`; it must not be running."""
        assert self._qemu is None, "it is running"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "tpm").mkdir(parents=True)
        shutil.copyfile(self.disk, partial / self.disk.name)
        shutil.copytree(self.place / "tpm", partial / "tpm", dirs_exist_ok=True)
        partial.rename(target)

    def start(self, snapshot: str | None = None, *, limit_s: float = BOOT_LIMIT_S) -> float:
        """Switch it on; returns how many seconds passed until it took commands.

        Args:
            snapshot: Where to go on; None starts cold.
            limit_s: Until when it must take commands.
        """
        assert self._qemu is None, "it is running"
        begin = time.monotonic()
        self._start_tpm()
        for name in ("qmp", "ga"):
            (self.place / name).unlink(missing_ok=True)
        going_on = () if snapshot is None else ("-loadvm", snapshot)
        with (self.place / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                [*_TIED, *self._command(), *going_on], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._monitor = Monitor(self.place / "qmp")
            self._agent = GuestAgent(self.place / "ga")
            self._agent.wait_until_there(limit_s=limit_s)
        except GuestGoneError as error:
            self.cut_power()
            said = (self.place / "qemu.log").read_text(errors="replace")
            raise GuestGoneError(f"{error}\n{said[-2000:]}\n{self.console[-3000:]}") from error
        if snapshot is not None:
            self.run(f"date -s @{datetime.now(UTC).timestamp():.3f}")  # it slept since the snapshot was taken
        return time.monotonic() - begin

    def wait_until_answers(self, *, limit_s: float = BOOT_LIMIT_S) -> None:
        """After the guest was told to start anew."""
        assert self._agent is not None
        self._agent.wait_until_there(limit_s=limit_s)

    def reboot(self, *, limit_s: float = BOOT_LIMIT_S) -> None:
        """Have it go down in good order and come up again."""
        assert self._agent is not None
        deadline_s, before = time.monotonic() + limit_s, self.run(_BOOT)
        with suppress(CommandError, GuestGoneError):
            self._agent.execute("guest-exec", path="/bin/systemctl", arg=["reboot"])
        # Until it is down, it is still the old start that answers, and breaks off in the middle.
        while time.monotonic() < deadline_s:
            with suppress(CommandError, GuestGoneError):
                self.wait_until_answers(limit_s=limit_s)
                if self.run(_BOOT, limit_s=30.0) != before:
                    return
        raise GuestGoneError(f"it did not start anew in {limit_s:.0f} s")

    def begin(self, command: str) -> int:
        """Start a shell command; returns its number for `end`."""
        assert self._agent is not None, "it is not running"
        arguments = ["-c", f"exec 2>&1; {command}"]
        answer = self._agent.execute("guest-exec", path="/bin/sh", arg=arguments, capture_output=True)
        return int(answer["pid"])

    def end(self, number: int, *, limit_s: float = 120.0) -> Answer:
        """Wait for the end of a command that `begin` started."""
        assert self._agent is not None, "it is not running"
        deadline_s = time.monotonic() + limit_s
        while not (said := self._agent.execute("guest-exec-status", pid=number))["exited"]:
            if time.monotonic() > deadline_s:
                raise GuestGoneError(f"a command did not end in {limit_s:.0f} s")
            time.sleep(0.05)
        output = base64.b64decode(said.get("out-data", "")).decode(errors="replace")
        return Answer(said.get("exitcode", 128 + said.get("signal", 0)), output)

    def ask(self, command: str, *, limit_s: float = 120.0) -> Answer:
        """Run a shell command, whatever becomes of it."""
        return self.end(self.begin(command), limit_s=limit_s)

    def run(self, command: str, *, limit_s: float = 120.0) -> str:
        """Run a shell command that must succeed; returns what it said."""
        answer = self.ask(command, limit_s=limit_s)
        assert answer.status == 0, f"{command}: {answer.status}\n{answer.output[-4000:]}"
        return answer.output

    def wait_for(self, command: str, *, limit_s: float) -> float:
        """Wait until a shell command succeeds; returns how many seconds that took."""
        begin = time.monotonic()
        while (answer := self.ask(command)).status:
            left_s = begin + limit_s - time.monotonic()
            assert left_s > 0, f"not within {limit_s:.0f} s: {command}\n{answer.output[-2000:]}"
            time.sleep(0.2)
        return time.monotonic() - begin

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file, whole; its directory is made."""
        assert self._agent is not None, "it is not running"
        self.run(f"mkdir -p $(dirname '{path}')")
        handle = self._agent.execute("guest-file-open", path=path, mode="wb")
        for begin in range(0, len(data), _CHUNK_BYTES):
            piece = base64.b64encode(data[begin : begin + _CHUNK_BYTES]).decode()
            self._agent.execute("guest-file-write", handle=handle, buf_b64=piece)
        self._agent.execute("guest-file-close", handle=handle)
        self.run(f"chmod {mode:o} '{path}'")

    def read(self, path: str) -> bytes:
        """Read a file; small ones only."""
        return base64.b64decode(self.run(f"base64 -w0 '{path}'"))

    def plug(self, image: Path) -> str:
        """Plug in a USB stick with that image, which is never written to; returns its id."""
        drive = self._open_image(image)
        stick = self.plug_device("usb-storage", drive=drive, removable=True)
        self._drives[stick] = drive
        return stick

    def slow_down(self, stick: str, *, bytes_per_s: int) -> None:
        """From now on, read a stick no faster than that."""
        limits = {"bps-total": bytes_per_s, "bps-total-max": bytes_per_s}
        self.monitor.execute("qom-set", path=f"/objects/{self._drives[stick]}g", property="limits", value=limits)

    def plug_device(self, driver: str, **properties: Any) -> str:  # noqa: ANN401 - as QEMU names them
        """Plug in any USB device that QEMU knows; returns its id."""
        name = f"usb{next(self._numbers)}"
        self.monitor.execute("device_add", driver=driver, id=name, bus="xhci.0", **properties)
        return name

    def unplug(self, name: str) -> None:
        """Pull a device out, at once."""
        self.monitor.execute("device_del", id=name)
        self.monitor.wait_event("DEVICE_DELETED", limit_s=20.0, where=lambda data: data.get("device") == name)

    def bring(self, image: Path, target: str) -> None:
        """Copy what a disk image holds into a directory of the guest: how large files come in."""
        drive = self._open_image(image)
        disk, device = f"{drive}d", f"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{drive}"
        self.monitor.execute("device_add", driver="scsi-hd", id=disk, bus="scsi.0", drive=drive, serial=drive)
        self.wait_for(f"test -b {device}", limit_s=30.0)
        self.run(f"mkdir -p '{target}' && mount -o ro {device} /mnt")
        self.run(f"cp -a /mnt/. '{target}' && umount /mnt", limit_s=300.0)
        self.unplug(disk)

    def save(self, snapshot: str) -> None:
        """Remember this moment: memory, disk and TPM."""
        self.monitor.human(f"savevm {snapshot}")

    def cut_power(self) -> None:
        """Take its power away in this instant; what it had not flushed is lost."""
        if self._qemu is not None:
            self._qemu.kill()
        self._wait_until_gone()

    def close(self) -> None:
        """Switch it off."""
        if self._monitor is not None:
            with suppress(GuestGoneError, CommandError):
                self._monitor.execute("quit", limit_s=10.0)
        self.cut_power()

    def _wait_until_gone(self) -> None:
        for line in (self._monitor, self._agent):
            if line is not None:
                line.close()
        self._monitor = self._agent = None
        for process in (self._qemu, self._swtpm):
            if process is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait(10)
        self._qemu = self._swtpm = None
        (self.place / "tpm" / ".lock").unlink(missing_ok=True)

    def _start_tpm(self) -> None:
        control = self.place / "tpm.sock"
        control.unlink(missing_ok=True)
        state, ends_with_qemu = self.place / "tpm", "--terminate"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={control}"]
        self._swtpm = subprocess.Popen(
            [*_TIED, *command, ends_with_qemu],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + 10
        while not control.exists():
            assert time.monotonic() < deadline_s, "swtpm did not come up"
            time.sleep(0.01)

    def _command(self) -> list[str]:
        machine, place = self.machine, self.place
        ways = "".join(f",guestfwd=tcp:{HOST}:{port}-cmd:socat - TCP:127.0.0.1:{port}" for port in self.ports)
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max"),
            *("-smp", str(PROCESSORS), "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", _KERNEL_LINE),
            *("-serial", f"file:{place / 'console.log'}"),
            *("-qmp", f"unix:{place / 'qmp'},server=on,wait=off"),
            *("-drive", f"if=none,id=disk,file={self.disk},format=qcow2,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-scsi-pci,id=scsi"),
            *("-device", "qemu-xhci,id=xhci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=ga,path={place / 'ga'},server=on,wait=off"),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
            *("-chardev", f"socket,id=tpm,path={place / 'tpm.sock'}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            *("-device", "tpm-tis,tpmdev=tpm0"),
            *("-netdev", f"user,id=net,restrict=on{ways}", "-device", "virtio-net-pci,netdev=net,romfile="),
        ]

    def _overlay(self) -> None:
        run(
            *(find_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-b", str(self.machine.disk), "-F", "raw"),
            str(self.disk),
        )

    def _open_image(self, image: Path) -> str:
        name = f"drive{next(self._numbers)}"
        self.monitor.execute("object-add", qom_type="throttle-group", id=f"{name}g")
        file = {"driver": "file", "filename": str(image), "read-only": True}
        raw = {"driver": "raw", "read-only": True, "file": file}
        group = f"{name}g"
        self.monitor.execute(
            "blockdev-add", driver="throttle", node_name=name, throttle_group=group, read_only=True, file=raw
        )
        return name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def booted(machine: Machine) -> Path:
    """Where the machine's first boot lies, with a snapshot of its end; booted where it is not there yet."""
    stored = machine.directory / BOOTED
    if not stored.exists():
        place = machine.directory / "b"
        shutil.rmtree(place, ignore_errors=True)
        with Guest.assemble(machine, place) as guest:
            guest.start()
            guest.wait_for("systemctl is-system-running | grep -qx -e running -e degraded", limit_s=BOOT_LIMIT_S)
            guest.run("sync")
            guest.save(BOOTED)
            guest.close()
            guest.store(stored)
        shutil.rmtree(place)
    return stored
