"""Where a release comes from, signed by those who sign releases: source, build script and every part of the image.

Source: in-toto Attestation Framework v1 (Statement v1, DSSE envelope), SLSA v1.0 provenance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import rfc8785
from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signer

from agent.statements.release import Release
from agent.trust.channels import IMAGE_NAME
from provisioning.releases.parts import OURS, Part
from provisioning.releases.sbom import SBOM_FILE

PROVENANCE_FILE: Final = "provenance.json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:secur-e-health:packaging/payload/build.sh:v1"
"""The build is reproducible: the same commit and parts give the same image, whoever builds it."""
BUILDER: Final = "urn:secur-e-health:maker"


def provenance(release: Release, parts: Sequence[Part], sbom: bytes) -> bytes:
    """The statement, unsigned; the same bytes for the same release.

    Args:
        release: It.
        parts: What its image was made of.
        sbom: Its bill of materials.
    """
    source = {"uri": f"pkg:generic/{OURS}@{release.version}", "digest": {"gitCommit": release.commit}}
    built = datetime.fromtimestamp(release.built_s, UTC).isoformat().replace("+00:00", "Z")
    statement: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": IMAGE_NAME, "digest": {"sha256": release.image_sha256}},
            {"name": SBOM_FILE, "digest": {"sha256": hashlib.sha256(sbom).hexdigest()}},
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"version": str(release.version)},
                "resolvedDependencies": [
                    source,
                    *({"uri": part.purl, "digest": {"sha256": part.sha256}} for part in parts),
                ],
            },
            "runDetails": {"builder": {"id": BUILDER}, "metadata": {"finishedOn": built}},
        },
    }
    return rfc8785.dumps(statement)


def sign_provenance(statement: bytes, signers: Iterable[Signer]) -> bytes:
    """The statement in its envelope, as it is published.

    Args:
        statement: From `provenance`.
        signers: Keys of those who sign releases.
    """
    envelope = Envelope(statement, PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict()).encode() + b"\n"
