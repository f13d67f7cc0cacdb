"""Runs a command behind the fences that its unit asks of the kernel, where no systemd runs: calls, sockets, memory.

python fenced.py UNIT COMMAND...
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyseccomp

PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1  # the same: what MemoryDenyWriteExecute= forbids
FAMILIES = {"none": (), "AF_UNIX": (1,), "AF_INET": (2,), "AF_INET6": (10,)}


def main(unit: Path, command: list[str]) -> None:
    """Put up the fences, and become the command."""
    text = unit.read_text(encoding="utf-8")
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if "MemoryDenyWriteExecute=yes" in text and prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "memory-deny-write-execute")
    _restrict_families(_words(text, "RestrictAddressFamilies"))
    _restrict_calls(_words(text, "SystemCallFilter"))
    os.execv(command[0], command)


def _words(text: str, name: str) -> list[list[str]]:
    return [value.split() for value in re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)]


def _restrict_calls(lines: list[list[str]]) -> None:
    """As systemd.exec(5) has it: the first line says what is allowed, a later one with ~ takes away again."""
    allowed: set[str] = set()
    for line in lines:
        takes_away = line[0].startswith("~")
        named = {call for word in line for call in _calls(word.removeprefix("~"))}
        allowed = allowed - named if takes_away else allowed | named
    calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in sorted(allowed | set(_calls("@default"))):
        try:
            calls.add_rule(pyseccomp.ALLOW, name)
        except (OSError, ValueError, RuntimeError):
            continue  # another architecture's
    calls.load()


def _restrict_families(lines: list[list[str]]) -> None:
    let_in = {number for line in lines for word in line for number in FAMILIES[word]}
    calls = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for family in range(64):
        if family not in let_in:
            refuse = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
            calls.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    calls.load()


def _calls(word: str) -> Iterator[str]:
    """A call, or all of a group."""
    if not word.startswith("@"):
        yield word
        return
    listed = subprocess.run(("systemd-analyze", "syscall-filter", word), check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines()[1:]:
        if line.strip() and not line.strip().startswith("#"):
            yield from _calls(line.strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
