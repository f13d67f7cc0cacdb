"""What the agent says of itself to whoever judges its release: health.json, beside which nothing is asked.

    {"version": "1.4.0", "pid": 812, "since_s": 34,
     "checks": {"agent": true, "key": true, "superlink": null, "self_test": null}, "sentence": "..."}

A check is null while nothing is known of it. The slot tool (`agent.update.trial`) keeps a release on trial that is well
for a while, and goes back from one that says of its key or its self-test that they fail.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from agent.core.config import AgentConfig
from agent.core.errors import SecureHealthError
from agent.core.files import show
from agent.core.version import software_version
from agent.federation.node import Link
from agent.identity.key import HardwareKey

HEALTH_NAME: Final = "health.json"
_REACHED: Final[Mapping[str, bool]] = {Link.ONLINE.value: True, Link.LOST.value: False}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Checks:
    """What is known.

    Args:
        agent: Whether it is up, and its loop turns.
        key: Whether the box's key answers, and proves where it does so without a person.
        superlink: Whether its SuperLink answers.
        self_test: Whether key, secure aggregation and training worker did their work once since the start.
    """

    agent: bool = False
    key: bool | None = None
    superlink: bool | None = None
    self_test: bool | None = None


@dataclass(slots=True)
class HealthReport:
    """Keeps the file, and has the self-test made once, in a thread of its own. Thread-safe.

    Args:
        directory: The service manager's for this agent, in memory; None writes and tests nothing.
        pid: This process.
        test: Makes the self-test: `run_self_test`.
    """

    directory: Path | None
    pid: int
    test: Callable[[AgentConfig, HardwareKey, HealthReport], None]
    _checks: Checks = field(default_factory=Checks)
    _sentence: str = ""
    _since_s: int = 0
    _tested: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ready(self, config: AgentConfig, key: HardwareKey) -> None:
        """The agent is up; the first time, its self-test begins."""
        if self.directory is None:
            return
        if not self._since_s:
            self._since_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        self.note(agent=True)
        if not self._tested:
            self._tested = True
            threading.Thread(target=self.test, args=(config, key, self), name="self-test", daemon=True).start()

    def note_link(self, link: str) -> None:
        """How the agent stands to its SuperLink, as its status says; no news while it joins."""
        if link in _REACHED:
            self.note(superlink=_REACHED[link])

    def note(self, *, sentence: str | None = None, **checks: bool) -> None:
        """What was found out.

        Args:
            sentence: What is wrong, in plain words; None says nothing new.
            checks: By the names of `Checks`.
        """
        with self._lock:
            after, said = replace(self._checks, **checks), self._sentence if sentence is None else sentence
            if self.directory is not None and (after, said) != (self._checks, self._sentence):
                self._checks, self._sentence = after, said
                self._store(self.directory)

    def withdraw(self) -> None:
        """The agent is down: a file that nobody keeps would mislead."""
        if self.directory is not None:
            (self.directory / HEALTH_NAME).unlink(missing_ok=True)

    def _store(self, directory: Path) -> None:
        report = {
            "version": software_version(),
            "pid": self.pid,
            "since_s": self._since_s,
            "checks": asdict(self._checks),
            "sentence": self._sentence,
        }
        try:
            show(directory / HEALTH_NAME, json.dumps(report).encode())
        except OSError as error:
            log.warning("health_not_written", reason=str(error))


def run_self_test(config: AgentConfig, key: HardwareKey, report: HealthReport) -> None:
    """Test key, secure aggregation and worker, and note how that went.

    Args:
        config: The box's.
        key: The box's.
        report: Learns the outcome.
    """
    from agent.service.selftest import check_key, check_secure_aggregation, check_worker  # noqa: PLC0415 - after READY

    if report.directory is None:
        return
    checks: Mapping[str, Callable[[], None]] = {
        "key": lambda: check_key(key),
        "secure aggregation": check_secure_aggregation,
        "training worker": partial(check_worker, config, report.directory),
    }
    for name, check in checks.items():
        wrong = _failure_of(check)
        if name == "key":
            report.note(key=not wrong)
        if wrong:
            log.error("self_test_failed", check=name, reason=wrong)
            report.note(self_test=False, sentence=f"The self-test of the {name} failed: {wrong}")
            return
    log.info("self_test_passed")
    report.note(self_test=True)


def _failure_of(check: Callable[[], None]) -> str:
    """What is wrong, in words; empty when nothing."""
    try:
        check()
    except SecureHealthError as error:
        return str(error)
    # A release that breaks in a way of its own is broken all the same.
    except Exception as error:
        log.exception("self_test_broke")
        return f"{type(error).__name__}."
    return ""
