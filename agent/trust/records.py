"""What stands in the trust repository's targets: the consortium, its sites' nodes and stewards, and what they revoked.

    consortium.json                          by the targets role
    sites/<site>/nodes/<node>/node.json      by the role site-<site>, like all below sites/<site>/
    sites/<site>/stewards/<steward>.json
    sites/<site>/revocations.json

Only these bytes are parsed here; who signed them is `agent.trust.delegations`' to verify.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.config import Address
from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32
from agent.statements.roots import (
    NODE_RP_ID,
    EvidenceClass,
    FIDO2Terms,
    KeyKind,
    RootKey,
    key_id,
    load_public_key,
    public_key_bytes,
)
from agent.trust.study import EvidenceName

MAX_RECORD_BYTES = 1 << 20
MAX_REVOCATIONS = 4096
MAX_WITNESSES = 8
CONSORTIUM_TARGET = "consortium.json"

PEMText = Annotated[str, Field(max_length=1 << 18)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def encode(self) -> bytes:
        """The record as its target's bytes."""
        return self.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


class ServerRecord(_Record):
    """A server of the consortium.

    Args:
        address: `host:port`, reached by HTTPS.
        root_certificates: PEM, the only roots that its certificate may come from.
    """

    address: Address
    root_certificates: PEMText


class EvidenceTerms(_Record):
    """Which keys the consortium admits.

    Args:
        minimum: The least evidence class.
        kinds: Kinds of keys.
    """

    minimum: EvidenceName = "hardware"
    kinds: tuple[KeyKind, ...] = (KeyKind.TPM, KeyKind.PIV, KeyKind.FIDO2)


class WitnessRecord(_Record):
    """A witness of the boxes' audit logs (C2SP tlog-witness), of another party than the coordinator.

    Args:
        name: Of the witness, as its key names it.
        vkey: Its key in one line (C2SP signed-note, cosignature/v1).
        address: `host:port`, reached by HTTPS.
        root_certificates: PEM, the only roots that its certificate may come from.
    """

    name: Annotated[str, Field(pattern=r"^[!-*,-~]{1,255}$")]
    vkey: Annotated[str, Field(pattern=r"^[!-*,-~]{1,255}\+[0-9a-f]{8}\+[0-9A-Za-z+/]{44}$")]
    address: Address
    root_certificates: PEMText

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.vkey.startswith(f"{self.name}+"):
            raise ValueError("the witness's key is another one's than its name says")
        return self


class ConsortiumRecord(_Record):
    """`consortium.json`.

    Args:
        id: Short name.
        name: As people call it.
        registrar: Enrols boxes, and serves the repository under `/repository/`.
        superlink: Where boxes join.
        registrar_key: Names the registrar in what evidence is bound to; PEM, P-256.
        coordinator: Signs each round; PEM, P-256.
        evidence: Which keys are admitted.
        makers: Certificates (PEM) of makers, by evidence class; `test` counts only in a test environment.
        witnesses: Of the boxes' audit logs.
    """

    format: Literal["secur-e-health/consortium/1"] = "secur-e-health/consortium/1"
    id: IdentifierText
    name: Annotated[str, Field(min_length=1, max_length=200)]
    registrar: ServerRecord
    superlink: ServerRecord
    registrar_key: PEMText
    coordinator: PEMText
    evidence: EvidenceTerms = EvidenceTerms()
    makers: dict[Literal["test", "virtual", "hardware"], PEMText] = {}
    witnesses: Annotated[tuple[WitnessRecord, ...], Field(max_length=MAX_WITNESSES)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for pem in (self.registrar_key, self.coordinator):
            parse_public_pem(pem)
        self._check_witnesses()
        return self

    def _check_witnesses(self) -> None:
        # Who runs the rounds would witness whatever suits them. Their keys are P-256, and a
        # witness's is Ed25519 by its form, so it is none of theirs.
        if len({witness.vkey for witness in self.witnesses}) < len(self.witnesses):
            raise ValueError("a witness stands there twice")
        if {witness.address for witness in self.witnesses} & {self.registrar.address, self.superlink.address}:
            raise ValueError("a witness is the registrar or the SuperLink; it must be another party's")


class FIDO2Record(_Record):
    """Terms of a FIDO2 key."""

    rp_id: Annotated[str, Field(min_length=1, max_length=253)]
    user_verified: bool = True
    count: Annotated[int, Field(ge=0, lt=1 << 32)] = 0


class NodeFile(_Record):
    """`sites/<site>/nodes/<node>/node.json`: a box, as its own hospital endorses it.

    Args:
        site: The hospital.
        node: The box.
        kind: What holds its key.
        evidence: How well the hospital saw that it lives in hardware.
        public_key: PEM.
        link_key: What it authenticates with at the SuperLink, PEM; `public_key` itself where that signs unattended.
        ek_name: Name of its TPM's endorsement key, hex; empty outside a TPM.
        fido2: Terms of a FIDO2 key.
        enrolled: When.
    """

    format: Literal["secur-e-health/node/1"] = "secur-e-health/node/1"
    site: IdentifierText
    node: IdentifierText
    kind: KeyKind
    evidence: EvidenceName
    public_key: PEMText
    link_key: PEMText
    ek_name: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){0,66}$")] = ""
    fido2: FIDO2Record | None = None
    enrolled: AwareDatetime

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind is KeyKind.FIDO2) != (self.fido2 is not None):
            raise ValueError("a fido2 key, and no other, states its terms under `fido2`")
        for pem in (self.public_key, self.link_key):
            parse_public_pem(pem)
        return self

    @property
    def root(self) -> RootKey:
        """Its hardware key."""
        terms = None
        if self.fido2 is not None:
            terms = FIDO2Terms(self.fido2.rp_id, self.fido2.user_verified, self.fido2.count)
        key = public_key_bytes(parse_public_pem(self.public_key))
        return RootKey(self.kind, key, EvidenceClass[self.evidence.upper()], terms)


