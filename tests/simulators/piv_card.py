"""A PIV applet as NIST SP 800-73-4 Part 2 describes it, with Yubico's extensions (attestation, metadata, policies).

Good enough that opensc-tool, pkcs11-tool, yubico-piv-tool and ykman take it for a card. Elliptic curves only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.simulators import piv_maker
from tests.simulators.card import (
    BLOCKED,
    CONDITIONS,
    INCORRECT_DATA,
    NO_REFERENCE,
    NOT_FOUND,
    SECURITY_STATUS,
    UNKNOWN_INSTRUCTION,
    WRONG_LENGTH,
    WRONG_P1P2,
    CardError,
    Command,
    parse_tlvs,
    tlv,
)
from tests.simulators.makers import Maker

PIV_AID = bytes.fromhex("A000000308000010000100")
DEFAULT_PIN, DEFAULT_PUK = "123456", "12345678"
DEFAULT_MANAGEMENT_KEY = bytes.fromhex("010203040506070801020304050607080102030405060708")

SLOT_AUTHENTICATION, SLOT_SIGNATURE, SLOT_KEY_MANAGEMENT, SLOT_CARD_AUTHENTICATION = 0x9A, 0x9C, 0x9D, 0x9E
SLOT_MANAGEMENT, SLOT_ATTESTATION = 0x9B, 0xF9
PIN_NEVER, PIN_ONCE, PIN_ALWAYS = 1, 2, 3
TOUCH_NEVER, TOUCH_ALWAYS = 1, 2
OBJECT_ATTESTATION, OBJECT_PRINTED, OBJECT_DISCOVERY = 0x5FFF01, 0x5FC109, 0x7E

_CURVES: dict[int, ec.EllipticCurve] = {0x11: ec.SECP256R1(), 0x14: ec.SECP384R1()}
_PREHASHED = {0x11: Prehashed(hashes.SHA256()), 0x14: Prehashed(hashes.SHA384())}
_CIPHERS: dict[
    int, tuple[type[algorithms.AES | TripleDES], int, int]
] = {  # algorithm -> cipher, key bytes, block bytes
    0x00: (TripleDES, 24, 8),
    0x03: (TripleDES, 24, 8),
    0x08: (algorithms.AES, 16, 16),
    0x0A: (algorithms.AES, 24, 16),
    0x0C: (algorithms.AES, 32, 16),
}
_DEFAULT_PIN_POLICY = {SLOT_CARD_AUTHENTICATION: PIN_NEVER, SLOT_SIGNATURE: PIN_ALWAYS}
_RETIRED_SLOTS = range(0x82, 0x96)


@dataclass(slots=True)
class Secret:
    """PIN or PUK: its value, padded to 8 bytes, and the attempts left."""

    value: bytes
    is_default: bool
    attempts: int = 3
    left: int = 3

    def check(self, candidate: bytes) -> None:
        """Compare, and count a failure."""
        if self.left == 0:
            raise CardError(BLOCKED)
        if candidate != self.value:
            self.left -= 1
            raise CardError(0x63C0 | self.left if self.left else BLOCKED)
        self.left = self.attempts

    def set(self, value: bytes, *, is_default: bool = False) -> None:
        """Replace the value and give all attempts back."""
        if not 6 <= len(value.rstrip(b"\xff")) <= 8:
            raise CardError(INCORRECT_DATA)
        self.value, self.is_default, self.left = value, is_default, self.attempts


@dataclass(slots=True)
class SlotKey:
    """A private key with the rules for its use."""

    algorithm: int
    private: ec.EllipticCurvePrivateKey
    pin_policy: int
    touch_policy: int
    generated: bool

    @property
    def point(self) -> bytes:
        """The public key, uncompressed (SEC 1)."""
        return self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@dataclass(slots=True)
class _Session:
    """What a reset wipes out."""

    pin_verified: bool = False
    pin_fresh: bool = False
    management: bool = False
    expected: bytes = b""  # what the host must show next to authenticate with the management key


class PIVApplet:
    """The PIV application of one card.

    Args:
        serial: Printed on the card; Yubico's GET SERIAL answers it.
        make: `yubico` adds Yubico's own commands and an attestation key; `plain` is SP 800-73-4 alone.
        firmware: What Yubico's GET VERSION answers.
        touched: Asked whenever a key's policy wants a touch.
        maker: Whose root stands behind its attestation; by default the one that tests pin.
        management_algorithm: 0x03 three-key triple DES, 0x08, 0x0A, 0x0C AES.
    """

    aid = PIV_AID

    def __init__(
        self,
        serial: int,
        *,
        make: Literal["yubico", "plain"] = "yubico",
        firmware: tuple[int, int, int] = (5, 4, 3),
        touched: Callable[[], bool] = lambda: True,
        management_algorithm: int = 0x03,
        maker: Maker | None = None,
    ) -> None:
        self.serial, self.firmware, self.touched = serial, firmware, touched
        self.yubico = make == "yubico"
        self.pin_state_survives_reset = False
        """A faulty card, for the test that asks whether the host relies on the reset alone."""
        self.management_algorithm = management_algorithm
        self._factory_state()
        self.attestation_key, attestation_certificate = piv_maker.issue_attestation_key(serial, maker)
        if self.yubico:
            self.objects[OBJECT_ATTESTATION] = tlv(0x70, attestation_certificate) + tlv(0x71, b"\0") + tlv(0xFE, b"")
        self._commands: dict[int, Callable[[Command], bytes]] = {
            0x20: self._verify,
            0x24: self._change_reference_data,
            0x2C: self._reset_retry_counter,
            0x47: self._generate,
            0x87: self._general_authenticate,
            0xCB: self._get_data,
            0xDB: self._put_data,
        }
        if self.yubico:
            self._commands |= {
                0xF7: self._metadata,
                0xF8: lambda _: self.serial.to_bytes(4, "big"),
                0xF9: self._attest,
                0xFA: self._set_pin_attempts,
                0xFB: self._factory_reset,
                0xFD: lambda _: bytes(self.firmware),
                0xFE: self._import,
                0xFF: self._set_management_key,
            }

    def _factory_state(self) -> None:
        self.pin = Secret(_padded(DEFAULT_PIN), is_default=True)
        self.puk = Secret(_padded(DEFAULT_PUK), is_default=True)
        size = _CIPHERS[self.management_algorithm][1]
        self.management_key = (DEFAULT_MANAGEMENT_KEY * 2)[:size]
        self.management_is_default = True
        self.keys: dict[int, SlotKey] = {}
        self.objects: dict[int, bytes] = {}
        self.session = _Session()

    def select(self) -> bytes:
        """Application property template, SP 800-73-4 Part 2, 3.1.1."""
        authority = tlv(0x79, tlv(0x4F, PIV_AID[:5]))
        return tlv(0x61, tlv(0x4F, PIV_AID[5:]) + authority)

    def reset(self) -> None:
        """Power or reset line moved."""
        verified = self.session.pin_verified and self.pin_state_survives_reset
        self.session = _Session(pin_verified=verified, pin_fresh=verified)

    def handle(self, command: Command) -> bytes:
        """Answer one command."""
        if command.ins not in self._commands:
            raise CardError(UNKNOWN_INSTRUCTION)
        fresh = self.session.pin_fresh
        answer = self._commands[command.ins](command)
        if fresh and command.ins == 0x87:
            self.session.pin_fresh = False
        return answer

    def add_key(self, slot: int, *, algorithm: int = 0x11, pin_policy: int = 0, touch_policy: int = 0) -> SlotKey:
        """Make a key in `slot` as GENERATE does, without its permissions."""
        private = ec.generate_private_key(_CURVES[algorithm])
        self.keys[slot] = self._slot_key(slot, algorithm, private, pin_policy, touch_policy, generated=True)
        return self.keys[slot]

    # VERIFY, SP 800-73-4 Part 2, 3.2.1
    def _verify(self, command: Command) -> bytes:
        if command.p2 != 0x80:
            raise CardError(NO_REFERENCE)
        if command.p1 == 0xFF:
            self.session.pin_verified = self.session.pin_fresh = False
            return b""
        if not command.data:
            if self.session.pin_verified:
                return b""
            raise CardError(0x63C0 | self.pin.left if self.pin.left else BLOCKED)
        if len(command.data) != 8:
            raise CardError(INCORRECT_DATA)
        self.session.pin_verified = self.session.pin_fresh = False
        self.pin.check(command.data)
        self.session.pin_verified = self.session.pin_fresh = True
        return b""

    def _change_reference_data(self, command: Command) -> bytes:
        if len(command.data) != 16:
            raise CardError(INCORRECT_DATA)
        if command.p2 not in (0x80, 0x81):
            raise CardError(NO_REFERENCE)
        secret = self.pin if command.p2 == 0x80 else self.puk
        secret.check(command.data[:8])
        secret.set(command.data[8:])
        return b""

    def _reset_retry_counter(self, command: Command) -> bytes:
        if len(command.data) != 16 or command.p2 != 0x80:
            raise CardError(INCORRECT_DATA)
        self.puk.check(command.data[:8])
        self.pin.set(command.data[8:])
        return b""

    # GENERAL AUTHENTICATE, SP 800-73-4 Part 2, 3.2.4
    def _general_authenticate(self, command: Command) -> bytes:
        template = parse_tlvs(parse_tlvs(command.data).get(0x7C, b""))
        if command.p2 == SLOT_MANAGEMENT:
            proof = self._authenticate_host(command.p1, template)
            return tlv(0x7C, proof) if proof else b""
        key = self.keys.get(command.p2)
        if key is None or key.algorithm != command.p1:
            raise CardError(INCORRECT_DATA if key else NO_REFERENCE)
        self._check_policy(key)
        if 0x81 in template:
            return tlv(0x7C, tlv(0x82, _sign(key, template[0x81])))
        if 0x85 in template:
            peer = ec.EllipticCurvePublicKey.from_encoded_point(key.private.curve, template[0x85])
            return tlv(0x7C, tlv(0x82, key.private.exchange(ec.ECDH(), peer)))
        raise CardError(INCORRECT_DATA)

    def _check_policy(self, key: SlotKey) -> None:
        allowed = {PIN_NEVER: True, PIN_ONCE: self.session.pin_verified, PIN_ALWAYS: self.session.pin_fresh}
        if not allowed[key.pin_policy]:
            raise CardError(SECURITY_STATUS)
        if key.touch_policy == TOUCH_ALWAYS and not self.touched():
            raise CardError(SECURITY_STATUS)

    def _authenticate_host(self, algorithm: int, template: dict[int, bytes]) -> bytes:
        if (algorithm or 0x03) != self.management_algorithm:
            raise CardError(INCORRECT_DATA)
        block = _CIPHERS[self.management_algorithm][2]
        if template.get(0x80) == b"":  # mutual: the host decrypts our witness
            self.session.expected = secrets.token_bytes(block)
            return tlv(0x80, self._encrypt(self.session.expected))
        if template.get(0x81) == b"":  # single: the host encrypts our challenge
            challenge = secrets.token_bytes(block)
            self.session.expected = self._encrypt(challenge)
            return tlv(0x81, challenge)
        shown = template.get(0x80) or template.get(0x82, b"")
        expected, self.session.expected = self.session.expected, b""
        self.session.management = bool(expected) and secrets.compare_digest(shown, expected)
        if not self.session.management:
            raise CardError(SECURITY_STATUS)
        return tlv(0x82, self._encrypt(template[0x81])) if 0x81 in template else b""

    def _encrypt(self, data: bytes) -> bytes:
        cipher = _CIPHERS[self.management_algorithm][0]
        encryptor = Cipher(cipher(self.management_key), modes.ECB()).encryptor()
        return encryptor.update(data) + encryptor.finalize()

    # GENERATE ASYMMETRIC KEY PAIR, SP 800-73-4 Part 2, 3.3.2
    def _generate(self, command: Command) -> bytes:
        self._require_management()
        template = parse_tlvs(parse_tlvs(command.data).get(0xAC, b""))
        algorithm = int.from_bytes(template.get(0x80, b""), "big")
        if algorithm not in _CURVES or not _holds_key(command.p2):
            raise CardError(INCORRECT_DATA)
        pin_policy, touch_policy = (int.from_bytes(template.get(tag, b"\0"), "big") for tag in (0xAA, 0xAB))
        key = self.add_key(command.p2, algorithm=algorithm, pin_policy=pin_policy, touch_policy=touch_policy)
        return tlv(0x7F49, tlv(0x86, key.point))

    def _import(self, command: Command) -> bytes:
        self._require_management()
        if command.p1 not in _CURVES or not _holds_key(command.p2):
            raise CardError(WRONG_P1P2)
        values = parse_tlvs(command.data)
        private = ec.derive_private_key(int.from_bytes(values[0x06], "big"), _CURVES[command.p1])
        pin_policy, touch_policy = (int.from_bytes(values.get(tag, b"\0"), "big") for tag in (0xAA, 0xAB))
        key = self._slot_key(command.p2, command.p1, private, pin_policy, touch_policy, generated=False)
        self.keys[command.p2] = key
        return b""

    def _slot_key(
        self,
        slot: int,
        algorithm: int,
        private: ec.EllipticCurvePrivateKey,
        pin_policy: int,
        touch_policy: int,
        *,
        generated: bool,
    ) -> SlotKey:
        pin_policy = pin_policy or _DEFAULT_PIN_POLICY.get(slot, PIN_ONCE)
        return SlotKey(algorithm, private, pin_policy, touch_policy or TOUCH_NEVER, generated)

    def _get_data(self, command: Command) -> bytes:
        name = int.from_bytes(parse_tlvs(command.data).get(0x5C, b""), "big")
        if name == OBJECT_DISCOVERY:
            return tlv(0x7E, tlv(0x4F, PIV_AID) + tlv(0x5F2F, b"\x40\x00"))
        if name == OBJECT_PRINTED and not self.session.pin_verified:
            raise CardError(SECURITY_STATUS)
        if not self.objects.get(name):
            raise CardError(NOT_FOUND)
        return tlv(0x53, self.objects[name])

    def _put_data(self, command: Command) -> bytes:
        self._require_management()
        values = parse_tlvs(command.data)
        if 0x5C not in values or 0x53 not in values:
            raise CardError(INCORRECT_DATA)
        self.objects[int.from_bytes(values[0x5C], "big")] = values[0x53]
        return b""

    def _require_management(self) -> None:
        if not self.session.management:
            raise CardError(SECURITY_STATUS)

    # Yubico's extensions: developers.yubico.com/PIV/Introduction/Yubico_extensions.html
    def _metadata(self, command: Command) -> bytes:
        if command.p2 == SLOT_MANAGEMENT:
            is_default = bytes([self.management_is_default])
            return tlv(0x01, bytes([self.management_algorithm])) + tlv(0x02, b"\x00\x01") + tlv(0x05, is_default)
        if command.p2 in (0x80, 0x81):
            secret = self.pin if command.p2 == 0x80 else self.puk
            retries = bytes([secret.attempts, secret.left])
            return tlv(0x01, b"\xff") + tlv(0x05, bytes([secret.is_default])) + tlv(0x06, retries)
        key = self.keys.get(command.p2)
        if key is None:
            raise CardError(NO_REFERENCE)
        policy, origin = bytes([key.pin_policy, key.touch_policy]), b"\x01" if key.generated else b"\x02"
        public = tlv(0x86, key.point)
        return tlv(0x01, bytes([key.algorithm])) + tlv(0x02, policy) + tlv(0x03, origin) + tlv(0x04, public)

    def _attest(self, command: Command) -> bytes:
        key = self.keys.get(command.p1)
        if key is None:
            raise CardError(NO_REFERENCE)
        if not key.generated:
            raise CardError(INCORRECT_DATA)
        return piv_maker.attest(
            self.attestation_key,
            key.private.public_key(),
            slot=command.p1,
            serial=self.serial,
            firmware=self.firmware,
            policies=(key.pin_policy, key.touch_policy),
        )

    def _set_pin_attempts(self, command: Command) -> bytes:
        self._require_management()
        if not self.session.pin_verified or not command.p1 or not command.p2:
            raise CardError(SECURITY_STATUS)
        self.pin = Secret(_padded(DEFAULT_PIN), is_default=True, attempts=command.p1, left=command.p1)
        self.puk = Secret(_padded(DEFAULT_PUK), is_default=True, attempts=command.p2, left=command.p2)
        return b""

    def _factory_reset(self, _: Command) -> bytes:
        if self.pin.left or self.puk.left:
            raise CardError(CONDITIONS)
        kept = {name: value for name, value in self.objects.items() if name == OBJECT_ATTESTATION}
        self._factory_state()
        self.objects = kept
        return b""

    def _set_management_key(self, command: Command) -> bytes:
        self._require_management()
        algorithm, slot, size, key = command.data[0], command.data[1], command.data[2], command.data[3:]
        if slot != SLOT_MANAGEMENT or algorithm not in _CIPHERS or not size == len(key) == _CIPHERS[algorithm][1]:
            raise CardError(WRONG_LENGTH)
        self.management_algorithm, self.management_key, self.management_is_default = algorithm, key, False
        return b""


def _sign(key: SlotKey, digest: bytes) -> bytes:
    if len(digest) * 8 != key.private.key_size:
        raise CardError(INCORRECT_DATA)
    return key.private.sign(digest, ec.ECDSA(_PREHASHED[key.algorithm]))


def _holds_key(slot: int) -> bool:
    return slot in (0x9A, 0x9C, 0x9D, 0x9E) or slot in _RETIRED_SLOTS


def _padded(secret: str) -> bytes:
    return secret.encode().ljust(8, b"\xff")
