"""The consortium's SuperLink: its command line, a private connection to it, registered nodes and started runs.

Flower's own commands do the work, so that nothing here leans on its private interfaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import NetworkError, OperatorError
from provisioning.authority.tls import ServerFiles

COMMAND_TIMEOUT_S = 120.0
CONNECTION_NAME = "consortium"
_SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class SuperLinkSettings:
    """How a SuperLink is started.

    Args:
        host: Address to listen on.
        port: One port for nodes, operators and the coordinator.
        files: Its TLS certificate, key and root.
        database: SQLite file that outlives it; None keeps all in memory.
    """

    host: str
    port: int
    files: ServerFiles
    database: Path | None = None

    @property
    def address(self) -> str:
        """`host:port`, as nodes and connections name it."""
        return f"{self.host}:{self.port}"

    def command(self) -> list[str]:
        """Arguments that start it: TLS, node authentication, and no package installed at another's word."""
        command = [str(_SCRIPTS / "flower-superlink"), "--host", self.host, "--port", str(self.port)]
        command += ["--ssl-certfile", str(self.files.certificate), "--ssl-keyfile", str(self.files.key)]
        command += ["--ssl-ca-certfile", str(self.files.root), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation"]
        if self.database is not None:
            command += ["--database", str(self.database)]
        return command


def flower_environment(home: Path) -> dict[str, str]:
    """Environment of every Flower process: a private home, no telemetry, no update check, our own scripts first."""
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # How often the SuperLink's executor looks for runs to start; a second, its default, would be added to each.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "PATH": f"{_SCRIPTS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node, as the SuperLink sees it.

    Args:
        state: `registered` (never heard of), `online` or `offline`.
        since: Since when it is online or offline, as Flower writes it; empty where it was never heard of.
    """

    state: str
    since: str

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> NodeStatus:
        """From what Flower lists."""
        state = str(fields.get("status", ""))
        since = {"online": "online-at", "offline": "offline-at"}.get(state, "")
        return cls(state, str(fields.get(since) or ""))


@dataclass(frozen=True, slots=True)
class SuperLinkConnection:
    """An operator's connection to a SuperLink, kept under a Flower home of its own."""

    home: Path
    address: str
    root_certificate: Path

    def store(self) -> None:
        """Write the connection into the home's `config.toml`."""
        self.home.mkdir(parents=True, exist_ok=True)
        table = f"[superlink]\ndefault = {json.dumps(CONNECTION_NAME)}\n\n[superlink.{CONNECTION_NAME}]\n"
        table += f"address = {json.dumps(self.address)}\n"
        table += f"root-certificates = {json.dumps(str(self.root_certificate))}\n"
        (self.home / "config.toml").write_text(table, encoding="utf-8")

    def register_node(self, public_key: ec.EllipticCurvePublicKey, *, name: str | None = None) -> int:
        """Let the node that holds this key join.

        Returns:
            The node's id at the SuperLink.

        Raises:
            OperatorError: The SuperLink refuses the key, e.g. because it is registered already.
            NetworkError: It does not answer.
        """
        line = public_key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "node.pub"
            path.write_bytes(line + b"\n")
            options = ["--name", name] if name else []
            answer = self._call("supernode", "register", str(path), CONNECTION_NAME, *options)
        return int(str(answer["node-id"]))

    def unregister_node(self, node_id: int) -> None:
        """Take a node out of the federation.

        Raises:
            OperatorError: The SuperLink does not know it.
            NetworkError: It does not answer.
        """
        self._call("supernode", "unregister", str(node_id), CONNECTION_NAME)

    def nodes(self) -> dict[int, NodeStatus]:
        """Every registered node, by its id.

        Raises:
            OperatorError: The SuperLink refuses.
            NetworkError: It does not answer.
        """
        listed = self._call("supernode", "list").get("nodes")
        nodes: list[dict[str, object]] = listed if isinstance(listed, list) else []
        return {int(str(node["node-id"])): NodeStatus.of(node) for node in nodes}

    def start_run(self, app: Path, config: Mapping[str, str | int | float | bool] | None = None) -> int:
        """Start a run of the Flower app in directory `app`.

        Args:
            app: Directory with the app's `pyproject.toml`.
            config: Values that replace those of the app's own run configuration.

        Returns:
            The run's id.

        Raises:
            OperatorError: The SuperLink or Flower refuses the app.
            NetworkError: It does not answer.
        """
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in (config or {}).items())
        options = ["--run-config", pairs] if pairs else []
        return int(str(self._call("run", str(app), CONNECTION_NAME, *options)["run-id"]))

    def stop_run(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            OperatorError: There is no such run, or it has ended.
            NetworkError: The SuperLink does not answer.
        """
        self._call("stop", str(run_id), CONNECTION_NAME)

    def _call(self, *arguments: str) -> dict[str, object]:
        command = [str(_SCRIPTS / "flwr"), *arguments, "--format", "json"]
        try:
            result = subprocess.run(
                command,
                env=flower_environment(self.home),
                cwd=self.home,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._unreachable(f"no answer within {COMMAND_TIMEOUT_S:.0f} s") from error
        return self._read_answer(arguments, result)

    def _read_answer(self, arguments: Sequence[str], result: subprocess.CompletedProcess[str]) -> dict[str, object]:
        try:
            answer = json.loads(result.stdout)
        except json.JSONDecodeError:
            answer = None
        if isinstance(answer, dict) and answer.get("success") is True:
            return answer
        said = str(answer.get("error-message", "")) if isinstance(answer, dict) else f"{result.stdout}{result.stderr}"
        if "unavailable" in said:
            raise self._unreachable("the connection failed")
        raise OperatorError(
            "superlink.refused",
            f"The SuperLink at {self.address} refused '{' '.join(arguments[:2])}': {said.strip()[-500:]}",
            next_step="Correct what it names and try again; nothing was changed.",
        )

    def _unreachable(self, why: str) -> NetworkError:
        return NetworkError(
            "superlink.unreachable",
            f"The SuperLink at {self.address} cannot be reached: {why}.",
            next_step="Check that it runs and that a firewall lets this address through, then try again.",
        )
