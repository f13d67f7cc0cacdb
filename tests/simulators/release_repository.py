"""A maker's release repository, which obeys whoever holds it, and a server for it that misbehaves as told.

releases = PlayedReleases.found_maker(clock)
releases.add_release("1.4.0", image, base=("1.3.0", old_image))
releases.offer("stable", ("1.4.0", 100))
with served_releases(releases) as server: ...
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, TargetFile, Targets

from agent.core.clock import Clock
from agent.statements.release import PAYLOAD_TYPE, Release, Version, parse_release, pre_authentication_encoding
from agent.trust.channels import Channel, Offer, channel_path, delta_name, release_path
from agent.update.release import ReleaseKeys, parse_release_keys
from agent.update.repository import PATTERNS
from tests.simulators.repository import PlayedRepository, delegate, new_signer

BLOCK = 4096


def new_image(seed: int, blocks: int = 64) -> bytes:
    """An image that hardly compresses, as squashfs is; the same for the same seed."""
    return b"".join(
        hashlib.shake_256(f"{seed if block == blocks // 2 else 0}/{block}".encode()).digest(BLOCK)
        for block in range(blocks)
    )


def release_of(version: str, image: bytes, *, epoch: int = 1) -> Release:
    """What its signers vouch for; the verity tree is not played."""
    return Release(
        Version.parse(version), epoch, hashlib.sha256(image).hexdigest(), len(image), "0" * 64, "1" * 64, "2" * 40, 0
    )


def signed_record(release: Release, signers: Sequence[CryptoSigner]) -> bytes:
    """A release's record."""
    payload = release.payload()
    signatures = [signer.sign(pre_authentication_encoding(payload)) for signer in signers]
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": one.keyid, "sig": base64.b64encode(bytes.fromhex(one.signature)).decode()} for one in signatures
        ],
    }
    return json.dumps(envelope).encode()


@cache
def make_delta(base: bytes, image: bytes) -> bytes:
    """As `zstd` makes it."""
    with tempfile.TemporaryDirectory() as directory:
        old, new = Path(directory, "old"), Path(directory, "new")
        old.write_bytes(base)
        new.write_bytes(image)
        done = subprocess.run(
            ("zstd", "-q", "-c", "--long=31", f"--patch-from={old}", str(new)), check=True, capture_output=True
        )
    return done.stdout


