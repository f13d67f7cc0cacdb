"""The signed timestamp that shows the SuperLink who calls, made seldom because hardware signs slowly."""

from __future__ import annotations

import threading
from base64 import b64encode
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock

REUSE_S = 5.0
"""How long one signature serves. The SuperLink accepts it for 300 s; a TPM signs a few times a second."""


class NodeKey(Protocol):
    """What signs for the node: an elliptic-curve key, in hardware or not."""

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA, DER."""
        ...

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        ...


class SignedTimestamp:
    """Makes, keeps and renews the signed timestamp; thread-safe."""

    def __init__(self, key: NodeKey, clock: Clock, *, reuse_s: float = REUSE_S) -> None:
        self._key = key
        self._clock = clock
        self._reuse_s = reuse_s
        self._lock = threading.Lock()
        self._current: tuple[str, str] | None = None
        self._signed_at = clock.now()
        self._signed_at_s = 0.0
        self.public_key_pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public_key_base64 = b64encode(self.public_key_pem).decode("ascii")
        self.signatures = 0
        """How many times the key has signed."""

    def current(self) -> tuple[str, str]:
        """The timestamp (ISO 8601) and its signature (base64) to send now.

        Raises:
            HardwareError: The key does not answer.
        """
        with self._lock:
            now = self._clock.now()
            if self._current is None or not self._is_fresh(now):
                self._current = self._sign(now)
            return self._current

    def forget(self) -> None:
        """Sign anew next time: the SuperLink rejected the current one, or the clock was set."""
        with self._lock:
            self._current = None

    def _is_fresh(self, now: datetime) -> bool:
        # Both clocks: a wall clock that was set makes an old timestamp wrong, however recently it was signed.
        by_wall = abs((now - self._signed_at).total_seconds())
        return max(by_wall, self._clock.monotonic_s() - self._signed_at_s) < self._reuse_s

    def _sign(self, now: datetime) -> tuple[str, str]:
        timestamp = now.isoformat()
        signature = self._key.sign(timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        self._signed_at, self._signed_at_s = now, self._clock.monotonic_s()
        self.signatures += 1
        return timestamp, b64encode(signature).decode("ascii")
