"""The coordinator as Flower starts it: a ServerApp whose run configuration names a coordinator directory."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from agent.core.clock import SystemClock
from agent.core.logging import configure_logging
from provisioning.coordinator.directory import Assignment
from provisioning.coordinator.fab import DIRECTORY_KEY
from provisioning.coordinator.flower_line import FlowerLine
from provisioning.coordinator.rounds import Surroundings, coordinate

if TYPE_CHECKING:
    from provisioning.coordinator.exchange import Line
    from provisioning.coordinator.peers import SiteNames

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # Flower's own types are not followed
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study; a failure ends the run as failed, in the error's own words."""
    configure_logging()
    # Flower's strategies speak of "1 results" at each step, for they see the cohort as one client.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    lines: list[FlowerLine] = []

    def line_to(assignment: Assignment, names: SiteNames) -> Line:
        sites, nodes = frozenset(assignment.study.sites), assignment.settings.nodes
        lines.append(FlowerLine(grid, sites, names, nodes, grid.run.run_id))
        return lines[0]

    try:
        coordinate(Path(str(context.run_config[DIRECTORY_KEY])), Surroundings(line_to, SystemClock(), time.sleep))
    finally:
        for line in lines:
            line.close()