class PlayedReleases(PlayedRepository):
    """The repository, with every key of the maker."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.signers = {
            "root": [new_signer(), new_signer()],
            "timestamp": [new_signer()],
            "snapshot": [new_signer()],
            "targets": [new_signer()],
            "releases": [new_signer(), new_signer(), new_signer()],
            "channels": [new_signer()],
        }
        self.releases, self.channels = Targets(), Targets()
        self.releases.version = self.channels.version = 0

    @classmethod
    def found_maker(cls, clock: Clock) -> PlayedReleases:
        """Found the repository, with nothing in it."""
        played = cls(clock)
        played.publish_root()
        played.targets.delegations = Delegations({}, {})
        for name, threshold in (("releases", 2), ("channels", 1)):
            delegate(played.targets, name, [PATTERNS[name]], played.signers[name], threshold=threshold)
        played.sign_targets()
        played.sign_all()
        return played

    @property
    def public_keys(self) -> dict[str, str]:
        """Who may sign releases: PEM by key id."""
        return {signer.public_key.keyid: signer.public_key.keyval["public"] for signer in self.signers["releases"]}

    @property
    def keys(self) -> ReleaseKeys:
        """The same, as the package says it."""
        return parse_release_keys(json.dumps({"threshold": 2, "keys": self.public_keys}).encode())

    def sign_all(self) -> None:
        """Sign the next version of both delegated roles, and publish it."""
        self.sign_role("releases", self.releases)
        self.sign_role("channels", self.channels)
        self.publish()

    def add_release(
        self,
        version: str,
        image: bytes,
        *,
        epoch: int = 1,
        base: tuple[str, bytes] | None = None,
        signers: Sequence[CryptoSigner] | None = None,
    ) -> Release:
        """List a release; it is published with the next `sign_all`."""
        release = release_of(version, image, epoch=epoch)
        record = signed_record(release, self.signers["releases"][:2] if signers is None else signers)
        self.put(self.releases, release_path(version, "release.json"), record)
        self.put(self.releases, release_path(version, "app.raw"), image)
        if base is not None:
            self.put(self.releases, release_path(version, delta_name(base[0])), make_delta(base[1], image))
        return release

    def take_over(self, record: bytes, *, base: str, delta: bytes) -> Release:
        """List a release that others built and signed, under this maker's keys; only its delta can be fetched.

        Args:
            record: Its release.json.
            base: The version that the delta starts from.
            delta: As `zstd` made it.
        """
        release = parse_release(base64.b64decode(json.loads(record)["payload"]))
        version = str(release.version)
        self.put(self.releases, release_path(version, "release.json"), signed_record(release, self.signers["releases"]))
        self.put(self.releases, release_path(version, delta_name(base)), delta)
        path = release_path(version, "app.raw")
        self.releases.targets[path] = TargetFile(release.image_bytes, {"sha256": release.image_sha256}, path)
        return release

    def offer(
        self, channel: str, *offers: tuple[str, int], sites: Sequence[str] = ("*",), halted: Sequence[str] = ()
    ) -> None:
        """Offer these releases to so many of a hundred boxes, and publish that."""
        listed = tuple(
            Offer(version=version, percentage=percentage, sites=tuple(sites), halted=version in halted)
            for version, percentage in offers
        )
        self.put(self.channels, channel_path(channel), Channel(channel=channel, releases=listed).encode())
        self.sign_all()


@dataclass(slots=True)
class Misbehaviour:
    """What the server does wrong with files that are larger than `above` bytes.

    Args:
        above: Smaller files are served well.
        break_after: The connection ends after so many bytes of a body; 0 for never.
        stall_after: It sends nothing after so many bytes, until the test lets it (`ServedReleases.go_on`).
        ignore_range: Whether it sends the whole file whatever was asked for.
        endless: Whether it goes on after the file's end.
        byte_every_s: Sends a byte at a time.
        alter: Whether it changes a byte.
    """

    above: int = 1 << 15
    break_after: int = 0
    stall_after: int = 0
    ignore_range: bool = False
    endless: bool = False
    byte_every_s: float = 0.0
    alter: bool = False


@dataclass(slots=True)
class ServedReleases:
    """A server, what it does wrong, and what it saw.

    Args:
        port: Where it listens.
        find: The file at a path below the URL.
        wrong: What it does wrong.
        asked: Path and `Range` of each request.
        go_on: Set, it no longer stalls.
    """

    port: int
    find: Callable[[str], bytes | None]
    wrong: Misbehaviour = field(default_factory=Misbehaviour)
    asked: list[tuple[str, str]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Of the repository."""
        return f"http://127.0.0.1:{self.port}/releases/"

    def asked_for(self, name: str) -> list[str]:
        """The `Range` of each request for files that are called so."""
        return [span for path, span in self.asked if path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: ClassVar[ServedReleases]

    def do_GET(self) -> None:
        span = self.headers.get("range", "")
        self.served.asked.append((self.path, span))
        data = self.served.find(self.path.removeprefix("/releases/"))
        if data is None:
            self._head(HTTPStatus.NOT_FOUND, 0)
            return
        wrong = self.served.wrong if len(data) > self.served.wrong.above else Misbehaviour()
        match = re.fullmatch(r"bytes=([0-9]+)-", span)
        start = int(match[1]) if match and not wrong.ignore_range else 0
        body = data[start:]
        if wrong.alter:
            body = bytes([body[0] ^ 1]) + body[1:]
        if wrong.endless:
            body += bytes(1 << 20)
        span = f"bytes {start}-{len(data) - 1}/{len(data)}" if start else ""
        self._head(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK, len(body), span)
        self._send(body, wrong)

    def _head(self, status: HTTPStatus, length: int, span: str = "") -> None:
        self.send_response(status)
        if span:
            self.send_header("content-range", span)
        self.send_header("content-length", str(length))
        self.end_headers()

    def _send(self, body: bytes, wrong: Misbehaviour) -> None:
        if wrong.byte_every_s:
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                time.sleep(wrong.byte_every_s)
        elif wrong.stall_after:
            self.wfile.write(body[: wrong.stall_after])
            self.served.go_on.wait()
            self.close_connection = True
        elif wrong.break_after:
            self.wfile.write(body[: wrong.break_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *_: object) -> None:
        """A client that leaves is no error."""


@contextmanager
def served_releases(releases: PlayedReleases) -> Iterator[ServedReleases]:
    """Serve the repository over plain HTTP: all that counts is signed."""
    with served(lambda path: releases.files.get(path)) as one:  # noqa: PLW0108 - tests put other files there
        yield one


@contextmanager
def served_files(directory: Path) -> Iterator[ServedReleases]:
    """Serve a repository in a directory."""
    with served(lambda path: (directory / path).read_bytes() if (directory / path).is_file() else None) as one:
        yield one


@contextmanager
def served(found: Callable[[str], bytes | None]) -> Iterator[ServedReleases]:
    """Serve what `found` finds at each path below the URL; at each whole URL, where this is asked as a proxy."""

    class Handler(_Handler):
        """With a server of its own."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        seen = Handler.served = ServedReleases(server.server_address[1], found)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield seen
        finally:
            seen.go_on.set()
            server.shutdown()
            thread.join()
