"""No refusal is an oracle: what depends on a hospital's data never shows outside (and no error holds a secret)."""

from __future__ import annotations

import numpy as np
import pytest

from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame
from agent.secagg import codec
from agent.secagg.codec import Contribution
from agent.secagg.terms import NoiseTerms
from tests.simulators.cohort import PARAMETERS, WORDS, Cohort, make_terms, relay
from tests.simulators.malicious_server import MaliciousServer

SICK = "site-001"
GOOD_WORDS = np.ones(WORDS, np.uint64)

FAILURES: dict[str, Contribution | None] = {
    "nothing": None,
    "nan": Contribution(np.full(PARAMETERS, np.nan, np.float32), 5, GOOD_WORDS),
    "infinite": Contribution(np.full(PARAMETERS, -np.inf, np.float32), 5, GOOD_WORDS),
    "short": Contribution(np.zeros(PARAMETERS - 1, np.float32), 5, GOOD_WORDS),
    "doubles": Contribution(np.zeros(PARAMETERS), 5, GOOD_WORDS),  # type: ignore[arg-type]
    "words": Contribution(np.zeros(PARAMETERS, np.float32), 5, np.ones(WORDS + 1, np.uint64)),
    "weight": Contribution(np.zeros(PARAMETERS, np.float32), float("nan"), GOOD_WORDS),  # type: ignore[arg-type]
    "type": Contribution("nonsense", 5, GOOD_WORDS),  # type: ignore[arg-type]
}


def shape(frame: Frame) -> object:
    """All that the other side can tell apart without breaking a mask: names, types, lengths."""

    def outline(value: object) -> object:
        if isinstance(value, list):
            return [outline(item) for item in value]
        if isinstance(value, bytes):
            # A DER signature of P-256 has 70 to 72 bytes by chance.
            return "bytes" if 68 <= len(value) <= 72 else len(value)
        return value

    return {
        **{name: outline(value) for name, value in frame.header.items() if name != "context"},
        "": len(frame.payload),
    }


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("privacy", [None, NoiseTerms(1.0, 1.0, 5.0, 1e-5)], ids=["plain", "noise"])
def test_a_failure_uploads_a_zero_of_weight_zero_in_the_same_form(failure: str, privacy: NoiseTerms | None) -> None:
    cohort = Cohort(make_terms(4, privacy=privacy))
    cohort.advertise()
    inputs = {**cohort.inputs(), SICK: FAILURES[failure]}
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    request = relay(opened.masked_input_request())
    shapes = set()
    for site, session in ((site, hospital.session) for site, hospital in cohort.hospitals.items()):
        session.accept(request)
        upload = session.masked_input(inputs[site])
        assert (upload.declined is not None) is (site == SICK)
        shapes.add(repr(shape(upload.frame)).replace(site, "site"))
        opened.receive_masked_input(site, relay(upload.frame))
    assert len(shapes) == 1
    cohort.agree(opened)
    total = opened.finish().total
    if privacy is None:
        others = [one for site, one in cohort.inputs().items() if site != SICK]
        assert total.weight == sum(one.weight for one in others)
        assert np.array_equal(total.words, np.sum([one.words for one in others], axis=0, dtype=np.uint64))
    else:
        assert total.weight == 4


def test_a_failure_out_of_memory_uploads_too(server: MaliciousServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    session = server.cohort.hospitals[SICK].session
    session.accept(relay(server.open().frame))
    monkeypatch.setattr(codec, "Rounder", fail)
    assert session.masked_input(server.cohort.inputs()[SICK]).declined == "MemoryError"


def test_weights_are_capped_without_a_word(server: MaliciousServer) -> None:
    session = server.cohort.hospitals[SICK].session
    session.accept(relay(server.open().frame))
    heavy = Contribution(np.zeros(PARAMETERS, np.float32), 10**15, GOOD_WORDS)
    assert session.masked_input(heavy).declined is None


def test_no_error_and_no_reply_holds_a_secret(lenient: MaliciousServer) -> None:
    """Every refusal that a walk through all legs can provoke is searched for every secret in memory."""
    opened = lenient.open()
    lenient.upload_all(opened)
    session = lenient.cohort.hospitals[SICK].session
    secrets = session._secrets
    assert secrets is not None
    hidden = {*secrets.seeds.values(), *secrets.roots.values(), *secrets.own_shares.slots.values()}
    texts = []
    for probe in (
        lambda: lenient.agree(SICK, opened, lenient.sites[1:], context=b"c" * 32),
        lambda: lenient.agree(SICK, opened, [site for site in lenient.sites if site != SICK]),
        lambda: lenient.agree(SICK, opened, tamper=lambda entries: entries[::-1]),
        lambda: lenient.reveal(SICK, opened, []),
        lambda: session.masked_input(None),
    ):
        with pytest.raises(PeerProtocolError) as raised:
            probe()
        texts.append(f"{raised.value!r} {raised.value} {raised.value.details}")
    for secret in hidden:
        for text in (*texts, repr(session), repr(secrets)):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
