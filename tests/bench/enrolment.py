"""How long a box takes from its token to "Enrolled", over a real registrar, SuperLink and hospital's tool."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from statistics import median

from rich.console import Console

from tests.bench.table import Row, at_most
from tests.demo.cohorts import COHORTS
from tests.demo.found import found_consortium
from tests.demo.joining import JOIN_LIMIT_S, bring_in
from tests.demo.keys import why_no_tpm
from tests.demo.live import open_view
from tests.simulators.fleet import Fleet, FleetResult
from tests.simulators.registrar_host import RegistrarHost

BOXES = 3
FLEET = 200
HOSPITALS = 10
AT_ONCE = 32


def rows() -> Iterator[Row]:
    """Boxes one after the other; each has its TPM attested by registrar and hospital."""
    times_s = _enrolments()
    yield at_most("enrolment: token handed in -> Enrolled, TPM attested", median(times_s), "s", 5.0)
    fleet = _fleet()
    yield Row(f"enrolment: {FLEET} boxes at one registrar, in all", fleet.seconds, "s")
    yield Row(f"enrolment: one box of {FLEET}, {AT_ONCE} at once, median", fleet.median_s, "s")


def _fleet() -> FleetResult:
    """Simulated boxes with software keys; an error of any of them ends the measurement."""
    sites = [f"hospital-{number}" for number in range(HOSPITALS)]
    with tempfile.TemporaryDirectory() as directory, RegistrarHost.found(Path(directory) / "authority", *sites) as host:
        return Fleet(host, Path(directory) / "tools").enrol(FLEET, at_once=AT_ONCE)


def _enrolments() -> list[float]:
    if reason := why_no_tpm():
        raise RuntimeError(f"no TPM: {reason}")
    cohort = COHORTS["heart"]()
    hospitals = cohort.hospitals[:BOXES]
    names = {str(hospital.site): hospital.name for hospital in hospitals}
    view = open_view(Console(file=StringIO()), title=cohort.title, hospitals=names, rounds=1)
    with tempfile.TemporaryDirectory() as directory:
        consortium = found_consortium(
            Path(directory), cohort, hospitals, rounds=1, keys=["tpm"] * BOXES, now=datetime.now(UTC), view=view
        )
        try:
            consortium.start_agents(view)
            for member in consortium.members:
                bring_in(consortium, member, view, time.monotonic() + JOIN_LIMIT_S)
        finally:
            consortium.close()
        return [member.enrolled_s for member in consortium.members if member.enrolled_s is not None]
