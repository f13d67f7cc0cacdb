"""Runs SecAgg+ rounds and writes down how long each took."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """One study of so many rounds; the report holds each round's seconds and the cohort's mean at the end."""
    settings = context.run_config
    nodes, parameters = int(settings["nodes"]), int(settings["parameters"])
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=nodes,
        min_available_clients=nodes,
        initial_parameters=ndarrays_to_parameters([np.ones(parameters, dtype=np.float32)]),
    )
    legacy = LegacyContext(context, ServerConfig(num_rounds=int(settings["rounds"])), strategy)
    # All nodes hold shares, and as many of them as in our own protocol are needed to unmask.
    secure = SecAggPlusWorkflow(num_shares=nodes, reconstruction_threshold=nodes - 1, clipping_range=8.0)
    seconds: list[float] = []
    failed: list[str] = []

    def timed(grid: Grid, context: Context) -> None:
        begin_s = time.monotonic()
        secure(grid, context)
        seconds.append(time.monotonic() - begin_s)

    try:
        DefaultWorkflow(fit_workflow=timed)(grid, legacy)
    except Exception as error:
        failed.append(repr(error))
        raise
    finally:
        Path(str(settings["report"])).write_text(json.dumps({"seconds": seconds, "failed": failed}), encoding="utf-8")
