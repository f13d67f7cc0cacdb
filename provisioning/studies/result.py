"""Makes a study's signed result from what its coordination left."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from platform import python_version
from typing import Any, Final

import numpy as np

from agent.core.errors import OperatorError, SoftwareError
from agent.core.version import software_version
from agent.trust.model import ModelFile, parse_model
from provisioning.coordinator.directory import CoordinatorDirectory
from provisioning.studies.bundle import CARD, CURVE, METRICS, MODEL, PROVENANCE, STUDY, pack
from provisioning.studies.card import model_card
from provisioning.studies.curve import Curve, draw_curves
from provisioning.studies.provenance import Asked, Counted, provenance, sign_provenance

FIGURES: Final = ("loss", "auc", "accuracy", "brier", "calibration")
_LIBRARIES: Final = ("flwr", "numpy", "onnx", "onnxruntime", "cryptography")
_TRIED_ROWS: Final = 2


def make_result(directory: CoordinatorDirectory) -> bytes:
    """Make the signed result of a study that has ended.

    Args:
        directory: The coordination's.

    Raises:
        OperatorError: It has not ended, was unprotected, or its directory is damaged.
    """
    assignment = directory.load()
    if assignment.protection is None:
        raise OperatorError(
            "result.unprotected",
            "The study ran without secure aggregation, and its coordinator has no key to sign a result with.",
            next_step="Run it with a coordinator directory that was prepared with --key.",
        )
    ended = _load_ended(directory)
    model = directory.trained_model.read_bytes()
    digest = hashlib.sha256(model).hexdigest()
    if (ended["study_digest"], ended["model_digest"]) != (assignment.digest, digest):
        raise _damaged(directory, "its result does not belong to its study and model")
    check_runs(parse_model(model), model, width=assignment.study.data.width)
    counted = _counted(ended)
    study, source = (directory.path / STUDY).read_bytes(), (directory.path / MODEL).read_bytes()
    finished = str(ended["finished"])
    files = {
        MODEL: model,
        METRICS: _metrics(ended),
        CURVE: _curve(ended),
        CARD: model_card(assignment.study, counted, ended["final"], ended["moments"], digest=digest, finished=finished),
        STUDY: study,
    }
    statement = provenance(
        files,
        Asked(study=assignment.study.id, studyDigest=assignment.digest),
        counted,
        inputs={STUDY: study, MODEL: source},
        software=software(),
        finished=finished,
    )
    return pack(files | {PROVENANCE: sign_provenance(statement, assignment.protection.key)})


def check_runs(model: ModelFile, data: bytes, *, width: int) -> None:
    """Check that onnxruntime takes the trained model, and gives numbers.

    Args:
        model: As parsed.
        data: The file.
        width: How many numbers the study's fields give a row, for a model that leaves an axis open.

    Raises:
        SoftwareError: It does not.
    """
    import onnxruntime  # noqa: PLC0415 - takes a while, and only a result needs it

    known = math.prod(size for size in model.row_shape if size is not None)
    shape = (_TRIED_ROWS, *(max(width // known, 1) if size is None else size for size in model.row_shape))
    # Neither zero nor all alike: a model may divide by a row's length or deviation.
    rows = np.linspace(0.25, 1.0, math.prod(shape), dtype=np.float32).reshape(shape)
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {session.get_inputs()[0].name: rows})
    except Exception as error:  # onnxruntime has no public base class of its errors
        raise _unusable(str(error).splitlines()[0][:200]) from error
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise _unusable("its output is not finite")


def software() -> dict[str, str]:
    """Versions of what took part in making a result."""
    return {
        "secur-e-health": software_version(),
        "python": python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _load_ended(directory: CoordinatorDirectory) -> dict[str, Any]:
    try:
        ended: dict[str, Any] = json.loads(directory.result.read_bytes())
    except FileNotFoundError as error:
        raise OperatorError(
            "result.not_ended",
            f"The study in {directory.path} has not ended; there is no result yet.",
            next_step="See `seh-provision study status`; launch it again where it was paused.",
        ) from error
    except ValueError as error:
        raise _damaged(directory, "its result.json is no JSON") from error
    return ended


def _counted(ended: Mapping[str, Any]) -> Counted:
    history: Sequence[Mapping[str, Any]] = ended["history"]
    cohort = sorted({site for record in history for site in record["cohort"]})
    privacy = ended["privacy"] or {}
    return Counted(
        hospitals=len(cohort),
        cohort=tuple(cohort),
        rounds=len(history),
        hospitalsPerRound=tuple(len(record["cohort"]) for record in history),
        aggregation=ended["aggregation"],
        **{name: privacy.get(name) for name in ("unit", "epsilon", "delta")},
    )


def _metrics(ended: Mapping[str, Any]) -> bytes:
    """Of all hospitals together; of each round how many took part, and not which."""
    rounds = [
        {
            "round": record["round"],
            "model_round": record["model_round"],
            "hospitals": len(record["cohort"]),
            "trained": record["weight"],
            "evaluated": record["evaluated"],
            **{name: record[name] for name in FIGURES},
            **{name: record[name] for name in ("seconds", "bytes_up", "bytes_down", "attempts")},
        }
        for record in (*ended["history"], ended["final"])
    ]
    content = {
        "format": "secur-e-health/metrics/1",
        "study": ended["study"],
        "study_digest": ended["study_digest"],
        "model_digest": ended["model_digest"],
        "final": {name: ended["final"][name] for name in ("evaluated", *FIGURES)},
        "moments": ended["moments"],
        "rounds": rounds,
    }
    return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"


def _curve(ended: Mapping[str, Any]) -> bytes:
    records = (*ended["history"], ended["final"])
    return draw_curves(
        [
            Curve(label, [(record["model_round"], record[name]) for record in records])
            for label, name in (("AUC, all hospitals", "auc"), ("Loss, all hospitals", "loss"))
        ]
    )


def _damaged(directory: CoordinatorDirectory, what: str) -> OperatorError:
    return OperatorError(
        "result.damaged",
        f"The coordinator's directory {directory.path} cannot be used: {what}.",
        next_step="Restore it from a backup.",
    )


def _unusable(why: str) -> SoftwareError:
    return SoftwareError(
        "result.model_unusable",
        f"The trained model does not run in onnxruntime: {why}.",
        next_step="Report it with the study's model; the trained parameters are kept in the coordinator's directory.",
    )
