"""What the agent says of itself, and how it finds out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.core.config import AgentConfig, parse_config
from agent.core.errors import HardwareError, SecureHealthError, SoftwareError
from agent.core.version import software_version
from agent.identity.key import HardwareKey, init_key
from agent.secagg.codec import CohortSum, Contribution
from agent.service import selftest
from agent.service.health import HEALTH_NAME, HealthReport, run_self_test
from agent.service.selftest import MODEL, check_key, check_secure_aggregation, check_worker
from agent.training.client import RoundResult, TrainingWorker
from agent.update.trial import parse_health
from tests.simulators.worker_door import WorkerDoor
from tests.unit.training.graphs import logistic

CONFIG = """
[node]
state_directory = "state"
environment = "demo"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[training]
device = "cpu"
worker = "worker.sock"
"""


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return parse_config(CONFIG.encode(), directory=tmp_path)


@pytest.fixture
def key(config: AgentConfig) -> HardwareKey:
    return init_key(config.key.uri)


def read(directory: Path) -> dict[str, Any]:
    content = json.loads((directory / HEALTH_NAME).read_bytes())
    assert isinstance(content, dict)
    return content


def test_the_report_begins_when_the_agent_is_up(tmp_path: Path, config: AgentConfig, key: HardwareKey) -> None:
    tested = threading.Event()
    report = HealthReport(tmp_path, 42, lambda *_: tested.set())
    report.note_link("joining")
    assert not (tmp_path / HEALTH_NAME).exists()
    report.ready(config, key)
    assert tested.wait(10)
    content = read(tmp_path)
    assert content["checks"] == {"agent": True, "key": None, "superlink": None, "self_test": None}
    assert (content["version"], content["pid"]) == (software_version(), 42)
    assert content["since_s"] > 0
    assert (tmp_path / HEALTH_NAME).stat().st_mode & 0o777 == 0o644
    report.withdraw()
    assert list(tmp_path.glob("health*")) == []


def test_the_slot_tool_reads_what_is_written(tmp_path: Path) -> None:
    report = HealthReport(tmp_path, 42, lambda *_: None)
    for link, reached in (("joining", None), ("online", True), ("lost", False), ("waiting", False), ("online", True)):
        report.note(agent=True)
        report.note_link(link)
        health = parse_health((tmp_path / HEALTH_NAME).read_bytes())
        assert (health.version, health.pid) == (software_version(), 42)
        assert health.checks == {"agent": True, "key": None, "superlink": reached, "self_test": None}


def test_the_test_is_made_once_however_often_the_agent_is_rewired(
    tmp_path: Path, config: AgentConfig, key: HardwareKey
) -> None:
    made = []
    report = HealthReport(tmp_path, 42, lambda *_: made.append(1))
    report.ready(config, key)
    since_s = read(tmp_path)["since_s"]
    report.ready(config, key)
    assert made == [1]
    assert read(tmp_path)["since_s"] == since_s


def test_without_a_service_manager_nothing_is_written_or_tested(config: AgentConfig, key: HardwareKey) -> None:
    def test(*_: object) -> None:
        raise AssertionError("tested")

    report = HealthReport(None, 42, test)
    report.ready(config, key)
    report.note(agent=False)
    report.withdraw()
    run_self_test(config, key, report)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["child", "service"])
def test_the_whole_self_test_passes_here(place: str, tmp_path: Path, config: AgentConfig, key: HardwareKey) -> None:
    (tmp_path / "run").mkdir()
    report = HealthReport(tmp_path / "run", 42, lambda *_: None)
    if place == "child":
        training = config.training.model_copy(update={"worker": None})
        run_self_test(config.model_copy(update={"training": training}), key, report)
    else:
        with WorkerDoor(tmp_path / "worker.sock") as door:
            run_self_test(config, key, report)
            assert len(door.processes) == 1
    content = read(tmp_path / "run")
    assert (content["checks"]["key"], content["checks"]["self_test"], content["sentence"]) == (True, True, "")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [HEALTH_NAME]


def test_a_missing_worker_is_said_in_the_report(tmp_path: Path, config: AgentConfig, key: HardwareKey) -> None:
    report = HealthReport(tmp_path, 42, lambda *_: None)
    run_self_test(config, key, report)
    content = read(tmp_path)
    assert (content["checks"]["key"], content["checks"]["self_test"]) == (True, False)
    assert "training worker" in content["sentence"]
    assert "training.no_worker" in content["sentence"]


@pytest.mark.parametrize("error", [HardwareError("identity.gone", "Gone.", next_step="Look."), ZeroDivisionError()])
def test_a_key_that_fails_ends_the_test(
    error: Exception, tmp_path: Path, config: AgentConfig, key: HardwareKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: HardwareKey) -> None:
        raise error

    monkeypatch.setattr(selftest, "check_key", fail)
    report = HealthReport(tmp_path, 42, lambda *_: None)
    run_self_test(config, key, report)
    content = read(tmp_path)
    assert (content["checks"]["key"], content["checks"]["self_test"]) == (False, False)
    assert ("Gone." if isinstance(error, SecureHealthError) else "ZeroDivisionError") in content["sentence"]


def test_hospitals_in_memory_sum() -> None:
    check_secure_aggregation()


def test_a_broken_sum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sum_up = selftest._sum_up

    def broken(inputs: Mapping[str, Contribution]) -> CohortSum:
        total = sum_up(inputs)
        return replace(total, update=total.update + np.float32(1))

    monkeypatch.setattr(selftest, "_sum_up", broken)
    with pytest.raises(SoftwareError, match="another vector"):
        check_secure_aggregation()


def test_a_key_whose_proof_does_not_hold_is_noticed(
    key: HardwareKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_key(key)
    other = init_key(f"software:{tmp_path}/other.key")
    monkeypatch.setattr(key, "_signature_over", other._signature_over)
    with pytest.raises(SecureHealthError):
        check_key(key)


def test_a_worker_that_learns_nothing_is_noticed(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = RoundResult(np.zeros(2, np.float32), 20, {})

    class Idle:
        initial_parameters = np.zeros(2, np.float32)

        def __enter__(self) -> Idle:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def train(self, *_: object, **__: object) -> RoundResult:
            return idle

    monkeypatch.setattr(TrainingWorker, "start", lambda *_, **__: Idle())
    with pytest.raises(SoftwareError, match="leads nowhere"):
        check_worker(config, tmp_path)


def test_the_model_is_the_one_that_it_is_said_to_be() -> None:
    assert hashlib.sha256(MODEL).digest() == hashlib.sha256(logistic(1)).digest()


def test_nothing_heavy_is_loaded_before_the_test_and_no_torch_by_it() -> None:
    code = """
    import sys
    import agent.service.health
    assert not {"agent.service.selftest", "agent.secagg.server", "agent.training.client"} & set(sys.modules)
    import agent.service.selftest
    agent.service.selftest.check_secure_aggregation()
    assert not {"torch", "onnx", "pyarrow", "pandas"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
