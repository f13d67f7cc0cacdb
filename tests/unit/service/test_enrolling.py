"""Enrolment by the agent: sticks in boxes that are enrolled, and secrets that went with a mainboard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.config import AgentConfig, parse_config
from agent.core.errors import OperatorError
from agent.enrolment.drop import StickReading, leave_reading
from agent.enrolment.record import EnrolmentFolder
from agent.service.enrolling import preset_root, set_aside_sealed
from agent.service.sticks import judge_stick
from agent.trust.pins import Pins, SitePin
from agent.trust.token import parse_token
from tests.simulators.tokens import TOKEN, token_text
from tests.unit.enrolment.test_record import RECORD

MINIMAL = '[node]\nstate_directory = "state"\n[key]\nuri = "tpm:"\n[data]\ncatalog = "c"\n'


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    (tmp_path / "drop").mkdir()
    return parse_config(f'{MINIMAL}[enrolment]\ndrop = "drop"\npreset = "p.json"\n'.encode(), directory=tmp_path)


def ours() -> dict[str, str]:
    return {"site": TOKEN.site, "root_digest": TOKEN.root_digest.hex()}


def test_no_stick_means_nothing(config: AgentConfig) -> None:
    assert judge_stick(config, RECORD) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (ours(), "enrolled already"),
        (ours() | {"site": "hospital-z"}, "belongs to hospital-z"),
        ({}, "another consortium"),
    ],
)
def test_a_stick_in_an_enrolled_box_is_judged_in_words(
    config: AgentConfig, changes: dict[str, str], words: str
) -> None:
    leave_reading(config.enrolment.drop, StickReading(token=token_text()))
    assert parse_token(token_text()).token == TOKEN
    assert words in judge_stick(config, RECORD.model_copy(update=changes))
    assert judge_stick(config, RECORD) == ""


def test_a_stick_in_a_revoked_box_does_not_say_that_all_is_well(config: AgentConfig) -> None:
    record = RECORD.model_copy(update=ours())
    trust = EnrolmentFolder.of(config.node.state_directory).trust(record.root_digest)
    trust.mkdir(parents=True)
    pin = SitePin(keys=("PEM",), threshold=1, version=1, revoked=(record.key_id,))
    (trust / "pins.json").write_bytes(Pins(sites={record.site: pin}).encode())
    leave_reading(config.enrolment.drop, StickReading(token=token_text()))
    said = judge_stick(config, record)
    assert "has revoked this box's key" in said
    assert "already" not in said


def test_a_stick_that_gave_no_token_says_why(config: AgentConfig) -> None:
    reading = StickReading(code="stick.no_token", sentence="There is no token.", next_step="Ask for one.")
    leave_reading(config.enrolment.drop, reading)
    assert judge_stick(config, RECORD) == "There is no token. Ask for one."


def test_garbage_in_the_drop_is_said(config: AgentConfig) -> None:
    (config.enrolment.drop / "stick.json").write_bytes(b"\xff")
    assert "hostile" in judge_stick(config, RECORD)


def test_the_images_preset_is_read_unless_the_configuration_names_one(config: AgentConfig, tmp_path: Path) -> None:
    assert preset_root(config) == ""
    (tmp_path / "p.json").write_text(f'{{"root_digest": "{"ab" * 32}", "registrar": "r:1"}}')
    assert preset_root(config) == "ab" * 32
    named = parse_config(f'{MINIMAL}[enrolment]\nroot_digest = "{"cd" * 32}"\n'.encode(), directory=tmp_path)
    assert preset_root(named) == "cd" * 32


@pytest.mark.parametrize("data", ["", "{}", '{"root_digest": "ab"}'])
def test_a_damaged_preset_is_never_taken_for_none(config: AgentConfig, tmp_path: Path, data: str) -> None:
    (tmp_path / "p.json").write_text(data)
    with pytest.raises(OperatorError) as caught:
        preset_root(config)
    assert caught.value.code == "config.bad_preset"


def test_secrets_of_a_lost_mainboard_are_put_away_with_the_rounds_that_they_protect(tmp_path: Path) -> None:
    assert set_aside_sealed(tmp_path, "now") is None
    (tmp_path / "vault").write_bytes(b"sealed")
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "journal").write_bytes(b"lines")
    place = set_aside_sealed(tmp_path, "now")
    assert place == tmp_path / "replaced-now"
    assert (place / "vault").read_bytes() == b"sealed"
    assert (place / "rounds" / "journal").read_bytes() == b"lines"
    assert not (tmp_path / "vault").exists()
    assert not (tmp_path / "rounds").exists()


def test_a_command_started_by_root_goes_on_as_the_agents_user(tmp_path: Path) -> None:
    nobody = 65534
    program = f"""
import os
from pathlib import Path
from agent.cli.enrol import become_owner
become_owner(Path({str(tmp_path)!r}))
print(os.getuid(), os.getgid(), sorted(os.getgroups()) == [os.getgid()])
"""
    may_give_away = os.geteuid() == 0
    if may_give_away:
        os.chown(tmp_path, nobody, nobody)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    user, group, *_ = result.stdout.split()
    expected = nobody if may_give_away else os.geteuid()
    assert (int(user), int(group)) == (expected, expected if may_give_away else os.getegid())
