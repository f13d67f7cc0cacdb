"""All checks, in the order in which one rests on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog

from agent.core.errors import SecureHealthError, SoftwareError
from agent.service.doctor import (
    clock,
    datasets,
    disk,
    gpu,
    interception,
    key,
    memory,
    names,
    policy,
    proxy,
    registrar,
    repository,
    superlink,
    tpm,
    unit,
    witness,
)
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding

Check = Callable[[Box], Finding]

CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "agent": unit.check,
        "TPM": tpm.check,
        "key": key.check,
        "session": key.check_session,
        "clock": clock.check,
        "DNS": names.check,
        "proxy": proxy.check,
        "TLS": interception.check,
        "registrar": registrar.check,
        "repository": repository.check,
        "SuperLink": superlink.check,
        "witness": witness.check,
        "disk": disk.check,
        "memory": memory.check,
        "GPU": gpu.check,
        "data sets": datasets.check,
        "policy": policy.check,
    }
)

log = structlog.get_logger()


def examine(box: Box, check: Check) -> Finding:
    """Make one check; it always finds something."""
    try:
        return check(box)
    except SecureHealthError as error:
        return Finding.failure(error)
    # A check that breaks must not keep the others from a technician.
    except Exception as error:
        log.exception("check_broke")
        return Finding.failure(_broken(error))


def _broken(error: Exception) -> SoftwareError:
    return SoftwareError(
        "doctor.check_broke",
        f"This check itself failed: {type(error).__name__}.",
        next_step="Report it, with what is shown above.",
    )
