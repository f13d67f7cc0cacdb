"""The catalog: which data sets a hospital has, where they lie and how their columns are called. It holds no record.

[datasets.cleveland]
title = "Heart disease, Cleveland"
schema = "heart-disease"
source = "processed.cleveland.data"      # beside the catalog, or an absolute path
header = false
columns = ["age", "sex", "chol", "num"]
missing = ["?"]

[datasets.cleveland.fields.cholesterol]  # only where a study's name, unit or texts differ
column = "chol"
unit = "mg/dl"
missing = ["0"]
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.errors import OperatorError
from agent.core.ids import DatasetID, IdentifierText
from agent.core.validation import explain_invalid
from agent.data.quality import DeclinedError

MAX_CATALOG_BYTES = 1 << 20
MAX_SOURCE_BYTES = 4 << 30

Text = Annotated[str, Field(max_length=200)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class FieldSource(_Entry):
    """How one field of a study is found here.

    Args:
        column: The local column; None where it is called as in the study.
        unit: Unit of the local numbers; a study that needs another one is refused.
        missing: Texts that mean "missing" in this column, besides the data set's own.
        values: Local text -> the study's text, for codes that differ.
    """

    column: Text | None = None
    unit: Text | None = None
    missing: tuple[Text, ...] = ()
    values: Mapping[str, Text] = Field(default_factory=dict)


class Dataset(_Entry):
    """One local data set.

    Args:
        id: Its name in this hospital.
        title: For people.
        schema_name: What its records describe; a study needs a data set of its own schema name.
        source: The file.
        format: `csv` or `parquet`.
        header: Whether a CSV file's first line names its columns.
        columns: Names of the columns, in order, where the file has no header.
        encoding: Of a CSV file.
        delimiter: Between a CSV file's columns.
        decimal: Decimal sign of its numbers.
        missing: Texts that mean "missing" in every column.
        fields: Study's field name -> where it differs from the column of that name.
    """

    id: IdentifierText
    title: str = Field(default="", max_length=500)
    schema_name: IdentifierText = Field(alias="schema")
    source: Path
    format: Literal["csv", "parquet"] = "csv"
    header: bool = True
    columns: tuple[Text, ...] = Field(default=(), max_length=10_000)
    encoding: Literal["utf-8", "windows-1252"] = "utf-8"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    missing: tuple[Text, ...] = ("",)
    fields: Mapping[str, FieldSource] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "csv" and self.header == bool(self.columns):
            raise ValueError("a CSV file either has a header, or `header = false` and all its `columns` listed")
        if self.format == "parquet" and self.columns:
            raise ValueError("a Parquet file names its own columns")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("a column is listed twice")
        return self

    def field(self, name: str) -> FieldSource:
        """Where the study's field `name` is found."""
        return self.fields.get(name, FieldSource())

    def column(self, name: str) -> str:
        """The local column of the study's field `name`."""
        return self.field(name).column or name


@dataclass(frozen=True, slots=True)
class Catalog:
    """All data sets of a hospital."""

    datasets: Mapping[str, Dataset]

    def dataset(self, name: str) -> Dataset:
        """Return one data set.

        Raises:
            OperatorError: The catalog has no such data set.
        """
        try:
            return self.datasets[DatasetID(name)]
        except KeyError:
            known = ", ".join(sorted(self.datasets)) or "none"
            raise OperatorError(
                "catalog.unknown_dataset",
                f"The catalog has no data set {name[:80]!r}; it has: {known}.",
                next_step="Name one of these, or add the data set to the catalog.",
            ) from None

    def with_schema(self, schema_name: str) -> tuple[Dataset, ...]:
        """The data sets whose records are of that schema."""
        return tuple(item for item in self.datasets.values() if item.schema_name == schema_name)


def parse_catalog(text: str, *, folder: Path) -> Catalog:
    """Parse a catalog.

    Args:
        text: TOML.
        folder: Where relative sources start.

    Raises:
        OperatorError: It is no TOML, or breaks a rule; the sentence names the place.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(str(error)) from error
    entries = content.pop("datasets", {})
    if content or not isinstance(entries, dict):
        raise _invalid("only tables [datasets.<name>] may stand in it")
    return Catalog({DatasetID(name): _parse_dataset(name, entry, folder) for name, entry in entries.items()})


def load_catalog(path: Path) -> Catalog:
    """Read a catalog file.

    Raises:
        OperatorError: It cannot be read, is larger than 1 MiB, or `parse_catalog` refuses it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CATALOG_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            "catalog.unreadable",
            f"The catalog {path} cannot be read: {error}.",
            next_step="Check the path and its permissions; the file is TOML in UTF-8.",
        ) from error
    if len(data) > MAX_CATALOG_BYTES:
        raise _invalid(f"it is larger than {MAX_CATALOG_BYTES} bytes")
    return parse_catalog(text, folder=path.parent)


def open_source(dataset: Dataset) -> int:
    """Open a data set's file for reading only; the caller closes the descriptor.

    Raises:
        DeclinedError: There is no such regular file, it cannot be read, or it is too large.
    """
    try:
        # O_NONBLOCK: a pipe in the file's place must not make us wait.
        descriptor = os.open(dataset.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise no_source(dataset, error.strerror or "unknown reason") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_SOURCE_BYTES:
        return descriptor
    os.close(descriptor)
    raise no_source(dataset, f"it is no plain file of at most {MAX_SOURCE_BYTES >> 30} GiB")


def _parse_dataset(name: str, entry: object, folder: Path) -> Dataset:
    if not isinstance(entry, dict):
        raise _invalid(f"datasets.{name} is no table")
    try:
        dataset = Dataset.model_validate({**entry, "id": name})
    except ValidationError as error:
        raise _invalid(explain_invalid(error, whole="catalog", within=("datasets", name))) from error
    return dataset.model_copy(update={"source": folder / dataset.source})


def _invalid(what: str) -> OperatorError:
    return OperatorError(
        "catalog.invalid",
        f"The catalog cannot be used: {what}.",
        next_step="Correct the catalog; `seh-agent data check` shows whether it fits a study.",
    )


def no_source(dataset: Dataset, reason: str) -> DeclinedError:
    """The failure of a data set whose file cannot be used."""
    return DeclinedError(
        "data.no_source",
        f"The file of data set {dataset.id} cannot be used: {reason}.",
        next_step=f"Check {dataset.source} and its permissions.",
    )
