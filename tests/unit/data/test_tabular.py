from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.data.catalog import parse_catalog
from agent.data.quality import DataReport, DeclinedError, FindingKind
from agent.data.tabular import Moment, Table, load_table
from agent.trust.metrics import moments_from_sums
from tests.demo.cohorts import COHORTS
from tests.unit.data.tables import HEADER, dataset, lines, requirement, table


def _fitting(data: bytes, **changes: object) -> tuple[Table, DataReport]:
    loaded, report = load_table(data, dataset(), requirement(**changes))
    assert loaded is not None, report.findings
    return loaded, report


def _reasons(report: DataReport) -> dict[str, int]:
    return {item.reason: item.rows for item in report.set_aside}


def test_the_heart_centres_split_as_published() -> None:
    cohort = COHORTS["heart"]()
    sizes = []
    for hospital in cohort.hospitals:
        entry = parse_catalog(cohort.catalog_text(hospital, hospital.source), folder=Path()).dataset("heart")
        loaded, report = load_table(hospital.source.read_bytes(), entry, cohort.data)
        assert loaded is not None
        assert loaded.values.shape[1] == 13
        sizes.append((report.train_rows, report.held_out_rows))
    assert sizes == [(199, 104), (172, 89), (30, 16), (85, 45)]


def test_categories_lose_their_first_and_codes_may_be_written_as_numbers() -> None:
    loaded, _ = _fitting(table("50,120,1.0,Y,1", "51,121,2.0,no,0", "52,122,03,1,1"))
    assert loaded.values[:3].tolist() == [[50, 120, 0, 0, 1], [51, 121, 1, 0, 0], [52, 122, 0, 1, 1]]


def test_local_standardisation_uses_training_rows_only() -> None:
    train, held_out = _fitting(table())[0].parts()
    assert train.inputs.dtype == np.float32
    assert train.inputs[:, :2].mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert train.inputs[:, :2].std(axis=0) == pytest.approx([1, 1], abs=1e-6)
    assert abs(held_out.inputs[:, :2].mean(axis=0)).max() > 1e-3
    assert set(np.unique(train.inputs[:, 2:])) <= {0.0, 1.0}


def test_federated_standardisation_needs_and_uses_the_federations_moments() -> None:
    loaded, _ = _fitting(table(), standardise="federated")
    with pytest.raises(ValueError, match="moments"):
        loaded.parts()
    train, _ = loaded.parts({"age": Moment(10, 2), "pressure": Moment(100, 50)})
    raw = loaded.values[loaded.train]
    assert train.inputs[:, 0] == pytest.approx((raw[:, 0] - 10) / 2)
    assert train.inputs[:, 1] == pytest.approx((raw[:, 1] - 100) / 50)


def test_sums_of_several_hospitals_give_the_moments_of_all_their_rows() -> None:
    cohort = COHORTS["heart"]()
    study = cohort.study(cohort.hospitals, b"x", rounds=1, now=pd.Timestamp("2026-01-01", tz="UTC").to_pydatetime())
    study = study.model_copy(update={"data": requirement(standardise="federated")})
    tables = [_fitting("\n".join([HEADER, *lines(40, seed=seed)]).encode())[0] for seed in range(3)]
    sums: dict[str, float] = {}
    for item in tables:
        for name, value in item.sums(1000).items():
            sums[name] = sums.get(name, 0.0) + value
    everything = np.concatenate([item.values[item.train] for item in tables])
    moments = moments_from_sums(study, sums)
    assert moments["age"].mean == pytest.approx(everything[:, 0].mean())
    assert moments["pressure"].deviation == pytest.approx(everything[:, 1].std())


def test_sums_beyond_the_cap_keep_their_ratio() -> None:
    loaded, _ = _fitting(table())
    whole, capped = loaded.sums(1000), loaded.sums(5)
    assert capped["trained"] == 5
    assert capped["sum:age"] / 5 == pytest.approx(whole["sum:age"] / whole["trained"])


def test_gaps_are_filled_with_the_training_rows_means() -> None:
    loaded, report = _fitting(table(*["?,120,?,?,1"] * 6), missing="impute-mean")
    known = loaded.values[loaded.train]
    gaps = np.flatnonzero(loaded.values[:6, 1] == 120)
    original = known[[row not in gaps for row in loaded.train]]
    assert loaded.values[0, 0] == pytest.approx(original[:, 0].mean())
    assert loaded.values[0, 2:] == pytest.approx(original[:, 2:].mean(axis=0))
    assert report.missing == {"age": 6, "group": 6, "smoker": 6}


def test_rows_with_gaps_are_dropped_where_the_study_says_so() -> None:
    _, report = _fitting(table("?,120,1,Y,1", "50,,1,Y,1"))
    assert _reasons(report) == {"age: no value": 1, "pressure: no value": 1}


def test_unreadable_rows_are_set_aside_counted_and_found_again() -> None:
    bad = (
        "old,120,1,Y,1",
        "50,900,1,Y,1",
        "50,120,7,Y,1",
        "50,120,1,maybe,1",
        "50,120,1,Y,",
        "50,120,1,Y,dead",
        "50,120,1,Y",
        "50,120,1,Y,1,9",
        "1_0,120,1,Y,1",
        "nan,120,1,Y,1",
    )
    _, report = _fitting(table(*bad))
    assert _reasons(report) == {
        "age: not a number": 3,
        "the line has another number of columns than the file": 2,
        "pressure: outside 50 to 300 mm[Hg]": 1,
        "group: a text that the study does not list": 1,
        "smoker: a text that the study does not list": 1,
        "outcome (outcome): no value": 1,
        "outcome (outcome): no number": 1,
    }
    assert report.usable_rows == 40
    assert report.set_aside[0].examples == (2, 10, 11)


