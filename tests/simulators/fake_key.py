"""A key of any kind, in memory, that can be unplugged and can need a person."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError
from agent.identity.key import Capabilities, HardwareKey, Presence, PresenceState, no_evidence
from agent.statements.roots import KeyKind, hash_for


@dataclass
class FakeKey(HardwareKey):
    """A key of any kind that can be unplugged."""

    kind: KeyKind = KeyKind.TPM
    unattended: bool = True
    plugged: bool = True
    looks: int = 0
    uri: str = "fake:"
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    proofs: int = 0

    @property
    @override
    def capabilities(self) -> Capabilities:
        return Capabilities(signs=True, unattended=self.unattended)

    @override
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.private.public_key()

    @override
    def presence(self) -> Presence:
        self.looks += 1
        return Presence(PresenceState.READY if self.plugged else PresenceState.ABSENT, "Fake key", "")

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        raise no_evidence(self.kind)

    @override
    def _signature_over(self, message: bytes) -> bytes:
        if not self.plugged:
            raise HardwareError("test.unplugged", "The fake key is out.", next_step="Put it back.")
        self.proofs += 1
        return self.private.sign(message, ec.ECDSA(hash_for(self.public_key())))
