"""authenticatorClientPIN of the virtual authenticator: CTAP 2.1, 6.5, from the authenticator's side."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.simulators.ctap_status import CTAPError, Status

ATTEMPTS = 8
ATTEMPTS_A_POWER_CYCLE = 3
_GET_RETRIES, _GET_KEY_AGREEMENT, _SET_PIN, _CHANGE_PIN, _GET_TOKEN, _GET_TOKEN_WITH_PERMISSIONS = 1, 2, 3, 4, 5, 9
_LEGACY_PERMISSIONS = 0x03  # make credential, get assertion


class PINProtocol(Protocol):
    """One of the two PIN/UV authentication protocols."""

    def derive(self, shared: bytes) -> bytes: ...
    def encrypt(self, key: bytes, plain: bytes) -> bytes: ...
    def decrypt(self, key: bytes, sealed: bytes) -> bytes: ...
    def authenticate(self, key: bytes, message: bytes) -> bytes: ...


class ProtocolOne:
    """CTAP 2.1, 6.5.6."""

    def derive(self, shared: bytes) -> bytes:
        return hashlib.sha256(shared).digest()

    def encrypt(self, key: bytes, plain: bytes) -> bytes:
        encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
        return encryptor.update(plain) + encryptor.finalize()

    def decrypt(self, key: bytes, sealed: bytes) -> bytes:
        decryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).decryptor()
        return decryptor.update(sealed) + decryptor.finalize()

    def authenticate(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, "sha256")[:16]


class ProtocolTwo:
    """CTAP 2.1, 6.5.7."""

    def derive(self, shared: bytes) -> bytes:
        return b"".join(
            HKDF(hashes.SHA256(), 32, bytes(32), info).derive(shared) for info in (b"CTAP2 HMAC key", b"CTAP2 AES key")
        )

    def encrypt(self, key: bytes, plain: bytes) -> bytes:
        initial = secrets.token_bytes(16)
        encryptor = Cipher(algorithms.AES(key[-32:]), modes.CBC(initial)).encryptor()
        return initial + encryptor.update(plain) + encryptor.finalize()

    def decrypt(self, key: bytes, sealed: bytes) -> bytes:
        decryptor = Cipher(algorithms.AES(key[-32:]), modes.CBC(sealed[:16])).decryptor()
        return decryptor.update(sealed[16:]) + decryptor.finalize()

    def authenticate(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key[:32], message, "sha256")


_PROTOCOLS: dict[int | None, PINProtocol] = {1: ProtocolOne(), 2: ProtocolTwo()}


def pin_protocol(number: int | None) -> PINProtocol:
    """The protocol that a request names."""
    if number not in _PROTOCOLS:
        raise CTAPError(Status.INVALID_PARAMETER)
    return _PROTOCOLS[number]


class ClientPIN:
    """PIN, attempts, key agreement and token of one authenticator."""

    def __init__(self) -> None:
        self.attempts = ATTEMPTS
        self._digest: bytes | None = None
        self._rp_id: str | None = None
        self.power_cycle()

    @property
    def is_set(self) -> bool:
        """Whether there is a PIN."""
        return self._digest is not None

    def set(self, pin: bytes) -> None:
        """Set the PIN; all attempts come back."""
        if not 4 <= len(pin) <= 63:
            raise CTAPError(Status.PIN_POLICY_VIOLATION)
        self._digest, self.attempts, self._wrong_now = hashlib.sha256(pin).digest()[:16], ATTEMPTS, 0

    def clear(self) -> None:
        """Factory state."""
        self._digest, self.attempts = None, ATTEMPTS
        self.power_cycle()

    def power_cycle(self) -> None:
        """What lives only while there is power."""
        self._agreement = ec.generate_private_key(ec.SECP256R1())
        self._token, self._permissions, self._rp_id = secrets.token_bytes(32), 0, None
        self._wrong_now = 0

    def token_for(self, permission: int, rp_id: str) -> bytes:
        """The PIN token, if it may be used for this."""
        if not self._permissions & permission:
            raise CTAPError(Status.PIN_AUTH_INVALID)
        self._rp_id = self._rp_id or rp_id
        if self._rp_id != rp_id:
            raise CTAPError(Status.PIN_AUTH_INVALID)
        return self._token

    def answer(self, request: dict[int, Any]) -> dict[int, Any]:
        """One authenticatorClientPIN request."""
        subcommand = request[2]
        if subcommand == _GET_RETRIES:
            return {3: self.attempts, 4: self._wrong_now >= ATTEMPTS_A_POWER_CYCLE}
        if subcommand == _GET_KEY_AGREEMENT:
            return {1: _cose_agreement_key(self._agreement.public_key())}
        protocol = pin_protocol(request.get(1))
        key = protocol.derive(self._agree(request[3]))
        if subcommand == _SET_PIN:
            return self._set_first(protocol, key, request)
        if subcommand == _CHANGE_PIN:
            return self._change(protocol, key, request)
        if subcommand in (_GET_TOKEN, _GET_TOKEN_WITH_PERMISSIONS):
            return self._give_token(protocol, key, request, legacy=subcommand == _GET_TOKEN)
        raise CTAPError(Status.INVALID_SUBCOMMAND)

    def derive_secrets(self, secret: bytes, request: dict[int, Any]) -> bytes:
        """hmac-secret, CTAP 2.1, 12.5: one or two salts in, as many secrets out, encrypted."""
        protocol = pin_protocol(request.get(4, 1))
        key = protocol.derive(self._agree(request[1]))
        if not hmac.compare_digest(protocol.authenticate(key, request[2]), request[3]):
            raise CTAPError(Status.PIN_AUTH_INVALID)
        salts = protocol.decrypt(key, request[2])
        if len(salts) not in (32, 64):
            raise CTAPError(Status.INVALID_PARAMETER)
        outputs = (hmac.digest(secret, salts[at : at + 32], "sha256") for at in range(0, len(salts), 32))
        return protocol.encrypt(key, b"".join(outputs))

    def _set_first(self, protocol: PINProtocol, key: bytes, request: dict[int, Any]) -> dict[int, Any]:
        if self.is_set:
            raise CTAPError(Status.NOT_ALLOWED)
        self._check_parameter(protocol, key, request[5], request[4])
        self.set(protocol.decrypt(key, request[5]).rstrip(b"\0"))
        return {}

    def _change(self, protocol: PINProtocol, key: bytes, request: dict[int, Any]) -> dict[int, Any]:
        self._check_parameter(protocol, key, request[5] + request[6], request[4])
        self._check_pin(protocol.decrypt(key, request[6]))
        self.set(protocol.decrypt(key, request[5]).rstrip(b"\0"))
        self._token, self._permissions = secrets.token_bytes(32), 0
        return {}

    def _give_token(
        self, protocol: PINProtocol, key: bytes, request: dict[int, Any], *, legacy: bool
    ) -> dict[int, Any]:
        self._check_pin(protocol.decrypt(key, request[6]))
        self._token = secrets.token_bytes(32)
        self._permissions = _LEGACY_PERMISSIONS if legacy else request[9]
        self._rp_id = None if legacy else request.get(10)
        return {2: protocol.encrypt(key, self._token)}

    def _check_parameter(self, protocol: PINProtocol, key: bytes, message: bytes, parameter: bytes) -> None:
        if not hmac.compare_digest(protocol.authenticate(key, message), parameter):
            raise CTAPError(Status.PIN_AUTH_INVALID)

    def _check_pin(self, digest: bytes) -> None:
        # CTAP 2.1, 6.5.5.7.1 steps 4 to 8: the attempt is counted before the comparison.
        if self._digest is None:
            raise CTAPError(Status.PIN_NOT_SET)
        if self.attempts == 0:
            raise CTAPError(Status.PIN_BLOCKED)
        if self._wrong_now >= ATTEMPTS_A_POWER_CYCLE:
            raise CTAPError(Status.PIN_AUTH_BLOCKED)
        self.attempts -= 1
        if hmac.compare_digest(digest, self._digest):
            self.attempts, self._wrong_now = ATTEMPTS, 0
            return
        self._wrong_now += 1
        self._agreement = ec.generate_private_key(ec.SECP256R1())
        if self.attempts == 0:
            raise CTAPError(Status.PIN_BLOCKED)
        blocked_now = self._wrong_now >= ATTEMPTS_A_POWER_CYCLE
        raise CTAPError(Status.PIN_AUTH_BLOCKED if blocked_now else Status.PIN_INVALID)

    def _agree(self, peer: dict[int, Any]) -> bytes:
        x, y = (int.from_bytes(peer[label], "big") for label in (-2, -3))
        return self._agreement.exchange(ec.ECDH(), ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())


def _cose_agreement_key(key: ec.EllipticCurvePublicKey) -> dict[int, Any]:
    numbers = key.public_numbers()
    # -25: "although this is not the algorithm actually used", CTAP 2.1, 6.5.6
    return {1: 2, 3: -25, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
