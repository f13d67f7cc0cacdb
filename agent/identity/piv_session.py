"""The PIV application of a smartcard, command by command.

Works with any card that keeps to NIST SP 800-73-4 Part 2; where a card speaks Yubico's extensions (version, serial
number, metadata, attestation, policies), it uses them. PINs are arguments: they go to the card and nowhere else.
"""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.makers import parse_certificate
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.apdu import (
    NOT_THERE,
    SW,
    APDUError,
    CardConnection,
    SmartcardProtocol,
    bad_answer,
    parse_tlv,
    parse_tlvs,
    tlv,
)

PIV_AID: Final = bytes.fromhex("A000000308")
DEFAULT_MANAGEMENT_KEY: Final = bytes.fromhex("0102030405060708" * 3)
MAX_CERTIFICATE_BYTES = 1 << 14

_INS_VERIFY = 0x20
_INS_CHANGE_REFERENCE_DATA = 0x24
_INS_RESET_RETRY_COUNTER = 0x2C
_INS_GENERATE = 0x47
_INS_GENERAL_AUTHENTICATE = 0x87
_INS_GET_DATA = 0xCB
_INS_PUT_DATA = 0xDB
_INS_GET_METADATA = 0xF7
_INS_GET_SERIAL = 0xF8
_INS_ATTEST = 0xF9
_INS_GET_VERSION = 0xFD
_INS_SET_MANAGEMENT_KEY = 0xFF

_REFERENCE_PIN, _REFERENCE_PUK, _REFERENCE_MANAGEMENT = 0x80, 0x81, 0x9B
_OBJECT_PRINTED = 0x5FC109  # readable with the PIN only; Yubico's tools keep a protected management key there
_OBJECT_ADMIN_DATA = 0x5FFF00
_OBJECT_ATTESTATION = 0x5FFF01
_ADMIN_FLAG_PROTECTED = 0x02
_GZIPPED = 0x01


class Slot(IntEnum):
    """Where a card keeps a private key, and for what (SP 800-73-4 Part 1, table 4b)."""

    AUTHENTICATION = 0x9A
    SIGNATURE = 0x9C
    CARD_AUTHENTICATION = 0x9E


class Algorithm(IntEnum):
    """Signature algorithms (SP 800-78-4, table 6-2)."""

    P256 = 0x11
    P384 = 0x14


class ManagementAlgorithm(IntEnum):
    """Ciphers of the management key (SP 800-78-4, table 6-2)."""

    TDES = 0x03
    AES128 = 0x08
    AES192 = 0x0A
    AES256 = 0x0C

    @property
    def key_bytes(self) -> int:
        """Length of a key."""
        return {self.TDES: 24, self.AES128: 16, self.AES192: 24, self.AES256: 32}[self]

    @property
    def block_bytes(self) -> int:
        """Length of a challenge."""
        return 8 if self is ManagementAlgorithm.TDES else 16


class PINPolicy(IntEnum):
    """When a key wants the PIN (Yubico)."""

    NEVER = 1
    ONCE = 2  # a session
    ALWAYS = 3  # a signature


_TOUCH_NEVER, _TOUCH_ALWAYS = 1, 2


CERTIFICATE_OBJECT: Final[dict[Slot, int]] = {
    Slot.AUTHENTICATION: 0x5FC105,
    Slot.SIGNATURE: 0x5FC10A,
    Slot.CARD_AUTHENTICATION: 0x5FC101,
}
_CURVE: Final[dict[Algorithm, ec.EllipticCurve]] = {Algorithm.P256: ec.SECP256R1(), Algorithm.P384: ec.SECP384R1()}


@dataclass(frozen=True, slots=True)
class SlotMetadata:
    """What a card says about a key of its own (Yubico).

    Args:
        public_key: The public half.
        pin_policy: When it wants the PIN.
        touch_needed: Whether it wants a touch.
        generated: Made on the card; an imported key is none of ours.
    """

    public_key: ec.EllipticCurvePublicKey
    pin_policy: PINPolicy
    touch_needed: bool
    generated: bool


