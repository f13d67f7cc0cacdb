"""A small study with a real model file, for coordinators and nodes that play."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.trust.study import Study, parse_study
from provisioning.coordinator.directory import Assignment, CoordinatorDirectory, CoordinatorSettings
from tests.simulators.hospital import study_json

SITES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
PARAMETERS = 10


def linear_model(parameters: int = PARAMETERS, *, value: float = 1.0) -> bytes:
    """A linear model of so many weights, all of the same value."""
    weights = numpy_helper.from_array(np.full((parameters, 1), value, dtype=np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, parameters])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def study_files(
    sites: tuple[str, ...] = SITES,
    *,
    parameters: int = PARAMETERS,
    **changes: Any,  # noqa: ANN401 - any part of a study
) -> tuple[bytes, bytes]:
    """A study file and the model file that it names; `changes` replace the study's top-level fields."""
    model = linear_model(parameters)
    spec = {"digest": hashlib.sha256(model).hexdigest(), "size_bytes": len(model), "parameters": parameters}
    return study_json(sites, model=spec, **changes), model


def prepare_directory(
    path: Path,
    sites: tuple[str, ...] = SITES,
    *,
    parameters: int = PARAMETERS,
    settings: CoordinatorSettings | None = None,
    **changes: Any,  # noqa: ANN401 - any part of a study
) -> tuple[CoordinatorDirectory, Assignment]:
    """A coordinator directory for such a study, in the open unless `settings` say otherwise."""
    directory = CoordinatorDirectory(path)
    study, model = study_files(sites, parameters=parameters, **changes)
    return directory, directory.prepare(study, model, settings or plain_settings())


def plain_settings(**changes: Any) -> CoordinatorSettings:  # noqa: ANN401 - any setting
    """Settings of a demonstration that waits for nothing for long."""
    values = {"environment": "demo", "aggregation": "plain", "open_deadline_s": 60.0, "open_retry_s": 0.3}
    return CoordinatorSettings.model_validate(values | {"gather_s": 0.5} | changes)


def played_study(**changes: Any) -> Study:  # noqa: ANN401 - any part of a study
    """The study alone."""
    return parse_study(study_files(**changes)[0])
