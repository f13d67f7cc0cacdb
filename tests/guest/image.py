"""The appliance's own image in a machine with Secure Boot and a TPM; nobody gets in, so its screen is read by its dots.

with Box.assemble(load_image(), place) as box:
    box.start()
    box.wait_for_text("This box is not enrolled")
    box.switch_off()
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from PIL import Image

from tests.guest.appliance import PATIENCE
from tests.guest.monitor import CommandError, GuestGoneError, Monitor
from tests.guest.package import OLD, load_releases
from tests.guest.tree import BUILD
from tests.simulators.packages import run
from tests.simulators.stick import find_tool

IMAGE_BUILD: Final = Path(__file__).resolve().parents[2] / "packaging" / "image"
FIRMWARE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")  # without any key, so in setup mode
BOOT_LIMIT_S: Final = 600.0
LOOKS_EVERY_S: Final = 2.0
DISK_BYTES: Final = 8 << 30
MIB: Final = 1 << 20
_ESP = "@@1M"
_GLYPH_BYTES = 16  # rows of a character; each is eight dots wide
_LETTER_A = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")
_TIED = ("setpriv", "--pdeathsig", "KILL")


def load_image() -> Path:
    """The image with the old release in it, signed by keys that are gone then; built where it is not there yet."""
    releases = load_releases()
    digest = hashlib.sha256(releases.directory.name.encode())
    for file in sorted(IMAGE_BUILD.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(IMAGE_BUILD)}\0".encode() + file.read_bytes())
    image = BUILD / f"image-{digest.hexdigest()[:16]}.raw"
    if not image.exists():
        assert os.geteuid() == 0, "building the image needs root: sudo make system"
        package = image.parent / f"secur-e-health_{OLD}_amd64.deb"
        dump = f"dump /{package.name} {package}"
        run(find_tool("debugfs"), "-R", dump, str(releases.package))
        with tempfile.TemporaryDirectory() as place:
            preset, keys = Path(place, "preset"), Path(place, "keys")
            unit = preset / "etc/systemd/system/seh-agent.service.d"
            unit.mkdir(parents=True)
            (unit / "guest.conf").write_text(f"{PATIENCE['seh-agent.service']}\n")
            run(str(IMAGE_BUILD / "secure-boot-keys.sh"), str(keys), "Tests")
            run(str(IMAGE_BUILD / "build.sh"), str(package), str(image), str(preset), str(keys))
        package.unlink()
    return image


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a box's disk.

    Args:
        name: As the table has it.
        begin: In bytes.
        length: In bytes.
    """

    name: str
    begin: int
    length: int


