"""What an enrolled box does with its repository's news."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from agent.core.clock import SystemClock
from agent.core.errors import HardwareError
from agent.service.trust import TrustKeeper, found_repository
from agent.trust.snapshot import TrustSnapshot
from tests.simulators.played_consortium import PlayedConsortium

LIMIT_S = 20.0


def test_news_that_could_not_be_taken_is_told_again(tmp_path: Path) -> None:
    told: list[TrustSnapshot] = []
    news: list[str] = []
    well = threading.Event()

    def take(snapshot: TrustSnapshot) -> None:
        told.append(snapshot)
        if len(told) == 1:
            raise HardwareError("service.certificates_not_stored", "The disk is full.", next_step="Make room.")

    def hear(text: str) -> None:
        news.append(text)
        if not text:
            well.set()

    with PlayedConsortium(tmp_path / "registrar") as consortium:
        url, digest = f"https://{consortium.address}/repository/", consortium.repository.root_digest
        repository = found_repository(tmp_path / "trust", url, consortium.root, digest, SystemClock(), proxy=None)
        snapshot = repository.refresh()
        with TrustKeeper(repository, random.Random(1), on_news=hear, on_snapshot=take, every_s=0.05):
            assert well.wait(LIMIT_S)
    assert told == [snapshot, snapshot]
    assert news[:2] == ["The disk is full. Make room.", ""]
