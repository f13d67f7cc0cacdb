"""Boxes to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from agent.core.clock import SystemClock
from agent.core.config import AgentConfig, parse_config
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.identity.key import HardwareKey, init_key
from agent.service.doctor.box import Box
from agent.service.trust import found_repository
from agent.statements.roots import KeyKind
from agent.trust.peers import node_name
from agent.trust.snapshot import Environment
from tests.simulators.https import PlayedServer, http_answer
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.registrar import SITE

BASE = """
[node]
state_directory = "state"
environment = "demo"
{node}
[key]
uri = "{key}"
[data]
catalog = "catalog.toml"
{rest}
"""
PINNED = """
[superlink]
address = "{address}"
root_certificates = "{roots}"
[studies]
directory = "studies"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test's box stands."""

    path: Path
    key: str = "software:node.key"

    def config(self, rest: str = "", *, node: str = "", key: str = "") -> AgentConfig:
        """A configuration with more sections."""
        (self.path / "state").mkdir(exist_ok=True)
        text = BASE.format(node=node, key=key or self.key, rest=rest)
        return parse_config(text.encode(), directory=self.path)

    def box(self, rest: str = "", *, key: str = "", **changes: Any) -> Box:  # noqa: ANN401 - any part of a box
        """A box that belongs nowhere."""
        return Box(self.config(rest, key=key), SystemClock(), runtime=self.path / "run", **changes)

    def pinned(
        self,
        server: PlayedServer,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rest: str = "",
        **changes: Any,  # noqa: ANN401 - any part of a box
    ) -> Box:
        """A box whose SuperLink is a server of ours."""
        pins = PINNED.format(address=f"{host}:{port or server.port}", roots=server.files.root)
        config = self.config(rest + pins, node='site = "hospital-a"')
        return Box(config, **{"clock": SystemClock(), "runtime": self.path / "run", **changes})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlayedServer]:
    """A SuperLink as far as a handshake goes; its clock is right."""
    (tmp_path / "server").mkdir()
    with closing(PlayedServer(tmp_path / "server")) as server:
        tell_time(server, datetime.now(UTC))
        yield server


def tell_time(server: PlayedServer, now: datetime) -> None:
    """Have a server's clock say so."""
    server.answer(http_answer(b"", headers=f"date: {format_datetime(now, usegmt=True)}\r\n"))


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A box that was enrolled, and its consortium."""

    consortium: PlayedConsortium
    config: AgentConfig
    key: HardwareKey


@pytest.fixture
def enrol(place: Place, tmp_path: Path) -> Iterator[Callable[..., Enrolled]]:
    """Enrols a box with a configuration that has these more sections."""
    (tmp_path / "registrar").mkdir()
    with PlayedConsortium(tmp_path / "registrar") as consortium:

        def enrolled(rest: str = "") -> Enrolled:
            config = place.config(rest)
            key = init_key(config.key.uri)
            consortium.desks[SITE].add_node(key.public_key(), kind=KeyKind.SOFTWARE, evidence="none")
            consortium.desks[SITE].sign()
            consortium.publish_consortium()
            digest = consortium.repository.root_digest
            folder = EnrolmentFolder.of(config.node.state_directory)
            url = f"https://{consortium.address}/repository/"
            directory = folder.trust(digest)
            directory.parent.mkdir(parents=True)
            with closing(
                found_repository(directory, url, consortium.root, digest, SystemClock(), proxy=None)
            ) as repository:
                repository.refresh()
            folder.store_record(
                EnrolmentRecord(
                    site=SITE,
                    node=node_name(key.key_id),
                    key_id=key.key_id,
                    root_digest=digest,
                    environment=Environment.TEST,
                    consortium="played",
                    name="The Played Consortium",
                    registrar=consortium.address,
                    enrolled=datetime.now(UTC),
                )
            )
            return Enrolled(consortium, config, key)

        yield enrolled
