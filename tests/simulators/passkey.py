"""A technician's browser and passkey in one: answers WebAuthn ceremonies as a telephone does, or bends them."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.cose import ES256
from fido2.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData

_UP, _UV, _BE, _AT = 0x01, 0x04, 0x08, 0x40


@dataclass
class PlayedPasskey:
    """One passkey.

    Args:
        origin: Of the page that its browser shows.
        verified: Whether the person is verified.
        synchronised: Whether other devices may have it too.
    """

    origin: str
    verified: bool = True
    synchronised: bool = False
    count: int = 0
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def create(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `navigator.credentials.create`."""
        public = dict(options)["publicKey"]
        credential = AttestedCredentialData.create(
            bytes(16),
            self.credential_id,
            ES256.from_cryptography_key(self.key.public_key()),  # type: ignore[no-untyped-call]
        )
        data = AuthenticatorData.create(
            hashlib.sha256(public["rp"]["id"].encode()).digest(),
            AuthenticatorData.FLAG(self._flags | _AT),
            self.count,
            bytes(credential),
        )
        attestation = AttestationObject.create("none", data, {})
        client = self._client_data("webauthn.create", public["challenge"])
        return self._told({"clientDataJSON": _text(client), "attestationObject": _text(bytes(attestation))})

    def sign(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `navigator.credentials.get`."""
        public = dict(options)["publicKey"]
        self.count += 1
        head = hashlib.sha256(public["rpId"].encode()).digest()
        data = head + struct.pack(">BI", self._flags, self.count)
        client = self._client_data("webauthn.get", public["challenge"])
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        return self._told(
            {"clientDataJSON": _text(client), "authenticatorData": _text(data), "signature": _text(signature)}
        )

    @property
    def _flags(self) -> int:
        return _UP | (_UV if self.verified else 0) | (_BE if self.synchronised else 0)

    def _client_data(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}).encode()

    def _told(self, response: dict[str, str]) -> dict[str, Any]:
        name = _text(self.credential_id)
        return {
            "id": name,
            "rawId": name,
            "type": "public-key",
            "response": response,
            "clientExtensionResults": {},
        }


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
