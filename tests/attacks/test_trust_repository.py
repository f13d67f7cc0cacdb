"""Attacks on the trust repository by whoever serves it, stands on the way, or holds the online keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile

from agent.core.clock import SystemClock
from agent.core.errors import SecureHealthError
from agent.statements.roots import key_id
from agent.trust.fetcher import BoundedFetcher, FetchLimits
from agent.trust.repository import TrustRepository, bootstrap
from tests.simulators.https import PlayedServer, http_answer
from tests.simulators.repository import (
    URL,
    PlayedRepository,
    new_signer,
    sign,
)
from tests.simulators.trust_scene import DAY_S, A, B, Scene, new_key, trust_scene

OTHER_FILE = {"trust.altered_file", "trust.oversize_file"}
"""A file that is not the one listed; two signatures may differ in length."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as made:
        yield made


# Whoever serves the files, or stands on the way.


def test_rollback_of_timestamp(scene: Scene) -> None:
    old = scene.repository.files["timestamp.json"]
    scene.repository.publish()
    scene.box.refresh()
    scene.repository.files["timestamp.json"] = old
    assert scene.refused() == "trust.wrong_version"


def test_rollback_of_timestamp_after_a_power_cut_took_the_cache(scene: Scene) -> None:
    old = scene.repository.files["timestamp.json"]
    scene.clock.move(60)
    scene.repository.publish()
    scene.box.refresh()
    for path in (scene.directory / "tuf").glob("*.json"):
        path.unlink()
    scene.repository.files["timestamp.json"] = old
    assert scene.refused() == "trust.rolled_back"


def test_freeze(scene: Scene) -> None:
    scene.clock.move(DAY_S + 1)
    assert scene.refused() == "trust.expired"
    assert not scene.box.current().is_current(scene.box.now_s())


def test_freeze_behind_a_clock_that_stands_still(scene: Scene) -> None:
    scene.clock.move(91 * DAY_S)
    scene.other.sign()
    scene.repository.publish()
    assert set(scene.box.refresh().sites) == {B}
    scene.clock.set_wall(-91 * DAY_S)
    assert scene.box.refresh().set_aside.keys() == {A}
    assert scene.restarted().set_aside.keys() == {A}


def test_mix_and_match_of_a_site(scene: Scene) -> None:
    old = scene.repository.files["1.site-hospital-a.json"]
    scene.publish_site()
    scene.repository.files["2.site-hospital-a.json"] = old
    assert scene.refused() in OTHER_FILE


def test_mix_and_match_of_top_level_targets(scene: Scene) -> None:
    old = scene.repository.files["1.targets.json"]
    scene.repository.sign_targets()
    scene.repository.publish()
    scene.repository.files["2.targets.json"] = old
    assert scene.refused() in OTHER_FILE


def test_altered_record(scene: Scene) -> None:
    scene.site.add_node(new_key())
    scene.publish_site()
    path = next(path for path in scene.site.role.targets if key_id(scene.key)[:8] not in path)
    served = scene.site.role.targets[path].get_prefixed_paths()[0]
    data = scene.repository.files[served]
    scene.repository.files[served] = data.replace(b"hospital-a", b"hospital-c")
    assert scene.refused() == "trust.altered_file"


def test_withheld_site(scene: Scene) -> None:
    scene.site.revoke(scene.key)
    scene.publish_site()
    del scene.repository.files["2.site-hospital-a.json"]
    assert scene.refused() == "trust.unreachable"


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "3.snapshot.json", "2.site-hospital-a.json"])
def test_oversize_file(scene: Scene, name: str) -> None:
    scene.publish_site()
    scene.repository.interfere = lambda path: bytes(8 << 20) if path == name else None
    assert scene.refused() == "trust.oversize_file"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 10_000, b'{"signed":{"_type":"timestamp"},"signatures":[]}', b"\xff"]
)
def test_garbage(scene: Scene, data: bytes) -> None:
    scene.repository.publish()
    scene.repository.files["timestamp.json"] = data
    assert scene.refused() == "trust.bad_repository"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlayedServer]:
    played = PlayedServer(tmp_path / "server")
    yield played
    played.close()


@dataclass(slots=True)
class Line:
    """A box that asks a server which sends raw bytes."""

    box: TrustRepository
    fetcher: BoundedFetcher

    def refused(self) -> str:
        with pytest.raises(SecureHealthError) as failure:
            self.box.refresh()
        return failure.value.code


@pytest.fixture
def line(tmp_path: Path, server: PlayedServer) -> Iterator[Line]:
    repository = PlayedRepository.found(SystemClock())
    bootstrap(tmp_path / "trust", repository.files["1.root.json"], repository.root_digest)
    limits = FetchLimits(step_s=5.0, start_s=0.5, bytes_per_s=1 << 17)
    fetcher = BoundedFetcher(SystemClock(), limits=limits)
    url = f"https://localhost:{server.port}/repository"
    with TrustRepository(tmp_path / "trust", url, fetcher, SystemClock()) as box:
        yield Line(box, fetcher)
    fetcher.close()


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def test_endless_data(line: Line, server: PlayedServer) -> None:
    server.answer(HEAD, *(bytes(1 << 16) for _ in range(64)))
    assert line.refused() == "trust.oversize_file"


def test_endless_headers(line: Line, server: PlayedServer) -> None:
    server.answer(HEAD[:17], *(b"x-more: " + b"a" * 8000 + b"\r\n" for _ in range(64)))
    assert line.refused() == "trust.unreachable"


