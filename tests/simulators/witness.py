"""Witnesses of audit logs: the real one, asked directly, or as a process of its own over HTTPS.

with PlayedWitness.beside(tmp_path, clock) as witness:
    witness.know(log)
    submit(log, witness.post, witness.key)
"""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import LogOpened, encode_leaf
from agent.audit.log import AuditLog
from agent.audit.note import NoteKey
from agent.audit.tree import leaf_hash
from agent.audit.witness import ADD_CHECKPOINT, parse_witness
from agent.core.clock import Clock, SystemClock
from agent.core.errors import PeerProtocolError, SecureHealthError
from agent.trust.records import WitnessRecord
from agent.trust.snapshot import TrustSnapshot, TrustSource
from provisioning.witness.desk import Witness
from provisioning.witness.settings import SETTINGS_NAME, found_witness
from provisioning.witness.store import KnownLog, WitnessStore
from tests.simulators.superlink import free_port, wait_until

NAME = "witness.example/1"
PASSPHRASE = "a passphrase"


class NoTrust:
    """Knows no consortium: logs are made known by `PlayedWitness.know`."""

    def current(self) -> TrustSnapshot:
        raise PeerProtocolError("trust.none", "Nobody is known.", next_step="Nothing.")

    refresh = current

    def now_s(self) -> int:
        return 0


@dataclass
class PlayedWitness:
    """The real witness, without HTTPS.

    Args:
        store: Its memory.
        witness: What answers.
        asked: Paths of what was posted.
    """

    store: WitnessStore
    witness: Witness
    asked: list[str] = field(default_factory=list)

    @classmethod
    def beside(
        cls,
        directory: Path,
        clock: Clock,
        *,
        name: str = NAME,
        key: Ed25519PrivateKey | None = None,
        source: TrustSource | None = None,
    ) -> Self:
        """A witness whose memory lies in `directory`, made where it is not there."""
        if not (directory / "witness.sqlite").exists():
            WitnessStore.create(directory)
        store = WitnessStore.open(directory)
        return cls(store, Witness(store, name, key or Ed25519PrivateKey.generate(), source or NoTrust(), clock))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    @property
    def key(self) -> NoteKey:
        return self.witness.key

    def know(self, log: AuditLog) -> None:
        """Know a log as if its box had been believed."""
        first = log.leaf(0)
        assert isinstance(first, LogOpened)
        digest = leaf_hash(encode_leaf(first))
        with self.store.changing():
            self.store.add(KnownLog(log.origin, log.key.public_key, first.site, first.node, digest, 0, 1, digest))

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """As HTTPS would carry it."""
        self.asked.append(path)
        if path == ADD_CHECKPOINT:
            answer = self.witness.add_checkpoint(body)
            return answer.status, answer.body.encode()
        fields = json.loads(body)
        try:
            self.witness.register(
                fields["statement"].encode(), fields["certificate"].encode(), base64.b64decode(fields["opened"])
            )
        except SecureHealthError as error:
            hidden = error.code == "witness.history_hidden"
            return (HTTPStatus.CONFLICT if hidden else HTTPStatus.FORBIDDEN), error.code.encode()
        return HTTPStatus.OK, b"{}"


@dataclass
class RunningWitness:
    """A witness as its operator runs it: `seh-provision witness run`.

    Args:
        directory: Its own.
        record: What the consortium puts into `consortium.json`.
    """

    directory: Path
    record: WitnessRecord
    _process: subprocess.Popen[bytes] | None = None
    _client: httpx.Client | None = None

    @classmethod
    def found(cls, directory: Path, *, root: bytes, root_digest: str, registrar: str, name: str = NAME) -> Self:
        """Make it, as `seh-provision witness init` does; it does not run yet.

        Args:
            directory: Its own.
            root: The consortium's first root metadata.
            root_digest: SHA-256 of it, hex.
            registrar: `host:port`.
            name: Its name.
        """
        record = found_witness(
            directory,
            name=name,
            address=f"127.0.0.1:{free_port()}",
            root=root,
            root_digest=root_digest,
            registrar=registrar,
            passphrase=PASSPHRASE,
            now=SystemClock().now(),
        )
        return cls.over(directory, record)

    @classmethod
    def over(cls, directory: Path, record: WitnessRecord) -> Self:
        """One that is made already, with `PASSPHRASE`; its port listens on loopback alone."""
        (directory / "passphrase").write_text(PASSPHRASE, encoding="utf-8")
        settings = directory / SETTINGS_NAME
        text = settings.read_text(encoding="utf-8").replace("0.0.0.0", "127.0.0.1")
        settings.write_text(f'passphrase_file = "passphrase"\n{text}', encoding="utf-8")
        return cls(directory, record)

    @property
    def key(self) -> NoteKey:
        return parse_witness(self.record.vkey)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Run it, and wait until it answers."""
        command = [str(Path(sys.executable).with_name("seh-provision")), "witness", "run"]
        with (self.directory / "witness.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(self.directory / SETTINGS_NAME)],
                stderr=log,
                stdout=log,
                env=dict(os.environ),
            )
        trust = ssl.create_default_context(cadata=self.record.root_certificates)
        self._client = httpx.Client(base_url=f"https://{self.record.address}", verify=trust, timeout=10)
        wait_until(self._answers, limit_s=30, what="the witness")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, in order or not."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=20)
        self._client = self._process = None

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Over HTTPS."""
        response = self.ask(path, body)
        return response.status_code, response.content

    def ask(self, path: str, body: bytes) -> httpx.Response:
        """The same, with all of the answer."""
        assert self._client is not None
        return self._client.post(path, content=body)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "witness.log").read_text(encoding="utf-8")
        try:
            return self.post(ADD_CHECKPOINT, b"")[0] == HTTPStatus.BAD_REQUEST
        except httpx.TransportError:
            return False
