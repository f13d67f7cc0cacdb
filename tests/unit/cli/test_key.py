from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.key import TerminalPerson, app
from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import FoundDevice, open_key
from tests.simulators.swtpm import Swtpm, shared_maker


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_init_makes_the_key_and_show_finds_it(tpm: Swtpm) -> None:
    made, shown = run("init", "--key", tpm.uri), run("show", "--key", tpm.uri)
    assert made == shown
    assert open_key(tpm.uri).key_id in shown
    assert "State:  ready" in shown
    assert "every 6 h, by itself" in shown
    assert f"TPM:    {open_key(tpm.uri).evidence_names()[0].hex()}" in shown
    assert "SOFTWARE" not in shown


def test_show_before_init_says_what_to_do(tpm: Swtpm) -> None:
    with pytest.raises(HardwareError) as failure:
        run("show", "--key", tpm.uri)
    assert "seh-agent key init" in failure.value.next_step


def test_test_measures_signatures(tpm: Swtpm) -> None:
    run("init", "--key", tpm.uri)
    told = run("test", "--key", tpm.uri)
    assert "the proof verifies" in told
    assert "Signed 20 times: median" in told


def test_software_key_says_so_every_time(tmp_path: Path) -> None:
    uri = f"software:{tmp_path / 'key.pem'}"
    for command in ("init", "show", "test"):
        assert "SOFTWARE KEY: for development only" in run(command, "--key", uri)


def test_the_configured_key_is_the_default(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(
        f"""
        [node]
        site = "north"
        state_directory = "state"
        environment = "demo"
        [superlink]
        address = "127.0.0.1:9092"
        root_certificates = "root.pem"
        [key]
        uri = "software:{tmp_path / "key.pem"}"
        [data]
        catalog = "catalog.toml"
        [studies]
        directory = "studies"
        [roster]
        file = "roster.json"
        """
    )
    assert f"software:{tmp_path / 'key.pem'}" in run("init", "--config", str(config))


def test_a_key_without_a_pin_says_so(tpm: Swtpm) -> None:
    run("init", "--key", tpm.uri)
    with pytest.raises(OperatorError, match="has no PIN"):
        run("pin", "--key", tpm.uri)


def test_list_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = FoundDevice("piv:12345678", "YubiKey 5, serial 12345678", holds_key=True)
    monkeypatch.setattr("agent.cli.key.find_devices", lambda: (found,))
    assert run("list") == "piv:12345678\n    YubiKey 5, serial 12345678; holds a key\n"


def test_list_of_nothing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.key.find_devices", tuple)
    assert "Plug one in" in run("list")


def test_no_pin_is_asked_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    person = TerminalPerson()
    with pytest.raises(OperatorError, match="no terminal"):
        person.ask_pin("Card", attempts_remaining=3)
    with pytest.raises(OperatorError, match="no terminal"):
        person.ask_new_pin("Card")


def test_pin_is_typed_blind_and_shows_the_attempts_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[tuple[str, bool]] = []

    def prompt(text: str, *, hide_input: bool, err: bool) -> str:
        asked.append((text, hide_input))
        return "135790"

    monkeypatch.setattr("typer.prompt", prompt)
    assert TerminalPerson().ask_pin("Card of north", attempts_remaining=2) == "135790"
    assert asked == [("PIN of Card of north (2 attempts left)", True)]
    assert "135790" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("force", [True, False])
def test_the_last_attempt_is_risked_on_demand_only(force: bool) -> None:
    assert TerminalPerson(force=force).risks_last_attempt is force
