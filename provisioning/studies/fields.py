"""Reads which fields a study asks for from what a researcher has: a schema, a data dictionary, or a table's header.

.json  a Table Schema (Frictionless), or `features` as study.json writes them
.csv   a data dictionary as REDCap exports it, one of name,kind,unit,minimum,maximum,categories,code, or a table

A table's bounds come from its rows, where it has any; what a file does not say is asked, or given as `--field`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.core.errors import OperatorError
from agent.trust.study import MAX_FIELDS, FieldKind

MAX_FIELDS_BYTES: Final = 64 << 20
MAX_CATEGORIES: Final = 20
"""A column with more different texts is no category."""

_REDCAP_NAME: Final = "Variable / Field Name"
_REDCAP_CHOICES: Final = "Choices, Calculations, OR Slider Labels"
_REDCAP_VALIDATION: Final = "Text Validation Type OR Show Slider Number"


@dataclass(frozen=True, slots=True)
class Column:
    """A field as far as a file tells.

    Args:
        name: As the study will call it.
        kind: None where the file does not say.
        minimum, maximum: None where it does not say.
        unit, code: None where it has none.
        categories: Of a category field.
    """

    name: str
    kind: FieldKind | None = None
    minimum: float | None = None
    maximum: float | None = None
    unit: str | None = None
    categories: tuple[str, ...] = ()
    code: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether a study can ask for it as it is."""
        if self.kind is FieldKind.NUMBER:
            return self.minimum is not None and self.maximum is not None
        return self.kind is not None

    def as_json(self) -> dict[str, object]:
        """As study.json writes it."""
        fields = {
            "name": self.name,
            "kind": self.kind.value if self.kind else None,
            "unit": self.unit,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "categories": list(self.categories) or None,
            "code": self.code,
        }
        return {name: value for name, value in fields.items() if value is not None}


