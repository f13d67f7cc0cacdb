"""What the box remembers of a FIDO2 key: nothing secret, but without it the key cannot be asked for a signature.

The credential is not resident: the authenticator needs its id back each time, and never tells the public key again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.validation import explain_invalid
from agent.statements.roots import load_public_key

MAX_RECORD_BYTES = 1 << 16

_Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$")]


class CredentialRecord(BaseModel):
    """One credential, as its registration left it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["secur-e-health/fido2-key/1"] = "secur-e-health/fido2-key/1"
    rp_id: Annotated[str, Field(min_length=1, max_length=253)]
    credential_id: _Hex
    public_key: _Hex
    attestation_object: _Hex
    registration_challenge: _Hex
    count: Annotated[int, Field(ge=0, lt=1 << 32)]

    def load_key(self) -> ec.EllipticCurvePublicKey:
        """The public half.

        Raises:
            OperatorError: The record's key is none.
        """
        try:
            return load_public_key(bytes.fromhex(self.public_key))
        except PeerProtocolError as error:
            raise _bad_record("its public key cannot be read") from error


def parse_record(data: bytes) -> CredentialRecord:
    """Parse a record.

    Raises:
        OperatorError: It is none.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record("it is too large")
    try:
        return CredentialRecord.model_validate_json(data)
    except ValidationError as error:
        raise _bad_record(explain_invalid(error, whole="record")) from error


def load_record(path: Path) -> CredentialRecord:
    """Read a record.

    Raises:
        HardwareError: There is none (`identity.no_key`).
        OperatorError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return parse_record(file.read(MAX_RECORD_BYTES + 1))
    except FileNotFoundError:
        raise HardwareError(
            "identity.no_key",
            f"No security key was registered in {path}.",
            next_step="Make one with `seh-agent key init`. If the node was enrolled, enrol it again.",
        ) from None
    except OSError as error:
        raise _bad_record(f"{path}: {error.strerror}") from error


def store_record(path: Path, record: CredentialRecord) -> None:
    """Write a record, whole or not at all; never over an existing one.

    Raises:
        OperatorError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            file.write(record.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise OperatorError(
            "identity.record_not_stored",
            f"The key's record {path} cannot be written: {error.strerror}.",
            next_step="Check the directory's permissions and free space, then repeat the command.",
        ) from error


def _bad_record(what: str) -> OperatorError:
    return OperatorError(
        "identity.bad_record",
        f"The record of the security key cannot be used: {what}.",
        next_step="Restore the file from a backup, or remove it, make a new key and enrol the node again.",
    )
