"""What this box keeps to itself, and where: the vault of its secrets, and what makes its session keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from agent.attestation.policy import MAX_APPROVAL_BYTES, Approval, parse_approval, verify_approval
from agent.core.config import AgentConfig, VaultSection
from agent.core.errors import OperatorError, PeerProtocolError
from agent.identity.session import SessionKeySource
from agent.identity.vault import Vault, open_plain_vault

if TYPE_CHECKING:
    from agent.identity.tpm_counter import ReservationCounter
    from agent.identity.tpm_device import TPMDevice

MAX_APPROVALS: Final = 64
MAX_PEM_BYTES: Final = 1 << 14

log = structlog.get_logger()


def load_vault(config: AgentConfig) -> Vault:
    """Open this box's vault, or make it: sealed to the TPM where the configuration says so, else a file.

    Raises:
        OperatorError: A file that the configuration names cannot be used, or the vault is damaged.
        HardwareError: The TPM is gone (`identity.tpm_gone`), the disk is another box's (`identity.sealed_elsewhere`),
            or nobody approved the state that this box started in (`identity.unapproved_state`).
    """
    path = config.node.state_directory / "vault"
    if config.vault is None or config.key.tpm_uri is None:
        return open_plain_vault(path)
    device = open_tpm(config.key.tpm_uri)
    from agent.identity.sealed import init_vault, open_vault  # noqa: PLC0415 - needs the TPM's library
    from agent.identity.tpm_counter import COUNTER_HANDLE  # noqa: PLC0415 - the same

    approver = _load_approver(config.vault.approver)
    init_vault(device, path, approver)
    return open_vault(device, path, list(_load_approvals(config.vault, approver)), counter=COUNTER_HANDLE)


def session_keys(config: AgentConfig) -> SessionKeySource | None:
    """What makes session keys where the configuration names a TPM for them; None leaves it to the box's key.

    Raises:
        OperatorError: The URI cannot be used, or the TPM's library is not installed.
    """
    if config.key.sessions_in is None:
        return None
    device = open_tpm(config.key.sessions_in)
    from agent.identity.tpm import new_session_key  # noqa: PLC0415 - needs the TPM's library

    return lambda: new_session_key(device)


def open_reservations(config: AgentConfig) -> ReservationCounter | None:
    """The TPM's counter of budget reservations, made where it is missing; None on a box that uses no TPM.

    Raises:
        OperatorError: The TPM's library is not installed.
        HardwareError: The TPM is gone or refuses.
    """
    if config.key.tpm_uri is None:
        return None
    device = open_tpm(config.key.tpm_uri)
    from agent.identity.tpm_counter import ReservationCounter  # noqa: PLC0415 - needs the TPM's library

    counter = ReservationCounter(device)
    counter.define()
    return counter


def open_tpm(uri: str) -> TPMDevice:
    """The TPM that a `tpm:` URI names.

    Raises:
        OperatorError: Its library is not installed.
    """
    try:
        from agent.identity.tpm import open_device  # noqa: PLC0415 - boxes without a TPM need not have its library
    except ImportError as error:
        raise OperatorError(
            "identity.missing_library",
            f"The configuration names a TPM, and its library is not installed here ({error.name}).",
            next_step="Install the package's 'tpm' extra, or leave the TPM out of the configuration.",
        ) from error
    return open_device(uri)


def _load_approver(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        with path.open("rb") as stream:
            key = load_pem_public_key(stream.read(MAX_PEM_BYTES))
    except OSError as error:
        raise _bad_approver(path, error.strerror or "it cannot be read") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_approver(path, "it is no public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_approver(path, "it is no elliptic-curve key on P-256")
    return key


def _load_approvals(section: VaultSection, approver: ec.EllipticCurvePublicKey) -> Iterator[Approval]:
    """Those that can be used; one that cannot must not keep the others from opening the vault."""
    for path in sorted(section.approvals.glob("*.cbor"))[:MAX_APPROVALS]:
        try:
            with path.open("rb") as stream:
                approval = parse_approval(stream.read(MAX_APPROVAL_BYTES + 1))
            verify_approval(approval, approver)
        except (OSError, PeerProtocolError) as error:
            log.warning("approval_set_aside", file=path.name, reason=str(error))
        else:
            yield approval


def _bad_approver(path: Path, why: str) -> OperatorError:
    return OperatorError(
        "config.bad_approver",
        f"The key that approves this box's boot states, {path}, cannot be used: {why}.",
        next_step="Install the public key that the consortium signs its releases with.",
    )
