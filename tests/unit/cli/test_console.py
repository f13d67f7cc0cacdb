"""`seh-agent console`: what keeps it from serving is said in words."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from agent.cli import main as cli
from tests.unit.core.test_config_console import BOX


def run(monkeypatch: pytest.MonkeyPatch, config: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["seh-agent", "console", "--config", str(config)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_a_place_that_is_taken_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(f'{BOX}address = "{address}"\n')
        assert run(monkeypatch, config) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"The console cannot answer at {address}" in said
    assert "console.cannot_serve" in said


def test_a_certificate_that_is_not_there_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(f'{BOX}certificate = "none.pem"\nprivate_key = "none.key"\n')
    assert run(monkeypatch, config) == 2
    assert "console.cannot_serve" in capsys.readouterr().err


def test_libraries_that_are_missing_are_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(BOX)
    monkeypatch.delitem(sys.modules, "agent.console.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(monkeypatch, config) == 2
    assert "pip install 'secur-e-health[console]'" in " ".join(capsys.readouterr().err.split())
