"""The repository over real sockets: TLS that nobody vouches for, a hospital's proxy, connections used again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.errors import NetworkError
from agent.trust.fetcher import BoundedFetcher, FetchLimits
from agent.trust.repository import TrustRepository, bootstrap
from tests.simulators.https import PlayedServer
from tests.simulators.repository import PlayedRepository
from tests.simulators.repository_server import Served, running_proxy, served_repository
from tests.simulators.trust_scene import A, new_key


@pytest.fixture
def repository() -> PlayedRepository:
    played = PlayedRepository.found(SystemClock())
    site = played.add_site(A)
    site.add_node(new_key())
    site.sign()
    played.publish()
    return played


@contextmanager
def fetched_by(
    repository: PlayedRepository,
    directory: Path,
    url: str,
    *,
    proxy: str | None = None,
    limits: FetchLimits | None = None,
) -> Iterator[TrustRepository]:
    bootstrap(directory, repository.files["1.root.json"], repository.root_digest)
    fetcher = BoundedFetcher(SystemClock(), proxy=proxy, limits=limits)
    try:
        with TrustRepository(directory, url, fetcher, SystemClock()) as box:
            yield box
    finally:
        fetcher.close()


@pytest.fixture
def served(repository: PlayedRepository, tmp_path: Path) -> Iterator[Served]:
    with served_repository(repository, tmp_path / "tls") as server:
        yield server


def test_certificate_that_nobody_vouches_for(repository: PlayedRepository, served: Served, tmp_path: Path) -> None:
    with fetched_by(repository, tmp_path / "trust", served.url()) as box:
        assert A in box.refresh().sites
        box.refresh()
    assert served.connections == 1


def test_without_tls(repository: PlayedRepository, tmp_path: Path) -> None:
    with (
        served_repository(repository, None) as server,
        fetched_by(repository, tmp_path / "trust", server.url("http")) as box,
    ):
        assert A in box.refresh().sites


@pytest.mark.parametrize(("user", "shown"), [("", ""), ("box:p%40ss@", "box:p@ss")])
def test_through_a_proxy(repository: PlayedRepository, served: Served, tmp_path: Path, user: str, shown: str) -> None:
    with (
        running_proxy() as proxy,
        fetched_by(repository, tmp_path / "trust", served.url(), proxy=f"http://{user}localhost:{proxy.port}/") as box,
    ):
        assert A in box.refresh().sites
    assert proxy.asked == [f"CONNECT localhost:{served.port} HTTP/1.1"]
    assert proxy.credentials == [shown]


def test_environment_names_no_proxy(
    repository: PlayedRepository, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:9")
    with fetched_by(repository, tmp_path / "trust", served.url()) as box:
        assert A in box.refresh().sites


def test_nobody_listens(repository: PlayedRepository, tmp_path: Path) -> None:
    server = PlayedServer(tmp_path / "tls")
    server.close()
    url = f"https://localhost:{server.port}/"
    with fetched_by(repository, tmp_path / "trust", url) as box, pytest.raises(NetworkError) as failure:
        box.refresh()
    assert failure.value.code == "trust.unreachable"


def test_silent_server(repository: PlayedRepository, tmp_path: Path) -> None:
    server = PlayedServer(tmp_path / "tls")
    server.answer(b"HTTP/1.1 ", b"200 OK\r\n\r\n", pause_s=0.5)
    url, limits = f"https://localhost:{server.port}/", FetchLimits(step_s=0.2)
    with fetched_by(repository, tmp_path / "trust", url, limits=limits) as box, pytest.raises(NetworkError) as failure:
        box.refresh()
    server.close()
    assert failure.value.code == "trust.slow"


def test_large_file_may_take_longer_than_a_small_one(repository: PlayedRepository, tmp_path: Path) -> None:
    """What counts is the rate: a file is not cut off because it is large."""
    body = bytes(1 << 20)
    repository.put(repository.studies, "studies/stroke/model.onnx", body)
    repository.sign_role("studies", repository.studies)
    repository.publish()
    limits = FetchLimits(start_s=0.5, bytes_per_s=1 << 20)
    with (
        served_repository(repository, tmp_path / "tls") as server,
        fetched_by(repository, tmp_path / "trust", server.url(), limits=limits) as box,
    ):
        box.refresh()
        assert box.download("studies/stroke/model.onnx") == body
