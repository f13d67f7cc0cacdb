"""`python -m tests.demo`: hospitals found a consortium, train one model, and show what came of it."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agent.core.logging import configure_logging
from agent.trust.study import PrivacyTerms
from tests.demo import BEGIN_S
from tests.demo.cohorts import COHORTS
from tests.demo.keys import KINDS, MOST_READERS, deal_kinds, readers_needed
from tests.demo.live import open_view
from tests.demo.parts import PartFailedError
from tests.demo.report import METRICS
from tests.demo.run import Options, Stopwatch, held_output, run_demo
from tests.demo.summary import METHODS, Summary

OUTPUT = Path("build/demo")
SMALLEST_COHORT = 3
"""With two hospitals, each could subtract its own update from the sum."""
PROMISED_EPSILON = 100.0
"""The greatest that a study can promise; the report shows what was reached."""
DELTA = 1e-5
L2_CLIP = 1.0
LEAST_NOISE, MOST_NOISE = 0.1, 100
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration; 0 when all went well."""
    configure_logging(level=logging.WARNING)
    asked = parse_arguments(arguments)
    cohort = COHORTS[asked.data]()
    console = Console()
    hospitals = cohort.hospitals[: asked.hospitals or len(cohort.hospitals)]
    kinds = deal_kinds(usable_kinds(asked.key, console), len(hospitals))
    options = Options(cohort, hospitals, asked.rounds, kinds, asked.output, not asked.plain, _privacy(asked.noise))
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


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a fault in it ends the process with a usage message, as argparse does."""
    parser = argparse.ArgumentParser(prog="make demo ARGS='...'", description=__doc__)
    parser.add_argument("--data", choices=sorted(COHORTS), default="heart", help="which patients (default: heart)")
    parser.add_argument(
        "--hospitals", type=int, metavar="N", help="how many of the data set's hospitals (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="R", help="rounds of training (default: 20)")
    parser.add_argument(
        "--key",
        type=_parse_kinds,
        default=("tpm",),
        metavar="KINDS",
        help=f"where node keys live: {', '.join(KINDS)}, or several with commas, which the hospitals take in turn "
        "(default: tpm)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        metavar="M",
        help="differential privacy for each hospital: noise of M times what one hospital can change (default: none)",
    )
    parser.add_argument("--plain", action="store_true", help="aggregate without masks, for comparison")
    parser.add_argument("--keep", action="store_true", help="leave the consortium running until Ctrl-C")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"where results go (default: {OUTPUT})"
    )
    asked = parser.parse_args(arguments)
    for fault in _faults(asked):
        parser.error(fault)
    return asked


def _faults(asked: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments together."""
    most = len(COHORTS[asked.data]().hospitals)
    least = 2 if asked.plain else SMALLEST_COHORT
    if asked.hospitals is not None and not least <= asked.hospitals <= most:
        yield f"--hospitals: {least} to {most} (fewer than {SMALLEST_COHORT} would show each other's updates)"
    if not 1 <= asked.rounds <= 1000:
        yield "--rounds: 1 to 1000"
    readers = readers_needed(deal_kinds(asked.key, asked.hospitals or most))
    if readers > MOST_READERS:
        yield f"--key: {readers} hospitals would need a card reader, and there are {MOST_READERS}; mix in other kinds"
    if asked.noise is not None and not LEAST_NOISE <= asked.noise <= MOST_NOISE:
        yield f"--noise: {LEAST_NOISE} to {MOST_NOISE}; 1 is a start"
    if asked.noise is not None and asked.plain:
        yield "--noise: noise is added under masks, so leave --plain out"


def _parse_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds


def usable_kinds(wanted: tuple[str, ...], console: Console) -> tuple[str, ...]:
    """The wanted kinds, those that cannot be had here replaced by keys in files; says so."""
    reasons = {kind: KINDS[kind].why_not() for kind in wanted}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        console.print(f"Using software keys, because {reason}; hardware protects none of them.", style="yellow")
    return tuple("software" if reasons[kind] else kind for kind in wanted)


def _privacy(noise: float | None) -> PrivacyTerms | None:
    if noise is None:
        return None
    return PrivacyTerms(epsilon=PROMISED_EPSILON, delta=DELTA, l2_clip=L2_CLIP, noise_multiplier=noise)


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
