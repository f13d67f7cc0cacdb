"""A hospital's proxy that opens TLS: it tunnels, but shakes hands itself, with a certificate of its own making."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.simulators.superlink import prepare_tls

ISSUER = "Loopback consortium"
"""As `prepare_tls` names every authority that it makes; only its key is another's."""


@contextmanager
def running_interceptor(directory: Path, *, answer: HTTPStatus = HTTPStatus.OK) -> Iterator[str]:
    """Run one, and yield its address; with another `answer` it refuses all tunnels in that way."""
    files = prepare_tls(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(answer)
            self.end_headers()
            self.close_connection = True
            if answer == HTTPStatus.OK:
                try:
                    with context.wrap_socket(self.connection, server_side=True) as opened:
                        opened.recv(1 << 16)
                        opened.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                except OSError:
                    return  # whoever knows better hangs up

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
