"""The registrar's side of a site's requests about tokens: it notes what comes, answers as told, and serves files."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.simulators.superlink import prepare_tls


class PlayedTokenDesk:
    """Takes one kind of request and answers it as told.

    Args:
        directory: For its TLS files.
    """

    def __init__(self, directory: Path) -> None:
        self.status, self.answer = 201, b"{}"
        self.files: Mapping[str, bytes] = {}
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.authorizations: list[str] = []
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                played.paths.append(self.path)
                played.authorizations.append(self.headers["authorization"])
                played.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(played.status)
                self.send_header("content-length", str(len(played.answer)))
                self.end_headers()
                self.wfile.write(played.answer)

            def do_GET(self) -> None:
                data = played.files.get(self.path.removeprefix("/repository/"))
                self.send_response(404 if data is None else 200)
                self.send_header("content-length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        files = prepare_tls(directory)
        self.root = files.root
        self.trust = ssl.create_default_context(cafile=str(files.root))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
