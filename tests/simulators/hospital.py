"""A hospital's box on loopback: its files, and the agent as a process of its own that can be stopped and killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.config import load_config
from agent.core.errors import HardwareError
from agent.core.terminal import run_command
from agent.enrolment.drop import StickReading, leave_reading
from agent.enrolment.record import EnrolmentFolder
from agent.identity.key import init_key
from agent.identity.session import RenewalPolicy
from agent.service.heartbeat import HEARTBEAT_S
from agent.service.main import run_agent
from agent.service.state import AgentStatus, load_status
from agent.service.wiring import link_of
from agent.statements.roots import KeyKind, RootKey
from agent.trust.roster import Roster, encode_roster
from agent.trust.study import Study, parse_study, study_digest
from tests.simulators.superlink import RunningSuperLink, wait_until
from tests.simulators.trainer import ROWS, played_opener

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = b"no model: the played worker reads none"
STUDY_ID = "played-study"


def study_json(sites: tuple[str, ...] = ("hospital-a",), **changes: Any) -> bytes:  # noqa: ANN401 - any part of a study
    """A small study as a file; `changes` replace its top-level fields."""
    content: dict[str, Any] = {
        "id": STUDY_ID,
        "title": "A played study",
        "purpose": "To test the way of a message.",
        "requester": "The tests",
        "sites": sites,
        "rounds": 3,
        "expires": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        "model": {"digest": hashlib.sha256(MODEL).hexdigest(), "size_bytes": len(MODEL), "parameters": 10},
        "data": {
            "schema_name": "played",
            "features": [{"name": "age", "kind": "number", "minimum": 0, "maximum": 120}],
            "label": {"field": "ill"},
        },
        "plan": {"learning_rate": 0.1, "batch_size": 8, "epochs": 1, "seed": 500},
    }
    return json.dumps(content | changes).encode()


def install_study(directory: Path, data: bytes, *, model: bytes = MODEL) -> tuple[Study, str]:
    """Write a study's folder; returns the study and its digest."""
    study = parse_study(data)
    folder = directory / study.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_bytes(data)
    (folder / "model.onnx").write_bytes(model)
    return study, study_digest(data)


@dataclass(slots=True)
class RunningHospital:
    """One box's directory and agent; its played worker moves the model by `step` and counts `rows`.

    Args:
        directory: The box's own.
        site: The hospital.
        root: Its key, as a roster names it.
        link: Its key at the SuperLink.
        session_life_s: How long its key vouches at a time; as long as its kind may when None.
        refresh_s: How often it asks its consortium's repository, once it is enrolled.
        heartbeat_s: How often it tells its registrar how it does.
    """

    directory: Path
    site: str
    root: RootKey
    link: ec.EllipticCurvePublicKey
    session_life_s: int | None = None
    refresh_s: float = 60.0
    heartbeat_s: float = HEARTBEAT_S
    step: float | None = None
    rows: int = ROWS
    node_id: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        directory: Path,
        superlink: RunningSuperLink,
        *,
        site: str = "hospital-a",
        study: bytes | None = None,
        model: bytes = MODEL,
        key_uri: str = "",
        environment: str = "demo",
        settings: Mapping[str, object] | None = None,
        key_settings: Mapping[str, str] | None = None,
        sections: str = "",
    ) -> Self:
        """Write key, catalog, study and configuration; nothing is registered and nothing runs.

        Args:
            directory: The box's own.
            superlink: Where it shall join.
            site: The hospital.
            study: Its `study.json`; None takes a small one.
            model: Its `model.onnx`.
            key_uri: The node's key; by default one made of software.
            environment: As the configuration names it.
            settings: Additional `[federation]` settings.
            key_settings: Additional `[key]` settings.
            sections: Additional sections, TOML.
        """
        directory.mkdir(parents=True, exist_ok=True)
        uri = key_uri or f"software:{directory / 'node.key'}"
        key = init_key(uri)
        install_study(directory / "studies", study or study_json((site,)), model=model)
        (directory / "catalog.toml").write_text(
            '[datasets.local]\nschema = "played"\nsource = "local.csv"\n', encoding="utf-8"
        )
        federation = {"allow_plain": True, "idle_poll_s": 0.3} | dict(settings or {})
        (directory / "agent.toml").write_text(
            f"""[node]
site = "{site}"
state_directory = "state"
environment = "{environment}"
[superlink]
address = "{superlink.address}"
root_certificates = "{superlink.root_certificate.resolve()}"
[key]
{_toml({"uri": uri} | dict(key_settings or {}))}
[data]
catalog = "catalog.toml"
[studies]
directory = "studies"
[federation]
{_toml(federation)}
{sections}
""",
            encoding="utf-8",
        )
        return cls(directory, site, key.root(), link_of(load_config(directory / "agent.toml"), key))

    @classmethod
    def bare(
        cls,
        directory: Path,
        *,
        site: str,
        key_uri: str = "",
        preset: str = "",
        refresh_s: float = 1.0,
        sections: str = "",
    ) -> Self:
        """A box as it comes to a hospital: key, data, and three lines of configuration; nothing runs.

        Args:
            directory: The box's own.
            site: The hospital that it will belong to; the box does not know.
            key_uri: The node's key; by default one made of software.
            preset: Root digest of the one consortium that it joins by itself.
            refresh_s: How often it asks its consortium's repository.
            sections: Additional sections, TOML.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "drop").mkdir()
        uri = key_uri or f"software:{directory / 'node.key'}"
        (directory / "catalog.toml").write_text(
            '[datasets.local]\nschema = "played"\nsource = "local.csv"\n', encoding="utf-8"
        )
        enrolment = {"drop": "drop", "preset": "none.json"} | ({"root_digest": preset} if preset else {})
        (directory / "agent.toml").write_text(
            f"""[node]
