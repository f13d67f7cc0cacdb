"""`python -m tests.bench [SECTION ...]`: measure, print one table, write build/bench.json."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from rich.console import Console

from tests.bench.cold import drop_libraries
from tests.bench.table import Row, render, store_rows

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

SECTIONS = {
    "accuracy": "tests.bench.accuracy",
    "enrolment": "tests.bench.enrolment",
    "footprint": "tests.bench.footprint",
    "identity": "tests.bench.identity",
    "machine": "tests.bench.machine",
    "rounds": "tests.bench.rounds",
    "secagg": "tests.bench.secagg",
    "secure_rounds": "tests.bench.secure_rounds",
    "updates": "tests.bench.updates",
}
"""Each section's module; its `rows()` measures and yields `Row`s. A module is imported only where its section runs."""

OUTPUT = Path("build/bench.json")
PIPE_WIDTH = 150
"""Columns where there is no terminal to ask."""


def measure(section: str, report: Console) -> Iterator[Row]:
    """Yield a section's rows as they are measured."""
    report.print(f"[bold]{section}[/] ...")
    yield from cast("Iterable[Row]", importlib.import_module(SECTIONS[section]).rows())


def main(arguments: list[str]) -> int:
    """Run the named sections, or all; 0 when every promise holds, 1 when not, 2 for an unknown section."""
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    progress = Console(stderr=True)
    unknown = [name for name in arguments if name not in SECTIONS]
    if unknown:
        progress.print(f"No such section: {', '.join(unknown)}. There are: {', '.join(SECTIONS)}.")
        return 2
    drop_libraries(Path(sysconfig.get_path("platlib")))
    rows: list[Row] = []
    failed: list[str] = []
    for section in arguments or SECTIONS:
        try:
            rows.extend(measure(section, progress))
        except Exception:  # noqa: BLE001 - one broken section must not cost the others' figures; it still fails the run
            traceback.print_exc()
            failed.append(section)
    console.print(render(rows))
    store_rows(OUTPUT, rows)
    missed = [row.name for row in rows if row.holds is False]
    console.print(f"{len(rows)} rows, {len(missed)} short of their target; written to {OUTPUT}.")
    if failed:
        console.print(f"[bold red]Sections that broke: {', '.join(failed)}[/]")
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
