"""Events as the journal gets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.core import logging
from agent.core.errors import NetworkError
from agent.core.journal import JournalLogger, journal_sender, render_entry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """What the journal received, an entry each; logging is put back as it was."""
    received: list[dict[str, str]] = []

    def send(*fields: str) -> None:
        received.append(dict(field.split("=", 1) for field in fields))

    monkeypatch.setattr(logging, "journal_sender", lambda *_: send)
    before = structlog.get_config()
    logging.configure_logging()
    yield received
    structlog.configure(**before)


def test_an_event_s_facts_are_fields(entries: list[dict[str, str]]) -> None:
    structlog.get_logger().warning("pin_rejected", attempts_remaining=2)
    assert entries == [
        {
            "MESSAGE": "pin_rejected attempts_remaining=2",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "secur-e-health",
            "SEH_EVENT": "pin_rejected",
            "SEH_ATTEMPTS_REMAINING": "2",
        }
    ]


def test_an_error_is_told_in_words_with_code_and_fault_as_fields(entries: list[dict[str, str]]) -> None:
    error = NetworkError("fleet.unreachable", "Nobody answers.", next_step="Wait.", host="superlink")
    structlog.get_logger().warning("link_lost", error=error)
    (entry,) = entries
    assert entry["MESSAGE"] == "link_lost: Nobody answers. Wait. [fleet.unreachable]"
    assert (entry["SEH_ERROR"], entry["SEH_FAULT"]) == ("fleet.unreachable", "network")
    assert (entry["SEH_SENTENCE"], entry["SEH_NEXT_STEP"], entry["SEH_HOST"]) == (
        "Nobody answers.",
        "Wait.",
        "superlink",
    )


def test_a_traceback_is_a_field_and_its_last_line_is_read(entries: list[dict[str, str]]) -> None:
    try:
        int("three\nlines")
    except ValueError:
        structlog.get_logger().exception("request_broke")
    (entry,) = entries
    assert entry["PRIORITY"] == "3"
    assert entry["MESSAGE"] == "request_broke ValueError: invalid literal for int() with base 10: 'three\\nlines'"
    assert "Traceback" in entry["SEH_EXCEPTION"]


def test_a_field_s_name_is_one_that_journald_takes() -> None:
    fields, _ = render_entry(None, "info", {"event": "e", "a-b c=ü" + "x" * 99: 1})
    name = fields[-1].partition("=")[0]
    assert name == ("SEH_A_B_C__" + "X" * 99)[:64]


def test_what_the_journal_does_not_take_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: str) -> None:
        raise OSError("full")

    JournalLogger(refuse).msg("MESSAGE=agent_ready", "PRIORITY=6")
    assert capsys.readouterr().err == "agent_ready\n"


def test_only_a_stream_that_leads_there_counts() -> None:
    with tempfile.TemporaryFile("w") as stream:
        status = os.fstat(stream.fileno())
        same = f"{status.st_dev}:{status.st_ino}"
        assert journal_sender(stream, {"JOURNAL_STREAM": same}) is not None
        assert journal_sender(stream, {"JOURNAL_STREAM": f"{status.st_dev}:0"}) is None
        assert journal_sender(stream, {}) is None


def test_without_systemd_it_is_a_line_of_json() -> None:
    code = "from agent.core.logging import configure_logging; import structlog; configure_logging(); "
    done = subprocess.run(
        [sys.executable, "-c", code + "structlog.get_logger().info('agent_ready', site='north')"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    line = json.loads(done.stderr)
    assert (line["event"], line["site"], line["level"]) == ("agent_ready", "north", "info")
    assert "timestamp" in line


def test_the_real_journal_protocol_carries_them(tmp_path: Path) -> None:
    """In a mount namespace of its own, in which journald's socket is ours."""
    code = """
    import os, socket, sys
    from pathlib import Path
    Path("/run/systemd/journal").mkdir(parents=True)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind("/run/systemd/journal/socket")
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    from agent.core.logging import configure_logging
    import structlog
    configure_logging()
    structlog.get_logger().info("agent_ready", site="north", note="two\\nlines")
    sys.stdout.buffer.write(receiver.recv(10_000))
    """
    program = (
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none /run && exec "$@"',
        "-",
    )
    done = subprocess.run(
        [*program, sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split(b"\n")
    assert b"SEH_EVENT=agent_ready" in lines
    assert b"SEH_SITE=north" in lines
    assert b"PRIORITY=6" in lines
    assert b"SEH_NOTE\n\x09\0\0\0\0\0\0\0two\nlines\n" in done.stdout
