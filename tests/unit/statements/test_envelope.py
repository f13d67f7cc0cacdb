from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from agent.core.errors import PeerProtocolError
from agent.statements.envelope import (
    MAX_ENVELOPE_BYTES,
    Proof,
    Statement,
    encode_proof,
    parse_proof,
    pre_authentication_encoding,
)
from agent.statements.kinds import Possession


class Everything(Statement):
    kind = "everything"
    version = 3
    text: str
    number: int
    flag: bool
    names: tuple[str, ...]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
statements = st.builds(
    Everything,
    text=texts,
    number=st.integers(-(2**53) + 1, 2**53 - 1),
    flag=st.booleans(),
    names=st.lists(texts, max_size=4).map(tuple),
)


@given(statements)
def test_every_statement_survives_its_own_encoding(statement: Everything) -> None:
    assert Everything.parse(statement.payload()) == statement


@given(statements, statements)
def test_one_digest_a_statement(one: Everything, two: Everything) -> None:
    assert (one.digest() == two.digest()) == (one == two)


def test_the_payload_type_names_kind_and_version() -> None:
    assert Everything.payload_type() == "application/vnd.secur-e-health.everything.v3+json"


@given(st.binary(max_size=200))
def test_proofs_travel(signature: bytes) -> None:
    proof = Proof("application/x", b"payload", "ab" * 32, signature)
    assert parse_proof(encode_proof(proof)) == proof


@given(
    st.tuples(st.text("ab 1", max_size=6), st.binary(max_size=6)),
    st.tuples(st.text("ab 1", max_size=6), st.binary(max_size=6)),
)
def test_no_two_pairs_encode_alike(one: tuple[str, bytes], two: tuple[str, bytes]) -> None:
    assert (pre_authentication_encoding(*one) == pre_authentication_encoding(*two)) == (one == two)


@given(st.binary(max_size=300))
def test_noise_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_proof(data)
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        Possession.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({"payload": json_values, "payloadType": json_values, "signatures": json_values}) | json_values
)
def test_json_noise_is_refused_in_words(value: object) -> None:
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_proof(json.dumps(value).encode())


@pytest.mark.parametrize("depth", [100_000])
def test_deep_nesting_is_refused_in_words(depth: int) -> None:
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_proof(b"[" * depth)
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        Possession.parse(b"[" * depth)


def test_size_is_bounded_before_anything_else() -> None:
    with pytest.raises(PeerProtocolError, match="larger"):
        parse_proof(b" " * (MAX_ENVELOPE_BYTES + 1))


def test_another_dsse_implementation_reads_and_signs_our_bytes() -> None:
    # securesystemslib signs; our reader takes its envelope and finds the same signed bytes.
    statement = Possession(purpose="interop", challenge="00" * 32)
    envelope = Envelope(statement.payload(), statement.payload_type(), {})
    signer = CryptoSigner.generate_ecdsa()
    envelope.sign(signer)
    proof = parse_proof(json.dumps(envelope.to_dict()).encode())
    assert proof.signed_bytes() == envelope.pae()
    Envelope.from_dict(json.loads(encode_proof(proof))).verify([signer.public_key], 1)
