"""What a researcher gets from a study that has ended."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance as SLSAProvenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementProto
from onnx import TensorProto, helper, numpy_helper

from agent.core.errors import OperatorError, SoftwareError
from agent.trust.model import parse_model
from provisioning.studies.bundle import CARD, CURVE, LIMITS, METRICS, MODEL, PROVENANCE, unpack, verify_result
from provisioning.studies.curve import Curve, draw_curves
from provisioning.studies.result import check_runs, make_result
from tests.simulators.played_study import PARAMETERS, SITES, prepare_directory
from tests.unit.coordinator.test_secure import Federation

PARTS_OF_A_CARD = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)
NOISE = {"epsilon": 100.0, "delta": 1e-3, "l2_clip": 1.0, "noise_multiplier": 2.0}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    ended = Federation(tmp_path_factory.mktemp("study"), purpose="To <b>test</b>\n## it | all.")
    ended.run()
    return ended


@pytest.fixture(scope="module")
def files(federation: Federation) -> dict[str, bytes]:
    return unpack(make_result(federation.directory))


def test_the_same_study_gives_the_same_files_in_the_same_order(federation: Federation, files: dict[str, bytes]) -> None:
    again = unpack(make_result(federation.directory))
    assert list(again) == list(LIMITS)
    # Only the signature differs: ECDSA draws a number for each.
    assert {name: data for name, data in again.items() if name != PROVENANCE} == {
        name: data for name, data in files.items() if name != PROVENANCE
    }


def test_the_model_runs_in_onnxruntime_and_is_the_trained_one(federation: Federation, files: dict[str, bytes]) -> None:
    session = onnxruntime.InferenceSession(files[MODEL], providers=["CPUExecutionProvider"])
    (score,) = session.run(None, {"rows": np.ones((1, PARAMETERS), dtype=np.float32)})
    assert score.item() == pytest.approx(float(federation.trained().sum()), rel=1e-5)


def test_metrics_say_how_many_hospitals_each_round_had_and_never_which(files: dict[str, bytes]) -> None:
    metrics = json.loads(files[METRICS])
    assert [record["hospitals"] for record in metrics["rounds"]] == [4, 4, 4, 4]
    assert [record["model_round"] for record in metrics["rounds"]] == [0, 1, 2, 3]
    assert metrics["final"]["accuracy"] == 0.5
    assert not any(site.encode() in files[METRICS] for site in SITES)


def test_the_card_has_the_nine_parts_and_nobody_s_words_become_markup(files: dict[str, bytes]) -> None:
    card = files[CARD].decode()
    assert [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")] == list(PARTS_OF_A_CARD)
    assert "To &lt;b>test&lt;/b> ## it &#124; all." in card
    assert "| 0 | age | number |" in card
    assert "No noise was added" in card


def test_the_curve_is_a_picture_of_both_metrics(files: dict[str, bytes]) -> None:
    root = ET.fromstring(files[CURVE])
    assert "Loss, all hospitals" in "".join(root.itertext())


def test_a_curve_leaves_gaps_and_says_what_is_not_known() -> None:
    picture = draw_curves([Curve("AUC", [(0, 0.5), (1, None), (2, 0.7)]), Curve("<loss>", [(0, None)])]).decode()
    assert "AUC: 0.500 after 0 rounds, 0.700 after 2; &lt;loss&gt;: not known" in picture
    assert picture.count("<circle") == 2


def test_provenance_is_read_by_the_attestation_framework_s_own_library(
    federation: Federation, files: dict[str, bytes]
) -> None:
    payload = base64.b64decode(json.loads(files[PROVENANCE])["payload"])
    Statement.copy_from_pb(json_format.Parse(payload, StatementProto())).validate()
    predicate = json_format.ParseDict(json.loads(payload)["predicate"], SLSAProvenance())
    inner = predicate.build_definition.internal_parameters
    assert (inner["hospitals"], list(inner["hospitalsPerRound"])) == (4, [4, 4, 4])
    assert predicate.build_definition.external_parameters["studyDigest"] == federation.directory.load().digest
    assert "flwr" in predicate.run_details.builder.version


def test_noise_is_accounted_for_in_provenance_and_card(tmp_path: Path) -> None:
    federation = Federation(tmp_path, rounds=1, privacy=NOISE)
    spent = federation.run()["privacy"]
    protection = federation.directory.load().protection
    assert protection is not None
    result = verify_result(make_result(federation.directory), protection.key.public_key())
    counted = result.provenance.counted
    assert (counted.unit, counted.epsilon, counted.delta) == ("hospital", spent["epsilon"], spent["delta"])
    assert b"Noise protects each hospital's whole data set" in result.files[CARD]


def test_no_result_before_the_end_and_none_of_an_unprotected_run(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        make_result(Federation(tmp_path / "secure").directory)
    assert caught.value.code == "result.not_ended"
    with pytest.raises(OperatorError) as caught:
        make_result(prepare_directory(tmp_path / "plain")[0])
    assert caught.value.code == "result.unprotected"


def model_of(*nodes: onnx.NodeProto, inputs: int | None) -> bytes:
    """A model with three weights, after which `nodes` make `score` of `product`."""
    weights = numpy_helper.from_array(np.ones((3, 1), dtype=np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["product"]), *nodes],
        "tried",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize("inputs", [3, None])
def test_a_model_is_tried_on_rows_of_the_study_s_width(inputs: int | None) -> None:
    data = model_of(helper.make_node("Sigmoid", ["product"], ["score"]), inputs=inputs)
    check_runs(parse_model(data), data, width=3)


@pytest.mark.parametrize(
    "nodes",
    [
        (helper.make_node("Sub", ["product", "product"], ["nil"]), helper.make_node("Div", ["nil", "nil"], ["score"])),
        (helper.make_node("Concat", ["product", "weights"], ["score"], axis=1),),
    ],
    ids=["not a number", "shapes that do not fit"],
)
def test_a_model_that_gives_no_numbers_is_no_result(nodes: tuple[onnx.NodeProto, ...]) -> None:
    data = model_of(*nodes, inputs=3)
    with pytest.raises(SoftwareError) as caught:
        check_runs(parse_model(data), data, width=3)
    assert caught.value.code == "result.model_unusable"
