"""The control socket: what a command gets from a running agent, and what nobody gets from it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.box_view import ExportPiece, StudiesAnswer, StudyLine
from agent.core.clock import SystemClock
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError, SoftwareError
from agent.identity.session import SessionKeeper, Subject
from agent.service.control import LEAVE_LIMIT_S, MAX_LINE_BYTES, ControlDesk, ControlSocket, ask_agent, renew_session
from agent.service.requests import StudiesRequest, StudyRequest
from agent.service.running_box import RunningBox
from agent.service.state import AgentStatus
from agent.statements.kinds import SessionCertificate
from agent.statements.roots import KeyKind
from tests.simulators.fake_key import FakeKey

STATUS = AgentStatus("online", 7, session="needs-person", session_sentence="A person.", session_next_step="Come.")
SUBJECT = Subject("c0" * 32, "north", "box-1")
ANOTHER_USER = frozenset({os.geteuid() + 1})


@pytest.fixture
def key() -> FakeKey:
    return FakeKey(kind=KeyKind.PIV, unattended=False)


@pytest.fixture
def keeper(key: FakeKey) -> SessionKeeper:
    return SessionKeeper(key, SUBJECT, clock=SystemClock(), timestamp_version=lambda: 7)


@pytest.fixture
def agent(keeper: SessionKeeper, tmp_path: Path) -> Iterator[Path]:
    """A directory where an agent listens."""
    with ControlSocket(tmp_path, ControlDesk(keeper, lambda: STATUS).answer, SystemClock()):
        yield tmp_path


def call(directory: Path, data: bytes) -> bytes:
    """Say something, whatever it is, and hear all that comes back."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(directory / "control.sock"))
        heard = b""
        try:
            channel.sendall(data)
            while piece := channel.recv(1 << 16):
                heard += piece
        except (BrokenPipeError, ConnectionResetError):
            return b"hung up"
        return heard


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def check_alive(directory: Path) -> None:
    assert ask_agent(directory, "status")["link"] == "online"


def test_status_is_what_the_agent_shows(agent: Path) -> None:
    answer = ask_agent(agent, "status")
    assert AgentStatus(**answer) == STATUS


def test_a_person_s_key_vouches_for_the_running_agent(agent: Path, keeper: SessionKeeper, key: FakeKey) -> None:
    shown: list[SessionCertificate] = []
    expires_s = renew_session(agent, key, show=shown.append)
    assert keeper.current().expires_s == expires_s == shown[0].expires_s > datetime.now(UTC).timestamp()
    assert (shown[0].site, shown[0].node) == (SUBJECT.site, SUBJECT.node)


def test_another_key_is_refused_before_it_signs_anything(agent: Path, keeper: SessionKeeper) -> None:
    stranger = FakeKey(kind=KeyKind.PIV)
    with pytest.raises(OperatorError, match="another key") as failure:
        renew_session(agent, stranger)
    assert failure.value.code == "identity.another_key"
    assert not stranger.proofs
    with pytest.raises(HardwareError):
        keeper.current()


def test_what_the_agent_refuses_is_said_in_its_words(agent: Path, keeper: SessionKeeper, key: FakeKey) -> None:
    with pytest.raises(OperatorError, match="waits for nothing") as failure:
        ask_agent(agent, "session-accept", proof="{}")
    assert (failure.value.code, "key renew" in failure.value.next_step) == ("identity.no_offer", True)
    keeper.offer()
    with pytest.raises(PeerProtocolError, match="no DSSE envelope"):
        ask_agent(agent, "session-accept", proof="{}")


def test_a_key_that_is_out_says_so_and_the_offer_still_stands(agent: Path, key: FakeKey) -> None:
    key.plugged = False
    with pytest.raises(HardwareError, match="fake key is out"):
        renew_session(agent, key)
    key.plugged = True
    assert renew_session(agent, key)


def test_a_box_that_keeps_no_session_says_so(tmp_path: Path, key: FakeKey) -> None:
    desk = ControlDesk(None, lambda: STATUS)
    with (
        ControlSocket(tmp_path, desk.answer, SystemClock()),
        pytest.raises(OperatorError, match="names no roster") as failure,
    ):
        renew_session(tmp_path, key)
    assert failure.value.code == "service.no_sessions"


def test_a_box_without_a_repository_believes_no_keys_on_request(tmp_path: Path, key: FakeKey) -> None:
    desk = ControlDesk(None, lambda: STATUS)
    with (
        ControlSocket(tmp_path, desk.answer, SystemClock()),
        pytest.raises(OperatorError, match="not enrolled") as failure,
    ):
        ask_agent(tmp_path, "accept-keys", site="hospital-b", keys="ab" * 32)
    assert failure.value.code == "service.no_repository"