def test_a_stray_quote_costs_one_row() -> None:
    _, report = _fitting(table('50,"120,1,Y,1', "51,120,1,Y,1", rows=60))
    assert report.usable_rows == 61
    assert sum(_reasons(report).values()) == 1


def test_a_quoted_cell_may_hold_a_line_break() -> None:
    note = [f'{line},"first\nsecond"' for line in lines(40)]
    _, report = _fitting("\n".join([f"{HEADER},note", *note]).encode())
    assert (report.rows, report.usable_rows) == (40, 40)


def test_windows_files_and_odd_characters_in_cells() -> None:
    note = [f"{line},Gr\u00f6\u00dfe\x0c" for line in lines(40)]
    data = "\r\n".join([f"{HEADER},gr\u00f6\u00dfe", *note]).encode("windows-1252")
    loaded, report = load_table(data, dataset(encoding="windows-1252"), requirement())
    assert loaded is not None
    assert report.usable_rows == 40


def test_semicolons_decimal_commas_and_local_codes() -> None:
    rows = [
        f"{age},5;{pressure};{group};{smoker};{'tot' if outcome == '1' else 'lebt'}"
        for age, pressure, group, smoker, outcome in (line.split(",") for line in lines(40))
    ]
    entry = dataset(
        delimiter=";",
        decimal=",",
        columns=("alter", "pressure", "group", "smoker", "ausgang"),
        header=False,
        fields={
            "age": {"unit": "a", "column": "alter"},
            "pressure": {"unit": "mm[Hg]"},
            "outcome": {"column": "ausgang", "values": {"tot": "1", "lebt": "0"}},
        },
    )
    loaded, report = load_table("\n".join(rows).encode(), entry, requirement())
    assert loaded is not None
    assert report.train_positive + report.held_out_positive == 20
    assert loaded.values[0, 0] % 1 == 0.5


def test_parquet_reads_as_csv_does() -> None:
    frame = pd.read_csv(io.BytesIO(table("50,,1,Y,1")))
    stream = io.BytesIO()
    frame.to_parquet(stream)
    loaded, report = load_table(stream.getvalue(), dataset(format="parquet"), requirement())
    expected, _ = _fitting(table("50,,1,Y,1"))
    assert loaded is not None
    assert loaded.values.tolist() == expected.values.tolist()
    assert loaded.train.tolist() == expected.train.tolist()
    assert _reasons(report) == {"pressure: no value": 1}


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"age,pressure\n"])
def test_what_is_no_parquet_file_is_declined(data: bytes) -> None:
    with pytest.raises(DeclinedError) as caught:
        load_table(data, dataset(format="parquet"), requirement())
    assert caught.value.code == "data.unreadable"


@pytest.mark.parametrize(
    ("data", "entry", "kind", "words"),
    [
        (table(), {"schema": "asthma"}, FindingKind.SCHEMA, "'asthma'"),
        (table(), {"fields": {"pressure": {"unit": "mm[Hg]"}}}, FindingKind.UNIT, "age has no unit"),
        (table(), {"fields": {"age": {"unit": "a"}, "pressure": {"unit": "kPa"}}}, FindingKind.UNIT, "kPa"),
        (table(header="age,pressure,group,smoke,result"), {}, FindingKind.COLUMNS, "outcome, smoker"),
        (b"", {}, FindingKind.EMPTY, "no rows"),
        (HEADER.encode(), {}, FindingKind.EMPTY, "no rows"),
        (table(rows=9), {}, FindingKind.COHORT, "Only 9 rows of 9"),
        (table(*["old,120,1,Y,1"] * 50, rows=5), {}, FindingKind.COHORT, "Only 5 rows of 55"),
        (table(*["50,12,1,Y,1"] * 50), {}, FindingKind.UNIT, "50 of 90 values of pressure lie outside 50 to 300"),
    ],
)
def test_what_does_not_fit_is_said_in_plain_words(
    data: bytes, entry: dict[str, object], kind: FindingKind, words: str
) -> None:
    loaded, report = load_table(data, dataset(**entry), requirement())
    assert loaded is None
    assert [item.kind for item in report.findings] == [kind]
    assert words in report.findings[0].sentence
    with pytest.raises(DeclinedError, match="does not fit the study") as caught:
        report.require_fit()
    assert caught.value.code == "data.does_not_fit"


def test_a_field_without_any_value_cannot_be_filled() -> None:
    rows = [",".join(["?", *line.split(",")[1:]]) for line in lines(40)]
    _, report = load_table("\n".join([HEADER, *rows]).encode(), dataset(), requirement(missing="impute-mean"))
    assert [item.sentence for item in report.findings] == ["Field age has no value in any row."]


def test_the_report_reads_as_sentences() -> None:
    _, report = _fitting(table("old,120,1,Y,1"))
    assert report.sentences() == (
        "1 row set aside: age: not a number (for example line 2).",
        "40 of 41 rows take part: 26 to train on (13 positive), 14 held out (7 positive).",
    )


def test_two_columns_of_one_name_are_declined() -> None:
    with pytest.raises(DeclinedError, match="same name"):
        load_table(table(header="age,age,group,smoker,outcome"), dataset(), requirement())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_reported_and_never_crash(data: bytes) -> None:
    _, report = load_table(HEADER.encode() + b"\n" + data, dataset(), requirement())
    assert report.rows == sum(item.rows for item in report.set_aside) + report.usable_rows or not report.fits
