"""Release records as securesystemslib's signers make them: the slot tool's own reader must agree with it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.release import PAYLOAD_TYPE, Version, parse_release, pre_authentication_encoding
from agent.update.release import parse_release_keys, verify_release
from tests.simulators.releases import Publisher, sample_release


def test_what_securesystemslib_signs_verifies() -> None:
    publisher, release = Publisher(), sample_release("1.4.0", epoch=3)
    assert verify_release(publisher.record(release), publisher.keys) == release


def test_the_payload_is_canonical_and_its_encoding_is_dsse_s() -> None:
    payload = sample_release("1.4.0").payload()
    assert payload == rfc8785.dumps(json.loads(payload))
    assert pre_authentication_encoding(payload) == Envelope(payload, PAYLOAD_TYPE, {}).pae()
    assert parse_release(payload).payload() == payload


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "1.4"),
        ("version", "1.04.0"),
        ("epoch", -1),
        ("epoch", 1001),
        ("epoch", True),
        ("built_s", 1.5),
        ("image", {"sha256": "0" * 63, "bytes": 4096}),
        ("image", {"sha256": "0" * 64, "bytes": 4097}),
        ("image", {"sha256": "0" * 64, "bytes": 0}),
        ("verity", {"root_hash": "0" * 64, "salt": "A" * 64}),
        ("commit", "HEAD"),
        ("extra", 1),
    ],
)
def test_a_payload_of_another_form_is_refused(field: str, value: object) -> None:
    fields = json.loads(sample_release("1.4.0").payload()) | {field: value}
    with pytest.raises(PeerProtocolError) as caught:
        parse_release(rfc8785.dumps(fields))
    assert caught.value.code == "statements.bad_release"


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"null", b"[" * 4000, b" " * 5000])
def test_what_is_no_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerProtocolError, match=r"statements\.bad_release"):
        parse_release(payload)


def test_versions_are_ordered_by_number() -> None:
    assert sorted(map(Version.parse, ("1.10.0", "1.9.9", "0.0.1"))) == [
        Version(0, 0, 1),
        Version(1, 9, 9),
        Version(1, 10, 0),
    ]
    assert str(Version.parse("1.10.0")) == "1.10.0"


def test_one_key_under_two_ids_is_refused() -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(OperatorError) as caught:
        parse_release_keys(json.dumps({"threshold": 2, "keys": {"a": pem, "b": pem}}).encode())
    assert caught.value.code == "update.bad_keys"


def test_a_key_on_another_curve_is_refused() -> None:
    public = CryptoSigner(ec.generate_private_key(ec.SECP384R1())).public_key
    with pytest.raises(OperatorError, match=r"update\.bad_keys"):
        parse_release_keys(json.dumps({"threshold": 1, "keys": {"a": public.keyval["public"]}}).encode())


def test_a_signature_counts_for_the_bytes_that_it_covers() -> None:
    publisher, release = Publisher(), sample_release("1.4.0")
    envelope = json.loads(publisher.record(release))
    other = json.loads(publisher.record(dataclasses.replace(release, epoch=9)))
    with pytest.raises(PeerProtocolError, match=r"update\.unsigned_release"):
        verify_release(json.dumps(envelope | {"payload": other["payload"]}).encode(), publisher.keys)
