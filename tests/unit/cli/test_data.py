"""`seh-agent data`, as a technician meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.errors import OperatorError
from agent.data.quality import DeclinedError
from tests.unit.data.tables import HEADER, table
from tests.unit.training.graphs import logistic
from tests.unit.training.studies import WIDTH, study_of

CONFIG = """
[node]
site = "north"
state_directory = "state"
environment = "demo"
[superlink]
address = "127.0.0.1:9092"
root_certificates = "root.pem"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[studies]
directory = "studies"
"""
WARD = """
[datasets.{name}]
title = "Ward 3"
schema = "hypertension"
source = "{name}.csv"
missing = ["", "?"]
fields.age.unit = "a"
fields.pressure.unit = "{unit}"
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "agent.toml").write_text(CONFIG)
    (tmp_path / "catalog.toml").write_text(
        WARD.format(name="ward-3", unit="mm[Hg]") + WARD.format(name="ward-4", unit="kPa")
    )
    (tmp_path / "ward-3.csv").write_bytes(table("old,120,1,Y,1"))
    folder = tmp_path / "studies" / "practice"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(study_of(logistic(WIDTH)).model_dump_json())
    return tmp_path


def run(box: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", *arguments, "--config", str(box / "agent.toml")])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_list_shows_the_catalog_and_what_is_not_there(box: Path) -> None:
    lines = run(box, "list").splitlines()
    assert lines[0].split() == ["ward-3", "hypertension", str(box / "ward-3.csv")]
    assert lines[1].strip() == "Ward 3"
    assert lines[2].endswith("(no such file)")


def test_check_counts_rows_and_shows_none(box: Path) -> None:
    (box / "ward-4.csv").write_bytes(HEADER.encode())
    told = run(box, "check", "practice")
    assert "ward-3: fits the study practice" in told
    assert "1 row set aside: age: not a number (for example line 2)." in told
    assert "40 of 41 rows take part" in told
    assert "ward-4: does not fit the study practice" in told
    assert "Field pressure is in kPa here, and the study needs mm[Hg]." in told
    assert "old" not in told


def test_check_takes_a_study_file_and_one_data_set(box: Path) -> None:
    told = run(box, "check", str(box / "studies/practice/study.json"), "--dataset", "ward-3")
    assert "ward-4" not in told


def test_check_fails_where_nothing_fits(box: Path) -> None:
    (box / "ward-3.csv").write_bytes(table(rows=3))
    with pytest.raises(DeclinedError, match="Only 3 rows of 3"):
        run(box, "check", "practice", "--dataset", "ward-3")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "unknown"], "cli.no_study"),
        (["check", "practice", "--dataset", "ward-9"], "catalog.unknown_dataset"),
    ],
)
def test_mistakes_are_named(arguments: list[str], code: str, box: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        run(box, *arguments)
    assert caught.value.code == code


def test_a_study_of_another_schema_finds_no_data_set(box: Path) -> None:
    (box / "catalog.toml").write_text(WARD.format(name="ward-3", unit="a").replace("hypertension", "asthma"))
    with pytest.raises(OperatorError) as caught:
        run(box, "check", "practice")
    assert caught.value.code == "cli.no_dataset"
