"""Keys that sign for the authority and for sites: files, smartcards, HSMs and TPMs, each opened by its URI.

file:<path>             PKCS#8, PEM, encrypted with a passphrase (plain in a test consortium only)
piv: pkcs11: tpm:       as `seh-agent key` names them; found by the entry points of group `secur_e_health.signers`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from agent.core.errors import OperatorError
from agent.trust.records import parse_public_pem

ENTRY_POINTS: Final = "secur_e_health.signers"
FILE_SCHEME: Final = "file"
MAX_KEY_BYTES: Final = 1 << 14
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

Secrets = Callable[[str], str]
"""Asks whoever is there for a secret, given what it is; securesystemslib calls it a secrets handler."""


class SignerBackend(Protocol):
    """What an entry point offers."""

    def import_(self, priv_key_uri: str, secrets_handler: Secrets | None = None) -> Signer:
        """Open the key that the URI names, whatever it is."""
        ...


def open_signer(uri: str, secrets: Secrets, *, base: Path = Path()) -> Signer:
    """Open a key for signing.

    Args:
        uri: `file:<path>`, `piv:...`, `pkcs11:...` or `tpm:...`.
        secrets: Asked for passphrase or PIN.
        base: Where relative paths of files begin.

    Raises:
        OperatorError: The URI names no key that can sign, or the passphrase is wrong.
        HardwareError: The device is away, or holds no key.
    """
    scheme, _, target = uri.partition(":")
    if scheme == FILE_SCHEME:
        return _open_file(base / target, secrets)
    found = entry_points(group=ENTRY_POINTS, name=scheme)
    if not found:
        raise OperatorError(
            "authority.unknown_scheme",
            f"The key URI {uri[:80]!r} names no kind of key that can sign here.",
            next_step=f"Begin it with {FILE_SCHEME}: or one of "
            f"{', '.join(sorted(f'{name}:' for name in entry_points(group=ENTRY_POINTS).names))}.",
        )
    return cast("SignerBackend", next(iter(found)).load()).import_(uri, secrets)


def create_file_key(path: Path, passphrase: str | None) -> Signer:
    """Make a P-256 key in a file that only its owner reads; an existing file is never touched.

    Args:
        path: Where.
        passphrase: Encrypts it; None leaves it plain.

    Raises:
        FileExistsError: There is one.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(private_pem(key, passphrase))
        stream.flush()
        os.fsync(stream.fileno())
    os.link(partial, path)  # unlike a rename, never over another key
    partial.unlink()
    return CryptoSigner(key)


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: str | None) -> bytes:
    """PKCS#8, PEM, as `load_file_key` reads it; None leaves it plain."""
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase is not None else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def load_file_key(path: Path, secrets: Secrets) -> ec.EllipticCurvePrivateKey:
    """Read the key in a file.

    Raises:
        OperatorError: There is none, or the passphrase is wrong.
    """
    try:
        with path.open("rb") as stream:
            pem = stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise OperatorError(
            "authority.no_key_file",
            f"The key file {path} cannot be read: {error.strerror}.",
            next_step="Plug in the medium that holds it, or name its place.",
        ) from error
    passphrase = secrets(f"passphrase of {path}").encode() if pem.startswith(_ENCRYPTED) else None
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad_key_file(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _bad_key_file(path)
    return key


def elliptic_key(key: object) -> ec.EllipticCurvePublicKey:
    """The key that metadata lists, as `cryptography` knows it.

    Raises:
        OperatorError: It is on another curve than P-256 and P-384.
    """
    pem = key.keyval.get("public", "") if isinstance(key, SSlibKey) else ""
    try:
        return parse_public_pem(str(pem))
    except ValueError as error:
        raise OperatorError(
            "authority.bad_public_key",
            f"A public key cannot be used here: {error}.",
            next_step="Use a key on P-256 (every card, TPM and HSM has it) or P-384.",
        ) from error


def listed_key(key: ec.EllipticCurvePublicKey) -> SSlibKey:
    """The inverse of `elliptic_key`."""
    return SSlibKey.from_crypto(key)


def sign_der(signer: Signer, data: bytes) -> bytes:
    """ECDSA over the curve's own hash of `data`, DER: what tokens, requests and statements want."""
    return bytes.fromhex(signer.sign(data).signature)


def sign_raw(signer: Signer, data: bytes) -> bytes:
    """The same as r || s, as COSE and JOSE want it (RFC 7518 3.4)."""
    size = (elliptic_key(signer.public_key).key_size + 7) // 8
    r, s = decode_dss_signature(sign_der(signer, data))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def _open_file(path: Path, secrets: Secrets) -> Signer:
    key = load_file_key(path, secrets)
    elliptic_key(listed := listed_key(key.public_key()))
    return CryptoSigner(key, listed)


def _bad_key_file(path: Path) -> OperatorError:
    return OperatorError(
        "authority.bad_key_file",
        f"{path} cannot be read as a private key with this passphrase.",
        next_step="Try the passphrase again; if it is right, restore the file from its backup.",
    )
