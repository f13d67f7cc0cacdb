"""`witness.toml`, and how a witness begins."""

from __future__ import annotations

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.audit.note import COSIGNATURE, note_key
from agent.core.config import Address, LocalPath
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.trust.records import WitnessRecord
from agent.trust.repository import bootstrap
from provisioning.authority.tls import create_authority, issue_server, store_server
from provisioning.witness.store import WitnessStore

MAX_SETTINGS_BYTES: Final = 1 << 16
SETTINGS_NAME: Final = "witness.toml"
RECORD_NAME: Final = "witness.json"
KEY_NAME: Final = "witness.pem"


class WitnessTLS(BaseModel):
    """The witness's certificate, PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: LocalPath
    key: LocalPath


class WitnessSettings(BaseModel):
    """`witness.toml`; relative paths begin at the file's directory.

    Args:
        name: As its key names it.
        listen: `host:port` to listen on.
        state: Its memory.
        key: Ed25519, PEM, encrypted.
        repository: URL of the consortium's trust repository.
        trust: What it knows of that.
        passphrase_file: Opens the key; the credential `passphrase` of the unit where left out.
        tls: Its certificate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[!-*,-~]{1,255}$")]
    listen: Address
    state: LocalPath
    key: LocalPath
    repository: Annotated[str, Field(pattern=r"^https://[!-~]{1,500}/$")]
    trust: LocalPath
    passphrase_file: LocalPath | None = None
    tls: WitnessTLS


def found_witness(
    directory: Path,
    *,
    name: str,
    address: str,
    root: bytes,
    root_digest: str,
    registrar: str,
    passphrase: str,
    now: datetime,
) -> WitnessRecord:
    """Make a witness: its key, its empty memory, its certificate, its settings.

    Args:
        directory: Its own; empty or not there yet.
        name: Of the witness, such as `witness.example/1`.
        address: `host:port` under which boxes reach it.
        root: Root metadata of the consortium's trust repository.
        root_digest: SHA-256 of it, hex, as the consortium told it.
        registrar: `host:port` of the registrar, which serves the repository.
        passphrase: Encrypts the key.
        now: Start of its certificate.

    Returns:
        What the consortium puts into `consortium.json`; it lies in `witness.json` too.

    Raises:
        OperatorError: There is a witness in the directory already, the root is another one, or name or address is none.
        HardwareError: The disk does not take it.
    """
    key = Ed25519PrivateKey.generate()
    host, _, port = address.rpartition(":")
    authority = create_authority(f"Witness {name}"[:64], now=now)
    record = _planned(name, address, key, authority.certificate_pem)
    bootstrap(directory / "trust", root, root_digest)
    WitnessStore.create(directory / "state")  # after all that a mistyped option can break: half a witness is none
    server = issue_server(authority, [host.strip("[]")], now=now)
    try:
        store_server(directory / "tls", authority, server)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))
        store_atomically(directory / KEY_NAME, pem, mode=0o600)
        store_atomically(directory / RECORD_NAME, record.encode())
        store_atomically(directory / SETTINGS_NAME, _settings_text(name, port, registrar).encode())
    except OSError as error:
        raise HardwareError(
            "witness.not_founded",
            f"The witness cannot be written to {directory}: {error.strerror}.",
            next_step="Free space or choose another directory, remove this one, and begin again.",
        ) from error
    return record


def _planned(name: str, address: str, key: Ed25519PrivateKey, root_certificate: bytes) -> WitnessRecord:
    try:
        return WitnessRecord(
            name=name,
            vkey=note_key(name, key, COSIGNATURE).vkey,
            address=address,
            root_certificates=root_certificate.decode(),
        )
    except ValidationError as error:
        raise _bad_plan(explain_invalid(error, whole="it")) from error
    except PeerProtocolError as error:
        raise _bad_plan(f"{name[:80]!r} is no name for it: at most 255 characters, no spaces, no plus") from error


def _settings_text(name: str, port: str, registrar: str) -> str:
    return (
        f'name = "{name}"\nlisten = "0.0.0.0:{port}"\nstate = "state"\nkey = "{KEY_NAME}"\n'
        f'repository = "https://{registrar}/repository/"\ntrust = "trust"\n\n'
        '[tls]\ncertificate = "tls/server.pem"\nkey = "tls/server.key"\n'
    )


def load_witness_settings(path: Path) -> WitnessSettings:
    """Read `witness.toml`.

    Raises:
        OperatorError: It cannot be read, or is malformed (`witness.bad_settings`).
    """
    try:
        with path.open("rb") as stream:
            table = tomllib.loads(stream.read(MAX_SETTINGS_BYTES).decode())
        return WitnessSettings.model_validate(table, context={"directory": path.parent})
    except OSError as error:
        raise _bad_settings(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise _bad_settings(explain_invalid(error, whole="settings")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad_settings(f"it is no TOML: {error}") from error


def open_key(path: Path, passphrase: str) -> Ed25519PrivateKey:
    """Open the witness's key.

    Raises:
        OperatorError: It cannot be read, or the passphrase is wrong (`witness.bad_key`).
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode())
    except (OSError, ValueError, TypeError) as error:
        raise _bad_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path)
    return key


def _bad_plan(what: str) -> OperatorError:
    return OperatorError(
        "witness.bad_plan",
        f"A witness cannot be made like this: {what}.",
        next_step="Correct the command's options.",
    )


def _bad_settings(what: str) -> OperatorError:
    return OperatorError(
        "witness.bad_settings",
        f"The witness's settings cannot be used: {what}.",
        next_step="Correct the file; `seh-provision witness init` wrote a whole one.",
    )


def _bad_key(path: Path) -> OperatorError:
    return OperatorError(
        "witness.bad_key",
        f"The witness's key cannot be opened from {path}.",
        next_step="Give the right passphrase; if the key is lost, make a new witness, and name it to the consortium.",
    )
