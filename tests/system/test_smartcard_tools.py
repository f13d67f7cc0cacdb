"""Other people's tools meet our virtual card, and our code meets keys that those tools made, over a real pcscd."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from fido2.ctap import CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.extensions import HmacSecretExtension
from fido2.ctap2.pin import ClientPin
from fido2.pcsc import CtapPcscDevice

from agent.identity.key import HardwareKey, init_key, open_key
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.makers import card_maker, common_name
from tests.simulators.management_applet import (
    CAPABILITY_FIDO2,
    CAPABILITY_PIV,
    CAPABILITY_U2F,
    ManagementApplet,
)
from tests.simulators.pcscd import Slot, card_inserted
from tests.simulators.person import Technician
from tests.simulators.piv_card import DEFAULT_PIN, PIVApplet

SERIAL = 4711
MANAGEMENT_KEY = "010203040506070801020304050607080102030405060708"
YKMAN = str(Path(sys.executable).with_name("ykman"))
ECDSA = ec.ECDSA(hashes.SHA256())


@pytest.fixture
def applet() -> PIVApplet:
    return PIVApplet(SERIAL)


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator()


@pytest.fixture
def slot(applet: PIVApplet, authenticator: Authenticator) -> Iterator[Slot]:
    management = ManagementApplet(SERIAL, CAPABILITY_PIV | CAPABILITY_FIDO2 | CAPABILITY_U2F)
    with card_inserted(VirtualCard(applet, CTAPApplet(authenticator), management)) as slot:
        yield slot


def run(*command: str, answer: int = 0) -> str:
    """Run a tool that must be installed; return what it printed."""
    assert shutil.which(command[0]), f"{command[0]} is missing: run packaging/setup.sh"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == answer, done.stdout + done.stderr
    return done.stdout + done.stderr


def reader_number(slot: Slot) -> str:
    lines = run("opensc-tool", "--list-readers").splitlines()
    return next(line.split()[0] for line in lines if line.endswith(slot.reader))


def piv_tool(slot: Slot, *actions: str, answer: int = 0) -> str:
    return run("yubico-piv-tool", "--reader", slot.reader, *actions, answer=answer)


def pkcs11_tool(slot: Slot, *options: str) -> str:
    listing = run("pkcs11-tool", "--list-slots").splitlines()
    (number,) = [line.split()[1] for line in listing if line.startswith("Slot") and line.endswith(slot.reader)]
    return run("pkcs11-tool", "--slot-index", number, "--login", "--pin", DEFAULT_PIN, *options)


def put_key(slot: Slot, directory: Path, slot_name: str) -> ec.EllipticCurvePublicKey:
    """Make a key by yubico-piv-tool and lay a certificate beside it."""
    public, certificate = directory / "public.pem", directory / "certificate.pem"
    piv_tool(slot, "--action=generate", f"--slot={slot_name}", "--algorithm=ECCP256", f"--output={public}")
    key = load_pem_public_key(public.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    made = card_maker().issue(common_name("hospital"), key, ca=False)
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    piv_tool(slot, "--action=import-certificate", f"--slot={slot_name}", f"--input={certificate}")
    return key


def test_opensc_takes_it_for_a_piv_card(slot: Slot) -> None:
    out = run("opensc-tool", "--reader", reader_number(slot), "--name", "--atr")
    assert "Personal Identity Verification Card" in out


@pytest.mark.parametrize(("slot_name", "identifier"), [("9a", "01"), ("9c", "02"), ("9e", "04")])
def test_pkcs11_tool_signs(slot: Slot, tmp_path: Path, slot_name: str, identifier: str) -> None:
    key = put_key(slot, tmp_path, slot_name)
    objects = pkcs11_tool(slot, "--list-objects")
    assert "Private Key Object; EC" in objects
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(b"message")
    files = ("--input-file", str(message), "--output-file", str(signature))
    pkcs11_tool(slot, "--sign", "--mechanism=ECDSA-SHA256", f"--id={identifier}", *files)
    raw = signature.read_bytes()
    halves = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(encode_dss_signature(*halves), b"message", ECDSA)


@pytest.mark.parametrize("slot_name", ["9a", "9c", "9e"])
def test_yubico_piv_tool_makes_a_key_that_we_open(slot: Slot, tmp_path: Path, slot_name: str) -> None:
    made = put_key(slot, tmp_path, slot_name)
    test_signature = (f"--input={tmp_path / 'certificate.pem'}", "--action=test-signature", f"--slot={slot_name}")
    out = piv_tool(slot, "--action=verify-pin", f"--pin={DEFAULT_PIN}", *test_signature)
    assert "Successful ECDSA verification" in out
    key = open_key(f"piv:{SERIAL}?slot={slot_name}", person=Technician(pin=DEFAULT_PIN))
    assert key.public_key() == made
    made.verify(key.sign(b"message"), b"message", ECDSA)


def test_yubico_piv_tool_manages_it(slot: Slot) -> None:
    piv_tool(slot, "--action=set-chuid", "--action=set-ccc")
    piv_tool(slot, "--action=change-pin", f"--pin={DEFAULT_PIN}", "--new-pin=654321")
    piv_tool(slot, "--action=change-puk", "--pin=12345678", "--new-pin=87654321")
    assert "2 tries left" in piv_tool(slot, "--action=verify-pin", "--pin=000000", answer=1)
    piv_tool(slot, "--action=unblock-pin", "--pin=87654321", "--new-pin=111111")
    piv_tool(slot, "--action=set-mgm-key", f"--new-key={MANAGEMENT_KEY[:-2]}09")
    status = piv_tool(slot, "--action=status")
    assert "PIN tries left:\t3" in status
    assert f"Serial Number:\t{SERIAL}" in status


def init(slot_name: str) -> tuple[HardwareKey, Technician]:
    person = Technician()
    return init_key(f"piv:{SERIAL}?slot={slot_name}", person=person), person


@pytest.mark.parametrize("slot_name", ["9a", "9e"])
def test_tools_see_the_key_that_we_made(slot: Slot, tmp_path: Path, slot_name: str) -> None:
    key, person = init(slot_name)
    attested = x509.load_pem_x509_certificate(piv_tool(slot, "--action=attest", f"--slot={slot_name}").encode())
    assert attested.public_key() == key.public_key()
    certificate = tmp_path / "certificate.pem"
    piv_tool(slot, "--action=read-certificate", f"--slot={slot_name}", f"--output={certificate}")
    assert x509.load_pem_x509_certificate(certificate.read_bytes()).public_key() == key.public_key()
    pin = (f"--pin={person.pin}", f"--input={certificate}")
    assert "Successful ECDSA" in piv_tool(
        slot, "--action=verify-pin", "--action=test-signature", f"--slot={slot_name}", *pin
    )
    info = run(YKMAN, "--reader", slot.reader, "piv", "info")
    assert "Management key is stored on the YubiKey, protected by PIN." in info
    assert "CN=secur-e-health node" in info
    assert "WARNING" not in info


def test_ykman_makes_a_key_that_we_open(slot: Slot, tmp_path: Path) -> None:
    public, attestation = tmp_path / "public.pem", tmp_path / "attestation.pem"
    ykman = (YKMAN, "--reader", slot.reader, "piv")
    managed = ("--management-key", MANAGEMENT_KEY)
    run(*ykman, "keys", "generate", "--algorithm", "ECCP256", *managed, "9a", str(public))
    run(*ykman, "certificates", "generate", "--subject", "CN=x", "--pin", DEFAULT_PIN, *managed, "9a", str(public))
    run(*ykman, "keys", "attest", "9a", str(attestation))
    made = load_pem_public_key(public.read_bytes())
    assert x509.load_pem_x509_certificate(attestation.read_bytes()).public_key() == made
    key = open_key(f"piv:{SERIAL}?slot=9a", person=Technician(pin=DEFAULT_PIN))
    assert key.public_key() == made
    key.sign(b"message")


def test_management_key_that_ykman_protected_by_the_pin_serves_us(slot: Slot, applet: PIVApplet) -> None:
    ykman = (YKMAN, "--reader", slot.reader, "piv", "access")
    run(*ykman, "change-pin", "--pin", DEFAULT_PIN, "--new-pin", "246813")
    options = ("--generate", "--protect", "--force", "--management-key", MANAGEMENT_KEY, "--pin", "246813")
    run(*ykman, "change-management-key", "--algorithm", "AES192", *options)
    protected = applet.management_key
    key, _ = init("9e")
    key.sign(b"message")
    assert applet.management_key == protected


def test_ykman_knows_the_security_key(slot: Slot, tmp_path: Path) -> None:
    ykman = (YKMAN, "--reader", slot.reader)
    assert f"Serial number: {SERIAL}" in run(*ykman, "info")
    assert "PIN:                Not set" in run(*ykman, "fido", "info")
    run(*ykman, "fido", "access", "change-pin", "--new-pin", "246813")
    assert "PIN verified" in run(*ykman, "fido", "access", "verify-pin", "--pin", "246813")
    key = init_key(f"fido2:{tmp_path}/key.json?reader={slot.reader}", person=Technician())
    assert key.presence().attempts_remaining == 8


@pytest.mark.parametrize("polls", [0, 2])
def test_fido2_library_takes_it_for_an_authenticator(polls: int) -> None:
    """python-fido2's own PC/SC client: PIN, attestation, resident key, hmac-secret."""
    applet = CTAPApplet(Authenticator(), polls_before_touch=polls)
    with card_inserted(VirtualCard(applet)) as slot:
        (device,) = CtapPcscDevice.list_devices(slot.reader)
        with device:
            _use_as_a_web_browser_would(Ctap2(device))


