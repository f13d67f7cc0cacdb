"""Bill of materials and provenance, read as other parties read them: by CycloneDX's own schema, by in-toto's types."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementProto
from typer.testing import CliRunner

from agent.core.errors import OperatorError
from provisioning.cli.main import app
from provisioning.releases.parts import load_parts

VERSION, COMMIT = "1.4.0", "0123456789" * 4
A, B, C = (digit * 64 for digit in "abc")


def _python(name: str, version: str, sha256: str | None, **metadata: object) -> dict[str, object]:
    archive = {"hashes": {"sha256": sha256}} if sha256 else {"hashes": {}}
    return {
        "download_info": {"url": "file:///somewhere", "archive_info": archive},
        "metadata": {"name": name, "version": version, "description": "long", **metadata},
    }


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    directory = tmp_path / "parts"
    directory.mkdir()
    row = f"libtss2-esys-3.0.2-0\t3.2.1-3\tamd64\t{A}\tBSD-2-clause|GPL-2+\nzlib1g\t1:1.2.13.dfsg-1\tamd64\t{A}\t\n"
    (directory / "debian.tsv").write_text(row)
    report = {
        "version": "1",
        "install": [
            _python("torch", "2.13.0+cpu", B, license_expression="Apache-2.0 AND MIT"),
            _python("Dp_Accounting", "0.6.0", C, license="Apache License, Version 2.0"),
            _python("pyscard", "2.3.1", C, classifier=["License :: OSI Approved :: LGPL", "Topic :: Security"]),
            _python("secur-e-health", VERSION, None),
        ],
    }
    (directory / "python.json").write_text(json.dumps(report))
    return directory


@pytest.fixture
def draft(tmp_path: Path, parts: Path) -> Path:
    """A release's folder, with both statements."""
    directory, image = tmp_path / "maker", tmp_path / "app.raw"
    image.write_bytes(bytes(4096))
    for line in (
        ["init", "--environment", "test"],
        ["build", VERSION, str(image), "--commit", COMMIT],
        ["attest", VERSION, str(parts)],
    ):
        result = CliRunner().invoke(app, ["release", *line, "--directory", str(directory)])
        assert result.exception is None, result.output
    return directory / "drafts" / VERSION


def test_the_bill_is_valid_and_names_every_part(draft: Path) -> None:
    text = (draft / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill: Any = Bom.from_json(json.loads(text))  # type: ignore[attr-defined]
    found = {str(part.purl): part for part in bill.components}
    assert {part.name for part in found.values()} == {
        *("libtss2-esys-3.0.2-0", "zlib1g", "torch", "Dp_Accounting", "pyscard")
    }
    assert "pkg:deb/debian/zlib1g@1:1.2.13.dfsg-1?arch=amd64&distro=bookworm" in found
    torch = found["pkg:pypi/torch@2.13.0%2Bcpu"]
    assert [licence.value for licence in torch.licenses] == ["Apache-2.0 AND MIT"]
    assert [digest.content for digest in torch.hashes] == [B]
    assert [licence.name for licence in found["pkg:pypi/pyscard@2.3.1"].licenses] == ["LGPL"]
    debians = found["pkg:deb/debian/zlib1g@1:1.2.13.dfsg-1?arch=amd64&distro=bookworm"]
    assert [licence.name for licence in debians.licenses] == ["see usr/share/doc/zlib1g/copyright"]
    assert bill.metadata.component.version == VERSION


def test_the_provenance_is_in_totos_and_covers_image_bill_and_parts(draft: Path) -> None:
    envelope = json.loads((draft / "provenance.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    fields = json.loads(base64.b64decode(envelope["payload"]))
    statement = Statement.copy_from_pb(ParseDict(fields, StatementProto()))
    statement.validate()
    subjects = {subject.name: subject.digest["sha256"] for subject in statement.pb.subject}
    assert subjects == {
        name: hashlib.sha256((draft / name).read_bytes()).hexdigest() for name in ("app.raw", "sbom.cdx.json")
    }
    predicate = ParseDict(fields["predicate"], Provenance())  # refuses fields that SLSA does not know
    origins = {
        dependency.uri: dict(dependency.digest) for dependency in predicate.build_definition.resolved_dependencies
    }
    assert origins[f"pkg:generic/secur-e-health@{VERSION}"] == {"gitCommit": COMMIT}
    assert origins["pkg:pypi/torch@2.13.0%2Bcpu"] == {"sha256": B}


def test_as_many_signed_the_provenance_as_must_sign_the_release(draft: Path) -> None:
    envelope = json.loads((draft / "provenance.json").read_text())
    trusted = json.loads((draft.parents[1] / "release-keys.json").read_text())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    # DSSE v1.0.2, protocol.md
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signers = set()
    for signature in envelope["signatures"]:
        key = load_pem_public_key(trusted["keys"][signature["keyid"]].encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(base64.b64decode(signature["sig"]), message, ec.ECDSA(hashes.SHA256()))
        signers.add(signature["keyid"])
    assert len(signers) == trusted["threshold"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("debian.tsv", "zlib1g\t1.2\tamd64\tnot-a-hash\t\n"),
        ("debian.tsv", "zlib1g\n"),
        ("python.json", "{"),
        ("python.json", json.dumps({"version": "1", "install": [_python("torch", "2", None)]})),
    ],
)
def test_parts_that_cannot_be_named_are_refused(parts: Path, file: str, content: str) -> None:
    (parts / file).write_text(content)
    with pytest.raises(OperatorError) as caught:
        load_parts(parts)
    assert caught.value.code == "release.bad_parts"
