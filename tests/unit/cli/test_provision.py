"""`seh-provision`, as an operator meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from typer.testing import CliRunner

from agent.core.errors import OperatorError
from agent.trust.roster import encode_roster
from provisioning.authority.signers import private_pem
from provisioning.cli.main import app
from provisioning.coordinator.directory import CoordinatorDirectory
from tests.simulators.played_study import study_files
from tests.simulators.secure_site import SecureSite, roster_of


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def files(place: Path, **changes: Any) -> tuple[Path, Path]:  # noqa: ANN401 - any part of a study
    study, model = study_files(**changes)
    (place / "study.json").write_bytes(study)
    (place / "model.onnx").write_bytes(model)
    return place / "study.json", place / "model.onnx"


FITTING = {
    "schema_name": "played",
    "features": [{"name": f"age_{number}", "kind": "number", "minimum": 0, "maximum": 120} for number in range(10)],
    "label": {"field": "ill"},
}
"""As many fields as the played model has inputs."""


def test_validate_says_what_a_hospital_will_be_asked(tmp_path: Path) -> None:
    study, model = files(tmp_path, data=FITTING)
    said = call("study", "validate", study, "--model", model)
    assert "hospital-a, hospital-b, hospital-c, hospital-d" in said
    assert "Only sums over at least 3 hospitals leave" in said
    assert "No noise is added" in said


def test_validate_warns_that_one_of_three_halts_the_study(tmp_path: Path) -> None:
    sites = ("hospital-a", "hospital-b", "hospital-c")
    said = call("study", "validate", files(tmp_path, sites=sites)[0])
    assert "one silent hospital halts the study" in said


def test_validate_names_differencing_where_a_study_goes_on_without_a_hospital(tmp_path: Path) -> None:
    terms = {"dropout": "continue", "accept_differencing": True}
    assert "differ by one hospital" in call("study", "validate", files(tmp_path, secagg=terms)[0])
    with pytest.raises(OperatorError, match="acceptance of differencing"):
        call("study", "validate", files(tmp_path, secagg={"dropout": "continue"})[0])


def test_validate_refuses_two_hospitals_and_another_model(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="minimum_sites"):
        call("study", "validate", files(tmp_path, sites=("hospital-a", "hospital-b"))[0])
    study, model = files(tmp_path)
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(OperatorError):
        call("study", "validate", study, "--model", model)
    with pytest.raises(OperatorError, match="rows of 10 numbers, and the study's fields give 1"):
        call("study", "validate", *files(tmp_path)[:1], "--model", files(tmp_path)[1])
    with pytest.raises(OperatorError, match="cannot be read"):
        call("study", "validate", tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("minimum", "words"),
    [
        ("none", "also one whose key is a file"),
        ("test", "protects nothing"),
        ("virtual", "or in a virtual TPM"),
        ("hardware", "by the word of its maker"),
    ],
)
def test_validate_says_which_boxes_may_take_part(tmp_path: Path, minimum: str, words: str) -> None:
    said = call("study", "validate", files(tmp_path, minimum_evidence=minimum)[0])
    assert words in said
    assert ("refuses one that shows less" in said) is (minimum != "none")


def test_a_coordination_is_prepared_from_files_and_its_key_is_private(tmp_path: Path) -> None:
    study, model = files(tmp_path)
    public = load_pem_public_key(call("coordinator", "new-key", tmp_path / "coordinator.key").encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert (tmp_path / "coordinator.key").stat().st_mode & 0o077 == 0
    site = SecureSite.make(tmp_path / "a", "hospital-a", step=1, weight=1, parameters=10)
    (tmp_path / "roster.json").write_bytes(encode_roster(roster_of({"hospital-a": site.key}, public)))
    options: list[str | Path] = ["--study", study, "--model", model, "--roster", tmp_path / "roster.json"]
    said = call("coordinator", "prepare", tmp_path / "run", *options, "--key", tmp_path / "coordinator.key")
    assert "played-study is prepared" in said
    assert (tmp_path / "run" / "coordinator.key").stat().st_mode & 0o077 == 0
    assert json.loads((tmp_path / "run" / "settings.json").read_bytes())["aggregation"] == "secure"
    assert "Not launched yet" in call("study", "status", "--run", tmp_path / "run")


def test_coordinator_s_key_may_lie_encrypted_and_is_opened_for_the_run_alone(tmp_path: Path) -> None:
    study, model = files(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "coordinator.pem").write_bytes(private_pem(key, "four words of a phrase"))
    (tmp_path / "phrase").write_text("four words of a phrase\n")
    site = SecureSite.make(tmp_path / "a", "hospital-a", step=1, weight=1, parameters=10)
    (tmp_path / "roster.json").write_bytes(encode_roster(roster_of({"hospital-a": site.key}, key.public_key())))
    options: list[str | Path] = ["--study", study, "--model", model, "--roster", tmp_path / "roster.json"]
    options += ["--key", tmp_path / "coordinator.pem", "--passphrase-file", tmp_path / "phrase"]
    call("coordinator", "prepare", tmp_path / "run", *options)
    protection = CoordinatorDirectory(tmp_path / "run").load().protection
    assert protection is not None
    assert protection.key.private_numbers() == key.private_numbers()
