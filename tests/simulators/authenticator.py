"""A CTAP 2.1 authenticator: ES256, packed attestation, client PIN (protocols 1 and 2), hmac-secret, resident keys.

`Authenticator` is the device, bytes in and bytes out. `CTAPApplet` puts it on a card (CTAP 2.1, 11.3: NFC),
`AuthenticatorDevice` hands it to python-fido2 in the same process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from fido2.ctap import STATUS, CtapDevice, CtapError
from fido2.hid import CAPABILITY, CTAPHID
from typing_extensions import override

from tests.simulators.card import UNKNOWN_INSTRUCTION, CardError, Command
from tests.simulators.client_pin import ClientPIN, pin_protocol
from tests.simulators.ctap_status import CTAPError, Status
from tests.simulators.makers import Maker, authenticator_maker

AAGUID = bytes.fromhex("5e5e5e5e000040008000000000000001")
OID_AAGUID = x509.ObjectIdentifier("1.3.6.1.4.1.45724.1.1.4")
FIDO_AID = bytes.fromhex("A0000006472F0001")
UP, UV, AT, ED = 0x01, 0x04, 0x40, 0x80
ES256 = -7
MAX_MESSAGE_BYTES = 1200

Parameters = dict[Any, Any]


@dataclass(slots=True)
class Credential:
    """One key pair, for one relying party."""

    id: bytes
    rp_id: str
    user: dict[str, Any]
    private: ec.EllipticCurvePrivateKey
    resident: bool
    secret_with_uv: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    secret_without_uv: bytes = field(default_factory=lambda: secrets.token_bytes(32))


class Authenticator:
    """One security key.

    Args:
        touched: Asked whenever it wants a touch.
        counts: Whether it keeps a signature counter; some keys never do.
        maker: Whose root stands behind its attestation; None for self attestation.
        aaguid: Its model.
    """

    def __init__(
        self,
        *,
        touched: Callable[[], bool] = lambda: True,
        counts: bool = True,
        maker: Maker | None = None,
        self_attested: bool = False,
        aaguid: bytes = AAGUID,
    ) -> None:
        self.touched, self.counts, self.aaguid = touched, counts, aaguid
        self.count = 0
        self.credentials: dict[bytes, Credential] = {}
        self.pin = ClientPIN()
        self._attestation = None if self_attested else _issue_attestation_key(maker or authenticator_maker(), aaguid)
        self._more: Iterator[bytes] = iter(())
        self._commands: dict[int, Callable[[Parameters], Parameters]] = {
            0x01: self._make_credential,
            0x02: self._get_assertion,
            0x04: lambda _: self._info(),
            0x06: self.pin.answer,
            0x07: self._factory_reset,
            0x08: self._next_assertion,
            0x0B: lambda _: self._want_touch(),
        }

    def set_pin(self, pin: str) -> None:
        """As its holder did at home."""
        self.pin.set(pin.encode())

    def cloned(self) -> Authenticator:
        """A copy of all its secrets, which goes its own way from here."""
        clone = Authenticator(counts=self.counts)
        clone.credentials = dict(self.credentials)
        clone.count = self.count
        clone.pin._digest = self.pin._digest
        return clone

    def power_cycle(self) -> None:
        """Unplugged and plugged in again."""
        self.pin.power_cycle()
        self._more = iter(())

    def process(self, request: bytes) -> bytes:
        """Answer one CTAP2 request: status byte, then CBOR."""
        try:
            answer = self._commands.get(request[0], _unknown)(cbor2.loads(request[1:]) if len(request) > 1 else {})
        except CTAPError as status:
            return bytes([status.code])
        except (KeyError, ValueError, TypeError, cbor2.CBORDecodeError):
            return bytes([Status.INVALID_CBOR])
        return b"\x00" + (_cbor(answer) if answer else b"")

    def _info(self) -> Parameters:
        options = {"rk": True, "up": True, "plat": False, "clientPin": self.pin.is_set, "pinUvAuthToken": True}
        return {
            1: ["FIDO_2_0", "FIDO_2_1"],
            2: ["hmac-secret"],
            3: self.aaguid,
            4: options | {"makeCredUvNotRqd": True},
            5: MAX_MESSAGE_BYTES,
            6: [2, 1],
            7: 8,
            8: 64,
            9: ["nfc", "usb"],
            10: [{"alg": ES256, "type": "public-key"}],
            13: 4,
            14: 0x050700,
        }

    # CTAP 2.1, 6.1
    def _make_credential(self, request: Parameters) -> Parameters:
        client_data_hash, rp_id, options = request[1], request[2]["id"], request.get(7, {})
        if not any(wanted["alg"] == ES256 for wanted in request[4]):
            raise CTAPError(Status.UNSUPPORTED_ALGORITHM)
        if options.get("up") is False:
            raise CTAPError(Status.INVALID_OPTION)
        verified = self._verify_user(request.get(8), request.get(9), client_data_hash, rp_id, permission=0x01)
        if self.pin.is_set and options.get("rk") and not verified:
            raise CTAPError(Status.PUAT_REQUIRED)
        self._want_touch()
        if any(self._knows(entry["id"], rp_id) for entry in request.get(5, ())):
            raise CTAPError(Status.CREDENTIAL_EXCLUDED)
        private = ec.generate_private_key(ec.SECP256R1())
        name = secrets.token_bytes(32)
        credential = Credential(name, rp_id, dict(request[3]), private, resident=bool(options.get("rk")))
        self.credentials[name] = credential
        extensions = {"hmac-secret": True} if request.get(6, {}).get("hmac-secret") else {}
        attested = self.aaguid + len(name).to_bytes(2, "big") + name + _cbor(_cose_key(private.public_key()))
        data = self._authenticator_data(rp_id, UP | (UV if verified else 0), attested, extensions)
        return {1: "packed", 2: data, 3: self._attest(credential, data + client_data_hash)}

    # CTAP 2.1, 6.2
    def _get_assertion(self, request: Parameters) -> Parameters:
        rp_id, client_data_hash, options = request[1], request[2], request.get(5, {})
        verified = self._verify_user(request.get(6), request.get(7), client_data_hash, rp_id, permission=0x02)
        wants_touch = options.get("up", True)
        fitting = self._fitting(rp_id, request.get(3))
        if not fitting:
            raise CTAPError(Status.NO_CREDENTIALS)
        if wants_touch:
            self._want_touch()
        flags = (UP if wants_touch else 0) | (UV if verified else 0)
        secret_request = request.get(4, {}).get("hmac-secret")
        if secret_request and not wants_touch:
            raise CTAPError(Status.UNSUPPORTED_OPTION)
        self._more = iter([credential.id for credential in fitting[1:]])
        self._pending = (client_data_hash, flags, secret_request)
        answer = self._assert(fitting[0])
        return answer | ({5: len(fitting)} if len(fitting) > 1 else {})

    def _next_assertion(self, _: Parameters) -> Parameters:
        name = next(self._more, None)
        if name is None:
            raise CTAPError(Status.NOT_ALLOWED)
        return self._assert(self.credentials[name])

    def _assert(self, credential: Credential) -> Parameters:
        client_data_hash, flags, secret_request = self._pending
        extensions = {}
        if secret_request:
            secret = credential.secret_with_uv if flags & UV else credential.secret_without_uv
            extensions = {"hmac-secret": self.pin.derive_secrets(secret, secret_request)}
        data = self._authenticator_data(credential.rp_id, flags, b"", extensions)
        signature = credential.private.sign(data + client_data_hash, ec.ECDSA(hashes.SHA256()))
        answer: Parameters = {1: {"id": credential.id, "type": "public-key"}, 2: data, 3: signature}
        return answer | ({4: {"id": credential.user["id"]}} if credential.resident else {})

    def _factory_reset(self, _: Parameters) -> Parameters:
        self._want_touch()
        self.credentials.clear()
        self.count = 0
        self.pin.clear()
        return {}

    def _want_touch(self) -> Parameters:
        if not self.touched():
            raise CTAPError(Status.USER_ACTION_TIMEOUT)
        return {}

    def _verify_user(
        self, parameter: bytes | None, protocol: int | None, client_data_hash: bytes, rp_id: str, *, permission: int
    ) -> bool:
        if parameter is None:
            return False
        if not parameter:  # CTAP 2.1, 6.1.2 step 1: an empty one only asks which key the person touches
            self._want_touch()
            raise CTAPError(Status.PIN_INVALID if self.pin.is_set else Status.PIN_NOT_SET)
        token_key = self.pin.token_for(permission, rp_id)
        expected = pin_protocol(protocol).authenticate(token_key, client_data_hash)
        if not hmac.compare_digest(expected, parameter):
            raise CTAPError(Status.PIN_AUTH_INVALID)
        return True

    def _fitting(self, rp_id: str, allowed: list[dict[str, Any]] | None) -> list[Credential]:
        if allowed is None:
            return [c for c in reversed(self.credentials.values()) if c.resident and c.rp_id == rp_id]
        return [self.credentials[entry["id"]] for entry in allowed if self._knows(entry["id"], rp_id)][:1]

    def _knows(self, name: bytes, rp_id: str) -> bool:
        return name in self.credentials and self.credentials[name].rp_id == rp_id

    def _authenticator_data(self, rp_id: str, flags: int, attested: bytes, extensions: Parameters) -> bytes:
        # WebAuthn Level 3, 6.1
        if self.counts:
            self.count += 1
        flags |= (AT if attested else 0) | (ED if extensions else 0)
        head = hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + self.count.to_bytes(4, "big")
        return head + attested + (_cbor(extensions) if extensions else b"")

    def _attest(self, credential: Credential, message: bytes) -> Parameters:
        if self._attestation is None:
            return {"alg": ES256, "sig": credential.private.sign(message, ec.ECDSA(hashes.SHA256()))}
        key, certificate = self._attestation
        return {"alg": ES256, "sig": key.sign(message, ec.ECDSA(hashes.SHA256())), "x5c": [certificate]}


class CTAPApplet:
    """The authenticator as an application on a card (CTAP 2.1, 11.3).

    Args:
        authenticator: What answers.
        polls_before_touch: How often the host must ask again until somebody touches the key.
    """

    aid = FIDO_AID

    def __init__(self, authenticator: Authenticator, *, polls_before_touch: int = 0) -> None:
        self.authenticator = authenticator
        self.polls_before_touch = polls_before_touch
        self._waiting: bytes | None = None
        self._polls = 0

    def select(self) -> bytes:
        """Version string, CTAP 2.1, 11.3.3."""
        return b"FIDO_2_0"

    def reset(self) -> None:
        """Out of the reader's field, and back."""
        self._waiting = None
        self.authenticator.power_cycle()

    def handle(self, command: Command) -> bytes:
        """NFCCTAP_MSG and NFCCTAP_GETRESPONSE."""
        if (command.cla & 0xEF, command.ins) == (0x80, 0x10):
            if self.polls_before_touch and command.p1 & 0x80 and command.data[0] in (0x01, 0x02):
                self._waiting, self._polls = command.data, self.polls_before_touch
                raise CardError(0x9100, bytes([STATUS.UPNEEDED]))
            return self.authenticator.process(command.data)
        if (command.cla & 0xEF, command.ins) == (0x80, 0x11) and self._waiting is not None:
            return self._wait(command)
        raise CardError(UNKNOWN_INSTRUCTION)

    def _wait(self, command: Command) -> bytes:
        assert self._waiting is not None
        self._polls -= 1
        if command.p1 == 0x11:
            self._waiting = None
            return bytes([Status.KEEPALIVE_CANCEL])
        if self._polls > 0:
            raise CardError(0x9100, bytes([STATUS.UPNEEDED]))
        request, self._waiting = self._waiting, None
        return self.authenticator.process(request)


