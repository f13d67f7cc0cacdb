"""Secure rounds end to end, beside unprotected ones and stock Flower SecAgg+: real processes, one SuperLink each.

Four nodes, one million float32 parameters, TLS and node authentication, a SuperLink in memory, workers that do next to
nothing: what is measured is what protection and transport cost.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from provisioning.coordinator.directory import CoordinatorDirectory, CoordinatorSettings
from provisioning.coordinator.fab import launch_run
from provisioning.coordinator.progress import read_events, seconds_between
from tests.bench.rounds import stock_node
from tests.bench.table import Row, Target, at_most
from tests.simulators.hospital import install_study
from tests.simulators.played_study import study_files
from tests.simulators.secure_consortium import ROWS, SecureConsortium, quick_settings, serverapps
from tests.simulators.superlink import RunningSuperLink, SimulatorError, wait_until

NODES = 4
PARAMETERS = 1_000_000
ROUNDS = 10
"""Of each study; timed from the end of one to the end of the next, so the first, with its keys, is not counted."""
TURNS = (("plain", "secure"), ("secure", "plain"))
"""What runs after what: both kinds get both places, so that a machine that slows down favours neither."""
STUDY_LIMIT_S = 300.0
STOCK_ROUNDS = 1
STOCK_LIMIT_S = 600.0
STOCK_APP = Path(__file__).parent / "secagg_plus_app"
TARGET_S = 1.5
TARGET_RATIO = 1.25
TARGET_TIMES = 30.0


def rows() -> Iterator[Row]:
    """All rows."""
    yield from secure_round_rows()


def secure_round_rows() -> Iterator[Row]:
    """Seconds of a secure round, against an unprotected one and against stock SecAgg+."""
    with tempfile.TemporaryDirectory() as directory:
        seconds = measure_ours(Path(directory))
        stock = measure_stock(Path(directory) / "stock")
    secure, plain = median(seconds["secure"]), median(seconds["plain"])
    name = f"secure round, {NODES} nodes, {PARAMETERS / 1e6:g} M parameters, SuperLink in memory"
    yield Row(
        name,
        secure,
        "s",
        Target("<=", TARGET_S),
        peer=median(stock),
        peer_name="stock Flower SecAgg+",
        least_ratio=TARGET_TIMES,
    )
    yield at_most("secure round over plain round, ours, same run", secure / plain, "", TARGET_RATIO)


def measure_ours(place: Path) -> dict[str, list[float]]:
    """Seconds of each counted round by kind, over the same running agents."""
    seconds: dict[str, list[float]] = {"plain": [], "secure": []}
    settings = quick_settings(environment="bench")
    with (
        RunningSuperLink.start(_made(place / "superlink")) as superlink,
        SecureConsortium.found(
            superlink, place, parameters=PARAMETERS, settings=settings, federation={"allow_plain": True}
        ) as consortium,
    ):
        studies = [
            (kind, _add_study(consortium, place / f"study-{turn}-{kind}", kind, turn))
            for turn, kinds in enumerate(TURNS)
            for kind in kinds
        ]
        consortium.start()
        for kind, directory in studies:
            seconds[kind] += _run_study(superlink, directory)
    return seconds


def measure_stock(place: Path) -> list[float]:
    """Seconds of each round of stock SecAgg+ over stock SuperNodes."""
    report = _made(place) / "report.json"
    with RunningSuperLink.start(_made(place / "superlink")) as superlink, ExitStack() as nodes:
        for number in range(NODES):
            nodes.enter_context(stock_node(place / f"node-{number}", superlink))
        config: dict[str, str | int | float | bool] = {
            "parameters": PARAMETERS,
            "rounds": STOCK_ROUNDS,
            "nodes": NODES,
            "report": str(report),
        }
        superlink.connection.start_run(STOCK_APP, config)
        wait_until(report.exists, limit_s=STOCK_LIMIT_S, what="stock SecAgg+ ends", interval_s=0.5)
        wait_until(lambda: not serverapps(superlink), limit_s=60, what="its ServerApp ends")
        written = _StockReport(**json.loads(report.read_text(encoding="utf-8")))
        if written.failed or len(written.seconds) != STOCK_ROUNDS:
            raise SimulatorError(f"stock SecAgg+ failed: {written.failed}\n{superlink.log[-3000:]}")
    return written.seconds


@dataclass(frozen=True, slots=True)
class _StockReport:
    seconds: list[float]
    failed: list[str]


def _add_study(consortium: SecureConsortium, place: Path, kind: str, turn: int) -> CoordinatorDirectory:
    """One more study for all boxes: journals go forward only, so each measurement has a study of its own."""
    terms = {"weight_cap": max(ROWS)}
    study, model = study_files(
        consortium.sites, parameters=PARAMETERS, rounds=ROUNDS, secagg=terms, id=f"bench-{kind}-{turn}"
    )
    for box in consortium.boxes.values():
        install_study(box.directory / "studies", study, model=model)
    directory = CoordinatorDirectory(place)
    settings: CoordinatorSettings = quick_settings(environment="bench", aggregation=kind)
    if kind == "plain":
        directory.prepare(study, model, settings)
        return directory
    roster, key = (consortium.directory.path / name for name in ("roster.json", "coordinator.key"))
    directory.prepare(study, model, settings, roster=roster.read_bytes(), key=key.read_bytes())
    return directory


def _run_study(superlink: RunningSuperLink, directory: CoordinatorDirectory) -> list[float]:
    launch_run(superlink.connection, directory.path)
    wait_until(directory.result.exists, limit_s=STUDY_LIMIT_S, what=f"the study in {directory.path.name} ends")
    wait_until(lambda: not serverapps(superlink), limit_s=60, what="its coordinator ends")
    rounds = [event for event in read_events(directory.progress)[0] if event["event"] == "round"]
    return [seconds_between(earlier, later) for earlier, later in pairwise(rounds[:ROUNDS])]


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
