"""The kinds of key that a demonstration can have: dealt out in turn, and made in devices of their own."""

import subprocess
from pathlib import Path

import pytest

from agent.identity.key import open_key
from agent.statements.roots import KeyKind
from tests.demo.keys import KINDS, KeyMaker, deal_kinds, readers_needed, why_no_reader, why_no_tpm
from tests.simulators.person import Technician


def test_hospitals_take_the_kinds_in_turn() -> None:
    dealt = deal_kinds(("tpm", "piv", "fido2"), 5)
    assert dealt == ("tpm", "piv", "fido2", "tpm", "piv")
    assert readers_needed(dealt) == 3


def test_a_missing_simulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert why_no_tpm() == "swtpm, swtpm_setup, swtpm_localca is not installed"
    assert why_no_reader() == "unshare, setpriv is not installed"


def test_a_machine_without_namespaces_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "unshare")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert "does not allow the namespaces" in why_no_reader()


def test_every_kind_can_be_had_where_the_simulators_are() -> None:
    assert [kind.why_not() for kind in KINDS.values()] == [""] * len(KINDS)


def test_a_key_in_a_file_needs_no_device(tmp_path: Path) -> None:
    (tmp_path / "cleveland").mkdir()
    with KeyMaker(tmp_path, {"cleveland": "software"}) as maker:
        key = maker.make("cleveland", Technician())
    assert open_key(key.uri).key_id == key.key_id
    assert key.kind is KeyKind.SOFTWARE