def _use_as_a_web_browser_would(ctap: Ctap2) -> None:
    rp, hashed = {"id": "example.test", "name": "Example"}, hashlib.sha256(b"client data").digest()
    client_pin = ClientPin(ctap)
    client_pin.set_pin("246813")
    with pytest.raises(CtapError, match="PIN_INVALID"):
        client_pin.get_pin_token("wrong")
    assert client_pin.get_pin_retries() == (7, False)
    both = ClientPin.PERMISSION.MAKE_CREDENTIAL | ClientPin.PERMISSION.GET_ASSERTION
    token = client_pin.get_pin_token("246813", both, rp["id"])
    parameter = client_pin.protocol.authenticate(token, hashed)
    verified: dict[str, Any] = {"pin_uv_param": parameter, "pin_uv_protocol": client_pin.protocol.VERSION}
    made = ctap.make_credential(
        hashed,
        rp,
        {"id": b"1", "name": "user"},
        [{"type": "public-key", "alg": -7}],
        extensions={HmacSecretExtension.NAME: True},
        options={"rk": True},
        **verified,
    )
    assert made.auth_data.extensions == {HmacSecretExtension.NAME: True}
    credential = made.auth_data.credential_data
    assert credential is not None
    found = ctap.get_assertion(rp["id"], hashed, **verified)
    found.verify(hashed, credential.public_key)
    assert found.credential["id"] == credential.credential_id
    assert found.auth_data.is_user_verified()
    with_uv = _secret(ctap, client_pin, rp["id"], hashed, **verified)
    assert with_uv == _secret(ctap, client_pin, rp["id"], hashed, **verified)
    assert with_uv != _secret(ctap, client_pin, rp["id"], hashed)
    client_pin.change_pin("246813", "another pin")
    client_pin.get_pin_token("another pin")


def _secret(ctap: Ctap2, client_pin: ClientPin, rp_id: str, hashed: bytes, **verified: Any) -> bytes:  # noqa: ANN401 - passed through
    agreement, shared = client_pin._get_shared_secret()  # type: ignore[no-untyped-call] # fido2 leaves it untyped
    sealed_salt = client_pin.protocol.encrypt(shared, bytes(32))
    request = {1: agreement, 2: sealed_salt, 3: client_pin.protocol.authenticate(shared, sealed_salt)}
    request[4] = client_pin.protocol.VERSION
    found = ctap.get_assertion(rp_id, hashed, extensions={HmacSecretExtension.NAME: request}, **verified)
    assert found.auth_data.extensions is not None
    return client_pin.protocol.decrypt(shared, found.auth_data.extensions[HmacSecretExtension.NAME])
