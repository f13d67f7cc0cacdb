"""A TPM's side of enrolment: its endorsement key, an attestation key, what they say about the node key, and activation.

Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5, 2.2 (handles and NV indices) and annex B (templates);
TPM 2.0 Library Part 3, 12.5 (ActivateCredential), 18.2 (Certify), 18.4 (Quote).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from tpm2_pytss import ESAPI, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPM2B_SENSITIVE_CREATE
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.types import TPML_PCR_SELECTION, TPMT_SYM_DEF
from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

from agent.attestation.credential import Credential
from agent.attestation.makers import parse_certificate
from agent.attestation.structures import Attribute, TPMPublic, parse_public
from agent.core.errors import HardwareError
from agent.identity.tpm_device import flushed
from agent.identity.tpm_objects import NO_SCHEME, UNATTENDED, find, is_there, public_area, template

AK_HANDLE: Final = 0x81020002
QUOTED_REGISTERS: Final = tuple(range(16))
"""All that firmware, boot loader and the payload measure into; 16 and above can be reset without a restart."""
EVENT_LOG_PATH = Path("/sys/kernel/security/tpm0/binary_bios_measurements")

_AK_ATTRIBUTES = UNATTENDED | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SIGN_ENCRYPT


@dataclass(frozen=True, slots=True)
class EKProfile:
    """One of the profile's endorsement keys.

    Args:
        template: Its name in the bindings.
        handle: Where firmware keeps it, if it does.
        certificate_index: NV index of the maker's certificate.
    """

    template: str
    handle: int
    certificate_index: int


EK_PROFILES: Final = {
    "p384": EKProfile("EK-HIGH-ECC384", 0x81010016, 0x01C00016),
    "p256": EKProfile("EK-ECC256", 0x81010002, 0x01C0000A),
    "rsa2048": EKProfile("EK-RSA2048", 0x81010001, 0x01C00002),
}
"""In the order in which they are tried: the strongest first, the one whose making takes longest last."""


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A TPM's endorsement key as it shows it.

    Args:
        profile: Which of the profile's keys.
        certificate: The maker's, DER; empty where the TPM has none.
        public: Its public area.
    """

    profile: EKProfile
    certificate: bytes
    public: TPMPublic


def read_endorsement(esapi: ESAPI, choice: str | None) -> Endorsement:
    """Find the endorsement key, preferably one with a certificate.

    Args:
        esapi: The connection.
        choice: A key of `EK_PROFILES`, or None for the best one that has a certificate.
    """
    for profile in [EK_PROFILES[choice]] if choice else EK_PROFILES.values():
        certificate = _read_certificate(esapi, profile)
        if certificate:
            return _endorsement(esapi, profile, certificate)
    return _endorsement(esapi, EK_PROFILES[choice or "p256"], b"")


def _read_certificate(esapi: ESAPI, profile: EKProfile) -> bytes:
    try:
        return bytes(NVReadEK(esapi)(profile.certificate_index))
    except NoSuchIndex:
        return b""


def _endorsement(esapi: ESAPI, profile: EKProfile, certificate: bytes) -> Endorsement:
    with _loaded_ek(esapi, profile) as ek:
        public = parse_public(public_area(esapi, ek))
    return Endorsement(profile, certificate, public)


@contextmanager
def _loaded_ek(esapi: ESAPI, profile: EKProfile) -> Iterator[ESYS_TR]:
    if is_there(esapi, profile.handle):
        yield find(esapi, profile.handle)
        return
    _, wanted = create_ek_template(profile.template, NVReadEK(esapi))
    primary, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), wanted, ESYS_TR.ENDORSEMENT)
    with flushed(esapi, primary) as ek:
        yield ek


def ensure_ak(esapi: ESAPI) -> ESYS_TR:
    """The attestation key: restricted, so that it signs only what the TPM itself says.

    It is a primary key of the endorsement hierarchy: the same one comes back after the owner's hierarchy was cleared,
    and its attestations show the true count of boots.
    """
    if not is_there(esapi, AK_HANDLE):
        wanted = template("ecc256:ecdsa-sha256:null", _AK_ATTRIBUTES)
        primary, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), wanted, ESYS_TR.ENDORSEMENT)
        with flushed(esapi, primary) as ak:
            esapi.evict_control(ESYS_TR.OWNER, ak, AK_HANDLE)
    return find(esapi, AK_HANDLE)