class AuthenticatorDevice(CtapDevice):
    """The authenticator as python-fido2 sees one, without any transport."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    @property
    @override
    def capabilities(self) -> int:
        return CAPABILITY.CBOR

    @override
    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        if cmd != CTAPHID.CBOR:
            raise CtapError(CtapError.ERR.INVALID_COMMAND)
        if on_keepalive is not None and data[0] in (0x01, 0x02):
            on_keepalive(STATUS.UPNEEDED)
        return self._authenticator.process(data)

    @classmethod
    @override
    def list_devices(cls) -> Iterator[CtapDevice]:
        return iter(())


def _issue_attestation_key(maker: Maker, aaguid: bytes) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    # WebAuthn Level 3, 8.2.1
    key = ec.generate_private_key(ec.SECP256R1())
    parts = (
        (NameOID.COUNTRY_NAME, "FI"),
        (NameOID.ORGANIZATION_NAME, "Virtual authenticators (test)"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "Authenticator Attestation"),
        (NameOID.COMMON_NAME, "Virtual authenticator"),
    )
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
    facts = {OID_AAGUID: b"\x04\x10" + aaguid}
    certificate = maker.issue(subject, key.public_key(), ca=False, facts=facts)
    return key, certificate.public_bytes(Encoding.DER)


def _unknown(_: Parameters) -> Parameters:
    raise CTAPError(Status.INVALID_COMMAND)


def _cose_key(key: ec.EllipticCurvePublicKey) -> Parameters:
    numbers = key.public_numbers()
    return {1: 2, 3: ES256, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}


def _cbor(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)
