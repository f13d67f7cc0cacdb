"""A played trust repository served over real sockets, and a hospital's proxy before it."""

from __future__ import annotations

import base64
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.simulators.repository import PlayedRepository
from tests.simulators.superlink import prepare_tls

HOST = "127.0.0.1"


@dataclass(slots=True)
class Served:
    """A server and what it saw.

    Args:
        port: Where it listens.
        connections: How many were opened.
        asked: First lines of requests.
        credentials: What a proxy was shown, decoded.
    """

    port: int
    connections: int = 0
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)

    def url(self, scheme: str = "https") -> str:
        """Of the repository."""
        return f"{scheme}://localhost:{self.port}/repository/"


@contextmanager
def served_repository(repository: PlayedRepository, tls: Path | None) -> Iterator[Served]:
    """Serve `repository`; over TLS with a certificate from nowhere where a directory for it is given."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            seen.asked.append(self.requestline)
            data = repository.files.get(self.path.removeprefix("/repository/"))
            self.send_response(HTTPStatus.OK if data is not None else HTTPStatus.NOT_FOUND)
            self.send_header("content-length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

    with _running(Handler, tls) as seen:
        yield seen


@contextmanager
def running_proxy() -> Iterator[Served]:
    """A proxy that tunnels (RFC 9110 9.3.6) to loopback only."""

    class Handler(_Handler):
        def do_CONNECT(self) -> None:
            seen.asked.append(self.requestline)
            kind, _, shown = self.headers.get("proxy-authorization", "").partition(" ")
            seen.credentials.append(base64.b64decode(shown).decode() if kind.lower() == "basic" else "")
            with socket.create_connection((HOST, int(self.path.rpartition(":")[2]))) as beyond:
                self.send_response(HTTPStatus.OK)
                self.end_headers()
                _join(self.connection, beyond)
            self.close_connection = True

    with _running(Handler, None) as seen:
        yield seen


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


@contextmanager
def _running(handler: type[_Handler], tls: Path | None) -> Iterator[Served]:
    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def process_request(self, request: socket.socket | tuple[bytes, socket.socket], address: object) -> None:
            seen.connections += 1
            super().process_request(request, address)

        def handle_error(self, *_: object) -> None:
            """A client that leaves is no error."""

    with Server((HOST, 0), handler) as server:
        if tls is not None:
            files = prepare_tls(tls)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        seen = Served(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both directions until one side ends."""
    while True:
        for ready in select.select([one, other], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (other if ready is one else one).sendall(data)