def test_slow_data(line: Line, server: PlayedServer) -> None:
    server.answer(HEAD, *(b"{" for _ in range(100)), pause_s=0.02)
    assert line.refused() == "trust.slow"


def test_slow_headers(line: Line, server: PlayedServer) -> None:
    server.answer(*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nx-more: " + b"a" * 100), pause_s=0.02)
    assert line.refused() == "trust.slow"


def test_redirect_to_elsewhere(line: Line, server: PlayedServer) -> None:
    server.answer(http_answer(b"", status="302 Found", headers=f"location: {URL}\r\n"))
    assert line.refused() == "trust.unreachable"
    assert server.requests == 1


# Whoever holds the online keys: a registrar that was broken into.


def test_rollback_of_snapshot(scene: Scene) -> None:
    listing = scene.repository.timestamp.snapshot_meta
    scene.publish_site()
    scene.box.refresh()
    scene.repository.timestamp.snapshot_meta = listing
    scene.repository.publish_timestamp()
    assert scene.refused() == "trust.wrong_version"


def test_rollback_of_site_role(scene: Scene) -> None:
    listing = scene.repository.snapshot.meta["site-hospital-a.json"]
    scene.site.revoke(scene.key)
    scene.publish_site()
    scene.box.refresh()
    scene.repository.snapshot.meta["site-hospital-a.json"] = listing
    scene.repository.publish()
    assert scene.refused() == "trust.wrong_version"


def test_rollback_of_site_role_after_the_online_keys_changed(scene: Scene) -> None:
    """python-tuf forgets what the old keys listed; what the hospital itself signed is remembered apart."""
    repository, listing = scene.repository, scene.repository.snapshot.meta["site-hospital-a.json"]
    scene.site.revoke(scene.key)
    scene.publish_site()
    scene.box.refresh()
    scene.change_online_keys()
    repository.snapshot.meta["site-hospital-a.json"] = listing
    repository.publish()
    assert "version 1 of what hospital-a signed came after version 2" in scene.set_aside()


def test_rollback_of_sites_role_after_the_online_keys_changed(scene: Scene) -> None:
    repository, listing = scene.repository, scene.repository.snapshot.meta["sites.json"]
    repository.add_site("hospital-c")
    repository.publish()
    scene.box.refresh()
    scene.change_online_keys()
    repository.snapshot.meta["sites.json"] = listing
    repository.publish()
    assert scene.refused() == "trust.rolled_back"


def test_timestamp_that_counts_for_years(scene: Scene) -> None:
    scene.repository.publish_snapshot()
    scene.repository.publish_timestamp(lasts=timedelta(days=365))
    assert scene.refused() == "trust.bad_repository"


def test_timestamp_that_hides_when_it_was_signed(scene: Scene) -> None:
    scene.repository.publish_snapshot()
    sign_bare(scene.repository)
    assert scene.refused() == "trust.bad_repository"


def sign_bare(repository: PlayedRepository) -> None:
    timestamp = repository.timestamp
    timestamp.version += 1
    timestamp.unrecognized_fields.clear()
    repository.files["timestamp.json"] = sign(Metadata(timestamp), *repository.signers["timestamp"])


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_one_of_two_online_keys(scene: Scene, role: str) -> None:
    repository, thief = scene.repository, scene.repository.signers[role][0]
    repository.publish_snapshot(*([thief] if role == "snapshot" else []))
    repository.publish_timestamp(*([thief, new_signer()] if role == "timestamp" else []))
    assert scene.refused() == "trust.not_signed"


def test_rogue_registrar_invents_a_node(scene: Scene) -> None:
    scene.site.add_node(new_key())
    scene.publish_site(*scene.repository.signers["timestamp"], *scene.repository.signers["snapshot"])
    assert "was signed by 0/1 keys" in scene.set_aside()


def test_fast_forward_of_a_site_and_recovery(scene: Scene) -> None:
    """A version that nobody of the hospital signed is not remembered against it."""
    genuine = scene.site.role.version
    scene.site.role.version = 1 << 30
    scene.publish_site(new_signer())
    scene.set_aside()
    scene.change_online_keys()
    scene.site.role.version = genuine
    scene.publish_site()
    assert scene.box.refresh().sites[A].version == genuine + 1


def test_fast_forward_and_recovery_by_root_rotation(scene: Scene) -> None:
    repository = scene.repository
    repository.timestamp.version = repository.snapshot.version = 1 << 40
    repository.publish()
    assert scene.box.refresh().timestamp_version > 1 << 40
    repository.timestamp.version = repository.snapshot.version = 10
    repository.publish()
    assert scene.refused() == "trust.wrong_version"
    scene.change_online_keys()
    repository.publish()
    snapshot = scene.box.refresh()
    assert snapshot.timestamp_version == repository.timestamp.version
    assert set(snapshot.sites) == {A, B}
    assert scene.restarted() == snapshot


def test_fast_forward_of_time_and_recovery_by_root_rotation(scene: Scene) -> None:
    """Whoever holds the online keys can take a box's present away, but not for longer than the keys count."""
    repository = scene.repository
    scene.clock.move(3000 * DAY_S)
    repository.publish()
    scene.clock.move(-3000 * DAY_S)
    assert scene.refused() == "trust.expired"
    scene.change_online_keys()
    repository.publish()
    assert set(scene.box.refresh().sites) == {A, B}
    assert scene.box.now_s() == int(scene.clock.now().timestamp())


def test_listing_without_a_hash(scene: Scene) -> None:
    repository = scene.repository
    repository.snapshot.meta["site-hospital-a.json"] = MetaFile(scene.site.role.version)
    repository.publish()
    assert scene.refused() == "trust.bad_repository"
