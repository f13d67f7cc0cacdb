"""A trivial worker behind Flower's own SecAgg+ modifier."""

from __future__ import annotations

import numpy as np
from flwr.app import Context
from flwr.client import Client, ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import NDArrays, Scalar


class TrivialClient(NumPyClient):  # type: ignore[misc] # Flower's base class is untyped
    """Moves every parameter by the same step."""

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train on nothing."""
        return [array + np.float32(0.5) for array in parameters], 100, {}


def make_client(_: Context) -> Client:
    """One for each message."""
    return TrivialClient().to_client()


app = ClientApp(client_fn=make_client, mods=[secaggplus_mod])