class StewardFile(_Record):
    """`sites/<site>/stewards/<steward>.json`: who decides at the hospital what its data may be used for.

    A record with a credential is a passkey's or security key's (WebAuthn); one without is a smartcard's (PIV).

    Args:
        site: The hospital.
        steward: Short name of this key.
        person: Whose it is, as people call them; two keys of one person count as one where two people must approve.
        rp_id: The relying party that the credential was made for.
        credential_id: Hex.
        public_key: PEM; P-256, or on a card P-384.
        certificate: PEM, where the card's issuer gave it one.
    """

    format: Literal["secur-e-health/steward/1"] = "secur-e-health/steward/1"
    site: IdentifierText
    steward: IdentifierText
    person: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    rp_id: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    credential_id: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){1,1024}$")] | None = None
    public_key: PEMText
    certificate: PEMText | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        key = parse_public_pem(self.public_key)
        if (self.rp_id is None) != (self.credential_id is None):
            raise ValueError("rp_id and credential_id stand together, or not at all")
        if self.rp_id == NODE_RP_ID:
            raise ValueError("its credential was made for boxes, not for people")
        if self.certificate is not None:
            if self.rp_id is not None:
                raise ValueError("only a smartcard's record has a certificate")
            if public_key_bytes(parse_certificate_pem(self.certificate)[0]) != public_key_bytes(key):
                raise ValueError("the certificate is another key's")
        return self

    @property
    def kind(self) -> Literal["webauthn", "piv"]:
        """What holds the key."""
        return "piv" if self.rp_id is None else "webauthn"

    @property
    def key_id(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo, hex."""
        return key_id(parse_public_pem(self.public_key))

    @property
    def root(self) -> RootKey:
        """The key, with the terms that its signatures must meet."""
        key = public_key_bytes(parse_public_pem(self.public_key))
        if self.rp_id is None:
            return RootKey(KeyKind.PIV, key)
        return RootKey(KeyKind.FIDO2, key, fido2=FIDO2Terms(self.rp_id))


class Revocation(_Record):
    """A key that counts no more.

    Args:
        key_id: SHA-256 of its SubjectPublicKeyInfo, hex.
        reason: In plain words.
        revoked: When.
    """

    key_id: Hex32
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    revoked: AwareDatetime


class RevocationsFile(_Record):
    """`sites/<site>/revocations.json`."""

    format: Literal["secur-e-health/revocations/1"] = "secur-e-health/revocations/1"
    site: IdentifierText
    revocations: tuple[Revocation, ...] = Field(default=(), max_length=MAX_REVOCATIONS)


RecordT = TypeVar("RecordT", bound=_Record)


def parse_record(kind: type[RecordT], data: bytes) -> RecordT:
    """Parse one target's bytes.

    Args:
        kind: What it must be.
        data: JSON, at most 1 MiB.

    Raises:
        PeerProtocolError: It is something else; the sentence names the first fault (`trust.bad_record`).
    """
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record(f"it is larger than {MAX_RECORD_BYTES} bytes")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _bad_record(explain_invalid(error, whole="record")) from error


def parse_public_pem(pem: str) -> ec.EllipticCurvePublicKey:
    """Parse a public key (PEM, SubjectPublicKeyInfo) on P-256 or P-384.

    Raises:
        ValueError: It is none.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("a public key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a public key is not an elliptic-curve key")  # noqa: TRY004 - pydantic wants ValueError
    try:
        return load_public_key(public_key_bytes(key))
    except PeerProtocolError as error:
        raise ValueError("a public key is on another curve than P-256 and P-384") from error


def parse_certificate_pem(pem: str) -> tuple[ec.EllipticCurvePublicKey, int]:
    """Parse a certificate (X.509, PEM).

    Returns:
        Its key, on P-256 or P-384, and until when it counts, in seconds since 1970.

    Raises:
        ValueError: It is none, or is for another kind of key.
    """
    try:
        certificate = load_pem_x509_certificate(pem.encode())
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("a certificate cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a certificate is not for an elliptic-curve key")  # noqa: TRY004 - pydantic wants ValueError
    return parse_public_pem(public_pem(key)), int(certificate.not_valid_after_utc.timestamp())


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """The inverse of `parse_public_pem`."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


@dataclass(frozen=True, slots=True)
class SitePaths:
    """Target paths of one site."""

    site: str

    def node(self, node: str) -> str:
        """A node's record."""
        return f"sites/{self.site}/nodes/{node}/node.json"

    def steward(self, steward: str) -> str:
        """A steward's record."""
        return f"sites/{self.site}/stewards/{steward}.json"

    @property
    def revocations(self) -> str:
        """What the site revoked."""
        return f"sites/{self.site}/revocations.json"

    @property
    def role(self) -> str:
        """The role that signs all below `sites/<site>/`."""
        return f"site-{self.site}"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The delegation's path patterns (TUF 4.5: `*` matches within one path segment)."""
        root = f"sites/{self.site}"
        return (f"{root}/*", f"{root}/nodes/*/*", f"{root}/stewards/*")


def _bad_record(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.bad_record",
        f"A record in the trust repository cannot be used: {what}.",
        next_step="Whoever signed it must publish a corrected one; until then it counts for nothing.",
    )