def gather(esapi: ESAPI, key: ESYS_TR, qualifying_data: bytes, *, choice: str | None) -> dict[str, bytes]:
    """Everything that a TPM can show about `key`, bound to one exchange.

    Args:
        esapi: The connection.
        key: The node key.
        qualifying_data: (32,), of the exchange.
        choice: Which endorsement key; None for the best.
    """
    endorsement, ak = read_endorsement(esapi, choice), ensure_ak(esapi)
    certify_info, certify_signature = esapi.certify(key, ak, qualifying_data, NO_SCHEME)
    quote_info, quote_signature, registers = _quote(esapi, ak, qualifying_data)
    return {
        "ek_certificate": _stripped(endorsement.certificate),
        "ek_public": endorsement.public.encoded,
        "ak_public": public_area(esapi, ak),
        "node_public": public_area(esapi, key),
        "certify_info": bytes(certify_info),
        "certify_signature": certify_signature.marshal(),
        "quote_info": quote_info,
        "quote_signature": quote_signature,
        "registers": registers,
        "event_log": _load_event_log(EVENT_LOG_PATH),
    }


def _stripped(certificate: bytes) -> bytes:
    return parse_certificate(certificate).public_bytes(Encoding.DER) if certificate else b""


def _quote(esapi: ESAPI, ak: ESYS_TR, qualifying_data: bytes) -> tuple[bytes, bytes, bytes]:
    selection = "sha256:" + ",".join(str(register) for register in QUOTED_REGISTERS)
    for _ in range(5):
        registers = b"".join(read_registers(esapi).values())
        info, signature = esapi.quote(ak, selection, qualifying_data)
        # Something may have been measured between the two commands; the quote tells.
        if bytes(info).endswith(hashlib.sha256(registers).digest()):
            return bytes(info), signature.marshal(), registers
    raise HardwareError(
        "identity.restless_registers",
        "The TPM's boot registers change all the time, so they cannot be quoted.",
        next_step="Wait until the box has started completely, and try again.",
    )


def read_registers(esapi: ESAPI, registers: tuple[int, ...] = QUOTED_REGISTERS) -> dict[int, bytes]:
    """PCR values of the SHA-256 bank, by register, each (32,)."""
    values: dict[int, bytes] = {}
    for start in range(0, len(registers), 8):  # TPM2_PCR_Read answers with at most eight
        wanted = registers[start : start + 8]
        selection = TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(register) for register in wanted))
        _, _, digests = esapi.pcr_read(selection)
        values.update((register, bytes(digests[i])) for i, register in enumerate(wanted))
    return values


def activate(esapi: ESAPI, credential: Credential, *, choice: str | None) -> bytes:
    """Open a credential: the TPM releases its secret only if EK and AK are the ones it was made for.

    Raises:
        TSS2_Exception: It was made for another TPM or another key.
    """
    endorsement, ak = read_endorsement(esapi, choice), ensure_ak(esapi)
    blob, _ = TPM2B_ID_OBJECT.unmarshal(credential.blob)
    seed, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(credential.encrypted_seed)
    with _loaded_ek(esapi, endorsement.profile) as ek, _ek_session(esapi, endorsement.public) as session:
        return bytes(esapi.activate_credential(ak, ek, blob, seed, session1=ESYS_TR.PASSWORD, session2=session))


@contextmanager
def _ek_session(esapi: ESAPI, ek: TPMPublic) -> Iterator[ESYS_TR]:
    # The high-range keys may be used with their (empty) authorisation; the low-range ones want the hierarchy's secret.
    if Attribute.USER_WITH_AUTH in ek.attributes:
        yield ESYS_TR.PASSWORD
        return
    null = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
    session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, null, TPM2_ALG.SHA256)
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        yield session
    finally:
        esapi.flush_context(session)


def _load_event_log(path: Path) -> bytes:
    # Readable by root alone on most systems, absent on some: evidence without it still shows the quote.
    try:
        return path.read_bytes()
    except OSError:
        return b""
