"""A small study of hypertension, and the catalog entries that meet it."""

from __future__ import annotations

import random
from pathlib import Path

from agent.data.catalog import Dataset
from agent.trust.study import DataRequirement, FieldKind, FieldSpec, LabelSpec

AGE = FieldSpec(name="age", kind=FieldKind.NUMBER, unit="a", minimum=0, maximum=120)
PRESSURE = FieldSpec(name="pressure", kind=FieldKind.NUMBER, unit="mm[Hg]", minimum=50, maximum=300)
GROUP = FieldSpec(name="group", kind=FieldKind.CATEGORY, categories=("1", "2", "3"))
SMOKER = FieldSpec(name="smoker", kind=FieldKind.FLAG)
HEADER = "age,pressure,group,smoker,outcome"


def requirement(**changes: object) -> DataRequirement:
    """What the study asks, with `changes`."""
    values: dict[str, object] = {
        "schema_name": "hypertension",
        "features": (AGE, PRESSURE, GROUP, SMOKER),
        "label": LabelSpec(field="outcome"),
        "minimum_rows": 10,
    }
    return DataRequirement.model_validate(values | changes)


def dataset(**changes: object) -> Dataset:
    """A catalog entry that fits, with `changes`."""
    values: dict[str, object] = {
        "id": "ward-3",
        "schema": "hypertension",
        "source": Path("ward-3.csv"),
        "missing": ("", "?"),
        "fields": {"age": {"unit": "a"}, "pressure": {"unit": "mm[Hg]"}},
    }
    return Dataset.model_validate(values | changes)


def lines(rows: int, *, seed: int = 0) -> list[str]:
    """Good CSV lines without a header."""
    dice = random.Random(seed)
    return [
        f"{dice.randint(30, 90)},{dice.randint(90, 200)},{dice.randint(1, 3)},{dice.choice('YN')},{number % 2}"
        for number in range(rows)
    ]


def table(*extra: str, rows: int = 40, header: str = HEADER) -> bytes:
    """A CSV file of good lines, with `extra` lines first."""
    return "\n".join([header, *extra, *lines(rows)]).encode()