class PIVSession:
    """The selected PIV application.

    Args:
        connection: To the card; the session ends with it.

    Raises:
        HardwareError: The card has no PIV application (`identity.no_piv`).
    """

    def __init__(self, connection: CardConnection) -> None:
        self._protocol = SmartcardProtocol(connection)
        try:
            self._protocol.select(PIV_AID)
        except APDUError as error:
            raise _no_piv() from error
        self.version = self._read_version()
        self.serial = self._read_serial()

    @property
    def has_extensions(self) -> bool:
        """Whether the card speaks Yubico's extensions."""
        return self.version is not None

    # PIN and PUK

    def pin_attempts(self) -> int | None:
        """PIN attempts left; None where the card does not say. Spends none."""
        # SP 800-73-4 Part 2, 3.2.1: VERIFY without data asks. A card that answers 9000 has the PIN verified.
        _, sw = self._protocol.exchange(_INS_VERIFY, 0x00, _REFERENCE_PIN)
        if sw == SW.OK:
            self.forget_pin()
            _, sw = self._protocol.exchange(_INS_VERIFY, 0x00, _REFERENCE_PIN)
        return _attempts_from(sw)

    def verify_pin(self, pin: str) -> None:
        """Show the PIN to the card.

        Raises:
            OperatorError: It is wrong (`identity.wrong_pin`, attempts in the details), or no PIN at all and not sent.
            HardwareError: It is blocked (`identity.pin_blocked`).
        """
        self._show_secret(_INS_VERIFY, _REFERENCE_PIN, _padded(pin), what="PIN")

    def forget_pin(self) -> None:
        """Take the PIN's verification back; a card that cannot is reset by its connection."""
        self._protocol.exchange(_INS_VERIFY, 0xFF, _REFERENCE_PIN)  # SP 800-73-4 Part 2, 3.2.1, P1 = FF

    def change_pin(self, current: str, new: str) -> None:
        """Replace the PIN.

        Raises:
            OperatorError: `current` is wrong, or one of the two is no PIN.
            HardwareError: The PIN is blocked.
        """
        data = _padded(current) + _padded(new)
        self._show_secret(_INS_CHANGE_REFERENCE_DATA, _REFERENCE_PIN, data, what="PIN")

    def change_puk(self, current: str, new: str) -> None:
        """Replace the PUK; errors as for `change_pin`."""
        data = _padded(current) + _padded(new)
        self._show_secret(_INS_CHANGE_REFERENCE_DATA, _REFERENCE_PUK, data, what="PUK")

    def unblock_pin(self, puk: str, new: str) -> None:
        """Set a new PIN by the PUK, with all attempts; errors as for `change_pin`."""
        self._show_secret(_INS_RESET_RETRY_COUNTER, _REFERENCE_PIN, _padded(puk) + _padded(new), what="PUK")

    def pin_is_default(self) -> bool | None:
        """Whether the PIN is still the factory's; None where the card does not say."""
        return self._is_default(_REFERENCE_PIN)

    def puk_is_default(self) -> bool | None:
        """Whether the PUK is still the factory's; None where the card does not say."""
        return self._is_default(_REFERENCE_PUK)

    def _is_default(self, reference: int) -> bool | None:
        metadata = self._metadata(reference)
        return None if metadata is None else metadata.get(0x05, b"\0") != b"\0"

    def _show_secret(self, instruction: int, reference: int, data: bytes, *, what: str) -> None:
        _, sw = self._protocol.exchange(instruction, 0x00, reference, data)
        if sw == SW.OK:
            return
        attempts = _attempts_from(sw)
        if attempts is None:
            raise APDUError(instruction, sw, b"")
        raise _wrong_secret(what, attempts) if attempts else blocked(what)

    # Keys

    def sign(self, slot: Slot, algorithm: Algorithm, digest: bytes) -> bytes:
        """ECDSA over `digest` (32 bytes with P-256, 48 with P-384), DER.

        Raises:
            APDUError: The slot is empty, or its policy is not met.
        """
        template = tlv(0x7C, tlv(0x82) + tlv(0x81, digest))
        return parse_tlv(self._protocol.send(_INS_GENERAL_AUTHENTICATE, algorithm, slot, template), 0x7C, 0x82)

    def generate_key(
        self, slot: Slot, algorithm: Algorithm, *, pin_policy: PINPolicy, touch_needed: bool
    ) -> ec.EllipticCurvePublicKey:
        """Make a key on the card, in place of what the slot held. Needs the management key.

        Args:
            slot: Where.
            algorithm: On which curve.
            pin_policy: When it will want the PIN; a card without extensions has its own rule.
            touch_needed: Whether it will want a touch; likewise.
        """
        template = tlv(0x80, bytes([algorithm]))
        if self.has_extensions:
            touch = _TOUCH_ALWAYS if touch_needed else _TOUCH_NEVER
            template += tlv(0xAA, bytes([pin_policy])) + tlv(0xAB, bytes([touch]))
        answer = self._protocol.send(_INS_GENERATE, 0x00, slot, tlv(0xAC, template))
        return _public_key(algorithm, parse_tlv(answer, 0x7F49, 0x86))

    def slot_metadata(self, slot: Slot) -> SlotMetadata | None:
        """What the card says about the key in `slot`; None where it says nothing, or there is none."""
        metadata = self._metadata(slot)
        if metadata is None:
            return None
        try:
            algorithm = Algorithm(metadata[0x01][0])
            pin_policy, touch_policy = metadata[0x02]
            return SlotMetadata(
                _public_key(algorithm, parse_tlv(metadata[0x04], 0x86)),
                PINPolicy(pin_policy),
                touch_needed=touch_policy != _TOUCH_NEVER,
                generated=metadata[0x03] == b"\x01",
            )
        except (KeyError, ValueError, IndexError) as error:
            raise bad_answer("its key is of a kind that is not used here") from error

    def attest(self, slot: Slot) -> tuple[bytes, bytes] | None:
        """The card's own certificate for the key in `slot` and that of its F9 key, DER; None where it has no F9."""
        if not self.has_extensions:
            return None
        try:
            certificate = self._protocol.send(_INS_ATTEST, slot, 0x00)
            issuer = self._certificate_from(_OBJECT_ATTESTATION)
        except APDUError:
            return None
        return None if issuer is None else (certificate, issuer)

    # Objects

    def get_object(self, name: int) -> bytes | None:
        """Read a data object; None where there is none."""
        request = tlv(0x5C, name.to_bytes(3, "big"))
        response, sw = self._protocol.exchange(_INS_GET_DATA, 0x3F, 0xFF, request)
        if sw in NOT_THERE:
            return None
        if sw != SW.OK:
            raise APDUError(_INS_GET_DATA, sw, response)
        return parse_tlv(response, 0x53) or None

    def put_object(self, name: int, value: bytes) -> None:
        """Write a data object. Needs the management key."""
        data = tlv(0x5C, name.to_bytes(3, "big")) + tlv(0x53, value)
        self._protocol.send(_INS_PUT_DATA, 0x3F, 0xFF, data)

    def get_certificate(self, slot: Slot) -> x509.Certificate | None:
        """The certificate that lies beside the key in `slot`; None where there is none."""
        der = self._certificate_from(CERTIFICATE_OBJECT[slot])
        if der is None:
            return None
        try:
            return parse_certificate(der)
        except PeerProtocolError as error:
            raise bad_answer("its certificate cannot be read") from error

    def put_certificate(self, slot: Slot, certificate: x509.Certificate) -> None:
        """Lay a certificate beside the key in `slot`. Needs the management key."""
        der = certificate.public_bytes(Encoding.DER)
        self.put_object(CERTIFICATE_OBJECT[slot], tlv(0x70, der) + tlv(0x71, b"\0") + tlv(0xFE))

    def _certificate_from(self, name: int) -> bytes | None:
        value = self.get_object(name)
        if value is None:
            return None
        parts = parse_tlvs(value)  # SP 800-73-4 Part 1, table 10
        certificate = parts.get(0x70, b"")
        if parts.get(0x71, b"\0")[:1] == bytes([_GZIPPED]):
            return _gunzip(certificate)
        return certificate or None

    # Management key

    def authenticate(self, key: bytes, algorithm: ManagementAlgorithm) -> None:
        """Show the management key, and have the card show it too.

        Raises:
            OperatorError: The card does not accept it (`identity.management_key`).
            HardwareError: The card does not know it itself.
        """
        block_cipher = TripleDES(key) if algorithm is ManagementAlgorithm.TDES else algorithms.AES(key)
        cipher = Cipher(block_cipher, modes.ECB())  # noqa: S305 - the standard's own mode for one random block
        decryptor, encryptor = cipher.decryptor(), cipher.encryptor()
        witness = self._authenticate_step(algorithm, tlv(0x80))
        if len(witness := parse_tlv(witness, 0x7C, 0x80)) != algorithm.block_bytes:
            raise management_key_refused()
        challenge = secrets.token_bytes(algorithm.block_bytes)
        answer = self._authenticate_step(algorithm, tlv(0x80, decryptor.update(witness)) + tlv(0x81, challenge))
        if not secrets.compare_digest(parse_tlv(answer, 0x7C, 0x82), encryptor.update(challenge)):
            raise bad_answer("it does not know its own management key")

    def management_algorithm(self, key: bytes) -> ManagementAlgorithm:
        """The cipher that goes with the card's management key, `key`."""
        metadata = self._metadata(_REFERENCE_MANAGEMENT)
        try:
            if metadata is not None:
                return ManagementAlgorithm(metadata.get(0x01, b"\x03")[0])
            return {16: ManagementAlgorithm.AES128, 32: ManagementAlgorithm.AES256}.get(
                len(key), ManagementAlgorithm.TDES
            )
        except (ValueError, IndexError) as error:
            raise bad_answer("its management key is of an unknown kind") from error

    def set_management_key(self, key: bytes, algorithm: ManagementAlgorithm) -> None:
        """Replace the management key (Yubico). Needs the present one."""
        data = bytes([algorithm, _REFERENCE_MANAGEMENT, len(key)]) + key
        self._protocol.send(_INS_SET_MANAGEMENT_KEY, 0xFF, 0xFF, data)

    def store_management_key(self, key: bytes) -> None:
        """Keep the management key on the card, readable with the PIN only, where Yubico's tools look for it."""
        self.put_object(_OBJECT_PRINTED, tlv(0x88, tlv(0x89, key)))
        self.put_object(_OBJECT_ADMIN_DATA, tlv(0x80, tlv(0x81, bytes([_ADMIN_FLAG_PROTECTED]))))

    def has_stored_management_key(self) -> bool:
        """Whether the management key is kept on the card."""
        admin_data = self.get_object(_OBJECT_ADMIN_DATA)
        if admin_data is None:
            return False
        flags = parse_tlvs(parse_tlvs(admin_data).get(0x80, b"")).get(0x81, b"\0")
        return bool(flags[0] & _ADMIN_FLAG_PROTECTED)

    def load_management_key(self) -> bytes:
        """The management key that is kept on the card. Needs the PIN verified."""
        stored = self.get_object(_OBJECT_PRINTED)
        if stored is None:
            raise management_key_refused()
        return parse_tlv(stored, 0x88, 0x89)

    def _authenticate_step(self, algorithm: ManagementAlgorithm, template: bytes) -> bytes:
        data = tlv(0x7C, template)
        try:
            return self._protocol.send(_INS_GENERAL_AUTHENTICATE, algorithm, _REFERENCE_MANAGEMENT, data)
        except APDUError as error:
            raise management_key_refused() from error

    # Yubico's extensions

    def _metadata(self, reference: int) -> dict[int, bytes] | None:
        if not self.has_extensions:
            return None
        response, sw = self._protocol.exchange(_INS_GET_METADATA, 0x00, reference)
        return parse_tlvs(response) if sw == SW.OK else None

    def _read_version(self) -> tuple[int, int, int] | None:
        response, sw = self._protocol.exchange(_INS_GET_VERSION, 0x00, 0x00)
        if sw != SW.OK or len(response) != 3:
            return None
        major, minor, patch = response
        return major, minor, patch

    def _read_serial(self) -> int | None:
        if not self.has_extensions:
            return None
        response, sw = self._protocol.exchange(_INS_GET_SERIAL, 0x00, 0x00)
        return int.from_bytes(response, "big") if sw == SW.OK and response else None


