"""Reading cells: from a text to a number, a category or a flag, or to the reason why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from agent.data.catalog import Dataset
from agent.data.records import Cell
from agent.data.requirement import FieldRequirement

_FLAGS = MappingProxyType({"0": 0.0, "1": 1.0, "no": 0.0, "yes": 1.0, "n": 0.0, "y": 1.0, "false": 0.0, "true": 1.0})


class State(IntEnum):
    """What became of a cell."""

    READ = 0
    MISSING = 1
    NO_NUMBER = 2
    OUTSIDE = 3
    UNKNOWN = 4


Reading = tuple[float, State]


@dataclass(frozen=True, slots=True)
class Column:
    """One field's cells, read.

    Args:
        values: Shape (rows,); a number, the index of a category, or 0 / 1; NaN where the state is not READ.
        states: Shape (rows,), a `State` each.
    """

    values: npt.NDArray[np.float64]
    states: npt.NDArray[np.int8]


def read_feature(cells: Iterable[Cell], field: FieldRequirement, dataset: Dataset) -> Column:
    """Read the cells of one model input."""
    readers: Mapping[str, Callable[[str], Reading]] = {
        "number": lambda text: _within(_number(text, dataset), field),
        "category": _category_reader(field),
        "flag": _flag,
    }
    return _read(cells, field.name, dataset, readers[field.kind])


def read_outcome(cells: Iterable[Cell], name: str, dataset: Dataset) -> Column:
    """Read the cells of the outcome, as numbers."""
    return _read(cells, name, dataset, lambda text: _number(text, dataset))


def _read(cells: Iterable[Cell], name: str, dataset: Dataset, reader: Callable[[str], Reading]) -> Column:
    """Read all cells, each distinct one once: clinical columns repeat themselves."""
    source = dataset.field(name)
    missing = frozenset(dataset.missing) | frozenset(source.missing)
    known: dict[Cell, Reading] = {None: (math.nan, State.MISSING)}
    readings: list[Reading] = []
    for cell in cells:
        reading = known.get(cell)
        if reading is None:
            text = _text(cell)
            lacks = text in missing
            reading = (math.nan, State.MISSING) if lacks else reader(source.values.get(text, text))
            known[cell] = reading
        readings.append(reading)
    values = np.fromiter((value for value, _ in readings), dtype=np.float64, count=len(readings))
    states = np.fromiter((state for _, state in readings), dtype=np.int8, count=len(readings))
    return Column(values, states)


def _text(cell: Cell) -> str:
    """The cell as a CSV file would have it."""
    if isinstance(cell, bool):
        return str(int(cell))
    return cell.strip() if isinstance(cell, str) else str(cell)


def _number(text: str, dataset: Dataset) -> Reading:
    if dataset.decimal == "," and "." not in text:
        text = text.replace(",", ".", 1)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Python reads "1_000", and words such as "infinity"; a clinical table means something else by them.
    if "_" in text or not math.isfinite(value):
        return math.nan, State.NO_NUMBER
    return value, State.READ


def _within(reading: Reading, field: FieldRequirement) -> Reading:
    value, state = reading
    low = -math.inf if field.minimum is None else field.minimum
    high = math.inf if field.maximum is None else field.maximum
    return (math.nan, State.OUTSIDE) if state is State.READ and not low <= value <= high else reading


def _category_reader(field: FieldRequirement) -> Callable[[str], Reading]:
    indices = {_canonical(text): float(index) for index, text in enumerate(field.categories)}

    def read(text: str) -> Reading:
        index = indices.get(_canonical(text))
        return (math.nan, State.UNKNOWN) if index is None else (index, State.READ)

    return read


def _flag(text: str) -> Reading:
    value = _FLAGS.get(_canonical(text).lower())
    return (math.nan, State.UNKNOWN) if value is None else (value, State.READ)


def _canonical(text: str) -> str:
    """A code as written, except that `1`, `1.0` and `01` are the same."""
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else text.strip()
