"""How the fleet is judged, and how it is shown."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import typer.testing
from prometheus_client.parser import text_string_to_metric_families

from agent.statements.roots import KeyKind
from agent.trust.records import FIDO2Record, NodeFile
from agent.trust.snapshot import TrustSnapshot
from provisioning.authority.layout import AuthorityLayout
from provisioning.cli.fleet import load_fleet, render_fleet
from provisioning.cli.main import app
from provisioning.registrar.fleet import SILENT_S, Condition, Fleet, FleetBox, ago, survey
from provisioning.registrar.heartbeats import BoxHeartbeat
from provisioning.registrar.operator import OperatorDesk, RequestCounter, opened_page
from provisioning.registrar.publish import PublishedReader
from provisioning.registrar.store import Store
from tests.simulators.authority import FoundedConsortium, new_node
from tests.simulators.clock import SetClock
from tests.simulators.superlink import free_port

A, B, C = "hospital-a", "hospital-b", "hospital-c"
NOW_S = int(datetime.now(UTC).timestamp())


def beat(node: NodeFile, **changes: object) -> BoxHeartbeat:
    """A box that was well a minute ago."""
    told = BoxHeartbeat(
        key_id=node.root.key_id,
        site=node.site,
        node=node.node,
        release="1.4.0",
        link="online",
        session="valid",
        health="well",
        trouble="",
        uptime_s=100,
        issued_s=NOW_S - 60,
        session_expires_s=NOW_S + 3600,
        seen_s=NOW_S - 60,
    )
    return replace(told, **changes)  # type: ignore[arg-type]


class Scene:
    """A consortium of three hospitals, a box each in two of them, and a spare one in the first."""

    def __init__(self, directory: Path) -> None:
        self.clock = SetClock(datetime.fromtimestamp(NOW_S, UTC))
        self.consortium = FoundedConsortium.found(directory, self.clock)
        for site in (A, B, C):
            self.consortium.publish(self.consortium.add_site(site).renew())
        self.first = self.consortium.enrol(A)
        self.clock.move(1)
        self.spare = self.consortium.enrol(A)
        self.other = self.consortium.enrol(B)
        self.reader = PublishedReader(self.consortium.publisher.files, self.clock)
        self.snapshot = self.reader.current().snapshot

    def survey(self, *beats: BoxHeartbeat) -> Fleet:
        return survey(self.snapshot, {each.key_id: each for each in beats}, now_s=NOW_S)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("fleet") / "authority")


def with_kind(snapshot: TrustSnapshot, node: NodeFile, kind: KeyKind) -> TrustSnapshot:
    """The same consortium, where a box's key is of another kind."""
    fido2 = FIDO2Record(rp_id="node.example.org") if kind is KeyKind.FIDO2 else None
    changed = node.model_copy(update={"kind": kind, "fido2": fido2})
    record = next(record for site, record in snapshot.sites.items() if site == node.site)
    return replace(snapshot, sites={**snapshot.sites, record.site: replace(record, nodes=(changed,))})


def the_box(fleet: Fleet, node: NodeFile) -> FleetBox:
    return next(box for box in fleet.boxes if box.node == node.node)


def test_silent_boxes_come_first_then_those_that_need_a_person(scene: Scene) -> None:
    fleet = scene.survey(
        beat(scene.first, health="needs-person", session="needs-person"),
        beat(scene.spare),
        beat(scene.other, seen_s=NOW_S - SILENT_S),
    )
    assert [(box.node, box.condition) for box in fleet.boxes] == [
        (scene.other.node, Condition.SILENT),
        (scene.first.node, Condition.NEEDS_PERSON),
        (scene.spare.node, Condition.WELL),
    ]
    assert (fleet.counts[Condition.SILENT], fleet.counts[Condition.UNHEARD]) == (1, 0)
    assert [box.is_spare for box in fleet.boxes] == [False, False, True]


def test_a_box_that_was_never_heard_of_is_shown(scene: Scene) -> None:
    box = the_box(scene.survey(), scene.other)
    assert (box.condition, box.seen_s, box.release, box.needs_person) == (Condition.UNHEARD, None, "", False)


def test_a_hospital_without_a_box_is_shown(scene: Scene) -> None:
    assert list(scene.survey().boxless) == [C]


def test_what_strangers_told_is_not_shown(scene: Scene) -> None:
    fleet = scene.survey(beat(new_node(B)))
    assert {box.condition for box in fleet.boxes} == {Condition.UNHEARD}


def test_a_degraded_box_says_what_is_wrong(scene: Scene) -> None:
    told = beat(scene.other, health="degraded", link="lost", trouble="fleet.unreachable", session="due")
    box = the_box(scene.survey(told), scene.other)
    assert box.condition is Condition.DEGRADED
    assert ("lost" in box.sentence, "[fleet.unreachable]" in box.sentence, "renew" in box.sentence) == (True,) * 3


@pytest.mark.parametrize(
    ("kind", "ended", "needs_person"),
    [(KeyKind.FIDO2, True, True), (KeyKind.FIDO2, False, False), (KeyKind.PIV, True, True), (KeyKind.TPM, True, False)],
)
def test_silence_after_a_keys_word_has_ended_asks_for_its_person(
    scene: Scene, kind: KeyKind, ended: bool, needs_person: bool
) -> None:
    expires_s = NOW_S - 1 if ended else NOW_S + 1
    told = beat(scene.other, seen_s=NOW_S - SILENT_S, session_expires_s=expires_s)
    fleet = survey(with_kind(scene.snapshot, scene.other, kind), {told.key_id: told}, now_s=NOW_S)
    box = the_box(fleet, scene.other)
    assert (box.condition, box.needs_person) == (Condition.SILENT, needs_person)
    assert ("seh-agent key renew" in box.sentence) == needs_person


