"""What stock Flower SecAgg+ needs in CPU for one round: its own client functions and server workflow, in process.

The workflow's stages run unchanged over a grid that calls `secaggplus_mod`'s functions for each node; what the nodes
spend is taken off the server's account. All nodes make keys and shares; one node masks a real update, the others answer
with random vectors of the same length, which costs the server the same. Messages are not serialised on either side.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np  # the environment comes first: Flower reads it when it is imported
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.task_identity import TaskIdentity

# The package shows a function of the same name in its module's place.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
WEIGHT = 300


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of one round.

    Args:
        client_s: Of one hospital, all its legs.
        server_s: Of the server.
    """

    client_s: float
    server_s: float


@dataclass
class _Grid:
    """Calls the nodes in process.

    Args:
        update: Shape (m,), what the measured node trained.
        silent: Nodes that answer no more from the masked vectors on.
    """

    update: npt.NDArray[np.float32]
    silent: frozenset[int]
    states: dict[int, Any] = field(default_factory=dict)
    measured: int = 0
    client_s: float = 0.0
    all_clients_s: float = 0.0
    _noise: bytes = b""

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """One stage at every node that still answers."""
        del timeout
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
            stage = configs.pop(Key.STAGE)
            if node in self.silent and stage in {Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK}:
                continue
            started = time.process_time()
            content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(self._answer(node, stage, configs))})
            spent = time.process_time() - started
            self.all_clients_s += spent
            self.client_s += spent if node == self.measured else 0.0
            replies.append(self._reply(node, stage, content))
        return replies

    def _answer(self, node: int, stage: str, configs: Any) -> dict[str, Any]:  # noqa: ANN401 - Flower's record
        state = self.states.setdefault(node, mod.SecAggPlusState())
        state.nid = node
        if stage == Stage.SETUP:
            return dict(mod._setup(state, configs))
        if stage == Stage.SHARE_KEYS:
            return dict(mod._share_keys(state, configs))
        if stage == Stage.UNMASK:
            return dict(mod._unmask(state, configs))
        if node == self.measured:
            return dict(mod._collect_masked_vectors(state, configs, WEIGHT, ndarrays_to_parameters([self.update])))
        return self._random_vector(state, configs)

    def _random_vector(self, state: Any, configs: Any) -> dict[str, Any]:  # noqa: ANN401 - Flower's state and record
        """A masked vector of nobody, with the shares unpacked as the real function does."""
        tiny = ndarrays_to_parameters([np.zeros(1, np.float32)])
        reply = dict(mod._collect_masked_vectors(state, configs, WEIGHT, tiny))
        if not self._noise:
            vector = np.random.default_rng(0).integers(0, 1 << 32, len(self.update), dtype=np.int64)
            self._noise = ndarray_to_bytes(vector)
        return {**reply, Key.MASKED_PARAMETERS: [reply[Key.MASKED_PARAMETERS][0], self._noise]}

    def _reply(self, node: int, stage: str, content: RecordDict) -> SimpleNamespace:
        if stage == Stage.COLLECT_MASKED_VECTORS:
            empty = ndarrays_to_parameters([])
            result = FitRes(Status(Code.OK, ""), empty, WEIGHT, {})
            extra = compat.fitres_to_recorddict(result, keep_input=True)
            extra.config_records[RECORD_KEY_CONFIGS] = content.config_records[RECORD_KEY_CONFIGS]
            content = extra
        return SimpleNamespace(
            content=content, metadata=SimpleNamespace(src_node_id=node), has_error=lambda: False, error=None
        )


class _Strategy:
    """Samples every node; takes the sum."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def configure_fit(self, _: int, parameters: Any, __: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - Flower's types
        from flwr.common import FitIns  # noqa: PLC0415 - after the environment

        return [(SimpleNamespace(node_id=node), FitIns(parameters, {})) for node in range(1, self._nodes + 1)]

    def aggregate_fit(self, _: int, __: Any, ___: Any) -> tuple[None, dict[str, float]]:  # noqa: ANN401 - Flower's types
        return None, {}


def stock_cost(nodes: int, threshold: int, update: npt.NDArray[np.float32], *, dropped: int) -> Cost:
    """Run one round of stock SecAgg+.

    Args:
        nodes: n; all are neighbours, as in ours.
        threshold: Shares that recover a secret; as in ours.
        update: Shape (m,), float32.
        dropped: How many nodes vanish before they send their masked vector.

    Raises:
        RuntimeError: The workflow halted, so that there is nothing to compare.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    # Flower's messages ask the process who it is, also where they go nowhere.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    silent = frozenset(range(nodes - dropped + 1, nodes + 1))
    grid = _Grid(update, silent, measured=1)
    context = SimpleNamespace(
        state=RecordDict(
            {
                MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1}),
                MAIN_PARAMS_RECORD: ArrayRecord([np.zeros(1, np.float32)]),
            }
        ),
        strategy=_Strategy(nodes),
        client_manager=SimpleNamespace(num_available=lambda: nodes),
        history=SimpleNamespace(add_metrics_distributed_fit=lambda **_: None),
    )
    workflow = SecAggPlusWorkflow(nodes, threshold, max_weight=1000.0, clipping_range=1.0)
    state = WorkflowState()
    started = time.process_time()
    stages = (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    )
    for stage in stages:
        if not stage(grid, context, state):
            raise RuntimeError(f"stock SecAgg+ halted in {stage.__name__}")
    return Cost(grid.client_s, time.process_time() - started - grid.all_clients_s)
