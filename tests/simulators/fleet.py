"""Many boxes that enrol at one registrar, each from an address of its own, with every hospital's tool at work.

with RegistrarHost.found(directory, *sites) as host:
    result = Fleet(host, directory / "tools").enrol(200, at_once=32)
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from agent.enrolment.conversation import POLL_CAP_S, POLL_FIRST_S
from agent.trust.token import Token
from provisioning.authority.endorsing import EndorsingTool
from tests.simulators.registrar_host import PlainBox, RegistrarHost

_POLL_GROWTH = 1.3
_LOOK_EVERY_S = 0.2
LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What it took.

    Args:
        seconds: From the first box to the last, in all.
        each_s: For each box, from its first request until it heard that it is enrolled.
        key_ids: Of the boxes, hex.
    """

    seconds: float
    each_s: tuple[float, ...]
    key_ids: frozenset[str]

    @property
    def median_s(self) -> float:
        """Of one box."""
        return statistics.median(self.each_s)

    @property
    def slowest_s(self) -> float:
        """Of one box."""
        return max(self.each_s)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Boxes with software keys, spread over the hospitals.

    Args:
        host: Where they enrol.
        directory: For the hospitals' tools.
    """

    host: RegistrarHost
    directory: Path

    def enrol(self, count: int, *, at_once: int) -> FleetResult:
        """Enrol `count` boxes, `at_once` of them at the same time.

        Raises:
            AssertionError: A request was refused, or a box took too long.
        """
        tokens = self._tokens(count)
        with self._tools(), ThreadPoolExecutor(at_once) as pool:
            begin = time.monotonic()
            boxes = list(pool.map(self._one, tokens, range(count)))
            seconds = time.monotonic() - begin
        return FleetResult(seconds, tuple(took for _, took in boxes), frozenset(key_id for key_id, _ in boxes))

    def _tokens(self, count: int) -> list[Token]:
        sites = sorted(self.host.sites)
        shares = [count // len(sites) + (place < count % len(sites)) for place in range(len(sites))]
        issued = [
            self.host.issue(site, self.directory / site, share)
            for site, share in zip(sites, shares, strict=True)
            if share
        ]
        return [one.token for batch in issued for one in batch]

    def _one(self, token: Token, number: int) -> tuple[str, float]:
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        transport = httpx.HTTPTransport(verify=self.host.trust, local_address=address)
        with httpx.Client(base_url=f"https://{self.host.address}", transport=transport, timeout=60) as client:
            box = PlainBox(self.host, token, client)
            begin = time.monotonic()
            assert box.open().status_code == 201
            assert box.prove().status_code == 200
            self._talk(box, begin)
            return box.key_id, time.monotonic() - begin

    def _talk(self, box: PlainBox, begin: float) -> None:
        pause_s, before = POLL_FIRST_S, ""
        while (state := str(box.situation()["state"])) != "enrolled":
            assert time.monotonic() - begin < LIMIT_S, f"a box is still {state}"
            if state == "exchanged" and state != before:
                assert box.answer_site().status_code == 200
            pause_s = POLL_FIRST_S if state != before else min(pause_s * _POLL_GROWTH, POLL_CAP_S)
            before = state
            time.sleep(pause_s)

    @contextmanager
    def _tools(self) -> Iterator[None]:
        """Every hospital's tool, each in a thread of its own."""
        ending = threading.Event()
        with ExitStack() as stack:
            tools = [stack.enter_context(self.host.tool(site, self.directory / site)) for site in self.host.sites]
            threads = [threading.Thread(target=_look, args=(tool, ending)) for tool in tools]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                ending.set()
                for thread in threads:
                    thread.join()


def _look(tool: EndorsingTool, ending: threading.Event) -> None:
    while not ending.wait(_LOOK_EVERY_S):
        tool.look()
