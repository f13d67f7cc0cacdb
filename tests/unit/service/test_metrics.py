"""What the hospital's own monitoring reads."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.core.version import software_version
from agent.service.metrics import METRICS_NAME, MetricsFile, metrics_path, render_metrics
from agent.service.state import AgentStatus

ONLINE = AgentStatus(
    "online",
    7,
    "secret-study masked 3",
    session="valid",
    session_expires_s=1_900_000_000,
    site="a",
    heard_s=1_800_000_000,
)


def values(data: bytes) -> dict[str, float]:
    return {
        sample.name + "".join(f"/{sample.labels[name]}" for name in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def rendered(status: AgentStatus) -> dict[str, float]:
    return values(render_metrics(status, resident_bytes=100, started_s=5.0))


def test_metrics_say_how_the_agent_does() -> None:
    found = rendered(ONLINE)
    assert found[f"seh_agent_info/a/{software_version()}"] == 1
    states = {state: found[f"seh_agent_link_state/{state}"] for state in ("joining", "online", "lost", "stopped")}
    assert states == {"joining": 0, "online": 1, "lost": 0, "stopped": 0}
    assert found["seh_agent_session_expiry_timestamp_seconds"] == 1_900_000_000
    assert found["seh_agent_heartbeat_timestamp_seconds"] == 1_800_000_000
    assert (found["seh_agent_needs_person"], found["seh_agent_trouble"]) == (0, 0)
    assert (found["seh_agent_resident_memory_bytes"], found["seh_agent_start_time_seconds"]) == (100, 5.0)


def test_metrics_say_when_a_person_is_needed() -> None:
    found = rendered(AgentStatus("lost", trouble="fleet.unreachable", session="needs-person"))
    assert (found["seh_agent_needs_person"], found["seh_agent_trouble"]) == (1, 1)
    assert found["seh_agent_session_state/needs-person"] == 1


def test_metrics_name_no_study() -> None:
    assert b"secret-study" not in render_metrics(ONLINE, resident_bytes=1, started_s=1.0)


@pytest.mark.parametrize(
    ("directory", "path"),
    [("", None), ("/run/agent", Path("/run/agent/metrics.prom")), ("/run/a:/run/b", Path("/run/a/metrics.prom"))],
)
def test_the_file_lies_in_the_runtime_directory(directory: str, path: Path | None) -> None:
    assert metrics_path({"RUNTIME_DIRECTORY": directory}) == path


def test_the_file_is_written_again_and_goes_with_the_agent(tmp_path: Path) -> None:
    path, asked = tmp_path / METRICS_NAME, threading.Semaphore(0)

    def status() -> AgentStatus:
        asked.release()
        return ONLINE

    with MetricsFile(path, status, every_s=0.01):
        for _ in range(3):
            assert asked.acquire(timeout=10)
        assert "seh_agent_info/a/" in "\n".join(values(path.read_bytes()))
    assert list(tmp_path.iterdir()) == []


def test_the_node_exporter_may_read_the_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        MetricsFile(tmp_path / METRICS_NAME, lambda: ONLINE).write()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / METRICS_NAME).stat().st_mode) == 0o644


def test_a_directory_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "gone" / METRICS_NAME, lambda: ONLINE).write()
    assert not (tmp_path / "gone").exists()


def test_without_a_runtime_directory_nothing_is_written(tmp_path: Path) -> None:
    before = threading.active_count()
    with MetricsFile(None, lambda: ONLINE, every_s=0.01):
        assert threading.active_count() == before