state_directory = "state"
environment = "demo"
[key]
{_toml({"uri": uri})}
[data]
catalog = "catalog.toml"
[enrolment]
{_toml(enrolment)}
[federation]
idle_poll_s = 0.3
{sections}
""",
            encoding="utf-8",
        )
        key = init_key(uri)
        link = link_of(load_config(directory / "agent.toml"), key)
        return cls(directory, site, key.root(), link, refresh_s=refresh_s)

    def insert_stick(self, token: str) -> None:
        """Have the reader of sticks find a token."""
        leave_reading(self.directory / "drop", StickReading(token=token))

    @property
    def folder(self) -> EnrolmentFolder:
        """What its enrolment left."""
        return EnrolmentFolder.of(self.directory / "state")

    @property
    def kind(self) -> KeyKind:
        """What holds its key."""
        return self.root.kind

    def pin_roster(self, roster: Roster) -> None:
        """Give the box the consortium's roster: from its next start on it takes part in secure aggregation."""
        (self.directory / "roster.json").write_bytes(encode_roster(roster))
        text = self.config.read_text(encoding="utf-8")
        self.config.write_text(f'{text}\n[roster]\nfile = "roster.json"\n', encoding="utf-8")

    @property
    def config(self) -> Path:
        """The agent's configuration file."""
        return self.directory / "agent.toml"

    @property
    def status(self) -> AgentStatus | None:
        """How the agent says it does; None while none runs."""
        return load_status(self.directory / "state")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The agent's events so far, of all its processes."""
        text = (self.directory / "agent.log").read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def register(self, superlink: RunningSuperLink) -> int:
        """Let the SuperLink know its key; returns its node id."""
        self.node_id = superlink.register(self.link, name=self.site)
        return self.node_id

    def start(self, *, training_s: float = 0.0) -> None:
        """Start the agent with played workers that take so long a call."""
        if self.process is not None and self.process.poll() is None:
            raise HardwareError("tests.running", "The agent runs already.", next_step="Stop it.")
        training = {"training_s": training_s, "step": self.step, "rows": self.rows}
        pace = {"refresh_s": self.refresh_s, "heartbeat_s": self.heartbeat_s}
        play = {"training": training, "session_life_s": self.session_life_s, "pace": pace}
        command = [sys.executable, "-m", "tests.simulators.hospital", str(self.config), json.dumps(play)]
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def wait_for_link(self, link: str = "online", *, limit_s: float = 30.0) -> float:
        """Wait until the agent stands so to its SuperLink; returns how many seconds that took."""
        return wait_until(
            lambda: self.status is not None and self.status.link == link, limit_s=limit_s, what=f"{self.site} {link}"
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """All events of one name."""
        return [event for event in self.log if event.get("event") == name]

    def stop(self) -> tuple[int, float]:
        """SIGTERM; returns exit status and seconds."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(20)
        return status, time.monotonic() - begin

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def main() -> int:
    """The agent's process: the real service, with played workers."""
    # The HTTP library loads it where it is installed: here by the browser's driver, and on no box.
    sys.modules["trio"] = None  # type: ignore[assignment]
    config, play = Path(sys.argv[1]), json.loads(sys.argv[2])
    life_s = play["session_life_s"]
    renewal = None if life_s is None else RenewalPolicy(life_s, life_s // 2)
    opener = played_opener(**play["training"])
    return run_command(lambda: run_agent(config, opener=lambda _: opener, renewal=renewal, **play["pace"]))


def _toml(fields: Mapping[str, object]) -> str:
    # A TOML basic string, number and boolean are written as in JSON.
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())


if __name__ == "__main__":
    sys.exit(main())