def test_a_security_key_that_never_vouched_shows_as_such(scene: Scene) -> None:
    box = the_box(survey(with_kind(scene.snapshot, scene.other, KeyKind.FIDO2), {}, now_s=NOW_S), scene.other)
    assert (box.condition, box.needs_person) == (Condition.UNHEARD, True)
    assert "key renew" in box.sentence


def test_times_are_said_as_people_do() -> None:
    assert [ago(seconds) for seconds in (0, 59, 60, 3599, 7200, 3 * 86_400)] == [
        "now",
        "now",
        "1 min ago",
        "59 min ago",
        "2 h ago",
        "3 d ago",
    ]


def test_every_colour_in_the_terminal_has_its_word(scene: Scene) -> None:
    lines = render_fleet(scene.survey(beat(scene.first), beat(scene.other, seen_s=NOW_S - 7200)))
    plain = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]
    assert "1 silent, 1 never heard of, 1 well" in plain[0]
    assert re.match(rf"{B} {scene.other.node} +silent +2 h ago +1\.4\.0 +software until", plain[1])
    assert any(re.match(rf"{A} {scene.first.node} +well +1 min ago", line) for line in plain)
    assert plain[-1].startswith(f"{C}: ")


@pytest.fixture
def store(scene: Scene) -> Iterator[Store]:
    with closing(Store.open(f"sqlite:///{scene.consortium.layout.path / 'registrar.db'}", scene.clock)) as store:
        yield store


_later = itertools.count(NOW_S)


def told(store: Store, node: NodeFile) -> None:
    store.note_heartbeat(beat(node, issued_s=next(_later), seen_s=NOW_S))


def test_the_command_reads_what_the_registrar_keeps(scene: Scene, store: Store) -> None:
    told(store, scene.first)
    directory = scene.consortium.layout.path
    box = the_box(load_fleet(AuthorityLayout(directory)), scene.first)
    assert (box.release, box.seen_s) == ("1.4.0", NOW_S)
    runner = typer.testing.CliRunner()
    shown = runner.invoke(app, ["fleet", "-d", str(directory), "--json"])
    assert json.loads(shown.stdout)["boxes"][-1]["release"] == "1.4.0"
    assert f"{A} {scene.first.node}" in runner.invoke(app, ["fleet", "-d", str(directory)]).stdout
    status = runner.invoke(app, ["consortium", "status", "-d", str(directory)]).stdout.splitlines()
    of_box = {node.node: next(line for line in status if node.node in line) for node in (scene.first, scene.spare)}
    assert re.search(r"release 1\.4\.0, heard of (now|\d+ \w+ ago)$", of_box[scene.first.node])
    assert of_box[scene.spare.node].endswith("sent no heartbeat")


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in {"src", "href", "style"} or name.startswith("on")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def address(scene: Scene, store: Store) -> Iterator[str]:
    async def nothing(*_: object) -> None:
        return

    address = f"127.0.0.1:{free_port()}"
    desk = OperatorDesk(scene.reader, store, scene.clock, RequestCounter(nothing).registry)
    with opened_page(address, desk, scene.clock):
        yield f"http://{address}"


def test_the_page_shows_the_fleet_and_loads_nothing_from_elsewhere(scene: Scene, store: Store, address: str) -> None:
    told(store, scene.other)
    answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert (answer.status_code, "default-src 'none'" in policy, "script-src" in policy) == (200, True, False)
    page = Page()
    page.feed(answer.text)
    assert ("script" in page.tags, "style" in page.tags, page.links) == (False, False, ["/fleet.css"])
    for word in (scene.other.node, "1.4.0", "well", "never heard of", "Hospitals without a box", C):
        assert word in page.text
    style = httpx.get(f"{address}/fleet.css")
    assert (style.status_code, style.headers["content-type"].partition(";")[0]) == (200, "text/css")
    assert "url(" not in style.text


def test_metrics_follow_prometheus_conventions(scene: Scene, store: Store, address: str) -> None:
    told(store, scene.other)
    families = {each.name: each for each in text_string_to_metric_families(httpx.get(f"{address}/metrics").text)}
    boxes = {sample.labels["condition"]: sample.value for sample in families["seh_fleet_boxes"].samples}
    assert (sum(boxes.values()), boxes["well"] >= 1) == (3, True)
    seen = {each.labels["node"]: each.value for each in families["seh_fleet_box_seen_timestamp_seconds"].samples}
    assert seen[scene.other.node] == NOW_S
    info = {each.labels["node"]: each.labels for each in families["seh_fleet_box_info"].samples}
    assert (info[scene.other.node]["version"], info[scene.other.node]["key"]) == ("1.4.0", "software")
    assert families["seh_registrar_requests"].type == "counter"
    assert all(name.startswith(("seh_", "process_")) for name in families)
    assert "process_resident_memory_bytes" in families


def test_the_page_goes_with_the_registrar(scene: Scene, store: Store) -> None:
    async def nothing(*_: object) -> None:
        return

    address = f"127.0.0.1:{free_port()}"
    with opened_page(
        address, OperatorDesk(scene.reader, store, scene.clock, RequestCounter(nothing).registry), scene.clock
    ):
        assert httpx.get(f"http://{address}/fleet.css").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/fleet.css")