def algorithm_for(key: ec.EllipticCurvePublicKey) -> Algorithm:
    """The algorithm that signs with `key`.

    Raises:
        HardwareError: Another curve than P-256 and P-384.
    """
    for algorithm, curve in _CURVE.items():
        if curve.name == key.curve.name:
            return algorithm
    raise bad_answer("its key is on a curve that is not used here")


def blocked(what: str) -> HardwareError:
    """The failure of a device whose PIN (or PUK) has no attempts left."""
    return HardwareError(
        "identity.pin_blocked",
        f"The {what} is blocked: it was entered wrongly too often.",
        next_step="Unblock the PIN with the PUK: `seh-agent key pin --unblock`. Without it, only a reset helps.",
    )


def management_key_refused() -> OperatorError:
    """The failure of a card whose management key we do not have."""
    return OperatorError(
        "identity.management_key",
        "The card does not accept the management key, so no key can be made on it.",
        next_step="Give the card's key in the URI (`management-key=<file>`, hexadecimal), or use a card that is new.",
    )


def _no_piv() -> HardwareError:
    return HardwareError(
        "identity.no_piv",
        "The card in the reader has no PIV application.",
        next_step="Put a PIV card in, or choose another kind of key.",
    )


def _wrong_secret(what: str, attempts: int) -> OperatorError:
    return OperatorError(
        "identity.wrong_pin",
        f"The {what} is wrong; attempts left: {attempts}.",
        next_step="Try again with care: without attempts left, the card blocks itself.",
        attempts_remaining=attempts,
    )