def test_without_an_agent_a_command_says_so(tmp_path: Path, key: FakeKey) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OperatorError, match="No agent runs"):
            renew_session(directory, key)
    with socket.socket(socket.AF_UNIX) as left_by_a_killed_agent:
        left_by_a_killed_agent.bind(str(tmp_path / "control.sock"))
    with pytest.raises(OperatorError, match="No agent runs"):
        renew_session(tmp_path, key)


def test_what_a_killed_agent_left_does_not_keep_the_next_one_from_listening(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    with ControlSocket(tmp_path, ControlDesk(None, lambda: STATUS).answer, SystemClock()):
        check_alive(tmp_path)
    assert not (tmp_path / "control.sock").exists()


def test_a_path_of_any_length_will_do(tmp_path: Path) -> None:
    directory = tmp_path / ("a" * 100) / ("b" * 100)
    directory.mkdir(parents=True)
    with ControlSocket(directory, ControlDesk(None, lambda: STATUS).answer, SystemClock()):
        check_alive(directory)


def test_a_directory_that_takes_no_socket_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "control.sock").mkdir()
    with pytest.raises(HardwareError, match="cannot listen"):
        ControlSocket(tmp_path, ControlDesk(None, lambda: STATUS).answer, SystemClock()).__enter__()


def test_only_its_owner_s_processes_reach_it(agent: Path) -> None:
    assert (agent / "control.sock").stat().st_mode & 0o777 == 0o600


def test_another_user_s_process_is_not_heard(tmp_path: Path, keeper: SessionKeeper) -> None:
    # Whoever gets past the file's permissions is known by the kernel.
    with ControlSocket(tmp_path, ControlDesk(keeper, lambda: STATUS).answer, SystemClock(), users=ANOTHER_USER):
        assert call(tmp_path, b'{"request": "session-offer"}\n') in {b"", b"hung up"}
        with pytest.raises(SoftwareError, match="no answer"):
            ask_agent(tmp_path, "session-offer")
    with pytest.raises(OperatorError, match="waits for nothing"):
        keeper.accept(b"")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00\xff" * 100,
        b"null",
        b"[]",
        b'"status"',
        b"[" * 60_000,
        b'{"request": "shutdown"}',
        b'{"request": ["status"]}',
        b'{"request": "status", "pin": "246813"}',
        b'{"request": "session-accept", "proof": 7}',
        b'{"request": "session-accept", "proof": "\\ud800"}',
        b'{"request": "status"',
    ],
)
def test_garbage_gets_one_answer_in_words(agent: Path, line: bytes) -> None:
    answer = json.loads(call(agent, line + b"\n"))
    assert answer["failure"]["code"] in {"service.bad_request", "identity.no_offer"}
    check_alive(agent)


@pytest.mark.parametrize("data", [b"x" * (MAX_LINE_BYTES + 2), b"x" * (4 << 20), b"x" * MAX_LINE_BYTES * 2 + b"\n"])
def test_too_much_is_cut_off_unread(agent: Path, data: bytes) -> None:
    assert call(agent, data) in {b"", b"hung up"}
    check_alive(agent)


def test_a_second_line_is_not_heard(agent: Path, keeper: SessionKeeper) -> None:
    assert b"online" in call(agent, b'{"request": "status"}\n{"request": "session-offer"}\n')
    with pytest.raises(OperatorError, match="waits for nothing"):
        keeper.accept(b"")


def test_slow_and_silent_callers_keep_nobody_waiting(keeper: SessionKeeper, tmp_path: Path) -> None:
    desk = ControlDesk(keeper, lambda: STATUS)
    with ControlSocket(tmp_path, desk.answer, SystemClock(), limit_s=0.5):
        silent, slow = (socket.socket(socket.AF_UNIX) for _ in range(2))
        with silent, slow:
            for channel in (silent, slow):
                channel.settimeout(10)
                channel.connect(str(tmp_path / "control.sock"))
            slow.sendall(b'{"requ')
            check_alive(tmp_path)
            assert silent.recv(1) == slow.recv(1) == b"", "both are hung up on"
        check_alive(tmp_path)


def test_a_crowd_of_silent_callers_shuts_nobody_out(agent: Path) -> None:
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    try:
        for channel in crowd:
            channel.settimeout(10)
            channel.connect(str(agent / "control.sock"))
        check_alive(agent)
    finally:
        for channel in crowd:
            channel.close()
    check_alive(agent)


def test_callers_that_vanish_leave_nothing_behind(agent: Path) -> None:
    check_alive(agent)
    before = open_files()
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(agent / "control.sock"))
            channel.sendall(b'{"request": "status"}\n')
    check_alive(agent)
    assert open_files() <= before + 1


