"""Shutting a process in before it reads foreign bytes: no network, no new programs, no way to other processes.

A model file and a data file are parsed by large libraries. Should one of them be led astray, what it finds is a process
that owns four descriptors, and that the kernel lets do nothing but compute.

- seccomp filter (must hold): no sockets, no connections, no programs, no processes, no debugging, no new namespaces.
- user and network namespace (where the kernel allows it): no interface, not even a configured loopback.
- Landlock (where the kernel has it): of the file system only the software itself can be read, and nothing written.

Nothing here imports a third-party library but the seccomp binding: it runs first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyseccomp

_CLONE_NEWUSER, _CLONE_NEWIPC, _CLONE_NEWNET = 0x10000000, 0x08000000, 0x40000000  # linux/sched.h
_CLONE_THREAD = 0x00010000
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
_OOM_SCORE = "800"
"""Out of memory, the kernel ends the worker before the agent."""

_FORBIDDEN = (
    # The network, and io_uring, which could open sockets past this filter.
    *("socket", "connect", "bind", "listen", "accept", "accept4", "io_uring_setup", "io_uring_enter"),
    "io_uring_register",
    # Other programs and processes.
    *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    # Privileges, namespaces, mounts, kernel interfaces that no computation needs.
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "bpf", "perf_event_open", "userfaultfd"),
    *("keyctl", "add_key", "request_key", "open_by_handle_at", "init_module", "finit_module", "kexec_load"),
)
_UNKNOWN = ("clone3",)
"""Answered as if the kernel lacked them: their arguments lie in memory, where a filter cannot see them."""

# linux/landlock.h
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR, _FS_IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 15
_FS_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/sys",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/run/gpu",
)
"""`/run/gpu` holds the GPU driver's libraries where the worker is a unit of its own."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/proc/driver/nvidia", "/proc/devices")


class IsolationError(RuntimeError):
    """The process could not be shut in; it must not read anything foreign."""


def isolate(*, memory_bytes: int) -> tuple[str, ...]:
    """Shut this process in; to be called first, while it has one thread.

    Args:
        memory_bytes: Most memory that it may hold.

    Returns:
        The layers that hold: always `seccomp`, and `namespaces` and `landlock` where the kernel has them.

    Raises:
        IsolationError: A layer that must hold does not, or a socket can still be opened.
    """
    try:
        _limit(memory_bytes)
        layers = [name for name, holds in (("namespaces", _unshare()), ("landlock", _restrict_files())) if holds]
        _prctl(_PR_SET_DUMPABLE, 0)
        _load_filter()
    except (OSError, RuntimeError, ValueError) as error:
        raise IsolationError(f"{type(error).__name__}: {error}") from error
    check_no_network()
    return ("seccomp", *layers)


def check_no_network() -> None:
    """Raise unless opening a socket fails.

    Raises:
        IsolationError: A socket was opened.
    """
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
            raise IsolationError(f"opening a socket failed for another reason: {error}") from error
        raise IsolationError("a socket could be opened")


def _limit(memory_bytes: int) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The data segment, not the address space: a GPU driver maps far more than it uses.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prctl(option: int, value: int) -> None:
    _check(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0))


def _syscall(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _unshare() -> bool:
    """Leave for namespaces without a network; some kernels and containers do not let an ordinary user do so."""
    flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC
    return bool(ctypes.CDLL(None, use_errno=True).unshare(flags) == 0)


def _restrict_files() -> bool:
    """Let the process read the software itself, and write nothing (Landlock)."""
    abi = _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = _FS_RIGHTS_BY_ABI[max(known for known in _FS_RIGHTS_BY_ABI if known <= abi)]
    # Binding and connecting by TCP (version 4); abstract UNIX sockets and signals to others (version 6).
    attribute = struct.pack("=QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(_syscall(_LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(size), 0))
    try:
        for path, wanted in _allowed_paths():
            _allow(ruleset, path, wanted & rights)
        _check(_syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _allowed_paths() -> Iterator[tuple[Path, int]]:
    software = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    for name in (*_READABLE, *sorted(software)):
        yield Path(name), _READ
    devices = [Path(name) for name in _DEVICES] + sorted(Path("/dev").glob("nvidia*"))
    for path in devices:
        yield path, _READ | _FS_WRITE_FILE | _FS_IOCTL_DEV


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # this system lacks it
    try:
        if not path.is_dir():
            rights &= _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_IOCTL_DEV
        _check(_syscall(_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0))
    finally:
        os.close(descriptor)


def _load_filter() -> None:
    """Load the seccomp filter; foreign architectures are ended by libseccomp's default."""
    allow = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse, absent = pyseccomp.ERRNO(errno.EPERM), pyseccomp.ERRNO(errno.ENOSYS)
    for name in _known(_FORBIDDEN):
        allow.add_rule(refuse, name)
    for name in _known(_UNKNOWN):
        allow.add_rule(absent, name)
    # Threads, but no processes; signals to itself, but to nobody else.
    allow.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0))
    for name in ("kill", "tgkill"):
        allow.add_rule(refuse, name, pyseccomp.Arg(0, pyseccomp.NE, os.getpid()))
    allow.load()


def _known(names: Sequence[str]) -> Iterator[str]:
    """The calls that this architecture has (newer ones lack `fork`, for one)."""
    for name in names:
        try:
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        except ValueError:
            number = -1
        if number >= 0:
            yield name
        elif name in {"socket", "connect", "execve"}:
            raise IsolationError(f"the system call {name} is not known on {platform.machine()}")
