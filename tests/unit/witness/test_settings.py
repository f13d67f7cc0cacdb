"""The witness's settings, and what it knows of the trust repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from provisioning.witness.app import PAUSE_S, REFRESH_S, FreshSource
from provisioning.witness.settings import load_witness_settings
from tests.simulators.trust_scene import trust_scene

WHOLE = """
name = "witness.example/1"
listen = "0.0.0.0:8446"
state = "state"
key = "witness.pem"
repository = "https://registrar.example:8443/repository/"
trust = "trust"
[tls]
certificate = "server.pem"
key = "server.key"
"""


def test_paths_begin_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "witness.toml").write_text(WHOLE, encoding="utf-8")
    settings = load_witness_settings(tmp_path / "witness.toml")
    assert settings.key == tmp_path / "witness.pem"
    assert settings.passphrase_file is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[",
        WHOLE.replace("witness.example/1", "a name"),
        WHOLE.replace("witness.example/1", "a+b"),
        WHOLE.replace("https", "http"),
        WHOLE.replace("0.0.0.0:8446", "8446"),
        WHOLE + "more = 1\n",
    ],
)
def test_faults_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "witness.toml").write_text(text, encoding="utf-8")
    with pytest.raises(OperatorError) as failure:
        load_witness_settings(tmp_path / "witness.toml")
    assert failure.value.code == "witness.bad_settings"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as failure:
        load_witness_settings(tmp_path / "witness.toml")
    assert failure.value.code == "witness.bad_settings"


def test_repository_is_asked_now_and_then(tmp_path: Path) -> None:
    with trust_scene(tmp_path) as scene:
        source = FreshSource(scene.box, scene.clock)
        first = source.current()
        scene.repository.requests.clear()
        assert source.current() == first
        assert source.refresh() == first  # asked a moment ago
        assert scene.repository.requests == []
        scene.clock.move(PAUSE_S)
        source.refresh()
        assert scene.repository.requests
        scene.repository.requests.clear()
        scene.clock.move(REFRESH_S)
        source.current()
        assert scene.repository.requests


def test_repository_that_is_away_or_forged_leaves_what_was_known(tmp_path: Path) -> None:
    with trust_scene(tmp_path) as scene:
        source = FreshSource(scene.box, scene.clock)
        known = source.current()
        for answer in (b"forged", None):
            scene.clock.move(REFRESH_S)
            scene.repository.publish()
            scene.repository.files.pop("timestamp.json", None)
            scene.repository.interfere = lambda _, answer=answer: answer  # type: ignore[misc]
            assert source.current().timestamp_version == known.timestamp_version
