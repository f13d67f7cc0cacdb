"""The reader of sticks: what it leaves, how the agent takes it, and the fences around it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.errors import PeerProtocolError
from agent.enrolment.drop import MAX_READING_BYTES, READING_FILE, StickReading, leave_reading, take_reading
from agent.trust.token import STICK_FILE, STICK_LABEL, parse_token
from tests.simulators.stick import find_tool, make_stick
from tests.simulators.tokens import TOKEN, token_text

ROOT = Path(__file__).parents[3]
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd" / "seh-enrol-stick@.service"
TEXT = token_text()
MOST_EXPOSED = 2
"""Tenths; systemd's scale ends at 100."""
REFUSE_EXEC_GAIN = 1  # PR_MDWE_REFUSE_EXEC_GAIN of linux/prctl.h, what MemoryDenyWriteExecute= forbids
PR_SET_MDWE = 65


def read(stick: Path, drop: Path, *, fenced: bool = False) -> subprocess.CompletedProcess[str]:
    """One run of the reader as its unit starts it."""
    command = [sys.executable, "-c", "from agent.enrolment.stick import main; main()", str(drop)]

    def fence() -> None:
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) == 0
        os.umask(0o027)

    with stick.open("rb") as stream:
        return subprocess.run(
            command,
            check=False,
            stdin=stream,
            capture_output=True,
            text=True,
            cwd=ROOT,
            preexec_fn=fence if fenced else None,
        )


def test_a_stick_s_token_lies_in_the_drop_directory(tmp_path: Path) -> None:
    stick = make_stick(tmp_path / "stick", {STICK_FILE: TEXT.encode() + b"\r\n"})
    (tmp_path / "drop").mkdir()
    done = read(stick, tmp_path / "drop", fenced=True)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "drop" / READING_FILE).stat().st_mode) == 0o640
    reading = take_reading(tmp_path / "drop")
    assert reading is not None
    assert parse_token(reading.token).token == TOKEN
    assert TEXT[5:] not in done.stdout + done.stderr
    assert take_reading(tmp_path / "drop") is None
    assert list((tmp_path / "drop").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "stick.no_file"),
        ({STICK_FILE: b"hello"}, "token.not_a_token"),
        ({STICK_FILE: TEXT[:-30].encode()}, "token.damaged"),
        ({STICK_FILE: b"SEH2:ABC"}, "token.other_version"),
        ({STICK_FILE: bytes(1 << 20)}, "stick.file_too_large"),
    ],
)
def test_what_is_wrong_with_a_stick_reaches_the_agent_in_plain_words(
    tmp_path: Path, files: dict[str, bytes], code: str
) -> None:
    (tmp_path / "drop").mkdir()
    assert read(make_stick(tmp_path / "stick", files), tmp_path / "drop").returncode == 0
    reading = take_reading(tmp_path / "drop")
    assert reading is not None
    assert (reading.token, reading.code) == ("", code)
    assert reading.sentence
    assert reading.next_step


def test_a_later_stick_replaces_an_earlier_one(tmp_path: Path) -> None:
    leave_reading(tmp_path, StickReading(code="stick.no_file", sentence="No.", next_step="Go."))
    leave_reading(tmp_path, StickReading(token=TEXT))
    assert take_reading(tmp_path) == StickReading(token=TEXT)


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"{",
        b"[]",
        b"\xff" * 100,
        b'{"token": "%s"}' % (b"A" * MAX_READING_BYTES),
        json.dumps({"token": TEXT, "run": "rm"}).encode(),
        json.dumps({"sentence": "\x1b[2J"}).encode(),
        json.dumps({"sentence": "two\nlines"}).encode(),
        json.dumps({"sentence": "x" * 1001}).encode(),
        json.dumps({"code": "../x"}).encode(),
        json.dumps({"token": 1}).encode(),
    ],
)
def test_what_a_broken_reader_could_leave_is_taken_away_and_refused(tmp_path: Path, left: bytes) -> None:
    (tmp_path / READING_FILE).write_bytes(left)
    with pytest.raises(PeerProtocolError) as caught:
        take_reading(tmp_path)
    assert caught.value.code == "stick.bad_reading"
    assert take_reading(tmp_path) is None


