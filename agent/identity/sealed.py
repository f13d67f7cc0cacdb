"""Secrets at rest, sealed to this box's TPM and to boot states that the consortium approved.

One random master key is sealed (`agent.identity.vault` derives all others from it). Stolen disks, and disks moved to
another box, open nothing, and say so. On its way to the TPM and back the key is encrypted, for the wires of a chip on
the mainboard can be listened to.

Source: TCG TPM 2.0 Library Part 1, 19.6.8 (salted sessions), 19.7 (policies), 21 (parameter encryption), 27.6 (sealed
data); Part 3, 23.16 (PolicyAuthorize).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tpm2_pytss import ESAPI, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_EO, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_ECC_PARAMETER,
    TPM2B_PRIVATE,
    TPML_PCR_SELECTION,
    TPMS_SENSITIVE_CREATE,
    TPMS_SIGNATURE_ECC,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF,
    TPMU_SIGNATURE,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from agent.attestation.policy import (
    POLICY_REF,
    Approval,
    approver_name,
    approver_public,
    sealing_policy,
    state_policy,
    verify_approval,
)
from agent.core.cbor import decode_plain
from agent.core.errors import HardwareError
from agent.identity.tpm_device import TPMDevice, code_of, flushed
from agent.identity.tpm_evidence import read_registers
from agent.identity.tpm_objects import ensure_srk, find, template
from agent.identity.vault import MASTER_BYTES, Vault, bad_vault, store_new
from agent.statements.roots import load_public_key, public_key_bytes

MAX_BLOB_BYTES: Final = 4096
_POLICY_CODE = 0x126  # TPM_RC_POLICY: the comparison did not hold
_INTEGRITY_CODE = 0x1DF  # TPM_RC_INTEGRITY, parameter 1: wrapped by another TPM, or damaged


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """A sealed secret as it lies on disk; worthless without its TPM.

    Args:
        private: TPM2B_PRIVATE, encrypted by the TPM.
        public: TPMT_PUBLIC; its policy names the approver.
        approver: SubjectPublicKeyInfo (DER) of the approver's key.
    """

    private: bytes
    public: bytes
    approver: bytes


def init_vault(device: TPMDevice, path: Path, approver: ec.EllipticCurvePublicKey) -> None:
    """Seal a fresh master key into a new file; an existing one stays as it is.

    Args:
        device: The TPM.
        path: The blob's file.
        approver: Whose approvals open it: the key that releases are signed with.

    Raises:
        HardwareError: The TPM is gone or refuses.
    """
    if not path.exists():
        blob = seal(device, secrets.token_bytes(MASTER_BYTES), approver)
        store_new(path, encode_blob(blob))


def open_vault(device: TPMDevice, path: Path, approvals: Sequence[Approval], *, counter: int | None = None) -> Vault:
    """Open the vault.

    Args:
        device: The TPM.
        path: The blob's file.
        approvals: Of the installed releases; the first that fits the present boot state opens it.
        counter: Handle of the NV counter that bounded approvals name.

    Raises:
        OperatorError: There is no such file, or it is damaged (`identity.bad_vault`).
        HardwareError: Another box's disk (`identity.sealed_elsewhere`), a boot state that nobody approved
            (`identity.unapproved_state`), or no TPM.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise bad_vault(path, "is missing") from None
    except OSError as error:
        raise bad_vault(path, f"cannot be used: {error.strerror}") from error
    blob = parse_blob(data)
    if blob is None:
        raise bad_vault(path, "is damaged")
    return Vault(unseal(device, blob, approvals, counter=counter), sealed=True)


def seal(device: TPMDevice, secret: bytes, approver: ec.EllipticCurvePublicKey) -> SealedBlob:
    """Seal `secret` (at most 128 bytes) to this TPM and to whatever boot states `approver` approves."""
    wanted = template("keyedhash", TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA)
    wanted.publicArea.authPolicy = sealing_policy(approver)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=secret))
    private, public = device.run(lambda esapi: _create(esapi, sensitive, wanted))
    return SealedBlob(bytes(private.marshal()), bytes(public.publicArea.marshal()), public_key_bytes(approver))


def unseal(device: TPMDevice, blob: SealedBlob, approvals: Sequence[Approval], *, counter: int | None = None) -> bytes:
    """Open what `seal` sealed.

    Args:
        device: The TPM.
        blob: As sealed.
        approvals: The first that fits the present boot state is used.
        counter: Handle of the NV counter that bounded approvals name.

    Raises:
        HardwareError: See `open_vault`.
        PeerProtocolError: An approval is not signed by the approver.
    """
    approver = load_public_key(blob.approver)
    for approval in approvals:
        verify_approval(approval, approver)
    return device.run(lambda esapi: _unseal(esapi, blob, approver, approvals, counter))


def current_state(device: TPMDevice, registers: tuple[int, ...]) -> dict[int, bytes]:
    """The present boot state, for an approver to approve: by register, each (32,)."""
    return device.run(lambda esapi: read_registers(esapi, registers))


def encode_blob(blob: SealedBlob) -> bytes:
    """The blob as CBOR; the inverse of `parse_blob`."""
    return cbor2.dumps([blob.private, blob.public, blob.approver], canonical=True)


