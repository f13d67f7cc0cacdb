"""The authority's host loses its power, or its disk is full, at each moment at which something is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import HardwareError, NetworkError, PeerProtocolError, SecureHealthError
from agent.core.ids import SiteID
from provisioning.authority.consortium import Founding
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import Proposal
from tests.simulators.authority import FoundedConsortium, new_node, no_secrets, plan
from tests.simulators.clock import SetClock
from tests.simulators.power import PowerCutError, disk_full, struck

A = "hospital-a"
TWO: dict[str, Any] = {"organisations": 2, "cosigner": "127.0.0.1:9444"}


def moments_of(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often something is written."""
    with struck(monkeypatch, None) as moments:
        run()
    return moments.count


def founding(directory: Path, **changes: Any) -> Founding:  # noqa: ANN401 - any part of a plan
    return Founding(AuthorityLayout(directory), plan(**changes), (), no_secrets, SetClock(datetime.now(UTC)))


@pytest.mark.slow
def test_founding_goes_on_after_a_power_cut_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = moments_of(lambda: founding(tmp_path / "whole", **TWO).run(lambda _: None), monkeypatch)
    for at in range(count):
        directory = tmp_path / f"cut-{at}"
        with struck(monkeypatch, at), pytest.raises(PowerCutError):
            founding(directory, **TWO).run(lambda _: None)
        roots = published_roots(directory)
        founding(directory, **TWO).run(lambda _: None)
        assert not founding(directory, **TWO).run(lambda _: None)
        assert published_roots(directory)[: len(roots)] == roots
        assert FoundedConsortium.reopen(directory).read(tmp_path / f"box-{at}").consortium.id == "consortium-a"
    consortium = FoundedConsortium.reopen(directory)
    consortium.add_site(A)
    consortium.enrol(A)
    assert consortium.read(tmp_path / "last").sites.keys() == {SiteID(A)}


@pytest.mark.slow
def test_founding_goes_on_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = moments_of(lambda: founding(tmp_path / "whole").run(lambda _: None), monkeypatch)
    for at in range(0, count, 5):
        directory = tmp_path / f"full-{at}"
        with struck(monkeypatch, at, disk_full), pytest.raises((OSError, HardwareError)):
            founding(directory).run(lambda _: None)
        founding(directory).run(lambda _: None)
        assert published_roots(directory)


def test_finished_founding_does_nothing(tmp_path: Path) -> None:
    founding(tmp_path).run(lambda _: None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told: list[str] = []
    assert not founding(tmp_path).run(told.append)
    assert told == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def consortium(tmp_path: Path) -> FoundedConsortium:
    founded = FoundedConsortium.found(tmp_path / "authority", **TWO)
    founded.add_site(A)
    return founded


@pytest.mark.slow
def test_publication_is_whole_after_a_power_cut_at_every_moment(
    consortium: FoundedConsortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box reads the state before or the one after; the next call finishes what was begun."""
    consortium.enrol(A)  # a hospital's first box writes more than the next ones
    count = moments_of(lambda: consortium.enrol(A), monkeypatch)
    with consortium.box(tmp_path / "box") as box:
        box.refresh()
        for at in range(count):
            staged = consortium.desk(A).endorse(node := new_node(A))
            with struck(monkeypatch, at), pytest.raises(PowerCutError):
                consortium.publish(staged)
            known = {found.node for found in box.refresh().sites[SiteID(A)].nodes}
            consortium.cosigner = consortium.start_cosigner()
            consortium.publish(staged)
            after = {found.node for found in box.refresh().sites[SiteID(A)].nodes}
            assert after - {node.node} == known - {node.node}
            assert node.node in after
            consortium.publish(consortium.desk(A).stage(removed=[f"sites/{A}/nodes/{node.node}/node.json"]))


def test_publication_on_a_full_disk(
    consortium: FoundedConsortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with consortium.box(tmp_path / "box") as box:
        box.refresh()
        for at in (0, 3, 9, 15):
            staged = consortium.desk(A).endorse(new_node(A))
            with struck(monkeypatch, at, disk_full), pytest.raises(HardwareError):
                consortium.publish(staged)
            box.refresh()
            consortium.publish(staged)
        assert len(box.refresh().sites[SiteID(A)].nodes) == 4


class Unreachable:
    """A cosigner behind a network that is down, or one that does not answer after it signed."""

    def __init__(self, consortium: FoundedConsortium, *, signs: bool) -> None:
        self._consortium = consortium
        self._signs = signs

    def sign(self, proposal: Proposal) -> Proposal:
        assert self._consortium.cosigner is not None
        if self._signs:
            self._consortium.cosigner.cosign(proposal)
        raise NetworkError("cosigner.unreachable", "It does not answer.", next_step="Try again.")


@pytest.mark.parametrize("signs", [False, True])
def test_cosigner_does_not_answer(consortium: FoundedConsortium, tmp_path: Path, signs: bool) -> None:
    """What it may have signed is shown to it again, byte for byte: it never sees two things under one version."""
    local, cosigner = consortium.online
    staged = consortium.desk(A).endorse(node := new_node(A))
    consortium.online = [local, Unreachable(consortium, signs=signs)]
    for _ in range(3):
        with pytest.raises(NetworkError):
            consortium.publish(staged)
        assert isinstance(consortium.clock, SetClock)
        consortium.clock.move(1)
    consortium.online = [local, cosigner]
    consortium.publish(staged)
    assert [found.node for found in consortium.desk(A).nodes] == [node.node]
    assert consortium.publisher.load().timestamp_version == 3


def test_cosigner_was_away_for_a_day(consortium: FoundedConsortium, tmp_path: Path) -> None:
    """What was proposed then is too old to be signed now; the same change is proposed anew."""
    local, cosigner = consortium.online
    staged = consortium.desk(A).endorse(new_node(A))
    consortium.online = [local, Unreachable(consortium, signs=False)]
    with pytest.raises(NetworkError):
        consortium.publish(staged)
    assert isinstance(consortium.clock, SetClock)
    consortium.clock.move(timedelta(hours=23).total_seconds())
    consortium.online = [local, cosigner]
    consortium.publish(staged)
    assert len(consortium.read(tmp_path / "box").sites[SiteID(A)].nodes) == 1


def test_cosigner_refuses(consortium: FoundedConsortium, tmp_path: Path) -> None:
    consortium.cosigner = consortium.start_cosigner(SetClock(datetime.now(UTC) + timedelta(days=400)))
    with pytest.raises(PeerProtocolError):
        consortium.enrol(A)
    consortium.cosigner = consortium.start_cosigner()
    consortium.enrol(A)
    assert len(consortium.read(tmp_path / "box").sites[SiteID(A)].nodes) == 1


def test_two_publish_at_once(tmp_path: Path) -> None:
    """They take turns: what the other published first makes a version stale, never lost."""
    consortium = FoundedConsortium.found(tmp_path / "authority")
    names = [f"hospital-{number}" for number in range(4)]
    for name in names:
        consortium.add_site(name)
    failures: list[SecureHealthError] = []

    def enrol(name: str) -> None:
        for _ in range(3):
            try:
                consortium.enrol(name)
            except SecureHealthError as error:
                failures.append(error)

    threads = [threading.Thread(target=enrol, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    sites = consortium.read(tmp_path / "box").sites
    assert {site: len(record.nodes) for site, record in sites.items()} == dict.fromkeys(names, 3)


def published_roots(directory: Path) -> list[bytes]:
    place = directory / "repository" / "1.root.json"
    return [place.read_bytes()] if place.exists() else []
