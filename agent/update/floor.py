"""What a disk cannot be made to forget: the floor, and which writing of the state is the last, in counters of the TPM.

Three NV indices, each with an authorisation of its own that only the slot tool can derive: a counter for the floor,
its base (floor = counter - base, as a TPM may start a new counter anywhere above its old ones), written once and then
locked, and a counter that follows the state's generation. The owner's authorisation is not taken (docs/decisions/0012):
whoever reaches the TPM can remove the indices, but can neither write them nor put others in their place that answer to
the tool's secret. Missing or foreign ones are made anew, with the floor that the tool's own state speaks for, or, where
that is lost too, with the one that the foreign ones hold.

Source: TPM 2.0 Library Part 1, 37.2.4 (counters); Part 3, 31 (NV); TCG PC Client Platform Firmware Profile, 3.3.4
(PCR usage); tpm2-tools 5.4.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from agent.core.errors import HardwareError
from agent.update.programs import ProgramError, Run, run_program
from agent.update.state import derive

FLOOR_INDEX: Final = 0x01800010
BASE_INDEX: Final = 0x01800011
GENERATION_INDEX: Final = 0x01800012
_INDICES: Final = (FLOOR_INDEX, BASE_INDEX, GENERATION_INDEX)
PAYLOAD_REGISTER: Final = 14
"""Beside the operating system's: nothing but shim's list of machine owner keys is measured there, and the appliance has
no shim. Software cannot reset it, as it can 16 and 23."""

_COUNTER: Final = "nt=counter|authread|authwrite|ownerread|no_da"
_BASE: Final = "authread|authwrite|ownerread|writedefine|no_da"
_NEVER_WRITTEN: Final = 0x14A
"""NV_UNINITIALIZED: a power cut while it was made."""
# BAD_AUTH and AUTH_FAIL of session 1: somebody else's index. AUTH_UNAVAILABLE, NV_AUTHORIZATION, NV_RANGE: of another
# kind. LOCKOUT: of one that wrong authorisations lock, as they do not lock ours.
_NOT_OURS: Final = frozenset({0x9A2, 0x98E, 0x12F, 0x149, 0x146, 0x921, _NEVER_WRITTEN})
_READ_AGAIN_AFTER_S: Final = (0.5, 2.0)
_CODE: Final = re.compile(r"\(0x([0-9A-Fa-f]+)\)")
"""As tpm2-tools print a response code."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the TPM holds.

    Args:
        floor: The lowest security epoch that may run.
        generation: Of the last state that was written.
    """

    floor: int
    generation: int


class Counters(Protocol):
    """A TPM, or what stands in for one."""

    def read(self) -> Reading | None:
        """What it holds; None where the counters were never made, or are gone, as after a TPM clear."""

    def found_floor(self) -> int:
        """The floor that counters of another slot tool hold, which anybody can read; 0 where there are none."""

    def define(self, floor: int) -> Reading:
        """Make the counters anew, with this floor."""

    def raise_floor(self) -> None:
        """Raise it by one."""

    def raise_generation(self) -> None:
        """Raise it by one."""

    def measure(self, root_hash: bytes) -> None:
        """Extend a PCR by what will run: (32,)."""


class TPMCounters:
    """The TPM, through tpm2-tools, which find it as the TSS does.

    Args:
        secret: (32,), the slot tool's.
        run: Runs programs.
        sleep: Waits so many seconds.
    """

    def __init__(self, secret: bytes, run: Run = run_program, sleep: Callable[[float], None] = time.sleep) -> None:
        self._secret = secret
        self._run = run
        self._sleep = sleep

    def read(self) -> Reading | None:
        """What the TPM holds.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
        """
        # The agent speaks to the TPM too, and a slow one lets a command run out of time: reading may be done again.
        for pause_s in _READ_AGAIN_AFTER_S:
            with suppress(HardwareError):
                return self._read()
            self._sleep(pause_s)
        return self._read()

    def found_floor(self) -> int:
        """The floor that counters of another slot tool hold, before this box was installed anew.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
        """
        with _told():
            if not {FLOOR_INDEX, BASE_INDEX} <= self._present():
                return 0
            try:
                counter, base = (
                    _number(self._run(("tpm2_nvread", hex(index), "-C", "o", "-s", "8")))
                    for index in (FLOOR_INDEX, BASE_INDEX)
                )
            except ProgramError as error:
                if _NEVER_WRITTEN in _codes(error):
                    return 0
                raise
        return max(0, counter - base)

    def define(self, floor: int) -> Reading:
        """Make the counters anew.

        Args:
            floor: With which they begin.

        Raises:
            HardwareError: The TPM does not answer, or its owner keeps us out (`update.tpm_failed`).
        """
        with _told():
            for index in self._present() & set(_INDICES):
                self._run(("tpm2_nvundefine", hex(index), "-C", "o"))
            self._make(FLOOR_INDEX, _COUNTER)
            self._call("tpm2_nvincrement", FLOOR_INDEX)
            base = self._value(FLOOR_INDEX) - floor
            self._make(BASE_INDEX, _BASE, "-s", "8")
            self._write(BASE_INDEX, base.to_bytes(8, "big", signed=True))
            self._call("tpm2_nvwritelock", BASE_INDEX)
            # The last: without it, the others do not count.
            self._make(GENERATION_INDEX, _COUNTER)
            self._call("tpm2_nvincrement", GENERATION_INDEX)
            return Reading(floor, self._value(GENERATION_INDEX))

    def raise_floor(self) -> None:
        """Raise it by one.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
        """
        with _told():
            self._call("tpm2_nvincrement", FLOOR_INDEX)

    def raise_generation(self) -> None:
        """Raise it by one.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
        """
        with _told():
            self._call("tpm2_nvincrement", GENERATION_INDEX)

    def measure(self, root_hash: bytes) -> None:
        """Extend PCR 14, SHA-256 bank.

        Args:
            root_hash: (32,).

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
        """
        with _told():
            self._run(("tpm2_pcrextend", f"{PAYLOAD_REGISTER}:sha256={root_hash.hex()}"))

    def _read(self) -> Reading | None:
        with _told():
            if not set(_INDICES) <= self._present():
                return None
            try:
                values = {index: self._value(index) for index in _INDICES}
            except ProgramError as error:
                if _codes(error) & _NOT_OURS:
                    return None
                raise
        return Reading(values[FLOOR_INDEX] - values[BASE_INDEX], values[GENERATION_INDEX])

    def _present(self) -> set[int]:
        lines = self._run(("tpm2_getcap", "handles-nv-index")).decode().split()
        return {int(word, 16) for word in lines if word.startswith("0x")}

    def _value(self, index: int) -> int:
        return _number(self._call("tpm2_nvread", index, "-s", "8"))

    def _make(self, index: int, attributes: str, *more: str) -> None:
        self._run(("tpm2_nvdefine", hex(index), "-C", "o", "-a", attributes, "-p", "file:-", *more), self._auth(index))

    def _call(self, program: str, index: int, *more: str) -> bytes:
        return self._run((program, hex(index), "-C", hex(index), "-P", "file:-", *more), self._auth(index))

    def _write(self, index: int, data: bytes) -> None:
        descriptor = os.memfd_create("base")
        try:
            os.write(descriptor, data)
            os.lseek(descriptor, 0, os.SEEK_SET)
            arguments = (
                "tpm2_nvwrite",
                hex(index),
                "-C",
                hex(index),
                "-P",
                "file:-",
                "-i",
                f"/proc/self/fd/{descriptor}",
            )
            self._run(arguments, self._auth(index), (descriptor,))
        finally:
            os.close(descriptor)

    def _auth(self, index: int) -> bytes:
        # Printable, as tpm2-tools read it as text, and no longer than the index's name hash.
        return derive(self._secret, b"nv %x" % index).hex()[:32].encode()


def _codes(error: ProgramError) -> set[int]:
    return {int(code, 16) & 0xFFFF for code in _CODE.findall(error.stderr)}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ProgramError as error:
        raise HardwareError(
            "update.tpm_failed",
            "The TPM does not answer as it should, so nobody can say which releases may run.",
            next_step="Start the box again. If it repeats, have the TPM and its owner authorisation looked at.",
            stderr=error.stderr[-2000:],
        ) from error