def parse_blob(data: bytes) -> SealedBlob | None:
    """Parse a blob; None if the bytes are none."""
    if len(data) > MAX_BLOB_BYTES:
        return None
    try:
        value = decode_plain(data, max_depth=1, text_keys=True)
    except ValueError:
        return None
    if not isinstance(value, list) or len(value) != 3:
        return None
    return SealedBlob(*value) if all(isinstance(part, bytes) for part in value) else None


def _create(
    esapi: ESAPI, sensitive: TPM2B_SENSITIVE_CREATE, wanted: TPM2B_PUBLIC
) -> tuple[TPM2B_PRIVATE, TPM2B_PUBLIC]:
    with _session(esapi, TPM2_SE.HMAC, TPMA_SESSION.DECRYPT) as session:
        private, public, *_ = esapi.create(ensure_srk(esapi), sensitive, wanted, session1=session)
        return private, public


def _unseal(
    esapi: ESAPI,
    blob: SealedBlob,
    approver: ec.EllipticCurvePublicKey,
    approvals: Sequence[Approval],
    counter: int | None,
) -> bytes:
    approval = _fitting(esapi, approvals)
    with flushed(esapi, _load(esapi, blob)) as sealed, _session(esapi, TPM2_SE.POLICY, TPMA_SESSION.ENCRYPT) as session:
        _satisfy(esapi, session, approval, counter)
        ticket = _approval_ticket(esapi, approval, approver)
        esapi.policy_authorize(session, approval.policy, approver_name(approver), ticket, POLICY_REF)
        return bytes(esapi.unseal(sealed, session1=session))


def _fitting(esapi: ESAPI, approvals: Sequence[Approval]) -> Approval:
    for approval in approvals:
        present: Mapping[int, bytes] = read_registers(esapi, approval.registers)
        if state_policy(present, approval.counter) == approval.policy:
            return approval
    raise _unapproved()


def _load(esapi: ESAPI, blob: SealedBlob) -> ESYS_TR:
    private, _ = TPM2B_PRIVATE.unmarshal(blob.private)
    public, _ = TPMT_PUBLIC.unmarshal(blob.public)
    try:
        return esapi.load(ensure_srk(esapi), private, TPM2B_PUBLIC(publicArea=public))
    except TSS2_Exception as error:
        if code_of(error) == _INTEGRITY_CODE:
            raise HardwareError(
                "identity.sealed_elsewhere",
                "The secrets on this disk were sealed by another box's TPM and cannot be opened here.",
                next_step="Put the disk back into its own box; a box with a new TPM or mainboard is enrolled anew.",
            ) from error
        raise


@contextmanager
def _session(esapi: ESAPI, kind: TPM2_SE, protects: TPMA_SESSION) -> Iterator[ESYS_TR]:
    """A session that encrypts a command's first parameter (`DECRYPT`, by the TPM) or its answer's (`ENCRYPT`).

    Its key comes from a salt that only the storage root key opens, so that whoever listens does not learn it.
    """
    aes = TPMT_SYM_DEF(algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(sym=128), mode=TPMU_SYM_MODE(sym=TPM2_ALG.CFB))
    session = esapi.start_auth_session(ensure_srk(esapi), ESYS_TR.NONE, kind, aes, TPM2_ALG.SHA256)
    with flushed(esapi, session):
        esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | protects)
        yield session


def _satisfy(esapi: ESAPI, session: ESYS_TR, approval: Approval, counter: int | None) -> None:
    selection = "sha256:" + ",".join(str(register) for register in approval.registers)
    esapi.policy_pcr(session, b"", TPML_PCR_SELECTION.parse(selection))
    if approval.counter is None:
        return
    if counter is None:
        raise _unapproved()
    index, operand = find(esapi, counter), approval.counter.at_most.to_bytes(8, "big")
    try:
        esapi.policy_nv(index, index, session, operand, TPM2_EO.UNSIGNED_LE)
    except TSS2_Exception as error:
        if code_of(error) == _POLICY_CODE:
            raise _unapproved() from error
        raise


def _approval_ticket(esapi: ESAPI, approval: Approval, approver: ec.EllipticCurvePublicKey) -> object:
    r, s = decode_dss_signature(approval.signature)
    point = TPMS_SIGNATURE_ECC(
        hash=TPM2_ALG.SHA256,
        signatureR=TPM2B_ECC_PARAMETER(buffer=r.to_bytes(32, "big")),
        signatureS=TPM2B_ECC_PARAMETER(buffer=s.to_bytes(32, "big")),
    )
    signature = TPMT_SIGNATURE(sigAlg=TPM2_ALG.ECDSA, signature=TPMU_SIGNATURE(ecdsa=point))
    public, _ = TPMT_PUBLIC.unmarshal(approver_public(approver))
    handle = esapi.load_external(TPM2B_PUBLIC(publicArea=public), hierarchy=ESYS_TR.OWNER)
    with flushed(esapi, handle) as key:
        return esapi.verify_signature(key, _digest(approval.signed_bytes()), signature)


def _digest(message: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(message)
    return digest.finalize()


def _unapproved() -> HardwareError:
    return HardwareError(
        "identity.unapproved_state",
        "This box started in a state (firmware, boot loader or release) that the consortium has not approved, so its "
        "secrets stay sealed.",
        next_step="After a firmware update, ask the consortium to approve it; otherwise start the last good release.",
    )
