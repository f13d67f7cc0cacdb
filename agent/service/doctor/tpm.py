"""The TPM: whether it is there, may be used, answers, and is not locked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.safekeeping import open_tpm

_DEVICE: Final = "device:"
_IN_LOCKOUT: Final = 1 << 9  # TPMA_PERMANENT of TPM 2.0 Library Part 2, 8.6


def check(box: Box) -> Finding:
    """Ask the TPM for its maker and its state.

    Raises:
        HardwareError: It is missing, does not answer, or has locked itself.
        OperatorError: This user may not use it.
    """
    uri = box.config.key.tpm_uri
    if uri is None:
        return Finding.not_applicable("The configuration names no TPM.")
    from tpm2_pytss.constants import TPM2_CAP, TPM2_PT  # noqa: PLC0415 - boxes without a TPM need not have its library

    device = open_tpm(uri)
    if device.tcti.startswith(_DEVICE):
        _check_node(Path(device.tcti.removeprefix(_DEVICE)))

    def read(wanted: int) -> int:
        _, found = device.run(lambda esapi: esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, wanted, 1))
        return int(found.data.tpmProperties[0].value)

    if read(TPM2_PT.PERMANENT) & _IN_LOCKOUT:
        raise HardwareError(
            "doctor.tpm_locked",
            f"The TPM has locked itself after {read(TPM2_PT.LOCKOUT_COUNTER)} failed authorisations.",
            next_step="Wait until its lock-out time is over (`tpm2_getcap properties-variable` shows it), then see who "
            "guesses at it.",
        )
    maker = read(TPM2_PT.MANUFACTURER).to_bytes(4, "big").rstrip(b"\0 ").decode("ascii", "replace")
    return Finding.ok(f"The TPM at {device.tcti} answers; its maker is {maker}.")


def _check_node(path: Path) -> None:
    if not path.exists():
        raise HardwareError(
            "doctor.tpm_missing",
            f"The kernel shows no TPM: there is no {path}.",
            next_step='Switch the TPM on in the firmware ("Trusted Computing", "fTPM" or "PTT"), and restart the box.',
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise OperatorError(
            "doctor.tpm_forbidden",
            f"The agent's user may not use the TPM at {path}.",
            next_step="The device belongs to group tss, and the agent to that group: install the package again.",
        )
