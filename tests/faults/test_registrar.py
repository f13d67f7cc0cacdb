"""The registrar killed at every step, asked twice at once, with its database restarted: each box is on record once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from agent.core.errors import NetworkError
from provisioning.authority.endorsing import EndorsingTool
from tests.simulators.fleet import Fleet
from tests.simulators.postgresql import PostgreSQL
from tests.simulators.registrar_host import PlainBox, RegistrarHost
from tests.simulators.superlink import wait_until

SITE = "hospital-a"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RegistrarHost]:
    with RegistrarHost.found(tmp_path / "authority", SITE) as host:
        yield host


class Scene:
    """One box, its hospital's tool, and what happens next."""

    def __init__(self, host: RegistrarHost, box: PlainBox, tool: EndorsingTool) -> None:
        self.host, self.box, self.tool = host, box, tool

    @property
    def steps(self) -> tuple[Callable[[], object], ...]:
        """All of them, in order."""
        return (self.box.open, self.box.prove, self.tool.look, self.box.answer_site, self.tool.look)

    def assert_one_node(self) -> None:
        """The box is on record once, let in once, and knows it."""
        self.box.wait_enrolled()
        assert [node.root.key_id for node in self.host.nodes(SITE)] == [self.box.key_id]
        assert self.host.let_in == [self.box.key_id]


@pytest.fixture
def scene(host: RegistrarHost, tmp_path: Path) -> Iterator[Scene]:
    token = host.issue(SITE, tmp_path / "state")[0].token
    with host.client() as client, host.tool(SITE, tmp_path / "state") as tool:
        yield Scene(host, PlainBox(host, token, client), tool)


@pytest.mark.parametrize("after", range(5))
def test_killed_after_a_step_and_started_again(scene: Scene, after: int) -> None:
    for number, step in enumerate(scene.steps):
        step()
        if number == after:
            scene.host.kill()
            scene.host.start()
    scene.assert_one_node()


@pytest.mark.parametrize("after", range(4))
def test_killed_after_a_step_that_is_then_repeated(scene: Scene, after: int) -> None:
    for number, step in enumerate(scene.steps):
        step()
        if number == after:
            scene.host.kill()
            scene.host.start()
            step()
    scene.assert_one_node()


@pytest.mark.parametrize("moment", ["published", "registered"])
def test_killed_between_the_steps_of_publishing(host: RegistrarHost, scene: Scene, moment: str) -> None:
    host.stop()
    host.start(moment)
    *before, last = scene.steps
    for step in before:
        step()
    with contextlib.suppress(NetworkError):  # it dies under this very request, or right after it
        last()
    assert host.wait_for_end() == -signal.SIGKILL
    host.start()
    scene.assert_one_node()
    scene.tool.look()
    scene.assert_one_node()


def test_the_same_request_from_many_at_once(scene: Scene) -> None:
    start = threading.Barrier(8)

    def together(step: Callable[[PlainBox], httpx.Response]) -> list[httpx.Response]:
        def one(client: httpx.Client) -> httpx.Response:
            twin = PlainBox(scene.host, scene.box.token, client, scene.box.key, scene.box.name, scene.box.nonce)
            start.wait()
            return step(twin)

        with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, [stack.enter_context(scene.host.client()) for _ in range(8)]))

    assert len({answer.text for answer in together(PlainBox.open)}) == 1
    scene.box.open()
    assert {answer.status_code for answer in together(PlainBox.prove)} == {200}
    scene.tool.look()
    statuses = {answer.status_code for answer in together(PlainBox.answer_site)}
    assert statuses <= {200, 409}  # each has a signature of its own: the first counts
    assert 200 in statuses
    scene.tool.look()
    scene.assert_one_node()


def test_it_ends_in_order_when_told_to(scene: Scene) -> None:
    scene.box.open()
    assert scene.host.stop() == 0
    scene.host.start()
    assert scene.box.open().json()["enrolment"] == scene.box.name


def test_its_port_taken_it_says_so_and_ends(host: RegistrarHost) -> None:
    second = RegistrarHost(host.directory, host.consortium, host.address)
    process = host.process
    second.start()
    assert second.wait_for_end() != 0
    assert process is not None
    assert process.poll() is None
    assert "registrar.cannot_serve" in host.log


def test_postgresql_restarted_in_the_middle(cluster: PostgreSQL, tmp_path: Path) -> None:
    with RegistrarHost.found(tmp_path / "authority", SITE, database=cluster.url) as host:
        token = host.issue(SITE, tmp_path / "state")[0].token
        with host.client() as client, host.tool(SITE, tmp_path / "state") as tool:
            scene = Scene(host, PlainBox(host, token, client), tool)
            for step in scene.steps:
                step()
                cluster.restart()
                wait_until(
                    lambda: scene.box.open().status_code == 201, limit_s=10, what="the registrar reaches its database"
                )
            scene.assert_one_node()


def test_a_fleet_enrols_without_one_error(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    sites = [f"hospital-{number}" for number in range(10)]
    with RegistrarHost.found(tmp_path / "authority", *sites) as host:
        result = Fleet(host, tmp_path / "tools").enrol(200, at_once=32)
        record_property("seconds", round(result.seconds, 1))
        record_property("median_s", round(result.median_s, 2))
        record_property("slowest_s", round(result.slowest_s, 2))
        on_record = [node.root.key_id for site in sites for node in host.nodes(site)]
        assert sorted(on_record) == sorted(result.key_ids) == sorted(host.let_in)
        assert len(result.key_ids) == 200
