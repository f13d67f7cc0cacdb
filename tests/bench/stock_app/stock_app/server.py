"""Flower's own FedAvg, with Flower's own loop; notes when each round ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    times = Path(str(config["times"]))
    nodes = int(config["nodes"])

    def note(number: int, arrays: ArrayRecord) -> None:
        with times.open("a") as stream:
            stream.write(f"{number} {time.monotonic()}\n")

    initial = ArrayRecord({"model": Array(np.ones(int(config["parameters"]), dtype=np.float32))})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.start(grid, initial, num_rounds=int(config["rounds"]), evaluate_fn=note)