def test_neither_a_link_nor_a_pipe_nor_a_folder_holds_the_agent(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"sentence": "secret"}))
    for make in (
        lambda path: path.symlink_to(secret),
        os.mkfifo,
        lambda path: path.mkdir(),
    ):
        make(tmp_path / READING_FILE)
        with pytest.raises(PeerProtocolError) as caught:
            take_reading(tmp_path)
        assert caught.value.code == "stick.bad_reading"
    assert secret.exists()


def test_a_token_in_a_reading_is_shown_by_no_repr() -> None:
    assert TEXT not in repr(StickReading(token=TEXT))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it is started for /dev/sdb1, in a tree that has its program."""
    root = tmp_path / "root"
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    program = root / re.findall(r"^ExecStart=/(\S+)", UNIT.read_text(), re.MULTILINE)[0]
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    place = root / "etc/systemd/system"
    place.mkdir(parents=True)
    shutil.copy(UNIT, place / "seh-enrol-stick@sdb1.service")
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((find_tool("systemd-analyze"), *arguments), check=False, capture_output=True, text=True)


def test_systemd_finds_no_fault_with_the_unit(installed: Path) -> None:
    done = analyze("verify", f"--root={installed}", "--man=no", "seh-enrol-stick@sdb1.service")
    assert (done.returncode, [line for line in done.stderr.splitlines() if "seh-enrol" in line]) == (0, [])


def test_the_unit_is_exposed_as_little_as_a_reader_can_be(installed: Path) -> None:
    arguments = ("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED}")
    done = analyze(*arguments, "seh-enrol-stick@sdb1.service")
    assert done.returncode == 0, done.stdout


def test_rule_unit_and_program_name_the_same_things() -> None:
    rule = (PACKAGING / "udev" / "90-secur-e-health-stick.rules").read_text()
    assert f'ENV{{ID_FS_LABEL}}!="{STICK_LABEL}"' in rule
    assert f'ENV{{SYSTEMD_WANTS}}+="{UNIT.name.replace("@.", "@%k.")}"' in rule
    unit = UNIT.read_text()
    (drop,) = re.findall(r"^ExecStart=\S+/seh-stick (\S+)$", unit, re.MULTILINE)
    assert f"ReadWritePaths={drop}\n" in unit
    (group,) = re.findall(r"^SupplementaryGroups=(\S+)$", unit, re.MULTILINE)
    assert f"d {drop} 2770 root {group} -" in (PACKAGING / "tmpfiles.d" / "secur-e-health-token.conf").read_text()
    assert f"g {group} -" in (PACKAGING / "sysusers.d" / "secur-e-health-token.conf").read_text()
    assert 'seh-stick = "agent.enrolment.stick:main"' in (ROOT / "pyproject.toml").read_text()


def test_the_rules_use_udev_s_keys_and_jump_to_places_that_exist() -> None:
    names = r"ACTION|SUBSYSTEMS?|KERNEL|GOTO|LABEL|TAG|RUN|OWNER|GROUP|MODE|ENV\{\w+\}|ATTR\{\w+\}"
    known = re.compile(rf'^({names})(==|!=|=|\+=)"[^"]*"$')
    for path in sorted((PACKAGING / "udev").glob("*.rules")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        parts = [part for line in lines for part in re.split(r",\s*(?=[A-Z])", line)]
        assert [part for part in parts if not known.match(part)] == []
        jumps, marks = (re.findall(rf'{word}="(\w+)"', "\n".join(lines)) for word in ("GOTO", "LABEL"))
        assert set(jumps) == set(marks)
