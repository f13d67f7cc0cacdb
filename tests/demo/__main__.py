"""`python -m tests.demo`: hospitals found a consortium, train one model, and show what came of it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.demo import BEGIN_S
from tests.demo.cohorts import COHORTS
from tests.demo.found import why_no_tpm
from tests.demo.live import open_view
from tests.demo.parts import PartFailedError
from tests.demo.report import METRICS
from tests.demo.run import Options, Stopwatch, held_output, run_demo
from tests.demo.summary import METHODS, Summary

OUTPUT = Path("build/demo")
SMALLEST_COHORT = 3
"""With two hospitals, each could subtract its own update from the sum."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration; 0 when all went well."""
    asked = _parse(arguments)
    cohort = COHORTS[asked.data]()
    console = Console()
    hospitals = cohort.hospitals[: asked.hospitals or len(cohort.hospitals)]
    options = Options(cohort, hospitals, asked.rounds, _choose_key(asked.key, console), asked.output, not asked.plain)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        summary = _run(options, console, keep=asked.keep)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return INTERRUPTED
    except PartFailedError as error:
        _explain(console, error)
        return 1
    _conclude(console, summary, asked.output)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS='...'", description=__doc__)
    parser.add_argument("--data", choices=sorted(COHORTS), default="heart", help="which patients (default: heart)")
    parser.add_argument(
        "--hospitals", type=int, metavar="N", help="how many of the data set's hospitals (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="R", help="rounds of training (default: 20)")
    parser.add_argument("--key", choices=["tpm", "software"], default="tpm", help="where node keys live (default: tpm)")
    parser.add_argument("--plain", action="store_true", help="aggregate without masks, for comparison")
    parser.add_argument("--keep", action="store_true", help="leave the consortium running until Ctrl-C")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"where results go (default: {OUTPUT})"
    )
    asked = parser.parse_args(arguments)
    most = len(COHORTS[asked.data]().hospitals)
    least = 2 if asked.plain else SMALLEST_COHORT
    if asked.hospitals is not None and not least <= asked.hospitals <= most:
        parser.error(f"--hospitals: {least} to {most} (fewer than {SMALLEST_COHORT} would show each other's updates)")
    if not 1 <= asked.rounds <= 1000:
        parser.error("--rounds: 1 to 1000")
    return asked


def _choose_key(wanted: str, console: Console) -> str:
    reason = why_no_tpm() if wanted == "tpm" else ""
    if not reason:
        return wanted
    console.print(f"Using software keys, because {reason}; hardware protects none of them.", style="yellow")
    return "software"


def _run(options: Options, console: Console, *, keep: bool) -> Summary:
    names = {str(hospital.site): hospital.name for hospital in options.hospitals}
    watch = Stopwatch(BEGIN_S)
    with (
        held_output(options.output) as place,
        open_view(console, title=options.cohort.title, hospitals=names, rounds=options.rounds) as view,
    ):

        def stay() -> None:
            if keep:
                view.phase("all done; the consortium stays up until Ctrl-C")
                view.note(f"The consortium runs on, under {place}; Ctrl-C stops it.")
                _wait_for_interrupt()

        return run_demo(options, place.resolve(), view, watch, while_running=stay)


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        return


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop; an impatient second signal must not cut the stopping short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _explain(console: Console, error: PartFailedError) -> None:
    console.print(f"[bold red]{error.part} failed:[/] ", end="")
    console.print(error.what, markup=False, highlight=False)
    if error.log:
        console.print(error.log, markup=False, highlight=False, style="dim")
    console.print(error.next_step, markup=False, highlight=False)


def _conclude(console: Console, summary: Summary, output: Path) -> None:
    table = Table(title="Mean over the hospitals' held-out patients", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("", "alone", "federated", "pooled"):
        table.add_column(heading, justify="right" if heading else "left")
    for metric in METRICS:
        alone, federated, pooled = (metric.text(metric.read(summary.mean.by(method))) for method in METHODS)
        table.add_row(metric.name, alone, f"[bold]{federated}[/]", pooled)
    console.print(table)
    console.print(f"{summary.seconds:.1f} s from command to report.", highlight=False)
    for what, name in (("report", "report.html"), ("model", "model.onnx"), ("figures", "summary.json")):
        console.print(f"  {what:8} {output / name}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
