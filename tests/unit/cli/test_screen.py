"""What stands on the appliance's screen: fits any size, can be read by a telephone, hears nobody, tells no secret."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

from agent.cli import main as cli
from agent.cli.screen import View, addresses_of, code_lines, draw, view_of
from agent.service.state import AgentStatus, locked_state, store_status

ADDRESS = "https://registrar.consortium-a.example.org:8443/approve/" + "ab" * 16
WAITING = AgentStatus(
    "waiting for enrolment",
    trouble="enrolment.not_enrolled",
    sentence="This box is not enrolled.",
    next_step="Put the consortium's stick in.",
    box="a1b2c3d4e5f60718",
    box_words="abandon ability able about above absent absorb abstract",
    phone_address=ADDRESS,
    phone_code="ABCD-EFGH",
    version="1.4.0",
)
SIZES = [(80, 25), (80, 30), (100, 37), (160, 50), (240, 67)]
FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
Local:
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 10.0.2.255
        /32 link BROADCAST
"""


def text_of(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def read_code(lines: list[str]) -> str:
    """What a telephone reads on the screen: each character is two dots, one above the other."""
    import zxingcpp  # noqa: PLC0415 - beside what makes its picture

    upper, lower = {"▀", "█"}, {"▄", "█"}
    rows = [[character in halves for character in line] for line in lines for halves in (upper, lower)]
    picture = np.kron(np.array(rows, dtype=np.uint8) * 255, np.ones((4, 4), dtype=np.uint8))
    return "".join(found.text for found in zxingcpp.read_barcodes(picture))


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_all_that_enrols_a_box_fits_and_a_telephone_reads_the_code(columns: int, rows: int) -> None:
    lines = draw(view_of(WAITING, ["10.0.2.15"], "9"), columns, rows)
    assert len(lines) == rows
    assert {len(line) for line in lines} == {columns}
    assert read_code(lines) == ADDRESS
    left = text_of([line[: columns - len(code_lines(ADDRESS)[0])] for line in lines[5:]])
    for said in ("ABCD-EFGH", "abandon ability able", "10.0.2.15", "Now: Put the consortium's stick in."):
        assert said in left
    assert "a1b2c3d4e5f60718" in lines[0]
    assert "1.4.0" in lines[0]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "does not run"),
        (AgentStatus("online", site="hospital-a"), "Works for hospital-a."),
        (AgentStatus("online", answering="study-1, round 3"), "Works on study-1, round 3."),
        (AgentStatus("lost", sentence="No answer.", next_step="Check the cable."), "No answer."),
        (AgentStatus("online", session="needs-person", session_next_step="Run key renew."), "Now: Run key renew."),
    ],
)
def test_every_state_is_said_with_what_to_do(status: AgentStatus | None, said: str) -> None:
    shown = text_of(draw(view_of(status, [], "1.4.0"), 80, 25))
    assert said in shown
    assert "Now:" in shown
    assert "none: is the network cable in?" in shown


def test_the_state_stands_in_large_letters_where_there_is_room_and_in_plain_ones_else() -> None:
    view = View("online", (), "Nothing.")
    large, small = draw(view, 80, 25), draw(view, 30, 10)
    assert "ONLINE" not in text_of(large)
    assert sum("█" in line for line in large[1:5]) >= 2
    assert small[1].strip() == "ONLINE"


def test_a_code_that_does_not_fit_gives_way_to_the_page_s_address() -> None:
    shown = draw(view_of(WAITING, [], "9"), 64, 20)
    assert ADDRESS in "".join(line.strip() for line in shown)
    assert "▄▄" not in "".join(shown[5:])


def test_what_others_wrote_moves_no_cursor() -> None:
    hostile = AgentStatus("online", sentence="\x1b[2Jgone\x07", site="\x1b]0;x")
    assert not re.search(r"[\x00-\x1f\x7f]", "".join(draw(view_of(hostile, [], "9"), 80, 25)))


def test_the_box_s_own_addresses_are_read_from_the_kernel_s_table() -> None:
    assert addresses_of(FIB_TRIE) == ["10.0.2.15"]
    assert addresses_of("") == []


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text('[node]\nstate_directory = "state"\n[key]\nuri = "tpm:"\n[data]\ncatalog = "c"\n')
    return path


def test_it_is_drawn_once_in_plain_text(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["seh-agent", "screen", "--once", "--config", str(config)])
    with locked_state(config.parent / "state"):
        store_status(config.parent / "state", WAITING)
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert done.value.code == 0
    assert "This box is not enrolled." in " ".join(capsys.readouterr().out.split())


class Terminal:
    """The first console of a box, and a person who types at it."""

    def __init__(self, config: Path, rows: int = 25, columns: int = 80) -> None:
        self.far, near = os.openpty()
        ioctl(near, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        program = [sys.executable, "-m", "agent.cli", "screen", "--config", str(config)]
        self.process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=near, stderr=near)
        os.close(near)

    def read_until(self, said: str) -> str:
        shown = ""
        deadline_s = time.monotonic() + 20
        while said not in shown:
            assert time.monotonic() < deadline_s, shown
            shown += os.read(self.far, 1 << 16).decode(errors="replace")
        return shown

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(10)
        os.close(self.far)
        return status


def test_a_terminal_shows_each_change_and_hears_nothing(config: Path) -> None:
    state = config.parent / "state"
    with locked_state(state):
        store_status(state, WAITING)
        terminal = Terminal(config)
        try:
            first = terminal.read_until("is not enrolled")
            os.write(terminal.far, b"\x03\x04\x1b[Aq\n\x1a")
            store_status(state, AgentStatus("online", site="hospital-a", version=WAITING.version))
            terminal.read_until("Works for hospital-a")
            assert terminal.process.poll() is None
        finally:
            assert terminal.end() == -signal.SIGTERM
    assert "\x1b[?25l" in first


def test_a_console_that_does_not_know_its_size_is_drawn_on_all_the_same(config: Path) -> None:
    with locked_state(config.parent / "state"):
        store_status(config.parent / "state", WAITING)
        terminal = Terminal(config, 0, 0)
        try:
            terminal.read_until("is not enrolled")
        finally:
            terminal.end()


def test_it_ends_where_the_agent_goes_over_to_another_release(config: Path) -> None:
    with locked_state(config.parent / "state"):
        store_status(config.parent / "state", WAITING)
        terminal = Terminal(config)
        terminal.read_until("is not enrolled")
        store_status(config.parent / "state", replace(WAITING, version="1.5.0"))
        assert terminal.process.wait(20) == 0
        os.close(terminal.far)


def test_the_screen_shows_nothing_of_the_disk_but_the_status(config: Path) -> None:
    state = config.parent / "state"
    with locked_state(state):
        store_status(state, AgentStatus("enrolling", sentence="The token is for hospital-a."))
        (state / "enrolment").mkdir()
        (state / "enrolment" / "pending.json").write_text('{"token": "SEH1:SECRET"}')
        (state / "vault").write_bytes(b"SECRET")
        command = [sys.executable, "-m", "agent.cli", "screen", "--once", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "The token is for hospital-a." in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
