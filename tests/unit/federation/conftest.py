from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.federation.fleet import Fleet, SuperLinkEndpoint
from tests.simulators.clock import SetClock
from tests.simulators.played_superlink import PlayedSuperLink


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> PlayedSuperLink:
    played = PlayedSuperLink()
    monkeypatch.setattr("agent.federation.fleet.BoundedExchange", played.exchange)
    monkeypatch.setattr("agent.federation.fleet.RETRY_FIRST_S", 0.001)
    monkeypatch.setattr("agent.federation.fleet.OBJECT_FIRST_S", 0.001)
    return played


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def fleet(superlink: PlayedSuperLink, clock: SetClock, stop: threading.Event) -> Fleet:
    endpoint = SuperLinkEndpoint("superlink.test:9092", Path("root.pem"), max_frame_bytes=12 << 20)
    return Fleet(endpoint, ec.generate_private_key(ec.SECP256R1()), clock, stop=stop, dice=random.Random(1))
