"""Fields from what a researcher has: schemas, dictionaries, tables, and what is typed."""

from __future__ import annotations

import json

import pytest

from agent.core.errors import OperatorError
from agent.trust.study import FieldKind
from provisioning.studies.fields import Column, parse_column, plain_name, read_columns

REDCAP = """\
"Variable / Field Name","Form Name","Field Type","Field Label","Choices, Calculations, OR Slider Labels",\
"Text Validation Type OR Show Slider Number","Text Validation Min","Text Validation Max"
record_id,base,text,Record,,,,
age,base,text,Age,,integer,18,110
smoker,base,yesno,Smokes,,,,
stage,base,radio,Stage,"1, early | 2, late | 3, late",,,
notes,base,notes,Notes,,,,
"""
DICTIONARY = """\
name,kind,unit,minimum,maximum,categories,code
sbp,number,mmHg,60,260,,loinc:8480-6
sex,flag,,,,,
cp,category,,,,typical|atypical|none,
"""
TABLE = "age;blood pressure;sex;cp;note\n50;120.5;1;a;x\n61;;0;b;x\n"
TABLE_SCHEMA = {
    "fields": [
        {"name": "age", "type": "integer", "constraints": {"minimum": 0, "maximum": 120}},
        {"name": "cp", "type": "string", "constraints": {"enum": ["a", "b"]}},
        {"name": "ill", "type": "boolean"},
        {"name": "chol", "type": "number", "unit": "mg/dl"},
    ]
}


def as_json(name: str, data: str) -> dict[str, dict[str, object]]:
    return {column.name: column.as_json() for column in read_columns(name, data.encode())}


def test_redcap_s_dictionary_gives_what_it_validates_and_leaves_free_text_out() -> None:
    found = as_json("dictionary.csv", REDCAP)
    assert found["age"] == {"name": "age", "kind": "number", "minimum": 18.0, "maximum": 110.0}
    assert found["smoker"]["kind"] == "flag"
    assert found["stage"]["categories"] == ["1", "2", "3"]
    assert set(found) == {"age", "smoker", "stage"}


def test_a_plain_dictionary_gives_units_bounds_and_codes() -> None:
    found = as_json("dictionary.csv", DICTIONARY)
    assert found["sbp"] == {
        "name": "sbp",
        "kind": "number",
        "unit": "mmHg",
        "minimum": 60.0,
        "maximum": 260.0,
        "code": "loinc:8480-6",
    }
    assert found["cp"]["categories"] == ["typical", "atypical", "none"]


def test_a_table_gives_names_and_what_its_rows_show() -> None:
    columns = {column.name: column for column in read_columns("table.csv", TABLE.encode("utf-8-sig"))}
    assert columns["age"] == Column("age", FieldKind.NUMBER, 50.0, 61.0)
    assert columns["blood_pressure"] == Column("blood_pressure", FieldKind.NUMBER, 120.5, 120.5)
    assert columns["sex"].kind is FieldKind.FLAG
    assert columns["cp"].categories == ("a", "b")
    assert not columns["note"].is_complete  # one text says nothing


def test_a_header_alone_gives_names_that_are_not_complete() -> None:
    columns = read_columns("header.csv", b"age,sex,num\n")
    assert [column.name for column in columns] == ["age", "sex", "num"]
    assert not any(column.is_complete for column in columns)


def test_a_table_schema_gives_types_and_constraints() -> None:
    found = as_json("schema.json", json.dumps(TABLE_SCHEMA))
    assert found["age"]["maximum"] == 120.0
    assert found["cp"]["categories"] == ["a", "b"]
    assert found["ill"] == {"name": "ill", "kind": "flag"}
    assert found["chol"] == {"name": "chol", "kind": "number", "unit": "mg/dl"}


def test_an_earlier_study_s_fields_are_taken_as_they_are() -> None:
    feature = {"name": "age", "kind": "number", "minimum": 0.0, "maximum": 120.0, "unit": "a", "code": "x:1"}
    for content in ({"data": {"features": [feature]}}, {"features": [feature]}, [feature]):
        assert as_json("study.json", json.dumps(content)) == {"age": feature}


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("age=number:0:120:years", FieldKind.NUMBER),
        ("age=number:-1.5:2", FieldKind.NUMBER),
        ("sex=flag", FieldKind.FLAG),
        ("stage=I|II|III", FieldKind.CATEGORY),
    ],
)
def test_typed(typed: str, kind: FieldKind) -> None:
    column = parse_column(typed)
    assert column.kind is kind
    assert column.is_complete


@pytest.mark.parametrize("typed", ["age", "age=number", "age=number:0", "age=number:a:b", "age=category", "sex=flag:1"])
def test_typed_wrongly(typed: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_column(typed)
    assert caught.value.code == "study.bad_field"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("schema.json", b"{"),
        ("schema.json", b"{}"),
        ("schema.json", b"3"),
        ("schema.json", b'{"fields": [{"type": "number"}]}'),
        ("schema.json", b'{"fields": []}'),
        ("table.csv", b""),
        ("table.csv", b"\xff\xfe\x00"),
        ("table.csv", b"a,a\n1,2\n"),
        ("table.csv", b"a,b\n1\n"),
        ("dictionary.csv", b"name,kind\nage,words\n"),
    ],
)
def test_no_file_of_fields(name: str, data: bytes) -> None:
    with pytest.raises(OperatorError) as caught:
        read_columns(name, data)
    assert caught.value.code == "study.bad_fields"


def test_names_become_names_that_a_study_may_write() -> None:
    assert [plain_name(name) for name in ("Blood pressure (mmHg)", "2nd visit", " age ")] == [
        "Blood_pressure_mmHg",
        "f_2nd_visit",
        "age",
    ]
