"""The wires between a box's processor and its TPM, with somebody's probe on them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.simulators.swtpm import Swtpm


class Probe:
    """Passes everything on, both ways, and remembers it.

    Args:
        tpm: The TPM behind it.
    """

    def __init__(self, tpm: Swtpm) -> None:
        self.seen = bytearray()
        self._tpm = tpm
        self._path = tpm.directory / "p.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        # Of the control channel nothing is of interest.
        Path(f"{self._path}.ctrl").symlink_to(f"{tpm.socket_path}.ctrl")

    @property
    def tcti(self) -> str:
        """The TPM's, through the probe."""
        return f"swtpm:path={self._path}"

    def run(self) -> None:
        """Serve one connection after the other, until the listener is shut down."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with near, socket.socket(socket.AF_UNIX) as far:
                    far.connect(str(self._tpm.socket_path))
                    self._pass_on(near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while True:
            for end in select.select(list(other), [], [])[0]:
                data = end.recv(1 << 16)
                if not data:
                    return
                self.seen += data
                other[end].sendall(data)

    def close(self) -> None:
        """Take it off."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink()
        Path(f"{self._path}.ctrl").unlink()


@contextlib.contextmanager
def probed(tpm: Swtpm) -> Iterator[Probe]:
    """Put a probe on a TPM's wires."""
    probe = Probe(tpm)
    thread = threading.Thread(target=probe.run)
    thread.start()
    try:
        yield probe
    finally:
        probe.close()
        thread.join(timeout=5)
        assert not thread.is_alive()
