"""An HTTPS server that sends whatever raw bytes a test wants, as slowly as it wants."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

from tests.simulators.superlink import prepare_tls


class PlayedServer:
    """Sends the given pieces of raw HTTP, with pauses, to every request."""

    def __init__(self, directory: Path) -> None:
        self.files = prepare_tls(directory)
        self.pieces: list[bytes] = []
        self.pause_s = 0.0
        self.requests = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.files.certificate, self.files.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        """Send these pieces from now on."""
        self.pieces, self.pause_s = list(pieces), pause_s

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    _read_request(connection)
                    self.requests += 1
                    for piece in self.pieces:
                        connection.sendall(piece)
                        time.sleep(self.pause_s)
            except OSError:
                continue

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def _read_request(connection: ssl.SSLSocket) -> None:
    """Read a whole request: closing with unread bytes would reset the connection under the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            raise ConnectionAbortedError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    while missing > 0:
        if not (more := connection.recv(65536)):
            raise ConnectionAbortedError
        missing -= len(more)


def http_answer(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole HTTP answer."""
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