def _attempts_from(sw: int) -> int | None:
    # SP 800-73-4 Part 2, 3.2.1: 63CX counts down; 6983 means blocked.
    if sw == SW.AUTHENTICATION_BLOCKED:
        return 0
    return sw & 0x0F if sw & 0xFFF0 == 0x63C0 else None


def _padded(secret: str) -> bytes:
    # SP 800-73-4 Part 2, 2.4.3: up to eight bytes, padded with FF. What no card could accept costs no attempt.
    data = secret.encode()
    if not (6 <= len(data) <= 8 and secret.isascii() and secret.isprintable()):
        raise OperatorError(
            "identity.bad_pin",
            "A card's PIN or PUK has six to eight characters; nothing was sent to the card.",
            next_step="Enter it again.",
        )
    return data.ljust(8, b"\xff")


def _public_key(algorithm: Algorithm, point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE[algorithm], point)
    except ValueError as error:
        raise bad_answer("its public key is no point of the curve") from error


def _gunzip(data: bytes) -> bytes:
    # Bounded, so that a hostile card cannot fill the memory.
    try:
        plain = zlib.decompressobj(wbits=31).decompress(data, MAX_CERTIFICATE_BYTES + 1)
    except zlib.error as error:
        raise bad_answer("its certificate cannot be unpacked") from error
    if len(plain) > MAX_CERTIFICATE_BYTES:
        raise bad_answer("its certificate is too large")
    return plain