def test_a_fault_of_ours_ends_one_call_and_not_the_agent(tmp_path: Path) -> None:
    def broken() -> AgentStatus:
        raise ZeroDivisionError

    with ControlSocket(tmp_path, ControlDesk(None, broken).answer, SystemClock()):
        for _ in range(2):
            with pytest.raises(SoftwareError, match="ZeroDivisionError"):
                ask_agent(tmp_path, "status")


def test_its_thread_ends_with_it_whoever_is_still_calling(keeper: SessionKeeper, tmp_path: Path) -> None:
    with ControlSocket(tmp_path, ControlDesk(keeper, lambda: STATUS).answer, SystemClock()):
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(10)
        caller.connect(str(tmp_path / "control.sock"))
        caller.sendall(b'{"request": ')
        check_alive(tmp_path)
    with caller:
        assert caller.recv(1) == b""
    assert "control" not in {thread.name for thread in threading.enumerate()}


def test_a_tpm_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    asked, let_go = threading.Event(), threading.Event()

    def hang(_: bytes) -> bytes:
        asked.set()
        let_go.wait(30)
        return b""

    begin_s = time.monotonic()
    with ControlSocket(tmp_path, hang, SystemClock()) as control, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / "control.sock"))
        caller.sendall(b"{}\n")
        assert asked.wait(10)
    assert time.monotonic() - begin_s < 2 * LEAVE_LIMIT_S
    let_go.set()
    control._thread.join(10)


@pytest.mark.parametrize(
    "answer", [b"", b"junk\n", b'{"result": 7}\n', b'{"failure": {"code": "x"}}\n', b"x" * 100_000]
)
def test_a_program_that_plays_the_agent_is_not_understood(tmp_path: Path, answer: bytes) -> None:
    with ControlSocket(tmp_path, lambda _: answer, SystemClock()), pytest.raises(SecureHealthError) as failure:
        ask_agent(tmp_path, "status")
    assert failure.value.code == "service.no_answer"


def test_an_offer_that_is_none_is_not_signed(tmp_path: Path, key: FakeKey) -> None:
    with (
        ControlSocket(tmp_path, lambda _: b'{"result": {"certificate": "{}"}}\n', SystemClock()),
        pytest.raises(PeerProtocolError),
    ):
        renew_session(tmp_path, key)
    assert not key.proofs


class TestHandlers:
    """What other parts answer through the same socket."""

    def test_a_handler_gets_the_checked_request_and_its_view_comes_back(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def study(request: StudyRequest) -> StudyLine:
            asked.append(request.study)
            return StudyLine(study=request.study, study_digest="ab", title="T", requester="R", state="waiting")

        desk = ControlDesk(None, lambda: STATUS, handlers={"study": study})
        with ControlSocket(tmp_path, desk.answer, SystemClock()):
            answer = ask_agent(tmp_path, "study", study="heart")
            with pytest.raises(OperatorError, match="does not know"):
                ask_agent(tmp_path, "study", study="../heart")
        assert StudyLine.model_validate(answer).study == "heart"
        assert asked == ["heart"]

    def test_a_box_that_governs_nothing_says_so(self, tmp_path: Path) -> None:
        with (
            ControlSocket(tmp_path, ControlDesk(None, lambda: STATUS).answer, SystemClock()),
            pytest.raises(OperatorError) as refusal,
        ):
            RunningBox(tmp_path).budget()
        assert refusal.value.code == "service.not_governed"

    def test_an_answer_beyond_a_line_is_a_failure_that_fits(self, tmp_path: Path) -> None:
        piece = ExportPiece(size=1, offset=0, text="x" * MAX_LINE_BYTES, total=MAX_LINE_BYTES)
        desk = ControlDesk(None, lambda: STATUS, handlers={"audit-export": lambda _: piece})
        with (
            ControlSocket(tmp_path, desk.answer, SystemClock()),
            pytest.raises(SecureHealthError) as failure,
        ):
            RunningBox(tmp_path).export(1, 0)
        assert failure.value.code == "service.answer_too_large"

    def test_a_list_that_comes_in_parts_is_put_together(self, tmp_path: Path) -> None:
        names = [f"study-{number}" for number in range(5)]

        def studies(request: StudiesRequest) -> StudiesAnswer:
            part = names[request.start : request.start + 2]
            lines = tuple(StudyLine(study=n, study_digest="ab", title="", requester="", state="waiting") for n in part)
            end = request.start + len(part)
            return StudiesAnswer(studies=lines, following=end if end < len(names) else None)

        desk = ControlDesk(None, lambda: STATUS, handlers={"studies": studies})
        with ControlSocket(tmp_path, desk.answer, SystemClock()):
            assert [line.study for line in RunningBox(tmp_path).studies()] == names
