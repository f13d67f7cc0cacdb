from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from agent.core.wire import Refusal
from agent.data.catalog import load_catalog, open_source, parse_catalog
from agent.data.quality import DeclinedError
from tests.unit.data.tables import dataset

GOOD = """
[datasets.cleveland]
title = "Heart disease, Cleveland"
schema = "heart-disease"
source = "processed.cleveland.data"
header = false
columns = ["age", "chol", "num"]
missing = ["?"]

[datasets.cleveland.fields.cholesterol]
column = "chol"
unit = "mg/dl"
missing = ["0"]
values = { "1.0" = "1" }
"""


def test_a_catalog_says_where_a_study_finds_its_fields(tmp_path: Path) -> None:
    catalog = parse_catalog(GOOD, folder=tmp_path)
    item = catalog.dataset("cleveland")
    assert item.source == tmp_path / "processed.cleveland.data"
    assert item.column("cholesterol") == "chol"
    assert item.column("age") == "age"
    assert item.field("cholesterol").unit == "mg/dl"
    assert catalog.with_schema("heart-disease") == (item,)
    assert catalog.with_schema("stroke") == ()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("header = false", "header = true"), "header"),
        (('"age", "chol"', '"age", "age"'), "twice"),
        (('schema = "heart-disease"', 'schema = "Heart Disease"'), "datasets.cleveland.schema"),
        (('missing = ["?"]', 'mising = ["?"]'), "datasets.cleveland.mising"),
        (("[datasets.cleveland]", "[dataset.cleveland]"), "only tables"),
        (('source = "processed.cleveland.data"', ""), "source"),
        (("header = false", "header ="), "line"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: tuple[str, str], place: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=place) as caught:
        parse_catalog(GOOD.replace(*change), folder=tmp_path)
    assert caught.value.code == "catalog.invalid"


def test_an_absent_catalog(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        load_catalog(tmp_path / "catalog.toml")
    assert caught.value.code == "catalog.unreadable"


def test_an_unknown_data_set_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text(GOOD)
    with pytest.raises(OperatorError, match="it has: cleveland") as caught:
        load_catalog(tmp_path / "catalog.toml").dataset("budapest")
    assert caught.value.code == "catalog.unknown_dataset"


def test_a_source_is_opened_for_reading_only(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,b\n")
    descriptor = open_source(dataset(source=source))
    try:
        assert os.read(descriptor, 10) == b"a,b\n"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DeclinedError) as caught:
        open_source(dataset(source=tmp_path / "rows.csv"))
    assert caught.value.code == "data.no_source"
    assert caught.value.refusal is Refusal.DECLINED


def test_an_absent_source_is_declined(tmp_path: Path) -> None:
    with pytest.raises(DeclinedError, match="No such file"):
        open_source(dataset(source=tmp_path / "rows.csv"))


def test_the_catalog_loads_no_data_library() -> None:
    code = (
        "import sys, agent.data.catalog\n"
        "loaded = {'numpy', 'pandas', 'pyarrow', 'sklearn', 'torch', 'onnx'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
