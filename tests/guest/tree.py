"""A bookworm machine as a disk and a kernel, made of Debian's packages and kept under `build/guest/`.

    machine = load_machine()          # 45 s once; again when what stands here changes

Nothing is mounted and no loop device is needed: the tree becomes a file system by `mke2fs -d`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.simulators.stick import find_tool
from tests.simulators.swtpm import SwtpmMaker

BUILD = Path(__file__).resolve().parents[2] / "build" / "guest"
SUITE = "bookworm"
DISK_SIZE = "12G"  # sparse
# What any Debian machine has, and what the appliance's package depends on.
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "linux-image-amd64", "tiny-initramfs"),
    *("qemu-guest-agent", "ca-certificates", "python3", "python3-cryptography", "tpm2-tools", "cryptsetup-bin", "zstd"),
    *("pcscd", "libccid", "usbutils"),
)
# Drivers that this machine has no hardware for.
_LEFT_OUT = tuple(f"/lib/modules/*/kernel/{place}/*" for place in ("drivers/gpu", "drivers/media", "sound"))
_NOBODY_READS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /dev /root
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules); do busybox insmod /$module; done
busybox mount -t ext4 -o rw /dev/vda /root
busybox umount /proc
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /sbin/init
"""
_FILES = {
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "",
    "etc/systemd/network/10-guest.network": (
        "[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n"
    ),
    # Slow as the guest is, nothing in it is late.
    "etc/systemd/system.conf.d/guest.conf": "[Manager]\nDefaultTimeoutStartSec=300\nDefaultDeviceTimeoutSec=300\n",
    "etc/systemd/system/qemu-guest-agent.service.d/guest.conf": "[Service]\nLogLevelMax=warning\n",
    "etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n",
}
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest starts from.

    Args:
        directory: Where all of it lies, and what is made of it may.
    """

    directory: Path

    @property
    def disk(self) -> Path:
        """Its first disk, raw; never written to."""
        return self.directory / "disk.img"

    @property
    def kernel(self) -> Path:
        """Debian's kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What finds the disk."""
        return self.directory / "initrd"

    @property
    def makers(self) -> Path:
        """Who manufactured its TPM."""
        return self.directory / "makers"

    @property
    def tpm_roots(self) -> tuple[Path, ...]:
        """PEM files of those who manufactured its TPM, issuer first."""
        return SwtpmMaker(self.makers).ca_certificates


def load_machine() -> Machine:
    """The machine, built where it is not there yet. Needs root, as `mmdebstrap` and the files' owners do."""
    machine = Machine(BUILD / _key())
    if not machine.directory.exists():
        assert os.geteuid() == 0, "building the guest needs root: sudo make system"
        partial = machine.directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _build(Machine(partial))
        partial.rename(machine.directory)
    return machine


def directory_image(content: Path, image: Path, *, size: str) -> Path:
    """A directory as an ext4 image.

    Args:
        content: What the image's root directory shall be.
        image: Where it goes; sparse.
        size: As mke2fs takes it: `300M`.
    """
    image.unlink(missing_ok=True)
    options = ("-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", str(content))
    _run(find_tool("mke2fs"), *options, str(image), size)
    return image


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _build(machine: Machine) -> None:
    tree = machine.directory / "tree"
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in (*_LEFT_OUT, *_NOBODY_READS)]
    _run(
        find_tool("mmdebstrap"),
        *("--quiet", "--mode=root", "--variant=minbase", "--components=main", *options),
        *(f"--include={','.join(PACKAGES)}", SUITE, str(tree)),
    )
    for name, text in _FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
    for unit in _MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, machine.kernel)
    _make_initrd(machine, tree, kernel.name.removeprefix("vmlinuz-"))
    for file in (tree / "boot").iterdir():
        file.unlink()
    directory_image(tree, machine.disk, size=DISK_SIZE)
    shutil.rmtree(tree)


def _make_initrd(machine: Machine, tree: Path, version: str) -> None:
    root = machine.directory / "initrd.d"
    (root / "bin").mkdir(parents=True)
    shutil.copyfile(find_tool("busybox"), root / "bin/busybox")
    (root / "init").write_text(_INIT)
    for program in (root / "bin/busybox", root / "init"):
        program.chmod(0o755)
    names = []
    for module in _INITRD_MODULES:
        shown = _run(find_tool("modprobe"), "-d", str(tree), "-S", version, "--show-depends", module)
        for line in shown.splitlines():
            file = Path(line.split()[1])
            if file.name not in names and "crc32c-intel" not in file.name:  # for a processor that this is not
                names.append(file.name)
                shutil.copyfile(file, root / file.name)
    (root / "modules").write_text("\n".join(names))
    archive = subprocess.run(
        [find_tool("cpio"), "--quiet", "-o", "-H", "newc"],
        input="\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))).encode(),
        cwd=root,
        stdout=subprocess.PIPE,
        check=True,
    )
    machine.initrd.write_bytes(archive.stdout)
    shutil.rmtree(root)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr[-2000:]}"
    return result.stdout
