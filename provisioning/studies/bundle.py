"""A study's result as one file that proves itself: a zip of model, metrics, curve, model card, study and provenance.

Provenance names every other file by its digest and is signed by the coordinator's key, so nothing in the file can be
altered, left out or taken from another result.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.envelope import MAX_ENVELOPE_BYTES, parse_proof
from agent.statements.roots import key_id, verify_with
from agent.trust.study import MAX_MODEL_BYTES, MAX_STUDY_BYTES, Study, parse_study, study_digest
from provisioning.studies.provenance import PAYLOAD_TYPE, File, Provenance, parse_provenance

MODEL: Final = "model.onnx"
METRICS: Final = "metrics.json"
CURVE: Final = "curve.svg"
CARD: Final = "model-card.md"
STUDY: Final = "study.json"
PROVENANCE: Final = "provenance.json"
LIMITS: Final[Mapping[str, int]] = {
    MODEL: MAX_MODEL_BYTES,
    METRICS: 16 << 20,
    CURVE: 1 << 20,
    CARD: 1 << 20,
    STUDY: MAX_STUDY_BYTES,
    PROVENANCE: MAX_ENVELOPE_BYTES,
}
"""What a result holds, and at most how many bytes of each."""
_FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)
"""Zip's first; the same files give the same bytes."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result whose provenance was verified.

    Args:
        study: The study that was run.
        provenance: What its coordinator signed.
        files: All files by name.
    """

    study: Study
    provenance: Provenance
    files: Mapping[str, bytes] = field(repr=False)


def pack(files: Mapping[str, bytes]) -> bytes:
    """All files as one zip, not compressed; the same bytes each time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in LIMITS:
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, files[name])
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of a zip; nothing is verified.

    Raises:
        OperatorError: It is no zip of exactly the files of a result, each within its limit.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
            if sorted(item.filename for item in found) != sorted(LIMITS):
                raise _unreadable("it does not hold exactly " + ", ".join(LIMITS))
            # Nothing is unpacked before it is verified, so that no small file can become a large one.
            if any(item.compress_type != zipfile.ZIP_STORED for item in found):
                raise _unreadable("it is compressed")
            if large := [item.filename for item in found if item.file_size > LIMITS[item.filename]]:
                raise _unreadable(f"its {large[0]} is larger than any may be")
            files = {item.filename: archive.read(item) for item in found}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise _unreadable("it is no zip file, or a damaged one") from error
    # Programs disagree on odd zip files: one that was verified here must not hold other files for the next.
    if pack(files) != data:
        raise _unreadable("it is packed in another way than results are")
    return files


def verify_result(data: bytes, coordinator: ec.EllipticCurvePublicKey, *, study: bytes | None = None) -> Result:
    """Verify a result, offline.

    Args:
        data: The file.
        coordinator: The key of the consortium's coordinator, from the consortium's record.
        study: The study whose result this is to be, as it was signed; any where left out.

    Raises:
        OperatorError: The file is no result.
        PeerProtocolError: Its provenance is not the coordinator's, or does not fit what lies beside it.
    """
    # 1. Exactly the files of a result, none beyond its limit.
    files = unpack(data)
    # 2. The provenance is signed by the coordinator's key, and by no other.
    proof = parse_proof(files[PROVENANCE])
    if proof.payload_type != PAYLOAD_TYPE or proof.key_id != key_id(coordinator):
        raise _foreign_key()
    verify_with(coordinator, proof)
    # 3. It names every other file as it is here.
    provenance = parse_provenance(proof.payload)
    listed = {file.name: file for file in provenance.subject}
    for name in LIMITS.keys() - {PROVENANCE}:
        if listed.get(name) != File.of(name, files[name]):
            raise _altered(f"its {name} is not the one that was signed")
    # 4. The study beside it is the one that was run, and the one that is asked about.
    digest = study_digest(files[STUDY])
    parsed = parse_study(files[STUDY])
    if (provenance.asked.study, provenance.asked.studyDigest) != (parsed.id, digest):
        raise _another_study(f"the study beside it, {parsed.id}, is not the one that was run")
    if study is not None and study_digest(study) != digest:
        raise _another_study(f"it is {parsed.id}, digest {digest}")
    return Result(parsed, provenance, files)


def _unreadable(what: str) -> OperatorError:
    return OperatorError(
        "result.unreadable",
        f"The file is no result of a study: {what}.",
        next_step="Name the file that `seh-provision study result` wrote.",
    )


def _altered(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "result.altered",
        f"The result was altered after it was signed: {what}.",
        next_step="Use nothing of this file; ask the consortium's operator for the result itself.",
    )


def _another_study(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "result.another_study",
        f"The result belongs to another study: {what}.",
        next_step="Ask the consortium's operator for the result of the study that you mean.",
    )


def _foreign_key() -> PeerProtocolError:
    return PeerProtocolError(
        "result.foreign_key",
        "The result is not signed by the coordinator's key.",
        next_step="Compare the key with the consortium's record; use nothing of this file until they agree.",
    )
