"""What proving costs: sign, prove and verify for every kind of key, the chain, and a TPM's evidence.

The devices are simulators, so these are the figures of our own code: a chip adds its own 50 to 200 ms a signature.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.appraise import Policy, appraise_evidence, challenge, confirm_activation
from agent.attestation.binding import Exchange
from agent.attestation.credential import activation_answer
from agent.attestation.makers import build_store
from agent.core.clock import SystemClock
from agent.identity.key import HardwareKey, init_key
from agent.identity.session import SessionKeeper, Subject
from agent.identity.tpm import TPMKey
from agent.statements.chain import NodeRecord, TrustView, verify_session, verify_statement
from agent.statements.kinds import Possession
from agent.statements.roots import EvidenceClass, verify_proof
from tests.bench.table import Row, at_most
from tests.contract.rigs import RIG_FOR_SCHEME
from tests.simulators.swtpm import shared_maker

PING = Possession(purpose="bench", challenge="ab" * 32)
SUBJECT = Subject("c0" * 32, "north", "box-1")
_TURNS = 31


def rows() -> Iterator[Row]:
    """Medians over all kinds of keys."""
    for scheme, rig_in in RIG_FOR_SCHEME.items():
        with tempfile.TemporaryDirectory() as directory, rig_in(Path(directory)) as rig:
            yield from _key_rows(scheme, init_key(rig.uri, person=rig.person))
    with tempfile.TemporaryDirectory() as directory:
        yield from _chain_rows(init_key(f"software:{directory}/key.pem"))
    yield from _enrolment_rows()


def _key_rows(scheme: str, key: HardwareKey) -> Iterator[Row]:
    if key.capabilities.signs:
        yield Row(f"sign with a {scheme} key (simulated)", _median_ms(lambda: key.sign(b"message")), "ms")
    yield Row(f"prove with a {scheme} key (simulated)", _median_ms(lambda: key.prove(PING)), "ms")
    proof, root = key.prove(PING), key.root()
    yield at_most(f"verify a {scheme} key's proof", _median_ms(lambda: verify_proof(proof, root)), "ms", 5.0)
    if key.capabilities.holds_sessions:
        session_key, algorithm = key.new_session_key(), ec.ECDSA(hashes.SHA256())
        yield Row(
            f"sign with a session key in the {scheme} (simulated)",
            _median_ms(lambda: session_key.sign(b"message", algorithm)),
            "ms",
        )


def _chain_rows(key: HardwareKey) -> Iterator[Row]:
    keeper = SessionKeeper(key, SUBJECT, clock=SystemClock(), timestamp_version=lambda: 1)
    session, now_s = keeper.renew(), int(time.time())
    record = NodeRecord(SUBJECT.site, SUBJECT.node, key.root())
    view = TrustView(SUBJECT.consortium, {key.key_id: record}, frozenset(), 1, 1)
    yield Row("prove with a session key in memory", _median_ms(lambda: session.prove(PING)), "ms")
    verified, proof = verify_session(session.certificate, view, now_s=now_s), session.prove(PING)

    def verify_both() -> None:
        verify_session(session.certificate, view, now_s=now_s)
        verify_statement(proof, verified, Possession, now_s=now_s)

    yield at_most("verify session certificate and one statement", _median_ms(verify_both), "ms", 10.0)


def _enrolment_rows() -> Iterator[Row]:
    exchange = Exchange("enrolment v1", "aa" * 32, SUBJECT.consortium, "", SUBJECT.site, secrets.token_bytes(32))
    with shared_maker().make() as tpm:
        key = init_key(tpm.uri)
        assert isinstance(key, TPMKey)
        policy = Policy((build_store(EvidenceClass.TEST, [path.read_bytes() for path in tpm.ca_certificates]),))
        qualifying_data = exchange.qualifying_data(*key.evidence_names())
        evidence, now_s, secret = key.attest(qualifying_data), int(time.time()), secrets.token_bytes(32)
        yield Row("gather a TPM's evidence (simulated)", _median_ms(lambda: key.attest(qualifying_data)), "ms")

        def appraise() -> None:
            appraise_evidence(evidence, exchange, policy, now_s=now_s)

        yield at_most("appraise a TPM's evidence", _median_ms(appraise), "ms", 20.0)
        candidate = appraise_evidence(evidence, exchange, policy, now_s=now_s)

        def activate() -> None:
            opened = key.activate(challenge(candidate, secret, random_bytes=secrets.token_bytes))
            confirm_activation(candidate, secret, activation_answer(opened, candidate.qualifying_data))

        yield Row("make, activate and confirm a credential (simulated)", _median_ms(activate), "ms")


def _median_ms(work: Callable[[], object]) -> float:
    times_s = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start)
    return 1000 * statistics.median(times_s)
