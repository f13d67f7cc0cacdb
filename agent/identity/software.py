"""A key in an encrypted file, for development and demonstrations on machines without hardware.

`software:<path>`: PKCS#8, PEM, encrypted with a passphrase that lies beside it in `<path>.passphrase`. Whoever reads
the directory has the key, so it says of itself everywhere that it is no hardware.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import (
    Capabilities,
    FoundDevice,
    HardwareKey,
    Person,
    Presence,
    PresenceState,
    foreign_key,
    no_evidence,
    parse_key_uri,
)
from agent.statements.roots import KeyKind, hash_for


def open_key(uri: str, _person: Person) -> SoftwareKey:
    """Open the key file that `uri` names.

    Raises:
        HardwareError: There is no such file (`identity.no_key`).
        OperatorError: It cannot be read as a key (`identity.bad_key_file`).
    """
    path = _path_from(uri)
    pem = _read(path)
    return SoftwareKey(uri, path, pem, _parse_private_key(path, pem))


def init_key(uri: str, _person: Person) -> SoftwareKey:
    """Make the key file that `uri` names, or open the one that is there.

    Raises:
        OperatorError: The file there cannot be read as a key.
    """
    path = _path_from(uri)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        passphrase = secrets.token_hex(32)
        _store_private(_passphrase_path(path), passphrase.encode())
        key = ec.generate_private_key(ec.SECP256R1())
        encryption = BestAvailableEncryption(passphrase.encode())
        _store_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return open_key(uri, _person)


def find_devices() -> tuple[FoundDevice, ...]:
    """None: nobody should come to use a software key by finding one."""
    return ()


class SoftwareKey(HardwareKey):
    """A key that is no hardware; `kind` says so, and evidence for it does not exist.

    Args:
        uri: What named it.
        path: The key file.
        pem: What was in it when it was opened.
        private_key: P-256 or P-384.
    """

    kind = KeyKind.SOFTWARE

    def __init__(self, uri: str, path: Path, pem: bytes, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.uri = uri
        self._path = path
        self._pem = pem
        self._private_key = private_key

    @property
    def capabilities(self) -> Capabilities:
        """It signs, unattended; nothing vouches for it."""
        return Capabilities(signs=True, unattended=True)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._private_key.public_key()

    def presence(self) -> Presence:
        """Whether the file is still there and still holds this key."""
        device = f"SOFTWARE KEY in {self._path} (development only: no hardware protects it)"
        try:
            found = _parse_private_key(self._path, _read(self._path))
        except HardwareError as error:
            return Presence(PresenceState.ABSENT, device, error.next_step)
        except OperatorError as error:
            return Presence(PresenceState.BLOCKED, device, error.next_step)
        if found.public_key() != self.public_key():
            return Presence(PresenceState.FOREIGN, device, "Put this node's own key file back.")
        return Presence(PresenceState.READY, device)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """Refuse: a file has no evidence to show."""
        raise no_evidence(self.kind)

    def _signature_over(self, message: bytes) -> bytes:
        # Gone means gone, and another file is another key: a software key stands in for hardware in tests too.
        if _read(self._path) != self._pem:
            raise foreign_key("key file")
        return self._private_key.sign(message, ec.ECDSA(hash_for(self.public_key())))


def _path_from(uri: str) -> Path:
    target = parse_key_uri(uri).target
    if not target:
        raise OperatorError(
            "identity.no_path",
            "The key URI 'software:' names no file.",
            next_step="Write software:/path/to/key.pem.",
        )
    return Path(target)


def _passphrase_path(path: Path) -> Path:
    return path.with_name(path.name + ".passphrase")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _no_file(path) from None
    except OSError as error:
        raise _bad_file(path) from error


def _parse_private_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    passphrase = _read(_passphrase_path(path))
    try:
        key = load_pem_private_key(pem, passphrase.strip())
    except (ValueError, TypeError) as error:
        raise _bad_file(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _bad_file(path)
    return key


def _store_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads; never over an existing one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _no_file(path: Path) -> HardwareError:
    return HardwareError(
        "identity.no_key_file",
        f"There is no key file {path} with its passphrase file beside it.",
        next_step="Put it back, or make a new one with `seh-agent key init` and enrol the node again.",
    )


def _bad_file(path: Path) -> OperatorError:
    return OperatorError(
        "identity.bad_key_file",
        f"The file {path} cannot be read as a key with the passphrase beside it.",
        next_step="Put the right files back, or remove both and make a new key with `seh-agent key init`.",
    )
