"""A hardware key as a signer of TUF metadata: a site signs its role, a release manager a release, with hardware.

A FIDO2 key cannot: it signs only its own data beside a hash. Metadata that it should vouch for is signed by a key that
can, a smartcard or a TPM.

Source: securesystemslib's `Signer`; TUF specification 4.2 (`ecdsa-sha2-nistp256`).
"""

from __future__ import annotations

from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import (
    Key,
    SecretsHandler,
    Signature,
    Signer,
    SSlibKey,
)
from typing_extensions import override

from agent.core.errors import OperatorError
from agent.identity.key import HardwareKey, Nobody, Person, open_key

_log = structlog.get_logger(__name__)
_SCHEME_FOR_CURVE: Final = {"secp256r1": "ecdsa-sha2-nistp256", "secp384r1": "ecdsa-sha2-nistp384"}


class HardwareSigner(Signer):
    """Signs TUF metadata with a hardware key.

    Args:
        key: Opened with whoever can enter its PIN.
        public_key: As the metadata lists it; derived from the key when None.

    Raises:
        HardwareError: This kind of key cannot sign metadata (`identity.cannot_sign`).
        OperatorError: The metadata lists another key (`identity.another_signer`).
    """

    def __init__(self, key: HardwareKey, public_key: SSlibKey | None = None) -> None:
        self._private_key = key.signing_key
        self._key = key
        self._public_key = public_key or tuf_key(key.public_key())
        listed, ours = self._public_key.keyval.get("public"), tuf_key(key.public_key()).keyval["public"]
        if not isinstance(listed, str) or listed.split() != ours.split():
            raise OperatorError(
                "identity.another_signer",
                "The key in the device is not the one that the metadata lists for this role.",
                next_step="Use the device that was made a signer of this role, or have the role's keys changed.",
            )

    @property
    @override
    def public_key(self) -> SSlibKey:
        """As the metadata lists it."""
        return self._public_key

    @override
    def sign(self, payload: bytes) -> Signature:
        """Sign the canonical bytes of a role's metadata."""
        return Signature(self._public_key.keyid, self._key.sign(payload).hex())

    @classmethod
    @override
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> HardwareSigner:
        """Open the key that `priv_key_uri` names, for work that needs no person."""
        if not isinstance(public_key, SSlibKey):
            raise OperatorError(
                "identity.not_a_tuf_key",
                "The metadata lists a key of a kind that no hardware of ours has.",
                next_step="List the device's own key.",
            )
        return cls(open_key(priv_key_uri, person=_person(secrets_handler)), public_key)

    @classmethod
    def import_(cls, priv_key_uri: str, secrets_handler: SecretsHandler | None = None) -> HardwareSigner:
        """Open the key that `priv_key_uri` names, whichever it is: to list it in metadata for the first time.

        Args:
            priv_key_uri: As `agent.identity.key.open_key` takes it.
            secrets_handler: Asked for the device's PIN; without it, nobody is.
        """
        return cls(open_key(priv_key_uri, person=_person(secrets_handler)))


class _Asked(Nobody):
    """Whoever answers a secrets handler: gives a PIN, and touches the device when the log says so."""

    def __init__(self, secrets: SecretsHandler) -> None:
        self._secrets = secrets

    @override
    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        """Ask."""
        left = "" if attempts_remaining is None else f" ({attempts_remaining} attempts left)"
        return self._secrets(f"PIN of {device}{left}")

    @override
    def ask_touch(self, device: str) -> None:
        """Say so."""
        _log.warning("touch_the_device", device=device)


def _person(secrets: SecretsHandler | None) -> Person:
    return Nobody() if secrets is None else _Asked(secrets)


def tuf_key(public_key: ec.EllipticCurvePublicKey) -> SSlibKey:
    """The key as TUF metadata lists it.

    Args:
        public_key: P-256 or P-384.
    """
    return SSlibKey.from_crypto(public_key, scheme=_SCHEME_FOR_CURVE[public_key.curve.name])
