"""Signed notes, checkpoints and cosignatures against published examples, and against garbage.

Sources: golang.org/x/mod/sumdb/note (the key and note of its documentation); transparency-dev/formats,
note_cosigv1_test.go; the examples of C2SP signed-note and tlog-checkpoint.
"""

from __future__ import annotations

import base64

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent.audit.note import (
    COSIGNATURE,
    SIGNATURE,
    Checkpoint,
    cosign,
    note_key,
    parse_checkpoint,
    parse_signatures,
    parse_vkey,
    sign_checkpoint,
    verify_cosignature,
    verify_signature,
)
from agent.core.errors import PeerProtocolError

VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
WITNESS = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
EXAMPLE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHECKPOINT = Checkpoint("log.example/1", 7, bytes(32))


def test_published_key_signs_as_published() -> None:
    key = parse_vkey(VKEY)
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    assert note_key("PeterNeumann", private, SIGNATURE) == key
    assert key.vkey == VKEY
    (line,) = parse_signatures(LINE)
    assert (line.name, line.key_id, line.line) == (key.name, key.key_id, LINE)
    assert private.sign(TEXT.encode()) == line.signature
    key.verify(line.signature, TEXT.encode())
    with pytest.raises(InvalidSignature):
        key.verify(line.signature, TEXT.replace("answer", "question").encode())


def test_published_witness_key_is_one() -> None:
    key = parse_vkey(WITNESS)
    assert (key.name, key.kind, key.vkey) == ("remora.n621.de", COSIGNATURE, WITNESS)


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        "PeterNeumann",
        VKEY.replace("c74f20a3", "c74f20a4"),
        VKEY.replace("PeterNeumann", "Peter Neumann"),
        VKEY.replace("PeterNeumann", ""),
        VKEY + "A",
        VKEY.replace("+ARpc", "+AhpC"),
        VKEY[:-4],
        "x+00000000+AwEB",
    ],
)
def test_spoilt_keys_are_none(spoilt: str) -> None:
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_vkey(spoilt)


def test_published_checkpoint_reads_and_writes_the_same() -> None:
    signed = parse_checkpoint(EXAMPLE.encode())
    assert (signed.checkpoint.origin, signed.checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert signed.note == EXAMPLE


def test_published_cosignature_says_its_time() -> None:
    encoded = "ZGhGuQAAAABm/qTPeyKXD+R2rzyQsxPiP8mXum7qq/iF0u4vanlqJyocWODBt97w9uL+8qT7S5gxEHWWOworDcFiEBYJXORmnFBOBA=="
    (line,) = parse_signatures(f"— w {encoded}\n")
    assert int.from_bytes(line.signature[:8], "big") == 1727964367
    assert len(line.signature) == len(cosign(CHECKPOINT, "w", KEY, time_s=1).signature)


def test_cosigned_message_is_the_specified_one() -> None:
    witness = note_key("witness.example/1", KEY, COSIGNATURE)
    line = cosign(CHECKPOINT, witness.name, KEY, time_s=1679315147)
    witness.verify(line.signature[8:], b"cosignature/v1\ntime 1679315147\n" + CHECKPOINT.text.encode())


def test_latest_of_several_cosignatures_counts_and_unknown_lines_are_ignored() -> None:
    witness = note_key("w", KEY, COSIGNATURE)
    other = cosign(CHECKPOINT, "w", Ed25519PrivateKey.generate(), time_s=9)
    lines = [cosign(CHECKPOINT, "w", KEY, time_s=time_s) for time_s in (5, 7, 6)]
    signed = sign_checkpoint(CHECKPOINT, KEY).with_signatures(*lines, other)
    assert verify_cosignature(parse_checkpoint(signed.note.encode()), witness).time_s == 7
    assert verify_signature(signed, note_key(CHECKPOINT.origin, KEY, SIGNATURE)) == CHECKPOINT


def test_log_and_witness_key_do_not_stand_for_each_other() -> None:
    """The same key under the same name, as two types: neither signature passes as the other."""
    name = CHECKPOINT.origin
    own, witness = note_key(name, KEY, SIGNATURE), note_key(name, KEY, COSIGNATURE)
    signed = sign_checkpoint(CHECKPOINT, KEY)
    with pytest.raises(PeerProtocolError) as failure:
        verify_cosignature(signed, witness)
    assert failure.value.code == "audit.not_cosigned"
    cosigned = type(signed)(CHECKPOINT, (cosign(CHECKPOINT, name, KEY, time_s=1),))
    for key in (own, witness):
        with pytest.raises(PeerProtocolError) as failure:
            verify_signature(cosigned, key)
        assert failure.value.code == "audit.foreign_key"


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b"\n\n",
        EXAMPLE.replace("20852163", "020852163").encode(),
        EXAMPLE.replace("20852163", "+2").encode(),
        EXAMPLE.replace("20852163", "²").encode(),
        EXAMPLE.replace("20852163", "9" * 19).encode(),
        EXAMPLE.replace("CsUY", "CsU").encode(),
        EXAMPLE.replace("q2I=", "q2J=").encode(),
        EXAMPLE.replace("example.com/behind-the-sofa\n", "\n", 1).encode(),
        EXAMPLE.replace("q2I=\n", "q2I=\nextension\n").encode(),
        EXAMPLE.replace("\n\n", "\n").encode(),
        EXAMPLE.replace("— ", "- ").encode(),
        EXAMPLE.replace("20852163\n", "20852163\r\n").encode(),
        EXAMPLE[:-1].encode(),
        EXAMPLE.encode() + b"\xff",
        EXAMPLE.encode() + EXAMPLE.split("\n\n")[1].encode() * 40,
        EXAMPLE.encode() * 400,
    ],
)
def test_spoilt_checkpoints_are_none(spoilt: bytes) -> None:
    with pytest.raises(PeerProtocolError) as failure:
        parse_checkpoint(spoilt)
    assert failure.value.code == "audit.bad_note"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_checkpoint_or_refused(data: bytes) -> None:
    try:
        signed = parse_checkpoint(data)
    except PeerProtocolError as error:
        assert error.code == "audit.bad_note"  # noqa: PT017 - either outcome is right
    else:
        assert signed.note.encode() == data
