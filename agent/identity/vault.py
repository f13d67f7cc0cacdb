"""The master key of a box's secrets at rest, and what is derived from it.

Where there is a TPM the master key is sealed to it (`agent.identity.sealed`); elsewhere it lies in a file that only the
agent reads, which protects against nobody who has the disk, and says so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.core.errors import OperatorError
from agent.core.files import sync_directory

MASTER_BYTES: Final = 32


class Vault:
    """An opened master key.

    Args:
        master: (32,).
        sealed: Whether hardware protects it at rest.
    """

    def __init__(self, master: bytes, *, sealed: bool) -> None:
        self._master = master
        self.sealed = sealed

    def key_for(self, purpose: str, *, size: int = MASTER_BYTES) -> bytes:
        """A secret for one purpose: (size,); the same for as long as the vault lives.

        Args:
            purpose: E.g. `ledger integrity v1`.
            size: Bytes wanted.
        """
        info = b"secur-e-health vault\x00" + purpose.encode()
        return HKDF(hashes.SHA256(), size, None, info).derive(self._master)


def open_plain_vault(path: Path) -> Vault:
    """Open, or make, a vault on a box whose key cannot seal (a smartcard, a FIDO2 or software key).

    Raises:
        OperatorError: The file is damaged, or cannot be read (`identity.bad_vault`).
    """
    try:
        if not path.exists():
            store_new(path, secrets.token_bytes(MASTER_BYTES))
        master = path.read_bytes()
    except OSError as error:
        raise bad_vault(path, f"cannot be used: {error.strerror}") from error
    if len(master) != MASTER_BYTES:
        raise bad_vault(path, "is damaged")
    return Vault(master, sealed=False)


def store_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all, durably; one that is there already stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # another command of ours was faster
        os.link(partial, path)
    partial.unlink()
    sync_directory(path.parent)


def bad_vault(path: Path, how: str) -> OperatorError:
    """The failure of a vault's file."""
    return OperatorError(
        "identity.bad_vault",
        f"The file with this box's secrets, {path}, {how}.",
        next_step="Put it back from this box's own backup; without it, the box is enrolled anew.",
    )
