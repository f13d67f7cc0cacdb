"""A TPM that is busy, gone, shared with others, or left dirty by a process that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from threading import Thread

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, TPM2B_SENSITIVE_CREATE
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE
from tpm2_pytss.types import TPMT_SYM_DEF

from agent.core.clock import SystemClock
from agent.core.errors import HardwareError
from agent.identity.key import HardwareKey, PresenceState, init_key, open_key
from agent.identity.session import SessionKeeper, SessionState, Subject
from agent.identity.tpm_device import TPMDevice
from agent.statements.kinds import Possession
from agent.statements.roots import verify_proof
from tests.simulators.swtpm import Swtpm, shared_maker

ECDSA = ec.ECDSA(hashes.SHA256())
PING = Possession(purpose="ping", challenge="ab" * 32)


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


@pytest.fixture
def key(tpm: Swtpm) -> HardwareKey:
    return init_key(tpm.uri)


def occupy(esapi: ESAPI, count: int) -> list[ESYS_TR]:
    """Fill transient slots (swtpm has three) and keep them."""
    return [esapi.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc", ESYS_TR.OWNER)[0] for _ in range(count)]


def test_busy_tpm_is_asked_again(tpm: Swtpm, key: HardwareKey) -> None:
    session_key = key.new_session_key()
    with ESAPI(tpm.tcti) as neighbour:
        held = occupy(neighbour, 3)

        def free() -> None:
            time.sleep(0.3)
            for handle in held:
                neighbour.flush_context(handle)

        freed = Thread(target=free)
        start = time.monotonic()
        freed.start()
        session_key.public_key().verify(session_key.sign(b"message", ECDSA), b"message", ECDSA)
        assert 0.25 < time.monotonic() - start < 2.0
        freed.join()


def test_objects_left_by_a_killed_process_are_swept_away(tpm: Swtpm) -> None:
    device = TPMDevice(tpm.tcti, patience_s=0.1)
    key = init_key(tpm.uri)
    with ESAPI(tpm.tcti) as dying:
        occupy(dying, 3)
    start = time.monotonic()
    handle = device.run(lambda esapi: esapi.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc", ESYS_TR.OWNER)[0])
    assert handle is not None
    assert time.monotonic() - start < 2.0
    assert key.presence().state is PresenceState.READY


def test_sessions_left_by_a_killed_process_are_swept_away(tpm: Swtpm) -> None:
    device = TPMDevice(tpm.tcti, patience_s=0.1)
    null = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)

    def start_session(esapi: ESAPI) -> ESYS_TR:
        return esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, null, TPM2_ALG.SHA256)

    with ESAPI(tpm.tcti) as dying:
        for _ in range(3):
            start_session(dying)
    assert device.run(start_session) is not None


def test_two_processes_at_once(tpm: Swtpm, key: HardwareKey) -> None:
    program = textwrap.dedent(
        f"""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from agent.identity.key import open_key
        key = open_key({tpm.uri!r})
        session = key.new_session_key()
        for turn in range(40):
            key.sign(b"message")
            session.sign(b"message", ec.ECDSA(hashes.SHA256()))
        """
    )
    others = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    session = key.new_session_key()
    while any(other.poll() is None for other in others):
        key.sign(b"message")
        session.sign(b"message", ECDSA)
    assert [other.communicate()[1].decode() for other in others] == ["", "", ""]
    assert [other.returncode for other in others] == [0, 0, 0]


def test_process_killed_in_the_middle(tpm: Swtpm, key: HardwareKey) -> None:
    program = textwrap.dedent(
        f"""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from agent.identity.key import open_key
        session = open_key({tpm.uri!r}).new_session_key()
        print("ready", flush=True)
        while True:
            session.sign(b"message", ec.ECDSA(hashes.SHA256()))
        """
    )
    session = key.new_session_key()
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(0.05)
            victim.send_signal(signal.SIGKILL)
        session.sign(b"message", ECDSA)
        verify_proof(key.prove(PING), key.root())


def test_session_comes_back_within_two_seconds_of_the_tpm(tpm: Swtpm, key: HardwareKey) -> None:
    keeper = SessionKeeper(key, Subject("c0" * 32, "north", "box-1"), clock=SystemClock(), timestamp_version=lambda: 1)
    tpm.stop()
    status = keeper.tick()
    assert status.state is SessionState.LAPSED
    assert "No TPM answers" in status.sentence
    with pytest.raises(HardwareError, match="cannot prove who it is") as failure:
        keeper.current()
    assert failure.value.code == "identity.no_session"
    tpm.start()
    start = time.monotonic()
    while keeper.tick().state is not SessionState.VALID:
        time.sleep(0.1)
        assert time.monotonic() - start < 2.0
    assert keeper.current().prove(PING).signature


def test_session_in_the_tpm_signs_again_after_the_tpm_was_out(tpm: Swtpm, key: HardwareKey) -> None:
    keeper = SessionKeeper(key, Subject("c0" * 32, "north", "box-1"), clock=SystemClock(), timestamp_version=lambda: 1)
    keeper.tick()
    session = keeper.current()
    tpm.stop()
    with pytest.raises(HardwareError, match="No TPM answers"):
        session.prove(PING)
    tpm.start()
    assert session.prove(PING).key_id == keeper.current().prove(PING).key_id


def test_nothing_at_the_address_at_all() -> None:
    with pytest.raises(HardwareError, match="No TPM answers"):
        open_key("tpm:swtpm:path=/nonexistent/socket")
    with pytest.raises(HardwareError, match="No TPM answers"):
        open_key("tpm:device:/nonexistent")
    with pytest.raises(HardwareError, match="No TPM answers"):
        open_key("tpm:no-such-transport:x")
