"""Where a trained model comes from, signed by the coordinator's key: study, models, hospitals counted, noise, software.

Source: in-toto Attestation Framework v1 (Statement v1, DSSE envelope), SLSA v1.0 provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.statements.envelope import Proof, encode_proof
from agent.statements.roots import key_id
from agent.trust.study import MAX_SITES, Sha256Hex

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:secur-e-health:study:v1"
"""A model trained in rounds of secure sums over the hospitals that a signed study names."""
BUILDER: Final = "urn:secur-e-health:coordinator"

Text = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    # SLSA's own names are in camel case; so is what they hold here.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class _Digest(_Part):
    sha256: Sha256Hex


class File(_Part):
    """A file by name and digest."""

    name: Text
    digest: _Digest

    @classmethod
    def of(cls, name: str, data: bytes) -> File:
        """Name a file by its content."""
        return cls(name=name, digest=_Digest(sha256=hashlib.sha256(data).hexdigest()))


class Asked(_Part):
    """What was asked for.

    Args:
        study: The study's id.
        studyDigest: SHA-256 of its file.
    """

    study: IdentifierText
    studyDigest: Sha256Hex  # noqa: N815 - as SLSA names its fields


class Counted(_Part):
    """What was counted: never who did what.

    Args:
        hospitals: In any sum.
        cohort: Their names, sorted.
        rounds: Rounds that moved the model or were counted as spent.
        hospitalsPerRound: Hospitals in the sum of each.
        aggregation: How sums came about.
        unit: What noise protects: a hospital's whole data set, or one record; None without noise.
        epsilon, delta: What the noise of all rounds guarantees it; None without noise.
    """

    hospitals: int = Field(ge=0, le=MAX_SITES)
    cohort: tuple[IdentifierText, ...] = Field(max_length=MAX_SITES)
    rounds: int = Field(ge=0)
    hospitalsPerRound: tuple[int, ...] = Field(max_length=10_000)  # noqa: N815 - the same
    aggregation: Literal["secure"]
    unit: Literal["hospital", "record"] | None = None
    epsilon: float | None = None
    delta: float | None = None

    @property
    def noise(self) -> str:
        """What noise guarantees, for people."""
        if self.unit is None:
            return "No noise was added: what sums and model reveal about one hospital is not bounded."
        what = "each hospital's whole data set" if self.unit == "hospital" else "any one record"
        return f"Noise protects {what}: epsilon {self.epsilon:.3g} at delta {self.delta:g}."


class _Definition(_Part):
    buildType: Literal["urn:secur-e-health:study:v1"] = "urn:secur-e-health:study:v1"  # noqa: N815 - SLSA's
    externalParameters: Asked  # noqa: N815 - SLSA's
    internalParameters: Counted  # noqa: N815 - SLSA's
    resolvedDependencies: tuple[File, ...] = Field(max_length=8)  # noqa: N815 - SLSA's


class _Builder(_Part):
    id: Literal["urn:secur-e-health:coordinator"] = "urn:secur-e-health:coordinator"
    version: dict[Text, Text] = Field(max_length=32)


class _Metadata(_Part):
    finishedOn: Text  # noqa: N815 - SLSA's


class _Details(_Part):
    builder: _Builder
    metadata: _Metadata


class _Predicate(_Part):
    buildDefinition: _Definition  # noqa: N815 - SLSA's
    runDetails: _Details  # noqa: N815 - SLSA's


class Provenance(_Part):
    """The whole statement.

    Args:
        subject: Every file of the result but this one.
        predicate: How they came about.
    """

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: tuple[File, ...] = Field(min_length=1, max_length=16)
    predicateType: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"  # noqa: N815 - in-toto's
    predicate: _Predicate

    @property
    def asked(self) -> Asked:
        """What was asked for."""
        return self.predicate.buildDefinition.externalParameters

    @property
    def counted(self) -> Counted:
        """What was counted."""
        return self.predicate.buildDefinition.internalParameters

    @property
    def software(self) -> Mapping[str, str]:
        """Versions by name."""
        return self.predicate.runDetails.builder.version

    @property
    def finished(self) -> str:
        """When the study ended, ISO 8601."""
        return self.predicate.runDetails.metadata.finishedOn

    def payload(self) -> bytes:
        """The canonical bytes that are signed (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))


def provenance(
    subject: Mapping[str, bytes],
    asked: Asked,
    counted: Counted,
    *,
    inputs: Mapping[str, bytes],
    software: Mapping[str, str],
    finished: str,
) -> Provenance:
    """Make the statement.

    Args:
        subject: Every other file of the result, by name.
        asked: What was asked for.
        counted: What was counted.
        inputs: Study and model as they were signed, by name.
        software: Versions by name.
        finished: When the study ended, ISO 8601.
    """
    fields: dict[str, Any] = {
        "buildDefinition": {
            "externalParameters": asked,
            "internalParameters": counted,
            "resolvedDependencies": tuple(File.of(name, data) for name, data in inputs.items()),
        },
        "runDetails": {"builder": {"version": dict(software)}, "metadata": {"finishedOn": finished}},
    }
    files = tuple(File.of(name, data) for name, data in sorted(subject.items()))
    return Provenance(subject=files, predicate=_Predicate.model_validate(fields))


def sign_provenance(statement: Provenance, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The statement in its envelope, signed by the coordinator's key."""
    name, payload = key_id(key.public_key()), statement.payload()
    unsigned = Proof(PAYLOAD_TYPE, payload, name, b"")
    return encode_proof(
        Proof(PAYLOAD_TYPE, payload, name, key.sign(unsigned.signed_bytes(), ec.ECDSA(hashes.SHA256())))
    )


def parse_provenance(payload: bytes) -> Provenance:
    """Parse a statement whose signature holds.

    Raises:
        PeerProtocolError: It is another kind of statement.
    """
    try:
        return Provenance.model_validate_json(payload)
    except ValidationError as error:
        raise PeerProtocolError(
            "result.bad_provenance",
            "The result's provenance is signed, but it is no statement about a study.",
            next_step="Use nothing of this file; ask the consortium's operator for the result itself.",
        ) from error
