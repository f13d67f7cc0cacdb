"""A hardware key in the shape that `cryptography` and Flower expect of a private key."""

from __future__ import annotations

from typing import NoReturn, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, KeySerializationEncryption, PrivateFormat
from typing_extensions import override

from agent.core.errors import SoftwareError
from agent.statements.roots import hash_for


class MessageSigner(Protocol):
    """Whatever signs messages with one elliptic-curve key."""

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ECDSA over the curve's own hash of `message`, DER."""
        ...


class SigningKey(ec.EllipticCurvePrivateKey):
    """Signs through hardware; everything that would need the private half is refused."""

    def __init__(self, signer: MessageSigner) -> None:
        self._signer = signer
        self._public_key = signer.public_key()

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # type: ignore[override]
        """ECDSA over `data` (a message, not a digest), DER."""
        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.HashAlgorithm) or algorithm.name != hash_for(self._public_key).name:
            raise _refused(f"sign with {algorithm.__class__.__name__}")
        return self._signer.sign(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of a secret scalar."""
        return self._public_key.key_size

    @override
    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Refused: the key was made for signing only."""
        raise _refused("exchange keys")

    def private_numbers(self) -> NoReturn:
        """Refused: the private half does not leave the hardware."""
        raise _refused("be exported")

    @override
    def private_bytes(
        self, encoding: Encoding, format: PrivateFormat, encryption_algorithm: KeySerializationEncryption
    ) -> NoReturn:
        """Refused: the private half does not leave the hardware."""
        raise _refused("be exported")

    def __copy__(self) -> SigningKey:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> SigningKey:
        return self


def _refused(what: str) -> SoftwareError:
    return SoftwareError(
        "identity.key_refused",
        f"A hardware key was asked to {what}, which it cannot.",
        next_step="This is a fault of the software: report it.",
    )
