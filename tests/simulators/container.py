"""A bookworm userland with a systemd of its own, booted in a second: no kernel, udev, TPM or dm-verity of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.simulators.stick import find_tool

CACHE = Path(__file__).resolve().parents[2] / "build" / "cache"
# What the package depends on, and what any Debian machine has.
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "python3", "python3-cryptography", "tpm2-tools", "cryptsetup-bin"),
    *("ca-certificates", "init-system-helpers"),
)
BOOT_LIMIT_S = 60.0


@dataclass(slots=True)
class Container:
    """One container; what it writes is gone with it.

    Args:
        shared: A directory of this machine that it sees at /mnt.
    """

    shared: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _leader: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        assert os.geteuid() == 0, "booting a container needs root: sudo make system"
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("systemd-nspawn", "--quiet", f"--directory={_load_tree()}", "--volatile=overlay", "--boot"),
                *(
                    "--register=no",
                    "--keep-unit",
                    "--private-network",
                    "--console=pipe",
                    f"--bind-ro={self.shared}:/mnt",
                ),
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_for_boot()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, command: str) -> tuple[int, str]:
        """Run a shell command inside.

        Returns:
            Its exit status, and what it printed, of both streams.
        """
        result = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "/bin/sh", "-c", command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        return result.returncode, result.stdout

    def do(self, command: str) -> str:
        """Run a shell command inside that must do well; what it printed."""
        status, output = self.run(command)
        assert status == 0, f"{command}: {output[-2000:]}"
        return output

    def _wait_for_boot(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + BOOT_LIMIT_S
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while not self._leader or self.run("systemctl is-system-running")[1].strip() not in {"running", "degraded"}:
            assert self._process.poll() is None, "the container ended while it booted"
            assert time.monotonic() < deadline, "the container did not boot"
            found = children.read_text().split()
            self._leader = int(found[0]) if found else 0
            time.sleep(0.05)

    def _stop(self) -> None:
        if self._process is None:
            return
        if self._leader:
            # The kernel ends everything in it, and nspawn with the last of them.
            os.kill(self._leader, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait(timeout=60)
        self._process = None
        # nspawn does not take its own cgroup away when it may keep the unit that started it.
        for payload in Path("/sys/fs/cgroup").glob("*/payload"):
            for directory in sorted((path for path in payload.rglob("*") if path.is_dir()), reverse=True):
                directory.rmdir()
            payload.rmdir()


def _load_tree() -> Path:
    key = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:16]
    tree = CACHE / f"container-{key}"
    if not tree.exists():
        partial = tree.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        result = subprocess.run(
            [
                find_tool("mmdebstrap"),
                "--quiet",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                "bookworm",
                partial,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        partial.rename(tree)
    return tree
