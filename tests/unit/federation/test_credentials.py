from __future__ import annotations

import threading
from base64 import b64decode
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.federation.credentials import SignedTimestamp
from tests.simulators.clock import SetClock

KEY = ec.generate_private_key(ec.SECP256R1())


def test_the_signature_is_over_the_timestamp() -> None:
    clock = SetClock()
    timestamp, signature = SignedTimestamp(KEY, clock).current()
    KEY.public_key().verify(b64decode(signature), timestamp.encode(), ec.ECDSA(hashes.SHA256()))
    assert datetime.fromisoformat(timestamp) == clock.now()


def test_one_signature_serves_many_requests_for_five_seconds() -> None:
    clock = SetClock()
    signed = SignedTimestamp(KEY, clock)
    for _ in range(100):
        signed.current()
        clock.move(0.049)
    assert signed.signatures == 1
    clock.move(0.2)
    signed.current()
    assert signed.signatures == 2


def test_a_set_wall_clock_makes_a_new_signature_at_once() -> None:
    for jump in (-3600.0, 3600.0):
        clock = SetClock()
        signed = SignedTimestamp(KEY, clock)
        signed.current()
        clock.set_wall(jump)
        timestamp, _ = signed.current()
        assert datetime.fromisoformat(timestamp) == clock.now()


def test_a_suspended_machine_signs_anew_even_if_its_wall_clock_was_set_back() -> None:
    clock = SetClock()
    signed = SignedTimestamp(KEY, clock)
    signed.current()
    clock.move(60)
    clock.set_wall(-60)
    signed.current()
    assert signed.signatures == 2


def test_a_rejected_timestamp_is_not_sent_again() -> None:
    signed = SignedTimestamp(KEY, SetClock())
    signed.current()
    signed.forget()
    signed.current()
    assert signed.signatures == 2


def test_threads_share_one_signature() -> None:
    signed = SignedTimestamp(KEY, SetClock())
    threads = [threading.Thread(target=signed.current) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert signed.signatures == 1
