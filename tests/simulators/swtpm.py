"""TPMs made of software (swtpm): manufactured once by a test maker, copied per test, pulled out and put back.

    with shared_maker().make() as tpm:
        key = init_key(tpm.uri)

A manufactured TPM's state is 6 KB; copying it takes no time, making it one second. A copy has the same EK, so tests
that need two different TPMs ask for two identities.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SWTPM = "swtpm"
_READY_WITHIN_S = 10.0
_CA_FILES = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")


class Swtpm:
    """One running, or pulled-out, TPM.

    Args:
        maker: Who manufactured it.
        directory: Holds its state and sockets; short, as UNIX socket paths end at 107 bytes.
    """

    def __init__(self, maker: SwtpmMaker, directory: Path) -> None:
        self.directory = directory
        self._maker = maker
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.directory / "t.sock"

    @property
    def tcti(self) -> str:
        """As the TSS names it."""
        return f"swtpm:path={self.socket_path}"

    @property
    def uri(self) -> str:
        """As `open_key` and `init_key` take it."""
        return f"tpm:{self.tcti}"

    @property
    def ca_certificates(self) -> tuple[Path, ...]:
        """PEM files of its maker's CA, issuer first."""
        return self._maker.ca_certificates

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "the TPM is pulled out"
        return self._process.pid

    def start(self) -> Self:
        """Switch it on (as at a cold boot) and wait until it answers."""
        assert self._process is None, "the TPM is already running"
        control = self.directory / "t.sock.ctrl"
        for path in (self.socket_path, control):
            path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *(_SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={self.directory / 'state'}"),
                *("--server", f"type=unixio,path={self.socket_path}"),
                *("--ctrl", f"type=unixio,path={control}"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_ready()
        return self

    def stop(self) -> None:
        """Switch it off; its persistent state stays on disk."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def swap(self, identity: str) -> None:
        """Put a brand-new TPM of another identity into this one's socket; the old one's state is kept nowhere."""
        self.stop()
        shutil.rmtree(self.directory / "state")
        self._maker.copy_state(identity, self.directory / "state")
        self.start()

    def pause(self) -> None:
        """Make it hang, as a TPM that does not answer."""
        os.kill(self.pid, 19)  # SIGSTOP

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, 18)  # SIGCONT

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"swtpm ended at once with {self._process.returncode}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket_path))
                return
            time.sleep(0.002)
        raise RuntimeError("swtpm did not answer in time")


class SwtpmMaker:
    """Manufactures TPMs of one test maker: one CA, one cached state per identity.

    Args:
        directory: Where CA and states are kept; made and removed with the maker when None.
    """

    def __init__(self, directory: Path | None = None) -> None:
        # A short path: UNIX socket paths end at 107 bytes, and pytest's own directories come close.
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="seh-tpm-")
        self.directory = directory or Path(self._temporary.name if self._temporary else "")
        self._count = 0
        (self.directory / "ca").mkdir(parents=True, exist_ok=True)
        self._write_configuration()

    @property
    def ca_certificates(self) -> tuple[Path, ...]:
        """PEM files of the maker's CA, issuer first; they exist once a TPM was made."""
        return tuple(self.directory / "ca" / name for name in _CA_FILES)

    def make(self, identity: str = "a", directory: Path | None = None) -> Swtpm:
        """A TPM, not yet running, with a fresh copy of the state that the identity was manufactured with.

        Args:
            identity: TPMs of one identity share their EK, those of two do not.
            directory: Where to keep it; a new one under the maker's own when None.
        """
        self._count += 1
        home = directory or self.directory / f"t{self._count}"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "state").exists():
            self.copy_state(identity, home / "state")
        return Swtpm(self, home)

    def copy_state(self, identity: str, target: Path) -> None:
        """Copy what the identity was manufactured with; `target` must not exist."""
        shutil.copytree(self._manufactured(identity), target, ignore=shutil.ignore_patterns(".lock"))

    def close(self) -> None:
        """Remove what the maker made for itself."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _manufactured(self, identity: str) -> Path:
        state = self.directory / "made" / identity
        if not state.exists():
            state.mkdir(parents=True)
            self._manufacture(state)
        return state

    def _manufacture(self, state: Path) -> None:
        result = subprocess.run(
            [
                *("swtpm_setup", "--tpm2", "--tpm-state", str(state), "--config", str(self.directory / "setup.conf")),
                *("--createek", "--ecc", "--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--overwrite"),
                *("--pcr-banks", "sha256,sha384"),
            ],
            capture_output=True,
            check=False,
            timeout=60,
        )
        if result.returncode:
            raise RuntimeError(f"swtpm_setup failed: {result.stdout.decode()}{result.stderr.decode()}")

    def _write_configuration(self) -> None:
        ca, options, localca = (
            self.directory / "ca",
            self.directory / "localca.options",
            self.directory / "localca.conf",
        )
        options.write_text("--platform-manufacturer Test\n--platform-version 1.0\n--platform-model Test\n")
        localca.write_text(
            f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\n"
            f"issuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
        )
        (self.directory / "setup.conf").write_text(
            "create_certs_tool=/usr/bin/swtpm_localca\n"
            f"create_certs_tool_config={localca}\ncreate_certs_tool_options={options}\n"
            "active_pcr_banks=sha256,sha384\n"
        )


@functools.cache
def shared_maker() -> SwtpmMaker:
    """The one maker of this test run; what it made is removed when the process ends."""
    maker = SwtpmMaker()
    atexit.register(maker.close)
    return maker
