"""`seh-agent key renew` and `key link`, as a technician with a security key meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from agent.cli import main as cli
from agent.core.clock import SystemClock
from agent.core.config import load_config
from agent.identity.key import HardwareKey, init_key, open_key
from agent.identity.session import SessionKeeper, SessionState, Subject
from agent.service.control import ControlDesk, ControlSocket
from agent.service.state import AgentStatus
from agent.service.wiring import link_of
from tests.simulators.authenticator import Authenticator
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.person import Technician
from tests.unit.core.test_config import COMPLETE

PIN = "864209"


@dataclass
class Box:
    """A box with a security key, and whoever sits at its terminal."""

    directory: Path
    authenticator: Authenticator
    key: HardwareKey
    keeper: SessionKeeper
    run: Callable[..., int] = lambda *_: 1
    typed: list[str] = field(default_factory=lambda: [PIN])
    prompts: list[str] = field(default_factory=list)
    passed: list[bytes] = field(default_factory=list)

    def hear(self, line: bytes) -> bytes:
        """The agent's desk, overheard."""
        answer = ControlDesk(self.keeper, lambda: AgentStatus("online")).answer(line)
        self.passed += [line, answer]
        return answer


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    authenticator = Authenticator()
    with plugged_in(HIDKey(authenticator)):
        key = init_key(f"fido2:{tmp_path}/key.json", person=Technician(pin=PIN, new_pin=PIN))
        subject = Subject("c0" * 32, "hospital-a", key.key_id[:16])
        keeper = SessionKeeper(open_key(key.uri), subject, clock=SystemClock(), timestamp_version=lambda: 0)
        (tmp_path / "agent.toml").write_text(COMPLETE.replace("software:key.pem", key.uri))
        (tmp_path / "state").mkdir()
        box = Box(tmp_path, authenticator, key, keeper)

        def prompt(text: str, *, hide_input: bool, err: bool) -> str:
            assert hide_input
            box.prompts.append(text)
            if not box.typed:
                raise click.Abort
            return box.typed.pop(0)

        def run(*arguments: str) -> int:
            command = ["seh-agent", "key", *arguments, "--config", str(tmp_path / "agent.toml")]
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert isinstance(ended.value.code, int)
            return ended.value.code

        monkeypatch.setattr("typer.prompt", prompt)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        box.run = run
        yield box


@pytest.fixture
def agent(box: Box) -> Iterator[Box]:
    """The box, with its agent running."""
    with ControlSocket(box.directory / "state", box.hear, SystemClock()):
        yield box


def test_a_pin_and_a_touch_vouch_for_the_running_agent(agent: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.keeper.status().state is SessionState.NEEDS_PERSON
    assert agent.run("renew") == 0
    assert agent.keeper.status().state is SessionState.VALID
    told, asked = capsys.readouterr()
    for word in ("hospital-a", agent.key.key_id[:16], "UTC (24 h)", "Done"):
        assert word in told
    assert "Touch" in asked
    assert len(agent.prompts) == 1
    assert "8 attempts left" in agent.prompts[0]


def test_no_pin_passes_the_socket_or_is_shown(agent: Box, capsys: pytest.CaptureFixture[str]) -> None:
    agent.typed = ["000000"]
    assert agent.run("renew") == 2
    agent.typed = [PIN]
    assert agent.run("renew") == 0
    shown = "".join(capsys.readouterr())
    traffic = b"".join(agent.passed)
    for pin in (PIN, "000000"):
        assert pin not in shown
        for form in (pin, json.dumps(pin), pin.encode().hex()):
            assert form.encode() not in traffic
    kept = [path.read_bytes() for path in agent.directory.rglob("*") if path.is_file()]
    assert kept
    assert not any(PIN.encode() in content for content in kept)


def test_what_is_signed_is_shown_before_anybody_is_asked(agent: Box, capsys: pytest.CaptureFixture[str]) -> None:
    agent.typed = []
    assert agent.run("renew") == 130
    told, said = capsys.readouterr()
    assert "hospital-a" in told
    assert "Stopped." in said
    assert agent.keeper.status().state is SessionState.NEEDS_PERSON
    assert agent.authenticator.pin.attempts == 8


def test_a_wrong_pin_says_how_many_attempts_are_left(agent: Box, capsys: pytest.CaptureFixture[str]) -> None:
    agent.typed = ["000000"]
    assert agent.run("renew") == 2
    assert "attempts left: 7" in " ".join(capsys.readouterr().err.split())
    assert agent.keeper.status().state is SessionState.NEEDS_PERSON


def test_without_a_running_agent_nobody_is_asked_for_anything(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.run("renew") == 2
    assert "No agent runs on this box" in capsys.readouterr().err
    assert not box.prompts


def test_another_box_s_key_is_told_apart_before_its_pin_is_asked(
    agent: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with plugged_in(HIDKey(Authenticator())):
        stranger = init_key(f"fido2:{tmp_path}/other.json", person=Technician(pin=PIN, new_pin=PIN))
        config = tmp_path / "agent.toml"
        config.write_text(config.read_text().replace(agent.key.uri, stranger.uri))
        assert agent.run("renew") == 2
    assert "another key" in capsys.readouterr().err
    assert not agent.prompts


def test_nobody_touches_it(agent: Box, capsys: pytest.CaptureFixture[str]) -> None:
    agent.authenticator.touched = lambda: False
    assert agent.run("renew") == 4
    assert "Nobody touched" in capsys.readouterr().err
    assert agent.keeper.status().state is SessionState.NEEDS_PERSON


def test_link_prints_the_key_that_the_superlink_shall_know(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.run("link") == 0
    printed = load_pem_public_key(capsys.readouterr().out.encode())
    assert printed == link_of(load_config(box.directory / "agent.toml"), box.key)
    assert printed != box.key.public_key()
    assert not box.prompts
