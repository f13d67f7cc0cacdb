"""Fuzz: whatever bytes arrive, the readers answer with a value or with a failure in words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attestation.binding import Exchange
from agent.attestation.eventlog import parse_event_log, replay
from agent.attestation.evidence import MAX_EVIDENCE_BYTES, Evidence, encode_evidence, parse_evidence
from agent.attestation.makers import parse_certificate
from agent.attestation.reader import Reader
from agent.attestation.structures import Algorithm, parse_attest, parse_public, parse_signature
from agent.core.errors import PeerProtocolError
from agent.statements.roots import KeyKind
from tests.simulators.forged_tpm import BootLog, ForgedTPM, Maker

EXCHANGE = Exchange("enrolment v1", "aa" * 32, "c0" * 32, "", "north", bytes(32))
TPM = ForgedTPM(Maker())
PARTS = TPM.evidence(EXCHANGE).parts
LOG = BootLog().measure(0, 8, b"firmware").measure(4, 0x80000003, b"loader").encoded()
HONEST: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "public": (parse_public, PARTS["ek_public"]),
    "attest": (parse_attest, PARTS["quote_info"]),
    "certify": (parse_attest, PARTS["certify_info"]),
    "signature": (parse_signature, PARTS["quote_signature"]),
    "certificate": (parse_certificate, PARTS["ek_certificate"]),
    "event log": (parse_event_log, LOG),
    "evidence": (parse_evidence, encode_evidence(TPM.evidence(EXCHANGE))),
}
readers = st.sampled_from(sorted(HONEST))


def read(name: str, data: bytes) -> object:
    """The value, or None where the reader refused in words; any other exception is a finding."""
    with contextlib.suppress(PeerProtocolError):
        return HONEST[name][0](data)
    return None


@pytest.mark.parametrize("name", sorted(HONEST))
def test_honest_bytes_are_read(name: str) -> None:
    assert read(name, HONEST[name][1]) is not None


@given(readers, st.binary(max_size=400))
def test_noise(name: str, data: bytes) -> None:
    read(name, data)


@given(readers, st.data())
def test_one_byte_changed(name: str, data: st.DataObject) -> None:
    honest = bytearray(HONEST[name][1])
    honest[data.draw(st.integers(0, len(honest) - 1))] = data.draw(st.integers(0, 255))
    read(name, bytes(honest))


@given(readers, st.data())
def test_cut_short(name: str, data: st.DataObject) -> None:
    honest = HONEST[name][1]
    read(name, honest[: data.draw(st.integers(0, len(honest) - 1))])


@pytest.mark.parametrize("name", ["public", "attest", "certify", "signature", "evidence"])
def test_every_cut_is_refused(name: str) -> None:
    honest = HONEST[name][1]
    assert not [cut for cut in range(len(honest)) if read(name, honest[:cut]) is not None]


@pytest.mark.parametrize("name", ["public", "attest", "certify", "signature", "evidence"])
def test_bytes_after_the_end_are_refused(name: str) -> None:
    assert read(name, HONEST[name][1] + b"\x00") is None


def test_certificate_padded_by_its_nv_index_is_read() -> None:
    der = PARTS["ek_certificate"]
    assert parse_certificate(der + bytes(100)) == parse_certificate(der)


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=40), max_size=8))
def test_evidence_survives_its_journey(parts: dict[str, bytes]) -> None:
    evidence = Evidence(KeyKind.TPM, b"key", parts)
    received = parse_evidence(encode_evidence(evidence))
    assert (received.kind, received.public_key, dict(received.parts)) == (KeyKind.TPM, b"key", parts)


def test_evidence_is_bounded_before_anything_else() -> None:
    with pytest.raises(PeerProtocolError, match="more bytes"):
        parse_evidence(bytes(MAX_EVIDENCE_BYTES + 1))


@given(st.binary(max_size=60), st.lists(st.integers(0, 20), max_size=8))
def test_reader_never_reads_past_the_end(data: bytes, counts: list[int]) -> None:
    reader, taken = Reader(data, limit=60), b""
    with contextlib.suppress(PeerProtocolError):
        for count in counts:
            taken += reader.take(count)
    assert data.startswith(taken)
    assert reader.left == len(data) - len(taken)


def test_replay_starts_where_the_firmware_says() -> None:
    # PC Client Firmware Profile 10.4.5.3: a TPM started from locality 3 begins PCR 0 at 3.
    log = BootLog()
    log.append(0, 3, {bank: bytes(size) for bank, size in log.banks.items()}, b"StartupLocality\x00\x03")
    log.registers[0] = bytes(31) + b"\x03"
    log.measure(0, 8, b"firmware")
    assert replay(parse_event_log(log.encoded()), Algorithm.SHA256)[0] == log.registers[0]


def test_replay_refuses_a_log_without_the_quoted_bank() -> None:
    events = parse_event_log(BootLog(banks={0x0004: 20, 0x000B: 32}).measure(0, 8, b"x").encoded())
    with pytest.raises(PeerProtocolError, match="without a digest"):
        replay(events, Algorithm.SHA384)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda log: b"\x01" + log[1:], "older form"),
        (lambda log: log.replace(b"Spec ID Event03", b"Spec ID Event02"), "older form"),
        (lambda log: log[:64] + b"\xff" * 4 + log[68:], "cannot be read"),
        (lambda log: log + (99).to_bytes(4, "little") + bytes(8), "outside the registers"),
        (lambda log: log + bytes(8) + (9).to_bytes(4, "little"), "outside the registers"),
        (lambda log: log + bytes(8) + (1).to_bytes(4, "little") + b"\xee\xee", "does not announce"),
        (lambda log: log + bytes(12) + b"\xff" * 4, "larger than any"),
        (lambda log: log + bytes(16) * 9000, "more boot events"),
    ],
)
def test_boot_log_beyond_the_limits(spoil: Callable[[bytes], bytes], sentence: str) -> None:
    with pytest.raises(PeerProtocolError, match=sentence):
        parse_event_log(spoil(LOG))


def test_public_area_of_a_key_that_we_do_not_accept() -> None:
    honest = PARTS["node_public"]
    spoilt = {
        "neither an RSA": b"\x00\x08" + honest[2:],  # keyedhash
        "name algorithm": honest[:2] + b"\x00\x04" + honest[4:],  # SHA-1
        "not on its curve": honest[:-1] + bytes([honest[-1] ^ 1]),
        "P-256 and P-384": honest.replace(b"\x00\x03\x00\x10", b"\x00\x05\x00\x10"),  # P-521
        "signing scheme": honest.replace(b"\x00\x18\x00\x0b", b"\x00\x1a\x00\x0b"),  # ECDAA
    }
    for sentence, data in spoilt.items():
        with pytest.raises(PeerProtocolError, match=sentence):
            parse_public(data)