@dataclass(slots=True)
class Box:
    """A machine that an image was written to: its disk, firmware variables and TPM stay when its power goes.

    Args:
        place: Its own directory; short, as UNIX socket paths end at 107 bytes.
        firmware_strings: What its firmware's tables tell the system (SMBIOS, type 11).
    """

    place: Path
    firmware_strings: tuple[str, ...] = ()
    _glyphs: dict[bytes, str] = field(default_factory=dict)
    _qemu: subprocess.Popen[bytes] | None = None
    _swtpm: subprocess.Popen[bytes] | None = None
    _monitor: Monitor | None = None

    @classmethod
    def assemble(cls, image: Path, place: Path) -> Self:
        """A new machine with the image on its disk, never started."""
        box = cls(place)
        run("cp", "--sparse=always", str(image), str(box.disk))
        os.truncate(box.disk, DISK_BYTES)
        shutil.copyfile(VARIABLES, place / "variables.fd")
        (place / "tpm").mkdir()
        return box

    def copy(self, place: Path) -> Box:
        """The same machine a second time, TPM and all; it must be off."""
        other = Box(place)
        run("cp", "--sparse=always", str(self.disk), str(other.disk))
        shutil.copyfile(self.place / "variables.fd", place / "variables.fd")
        shutil.copytree(self.place / "tpm", place / "tpm")
        return other

    @property
    def disk(self) -> Path:
        """Raw."""
        return self.place / "disk.raw"

    @property
    def monitor(self) -> Monitor:
        """QEMU's."""
        assert self._monitor is not None, "it is not running"
        return self._monitor

    def change_tpm(self) -> None:
        """Put its disk into a machine with another TPM."""
        shutil.rmtree(self.place / "tpm")
        (self.place / "tpm").mkdir()

    def reset_firmware(self) -> None:
        """Put its settings back to the factory's: Secure Boot off, and in setup mode."""
        shutil.copyfile(VARIABLES, self.place / "variables.fd")

    def start(self) -> None:
        """Switch it on."""
        assert self._qemu is None, "it is running"
        control = self.place / "tpm.sock"
        for name in (control, self.place / "qmp", self.place / "tpm" / ".lock"):
            name.unlink(missing_ok=True)
        state = f"dir={self.place / 'tpm'}"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", f"type=unixio,path={control}"]
        self._swtpm = subprocess.Popen([*_TIED, *command, "--terminate"], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while not control.exists():
            assert time.monotonic() < deadline_s, "swtpm did not come up"
            time.sleep(0.01)
        with (self.place / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen([*_TIED, *self._command()], stdout=log, stderr=subprocess.STDOUT)
        try:
            self._monitor = Monitor(self.place / "qmp")
        except GuestGoneError as error:
            raise GuestGoneError(f"{error}\n{(self.place / 'qemu.log').read_text(errors='replace')}") from error

    def screen(self) -> str:
        """What stands on its screen, a line each; dots that are no character are left blank."""
        picture = self.place / "screen.ppm"
        self.monitor.execute("screendump", filename=str(picture))
        with Image.open(picture) as image:
            dots = np.asarray(image.convert("L")) > 96  # grey is a letter, too
        rows = dots.shape[0] // _GLYPH_BYTES
        return "\n".join(self._line(dots[row * _GLYPH_BYTES : (row + 1) * _GLYPH_BYTES]) for row in range(rows))

    def wait_for_text(self, *texts: str, limit_s: float = BOOT_LIMIT_S) -> str:
        """Wait until all of that can be read on the screen; returns the whole of it."""
        return _wait_for(self.screen, texts, limit_s)

    def firmware_says(self) -> str:
        """What firmware and boot loader have written since it was switched on."""
        return (self.place / "firmware.log").read_text(errors="replace")

    def wait_for_firmware(self, *texts: str, limit_s: float = BOOT_LIMIT_S) -> str:
        """Wait until firmware or boot loader have said all of that; returns the whole of it."""
        return _wait_for(self.firmware_says, texts, limit_s)

    def press(self, *keys: str) -> None:
        """Press keys, each one a chord as QEMU names it (`ctrl-alt-f2`)."""
        for chord in keys:
            pressed = [{"type": "qcode", "data": key} for key in chord.split("-")]
            self.monitor.execute("send-key", keys=pressed)

    def switch_off(self, *, limit_s: float = BOOT_LIMIT_S) -> None:
        """Press its power button, and wait until it is down in good order."""
        assert self._qemu is not None, "it is not running"
        self.monitor.execute("system_powerdown")
        self._qemu.wait(limit_s)
        self._wait_until_gone()

    def cut_power(self) -> None:
        """Take its power away."""
        if self._qemu is not None:
            self._qemu.kill()
        self._wait_until_gone()

    def partitions(self) -> Iterator[Partition]:
        """Those of its disk."""
        sector = 512
        for line in run(find_tool("sfdisk"), "--dump", str(self.disk)).splitlines():
            if " : " not in line:
                continue
            fields = dict(part.strip().split("=", 1) for part in line.partition(" : ")[2].split(",") if "=" in part)
            yield Partition(fields["name"].strip('"'), int(fields["start"]) * sector, int(fields["size"]) * sector)

    def partition(self, name: str) -> Partition:
        """One of them."""
        (found,) = (part for part in self.partitions() if part.name == name)
        return found

    def read(self, name: str, length: int) -> bytes:
        """The beginning of a partition."""
        with self.disk.open("rb") as stream:
            stream.seek(self.partition(name).begin)
            return stream.read(length)

    def damage(self, name: str, *, length: int) -> None:
        """Overwrite the beginning of a partition."""
        with self.disk.open("r+b") as stream:
            stream.seek(self.partition(name).begin)
            stream.write(b"\xa5" * length)

    def take_from_esp(self, name: str, target: Path) -> None:
        """Copy a file out of the partition that the firmware reads; `name` as `EFI/BOOT/BOOTX64.EFI`."""
        run(find_tool("mcopy"), "-n", "-o", "-i", f"{self.disk}{_ESP}", f"::/{name}", str(target))

    def put_on_esp(self, source: Path, name: str) -> None:
        """Put a file or a directory there, as another one or in its place."""
        run(find_tool("mcopy"), "-s", "-n", "-o", "-i", f"{self.disk}{_ESP}", str(source), f"::/{name}")

    def remove_from_esp(self, name: str) -> None:
        """Remove a directory there."""
        run(find_tool("mdeltree"), "-i", f"{self.disk}{_ESP}", f"::/{name}")

    def strip_signature(self, name: str) -> None:
        """Make of a signed program there the same one, unsigned."""
        program = self.place / "program.efi"
        self.take_from_esp(name, program)
        run(find_tool("sbattach"), "--remove", str(program))
        self.put_on_esp(program, name)

    def boot_entries(self) -> list[str]:
        """The files that systemd-boot chooses from, with their tries."""
        listing = run(find_tool("mdir"), "-b", "-i", f"{self.disk}{_ESP}", "::/EFI/Linux")
        return sorted(line.rpartition("/")[2] for line in listing.splitlines() if line.endswith(".efi"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut_power()

    def _wait_until_gone(self) -> None:
        if self._monitor is not None:
            with suppress(GuestGoneError, CommandError, OSError):
                self._monitor.close()
        for process in (self._qemu, self._swtpm):
            if process is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait(10)
        self._qemu = self._swtpm = self._monitor = None

    def _command(self) -> list[str]:
        place = self.place
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35,smm=on", "-cpu", "max"),
            *("-global", "driver=cfi.pflash01,property=secure,value=on", "-serial", f"file:{place / 'firmware.log'}"),
            *("-smp", "2", "-m", "2048", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "std"),
            *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
            *("-drive", f"if=pflash,format=raw,file={place / 'variables.fd'}"),
            *("-drive", f"if=none,id=disk,file={self.disk},format=raw,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=1", "-device", "virtio-rng-pci"),
            *(word for text in self.firmware_strings for word in ("-smbios", f"type=11,value={text}")),
            *("-chardev", f"socket,id=tpm,path={place / 'tpm.sock'}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            *("-device", "tpm-tis,tpmdev=tpm0", "-qmp", f"unix:{place / 'qmp'},server=on,wait=off"),
            *("-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="),
        ]

    def _line(self, dots: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> str:
        glyphs = self._glyphs or self._load_glyphs()
        cells = np.packbits(dots, axis=1).T
        return "".join(glyphs.get(cell.tobytes(), " ") for cell in cells).rstrip()

    def _load_glyphs(self) -> dict[bytes, str]:
        """The characters as the image's own kernel draws them: its 8x16 font, in the order of code page 437."""
        kernel = self.place / "kernel"
        entry = self.boot_entries()[0]
        self.take_from_esp(f"EFI/Linux/{entry}", Path(f"{kernel}.efi"))
        run(find_tool("objcopy"), "-O", "binary", "--only-section=.linux", f"{kernel}.efi", str(kernel))
        packed = kernel.read_bytes()
        code = lzma.LZMADecompressor().decompress(packed[packed.index(b"\xfd7zXZ\0") :])
        font = code.index(_LETTER_A) - ord("A") * _GLYPH_BYTES
        for number in range(ord(" "), 256):
            glyph = code[font + number * _GLYPH_BYTES : font + (number + 1) * _GLYPH_BYTES]
            character = bytes([number]).decode("cp437")
            self._glyphs.setdefault(bytes(255 - row for row in glyph), character)
            self._glyphs[glyph] = character
        self._glyphs[bytes(_GLYPH_BYTES)] = self._glyphs[b"\xff" * _GLYPH_BYTES] = " "
        return self._glyphs


def _wait_for(look: Callable[[], str], texts: tuple[str, ...], limit_s: float) -> str:
    deadline_s = time.monotonic() + limit_s
    while True:
        shown = look()
        words = " ".join(shown.split())
        if all(text in words for text in texts):
            return shown
        assert time.monotonic() < deadline_s, f"never seen: {texts}\n{shown}"
        time.sleep(LOOKS_EVERY_S)
