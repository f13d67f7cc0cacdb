"""A worker that was taken over by a model or a data file tries to get out."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pyseccomp
import pytest

from agent.training import isolation
from agent.training.client import TrainingWorker
from agent.training.isolation import IsolationError
from agent.training.link import ChildLink
from tests.unit.training.studies import write_case

GIB = 1 << 30


def _inside(code: str, *, memory_bytes: int = 4 * GIB, before: str = "") -> str:
    """Run `code` in a process that shut itself in first, and return what it printed."""
    program = f"{before}\nfrom agent.training.isolation import isolate\nprint(isolate(memory_bytes={memory_bytes}))\n"
    result = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "seccomp" in result.stdout.partition("\n")[0], result.stderr
    return result.stdout.partition("\n")[2].strip() + result.stderr


def _attempt(call: str, *, imports: str = "os, signal, socket, subprocess") -> str:
    """What comes of one call inside: `done`, or the error's name."""
    return _inside(
        f"""
        import errno, {imports}
        try:
            {call}
            print("done")
        except OSError as error:
            print(errno.errorcode[error.errno])
        """
    )


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def test_it_cannot_reach_a_listening_port_on_loopback(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    socket.create_connection((host, port), timeout=5).close()
    listener.accept()[0].close()
    assert _attempt(f"socket.create_connection(({host!r}, {port}), timeout=5)") == "EPERM"
    with pytest.raises(TimeoutError):
        listener.accept()


def test_it_cannot_use_a_socket_that_it_already_has(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    outcome = _inside(
        f"""
        import errno
        try:
            early.connect(({host!r}, {port}))
            print("done")
        except OSError as error:
            print(errno.errorcode[error.errno])
        """,
        before="import socket; early = socket.socket()",
    )
    assert outcome == "EPERM"
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"])
def test_no_family_of_sockets_opens(family: str) -> None:
    assert _attempt(f"socket.socket(socket.{family}, socket.SOCK_RAW if {family!r} == 'AF_PACKET' else 1)") == "EPERM"


@pytest.mark.parametrize(
    "call",
    [
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['/bin/true'])",
        "os.fork()",
        "os.kill(os.getppid(), 0)",
        "os.kill(-1, signal.SIGTERM)",
        "os.pidfd_open(os.getppid())",
    ],
)
def test_it_cannot_start_programs_or_touch_other_processes(call: str) -> None:
    assert _attempt(call) == "EPERM"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("io_uring_setup", "8, buffer"),  # would open sockets past the filter
        ("unshare", "0x10000000"),  # CLONE_NEWUSER
        ("ptrace", "16, parent, 0, 0"),  # PTRACE_ATTACH
        ("bpf", "0, buffer, 64"),
        ("clone", "17, 0, 0, 0, 0"),  # a process, not a thread
    ],
)
def test_raw_system_calls_are_no_way_around(name: str, arguments: str) -> None:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    outcome = _inside(
        f"""
        import ctypes, errno, os
        buffer, parent = ctypes.create_string_buffer(256), os.getppid()
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall({number}, {arguments}), errno.errorcode[ctypes.get_errno()])
        """
    )
    assert outcome == "-1 EPERM"


def test_it_reads_no_file_but_the_software(tmp_path: Path) -> None:
    secret = tmp_path / "other-data-set.csv"
    secret.write_text("name,diagnosis\n")
    outcome = _inside(
        f"""
        import json.decoder, os
        for path in ({str(secret)!r}, "/etc/hostname", "/root", "/proc/1/environ"):
            try:
                open(path) if os.path.isfile(path) else os.listdir(path)
                print("read", path)
            except PermissionError:
                print("refused")
        import sqlite3, wave
        """
    )
    assert outcome.split() == ["refused"] * 4


def test_it_writes_nowhere(tmp_path: Path) -> None:
    outcome = _inside(
        f"""
        for path in ("/tmp/x", "/dev/shm/x", {str(tmp_path / "x")!r}):
            try:
                open(path, "w")
                print("written", path)
            except PermissionError:
                print("refused")
        """
    )
    assert outcome.split() == ["refused"] * 3


def test_it_can_still_compute_in_threads() -> None:
    outcome = _inside(
        """
        import threading
        done = []
        thread = threading.Thread(target=lambda: done.append(1))
        thread.start()
        thread.join()
        print(done)
        """
    )
    assert outcome == "[1]"


def test_memory_has_an_end() -> None:
    outcome = _inside(
        """
        try:
            bytearray(2 << 30)
            print("held")
        except MemoryError:
            print("refused")
        """,
        memory_bytes=GIB,
    )
    assert outcome == "refused"


def test_a_process_that_can_still_open_sockets_is_not_used() -> None:
    with pytest.raises(IsolationError, match="could be opened"):
        isolation.check_no_network()


def test_a_kernel_without_the_filter_stops_the_worker() -> None:
    code = """
    import agent.training.isolation as isolation
    isolation._load_filter = lambda: None
    try:
        isolation.isolate(memory_bytes=1 << 32)
        print("used")
    except isolation.IsolationError as error:
        print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "socket" in result.stdout
    assert "used" not in result.stdout


def test_the_real_worker_is_shut_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    case = write_case(tmp_path)
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        worker.wait_ready()
        link = worker._process._link
        assert isinstance(link, ChildLink)
        process = Path("/proc", str(link.process.pid))
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        environment = (process / "environ").read_bytes()
        opened = sorted(str(item.readlink()) for item in (process / "fd").iterdir())
        own_network = (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert b"hunter2" not in environment
    assert "seccomp" in worker.layers
    assert own_network == ("namespaces" in worker.layers)
    assert sum(name.startswith("socket:") for name in opened) == 1, opened
    assert not any("ward-3.csv" in name or "model.onnx" in name for name in opened)
