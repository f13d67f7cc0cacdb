"""A release's bill of materials: what of other people's its image holds, from where, under which licence.

Source: CycloneDX 1.6 (ECMA-424), JSON.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agent.statements.release import Release
from provisioning.releases.parts import OURS, Part

SBOM_FILE: Final = "sbom.cdx.json"
_NAMESPACE: Final = uuid.UUID("5ec0eea1-7400-4000-8000-000000000002")


def bill_of_materials(release: Release, parts: Sequence[Part]) -> bytes:
    """The bill of a release; the same bytes for the same release.

    Args:
        release: It.
        parts: What its image was made of.
    """
    root = f"pkg:generic/{OURS}@{release.version}"
    subject = {
        "type": "application",
        "bom-ref": root,
        "name": OURS,
        "version": str(release.version),
        "purl": root,
        "hashes": _hashes(release.image_sha256),
        "licenses": [{"expression": "Apache-2.0"}],
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, release.image_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(release.built_s, UTC).isoformat().replace("+00:00", "Z"),
            "component": subject,
        },
        "components": [_component(part) for part in parts],
        "dependencies": [{"ref": root, "dependsOn": [part.purl for part in parts]}],
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _component(part: Part) -> dict[str, Any]:
    licences: list[dict[str, Any]] = [{"license": {"name": name}} for name in part.licences]
    if part.expression:
        licences = [{"expression": part.expression}]
    return {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "hashes": _hashes(part.sha256),
        **({"licenses": licences} if licences else {}),
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