def read_columns(name: str, data: bytes) -> list[Column]:
    """Read a schema, a dictionary or a table.

    Args:
        name: The file's; its ending says what it is.
        data: Its content.

    Raises:
        OperatorError: It is none of them.
    """
    if len(data) > MAX_FIELDS_BYTES:
        raise _unreadable(f"it is larger than {MAX_FIELDS_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
        columns = _from_schema(json.loads(text)) if name.lower().endswith(".json") else _from_csv(text)
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    if not 0 < len(columns) <= MAX_FIELDS:
        raise _unreadable(f"it names {len(columns)} fields")
    if len({column.name for column in columns}) != len(columns):
        raise _unreadable("it names a field twice")
    return columns


def parse_column(text: str) -> Column:
    """Parse what was typed about a field: `age=number:0:120:years`, `sex=flag`, `stage=I|II|III`.

    Raises:
        OperatorError: It says something else.
    """
    name, _, what = text.partition("=")
    parts = what.split(":")
    try:
        if "|" in what:
            return Column(plain_name(name), FieldKind.CATEGORY, categories=tuple(what.split("|")))
        kind = FieldKind(parts[0])
        if kind is FieldKind.FLAG and len(parts) == 1:
            return Column(plain_name(name), kind)
        if kind is FieldKind.NUMBER and len(parts) in {3, 4}:
            return Column(plain_name(name), kind, float(parts[1]), float(parts[2]), parts[3] if parts[3:] else None)
    except ValueError:
        pass
    raise OperatorError(
        "study.bad_field",
        f"{text[:80]!r} does not describe a field.",
        next_step="Write age=number:0:120:years, sex=flag, or stage=I|II|III.",
    )


def plain_name(name: str) -> str:
    """A column's name as a study may write it: letters, digits and underscores, a letter first."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name.strip()).strip("_")
    return (plain if plain[:1].isalpha() else f"f_{plain}")[:63]


def _from_schema(content: Any) -> list[Column]:  # noqa: ANN401 - any JSON
    content = content.get("data", content) if isinstance(content, dict) else {"features": content}
    if "features" in content:
        return [_from_feature(item) for item in content["features"]]
    return [_from_table_schema(item) for item in content["fields"]]


def _from_feature(item: Mapping[str, Any]) -> Column:
    known = {name: item.get(name) for name in ("minimum", "maximum", "unit", "code")}
    return Column(item["name"], FieldKind(item["kind"]), categories=tuple(item.get("categories", ())), **known)


def _from_table_schema(item: Mapping[str, Any]) -> Column:
    """Source: Frictionless Table Schema, `type` and `constraints`."""
    limits = item.get("constraints", {})
    name, kind, unit = plain_name(item["name"]), item.get("type", "any"), item.get("unit")
    if choices := tuple(map(str, limits.get("enum", ()))):
        return _of_texts(name, choices)
    if kind == "boolean":
        return Column(name, FieldKind.FLAG)
    if kind in {"integer", "number"}:
        return Column(name, FieldKind.NUMBER, _number(limits.get("minimum")), _number(limits.get("maximum")), unit)
    return Column(name)


def _from_csv(text: str) -> list[Column]:
    rows = csv.reader(io.StringIO(text), csv.Sniffer().sniff(text.partition("\n")[0] + "\n", ",;\t|"), strict=True)
    header = [cell.strip() for cell in next(rows)]
    if _REDCAP_NAME in header:
        return _dictionary(header, rows, _from_redcap)
    if {"name", "kind"} <= set(header):
        return _dictionary(header, rows, _from_row)
    columns: list[list[str]] = [[] for _ in header]
    for row in rows:
        for values, cell in zip(columns, row, strict=bool(row)):
            values.append(cell.strip())
    return [_of_values(plain_name(name), values) for name, values in zip(header, columns, strict=True)]


def _dictionary(
    header: Sequence[str], rows: Iterable[Sequence[str]], read: Callable[[Mapping[str, str]], Column | None]
) -> list[Column]:
    found = (read(dict(zip(header, map(str.strip, row), strict=False))) for row in rows if row)
    return [column for column in found if column is not None]


def _from_row(row: Mapping[str, str]) -> Column:
    return Column(
        plain_name(row["name"]),
        FieldKind(row["kind"]) if row["kind"] else None,
        _number(row.get("minimum")),
        _number(row.get("maximum")),
        row.get("unit") or None,
        tuple(part.strip() for part in row.get("categories", "").split("|") if part.strip()),
        row.get("code") or None,
    )


def _from_redcap(row: Mapping[str, str]) -> Column | None:
    """One line of REDCap's data dictionary; texts without a number in them are left out."""
    name, kind = plain_name(row[_REDCAP_NAME]), row["Field Type"]
    if kind in {"yesno", "truefalse"}:
        return Column(name, FieldKind.FLAG)
    if kind in {"radio", "dropdown"}:
        return _of_texts(name, [choice.partition(",")[0].strip() for choice in row[_REDCAP_CHOICES].split("|")])
    if kind in {"calc", "slider"} or row.get(_REDCAP_VALIDATION, "").startswith(("number", "integer")):
        low, high = row.get("Text Validation Min"), row.get("Text Validation Max")
        return Column(name, FieldKind.NUMBER, _number(low), _number(high))
    return None


def _of_values(name: str, values: Sequence[str]) -> Column:
    """What a table's column is, by its values; those that are missing do not count."""
    known = [value for value in values if value]
    numbers = [number for value in known if (number := _number(value)) is not None]
    texts = sorted(set(known))
    if not known:
        return Column(name)
    if set(texts) <= {"0", "1"}:
        return Column(name, FieldKind.FLAG)
    if len(numbers) == len(known):
        return Column(name, FieldKind.NUMBER, min(numbers), max(numbers))
    return _of_texts(name, texts) if len(texts) <= MAX_CATEGORIES else Column(name)


def _of_texts(name: str, texts: Sequence[str]) -> Column:
    if set(texts) <= {"0", "1"}:
        return Column(name, FieldKind.FLAG)
    return Column(name, FieldKind.CATEGORY, categories=tuple(texts)) if len(texts) > 1 else Column(name)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _unreadable(what: str) -> OperatorError:
    return OperatorError(
        "study.bad_fields",
        f"The file of fields cannot be used: {what}.",
        next_step="Give a Table Schema (.json), a data dictionary or a table with a header (.csv).",
    )
