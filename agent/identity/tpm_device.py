"""The one owner of a TPM in this process: finds it, takes turns, tries again when it is busy, and cleans up.

Every operation opens its own connection. That costs a third of a millisecond, gives other processes their turn, leaves
no handle of ours behind (the kernel's resource manager flushes what a closed connection held) and finds a TPM that was
pulled out and put back without anything to repair.

Source: TCG TSS 2.0 ESAPI; return codes from TPM 2.0 Library Part 2, 6.6.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_CAP, TPM2_HC

from agent.core.errors import HardwareError

os.environ.setdefault("TSS2_LOG", "all+none")  # libtss2 reads it at its first message; what fails is ours to say

T = TypeVar("T")

DEFAULT_TCTI = "device:/dev/tpmrm0"
PATIENCE_S = 2.0
"""How long a busy TPM is asked again before the caller hears of it."""

_LAYER_MASK, _CODE_MASK = 0xFF0000, 0xFFFF
_TPM_LAYERS = frozenset({0x000000, 0x0B0000})  # the TPM itself, or the kernel's resource manager speaking for it
_TCTI_LAYER = 0x0A0000
# OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES, YIELDED, CANCELED, TESTING, REFERENCE_H0,
# NV_RATE, RETRY: all mean "not now". REFERENCE_H0: somebody flushed our transient object between two commands.
_BUSY_CODES = frozenset({0x902, 0x903, 0x904, 0x905, 0x906, 0x908, 0x909, 0x90A, 0x910, 0x920, 0x922})
_MEMORY_CODES = frozenset({0x902, 0x903, 0x904})
_LOCKOUT_CODE = 0x921
_NO_HANDLE_CODE = 0x18B  # TPM_RC_HANDLE, handle 1


class TPMDevice:
    """A TPM behind one TCTI. Thread-safe.

    Args:
        tcti: As the TSS names it, e.g. `device:/dev/tpmrm0` or `swtpm:path=/run/x.sock`.
        patience_s: How long a busy TPM is asked again.
    """

    def __init__(self, tcti: str = DEFAULT_TCTI, *, patience_s: float = PATIENCE_S) -> None:
        self.tcti = tcti
        self._patience_s = patience_s
        self._turn = threading.RLock()

    def run(self, operation: Callable[[ESAPI], T]) -> T:
        """Run `operation` with a connection of its own, again from the start while the TPM is busy.

        Args:
            operation: Uses the connection, flushes what it loaded, keeps no handle beyond its return.

        Raises:
            HardwareError: The TPM is gone, stays busy, is locked, or refuses.
        """
        with self._turn:
            deadline_s, pause_s, swept = time.monotonic() + self._patience_s, 0.002, False
            while True:
                try:
                    return self._attempt(operation)
                except TSS2_Exception as error:
                    if not is_busy(error):
                        raise _failure(error, self.tcti) from error
                    if time.monotonic() > deadline_s:
                        if swept or not self._sweep(error):
                            raise _failure(error, self.tcti) from error
                        swept = True
                # Two processes that collide should not collide again in step.
                time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
                pause_s = min(2 * pause_s, 0.1)

    def _attempt(self, operation: Callable[[ESAPI], T]) -> T:
        with ESAPI(self.tcti) as esapi:
            return operation(esapi)

    def _sweep(self, error: TSS2_Exception) -> bool:
        """Without a resource manager, a killed process leaves its objects behind for good: flush them all."""
        if "tpmrm" in self.tcti or code_of(error) not in _MEMORY_CODES:
            return False
        self._attempt(_flush_everything)
        return True


@contextmanager
def flushed(esapi: ESAPI, handle: ESYS_TR) -> Iterator[ESYS_TR]:
    """Flush a transient object or session when done, whatever happens."""
    try:
        yield handle
    finally:
        esapi.flush_context(handle)


def code_of(error: TSS2_Exception) -> int:
    """The TPM's own response code; 0 for an error of another layer."""
    return int(error.rc) & _CODE_MASK if int(error.rc) & _LAYER_MASK in _TPM_LAYERS else 0


def is_busy(error: TSS2_Exception) -> bool:
    """Whether asking again is right."""
    return code_of(error) in _BUSY_CODES


def is_missing(error: TSS2_Exception) -> bool:
    """Whether the TPM says that nothing is at the handle."""
    return code_of(error) == _NO_HANDLE_CODE


def _flush_everything(esapi: ESAPI) -> None:
    for first in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.LOADED_SESSION_FIRST):
        _, data = esapi.get_capability(TPM2_CAP.HANDLES, int(first), 64)
        handles = data.data.handles
        for index in range(len(handles)):
            # A transient handle has no ESYS_TR yet; ReadPublic makes one. Sessions are numbered as they are.
            esapi.flush_context(esapi.tr_from_tpmpublic(handles[index]))


def _failure(error: TSS2_Exception, tcti: str) -> HardwareError:
    code = code_of(error)
    if int(error.rc) & _LAYER_MASK == _TCTI_LAYER:
        return gone(tcti)
    if code == _LOCKOUT_CODE:
        return HardwareError(
            "identity.tpm_locked",
            "The TPM has locked itself after failed authorisations.",
            next_step="Wait until its lock-out time is over, or clear the lock-out with the owner's authorisation.",
        )
    if code in _BUSY_CODES:
        return HardwareError(
            "identity.tpm_busy",
            "The TPM is busy with another program and did not get free in time.",
            next_step="It is tried again by itself. If it stays so, see which program holds the TPM.",
        )
    return HardwareError(
        "identity.tpm_refused",
        f"The TPM refused an operation: {error}.",
        next_step="Run `seh-agent key test`; if it repeats, report it with this code.",
        rc=f"0x{int(error.rc):x}",
    )


def gone(tcti: str) -> HardwareError:
    """The failure of a TPM that does not answer."""
    return HardwareError(
        "identity.tpm_gone",
        f"No TPM answers at {tcti}.",
        next_step="See that the firmware has it switched on and that this program may use it; work resumes by itself.",
    )
