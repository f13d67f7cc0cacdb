"""What a round costs end to end, beside stock Flower doing the same over the same kind of SuperLink.

Four nodes, one million float32 parameters, TLS, node authentication, a SuperLink that keeps all in memory, and training
that takes no time: what is left is the way there and back.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.authority.superlink import flower_environment
from provisioning.coordinator.fab import has_ended, launch_run
from provisioning.coordinator.progress import follow_events, seconds_between
from tests.bench.table import Row, Target
from tests.simulators.hospital import RunningHospital
from tests.simulators.played_node import register_quickly
from tests.simulators.played_study import SITES, plain_settings, prepare_directory
from tests.simulators.superlink import RunningSuperLink, free_port, wait_until

PARAMETERS = 1_000_000
ROUNDS = 16
STOCK_ROUNDS = 3
LIMIT_S = 1.0
LEAST_RATIO = 8.0
STOCK_LIMIT_S = 300.0
STOCK_APP = Path(__file__).parent / "stock_app"


def rows() -> Iterator[Row]:
    """All rows of this section."""
    yield plain_round_row()


def plain_round_row() -> Row:
    """The median plain round, ours beside stock Flower's."""
    with tempfile.TemporaryDirectory() as place:
        ours = median(our_plain_rounds(Path(place)))
    with tempfile.TemporaryDirectory() as place:
        theirs = median(stock_rounds(Path(place)))
    return Row(
        "plain round, 4 nodes, 1 M parameters, SuperLink in memory",
        ours,
        "s",
        Target("<=", LIMIT_S),
        peer=theirs,
        peer_name="stock flower-supernode",
        least_ratio=LEAST_RATIO,
    )


def our_plain_rounds(place: Path, *, parameters: int = PARAMETERS, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each round but the first, from the end of one to the end of the next.

    Args:
        place: An empty directory.
        parameters: Length of the model.
        rounds: Rounds of training.
    """
    settings = plain_settings(environment="bench")
    directory, _ = prepare_directory(place / "coordinator", parameters=parameters, rounds=rounds, settings=settings)
    study, model = (directory.path / "study.json").read_bytes(), (directory.path / "model.onnx").read_bytes()
    with ExitStack() as stack:
        superlink = stack.enter_context(RunningSuperLink.start(place / "superlink"))
        for site in SITES:
            box = RunningHospital.prepare(place / site, superlink, site=site, study=study, model=model)
            register_quickly(superlink, box.link, name=site)
            stack.enter_context(box).start()
        run_id = launch_run(superlink.connection, directory.path)
        ended = lambda: has_ended(superlink.connection, run_id) is not None  # noqa: E731 - one use
        events = [event for event in follow_events(directory.progress, is_over=ended) if event["event"] == "round"]
        if len(events) != rounds + 1:
            raise RuntimeError(
                f"only {len(events)} of {rounds + 1} rounds came about:\n{directory.progress.read_text()}"
            )
        return [seconds_between(earlier, later) for earlier, later in pairwise(events[:rounds])]


def stock_rounds(place: Path, *, parameters: int = PARAMETERS, rounds: int = STOCK_ROUNDS) -> list[float]:
    """The same for stock Flower: its SuperNodes, its FedAvg, its loop."""
    times = place / "times"
    with RunningSuperLink.start(place / "superlink") as superlink, ExitStack() as stack:
        for number in range(len(SITES)):
            stack.enter_context(stock_node(place / f"node-{number}", superlink))
        config: dict[str, str | int | float | bool] = {
            "parameters": parameters,
            "rounds": rounds,
            "nodes": len(SITES),
            "times": str(times),
        }
        superlink.connection.start_run(STOCK_APP, config)
        wait_until(
            lambda: len(_lines(times)) > rounds, limit_s=STOCK_LIMIT_S, what="stock Flower's rounds", interval_s=0.5
        )
    moments = [float(line.split()[1]) for line in _lines(times)]
    return [later - earlier for earlier, later in pairwise(moments)]


@contextmanager
def stock_node(place: Path, superlink: RunningSuperLink) -> Iterator[None]:
    """Flower's own SuperNode, registered and running, at Flower's own pace; `place` is to be made."""
    place.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    register_quickly(superlink, key.public_key(), name=place.name)
    key_file = place / "node.key"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    tls = superlink.settings.files
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", superlink.address]
    command += ["--root-certificates", str(tls.root), "--auth-supernode-private-key", str(key_file)]
    command += ["--port", str(free_port()), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)]
    command += ["--ssl-ca-certfile", str(tls.root)]
    with (place / "node.log").open("wb") as log:
        process = subprocess.Popen(command, env=_stock_environment(place), cwd=place, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=5)
        for member in left:
            member.kill()
        process.wait(5)


def _stock_environment(place: Path) -> dict[str, str]:
    """Flower's own settings throughout: no pace of ours."""
    environment = flower_environment(place / "home")
    return {name: value for name, value in environment.items() if name != "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
