"""Where the slot tool's state lies, and how it is held against the TPM's counters: what was put back is found out.

A new state is written with the next generation, and only then is the counter raised: after a power cut between the
two, the next start raises it. A state of any other generation is an old one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.core.files import store_atomically
from agent.update.floor import Counters
from agent.update.slots import read_regular
from agent.update.state import MAX_STATE_BYTES, State, encode_state, parse_state

STATE_FILE: Final = "state.json"
SPARE_FILE: Final = "spare"
_SPARE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known at a start.

    Args:
        state: The last state that was written; None where it is missing, somebody else's, or an old one.
        floor: The lowest security epoch that may run.
        generation: Of the last state that was written.
    """

    state: State | None
    floor: int
    generation: int


class StateStore:
    """state.json and the counters beside it.

    Args:
        path: The file.
        secret: (32,), the tool's.
        counters: The TPM's; None where there is no TPM, so that a state that was put back is not found out.
    """

    def __init__(self, path: Path, secret: bytes, counters: Counters | None) -> None:
        self._path = path
        self._secret = secret
        self._counters = counters

    def peek(self) -> State | None:
        """The state as the file says, held against nothing but the secret."""
        with suppress(OSError, ValueError):
            return parse_state(read_regular(self._path, MAX_STATE_BYTES), self._secret)
        return None

    def load(self, epoch: Callable[[State | None], int]) -> Memory:
        """Read the state, and finish what a power cut interrupted.

        Args:
            epoch: For a TPM that has no counters, as it is new or was cleared: the security epoch that the signed
                records in the slots speak for.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`).
            OSError: The disk does not take it.
        """
        state = self.peek()
        if self._counters is None:
            return Memory(state, state.floor if state else 0, state.generation if state else 0)
        reading = self._counters.read()
        if reading is None:
            # Who reaches the TPM but not the disk cannot raise the floor; who reaches only the disk cannot lower it.
            known = self._counters.found_floor() if state is None else state.floor
            reading = self._counters.define(max(known, epoch(state)))
            if state is not None:
                state = replace(state, generation=reading.generation, floor=reading.floor)
                self._write(state)
        if state is not None and state.generation == reading.generation + 1:
            self._counters.raise_generation()
        elif state is not None and state.generation != reading.generation:
            state = None
        if state is None:
            return Memory(None, reading.floor, reading.generation)
        for _ in range(state.floor - reading.floor):
            self._counters.raise_floor()
        state = replace(state, floor=max(state.floor, reading.floor))
        return Memory(state, state.floor, state.generation)

    def save(self, state: State) -> State:
        """Write a state, and raise the counters to it.

        Args:
            state: Follows the one that was loaded or saved last.

        Returns:
            What was written: the same, one generation later.

        Raises:
            HardwareError: The TPM does not answer (`update.tpm_failed`); the next start finishes it.
            OSError: The disk does not take it; the old state holds.
        """
        state = replace(state, generation=state.generation + 1)
        self._write(state)
        if self._counters is not None:
            self._counters.raise_generation()
        return state

    def _write(self, state: State) -> None:
        # On a disk that others filled up, a release on trial must still be started or given up.
        data, spare = encode_state(state, self._secret), self._path.with_name(SPARE_FILE)
        try:
            store_atomically(self._path, data, mode=0o600)
        except OSError as error:
            if error.errno != errno.ENOSPC or not spare.exists():
                raise
            spare.unlink()
            store_atomically(self._path, data, mode=0o600)
        else:
            if not spare.exists():
                with suppress(OSError):
                    store_atomically(spare, bytes(_SPARE_BYTES), mode=0o600)
