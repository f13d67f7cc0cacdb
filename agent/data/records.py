"""Reading a data set's file into columns of cells. It runs in the training worker only: a file is foreign input."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from agent.data.catalog import Dataset
from agent.data.quality import DeclinedError

MAX_ROWS = 5_000_000
MAX_CELLS = 1 << 28
MAX_RECORD_LINES = 50
"""A quoted cell may hold line breaks; a stray quote must not swallow the file."""

Cell = object
"""A text, or what a Parquet file holds: a number, a truth value, None."""


@dataclass(frozen=True, slots=True)
class Records:
    """The columns that a study needs, before any value is read.

    Args:
        names: All columns of the file.
        columns: Column -> its cells; all of one length. Columns that the file lacks are absent.
        lines: Line (CSV) or row (Parquet) number of each record, from 1.
        broken: Line numbers of records that have another number of columns than the file.
    """

    names: tuple[str, ...]
    columns: dict[str, Sequence[Cell]]
    lines: Sequence[int]
    broken: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Records in the file, broken ones included."""
        return len(self.lines) + len(self.broken)


def parse_records(data: bytes, dataset: Dataset, *, wanted: Collection[str]) -> Records:
    """Parse a data set's file.

    Args:
        data: The file's bytes.
        dataset: Its catalog entry.
        wanted: The columns to keep.

    Raises:
        DeclinedError: The file as a whole is not of its format, or too large; single broken records are set aside.
    """
    return {"csv": _parse_csv, "parquet": _parse_parquet}[dataset.format](data, dataset, wanted)


def _parse_csv(data: bytes, dataset: Dataset, wanted: Collection[str]) -> Records:
    encoding = "utf-8-sig" if dataset.encoding == "utf-8" else dataset.encoding
    records = _csv_records(data.decode(encoding, errors="replace"), dataset.delimiter)
    names = dataset.columns
    if dataset.header:
        _, head = next(records, (0, []))
        names = tuple(name.strip() for name in head)
    _check_names(names, dataset)
    kept = [(position, name) for position, name in enumerate(names) if name in wanted]
    columns: dict[str, list[Cell]] = {name: [] for _, name in kept}
    lines: list[int] = []
    broken: list[int] = []
    for line, record in records:
        if len(lines) + len(broken) >= MAX_ROWS:
            raise _too_large(dataset)
        if len(record) != len(names):
            broken.append(line)
            continue
        lines.append(line)
        for position, name in kept:
            columns[name].append(record[position])
    return Records(names, dict(columns), lines, tuple(broken))


def _csv_records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line number, cells); a record that cannot be read has no cells.

    Each record is parsed by itself, so that an unbalanced quote costs one line and not the rest of the file.
    """
    # Not str.splitlines: it also splits at characters that may stand in a cell.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    position = 0
    while position < len(lines):
        size = _record_lines(lines, position)
        record = "\n".join(lines[position : position + size])
        if record.strip():
            yield position + 1, _csv_cells(record, delimiter)
        position += size


def _record_lines(lines: list[str], start: int) -> int:
    """How many lines the record at `start` takes: to where its quotes balance, or one if they never do."""
    if lines[start].count('"') % 2 == 0:
        return 1
    for size in range(2, min(MAX_RECORD_LINES, len(lines) - start) + 1):
        if lines[start + size - 1].count('"') % 2:
            return size
    return 1


def _csv_cells(record: str, delimiter: str) -> list[str]:
    try:
        rows = list(csv.reader([record], delimiter=delimiter, strict=True))
    except csv.Error:
        return []
    return rows[0] if len(rows) == 1 else []


def _parse_parquet(data: bytes, dataset: Dataset, wanted: Collection[str]) -> Records:
    # Loaded where it is used: most hospitals' files are CSV, and every worker starts faster without it.
    import pyarrow as pa  # noqa: PLC0415 (see above)
    import pyarrow.parquet as pq  # noqa: PLC0415 (see above)

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = tuple(file.schema_arrow.names)
        kept = [name for name in names if name in wanted]
        # What the file claims is compared with our bounds before a page is decompressed.
        if file.metadata.num_rows > MAX_ROWS or file.metadata.num_rows * max(len(kept), 1) > MAX_CELLS:
            raise _too_large(dataset)
        _check_names(names, dataset)
        table = file.read(columns=kept, use_threads=False)
        columns = {name: table.column(name).to_pylist() for name in kept}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(dataset, "it is not a readable Parquet file") from error
    return Records(names, columns, range(1, table.num_rows + 1))


def _check_names(names: tuple[str, ...], dataset: Dataset) -> None:
    if len(set(names)) != len(names):
        raise _unreadable(dataset, "two of its columns have the same name")


def _unreadable(dataset: Dataset, what: str) -> DeclinedError:
    return DeclinedError(
        "data.unreadable",
        f"The file of data set {dataset.id} cannot be used: {what}.",
        next_step="Export it again, and compare its format with the catalog.",
    )


def _too_large(dataset: Dataset) -> DeclinedError:
    return DeclinedError(
        "data.too_large",
        f"The file of data set {dataset.id} has more than {MAX_ROWS} rows, or {MAX_CELLS} values.",
        next_step="Split it into several data sets.",
    )
