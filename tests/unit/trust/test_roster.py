from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, FIDO2Terms, KeyKind
from agent.trust.roster import FORMAT, Roster, encode_roster, load_roster, parse_roster, roster_node

A, B = SiteID("hospital-a"), SiteID("hospital-b")


def _key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def _pem(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _file(**sites: object) -> bytes:
    return json.dumps({"format": FORMAT, "sites": sites}).encode()


def test_a_roster_survives_its_file(tmp_path: Path) -> None:
    one = roster_node(A, KeyKind.TPM, EvidenceClass.HARDWARE, _key())
    two = roster_node(B, KeyKind.SOFTWARE, EvidenceClass.NONE, _key())
    (tmp_path / "roster.json").write_bytes(encode_roster(Roster({A: (one,), B: (two,)})))
    roster = load_roster(tmp_path / "roster.json")
    assert roster.sites == {A: (one,), B: (two,)}
    assert roster.node(two.root.key_id) is roster.sites[B][0]


def test_a_fido2_key_keeps_its_terms() -> None:
    terms = FIDO2Terms("node.secur-e-health", user_verified=False)
    node = roster_node(A, KeyKind.FIDO2, EvidenceClass.HARDWARE, _key(), fido2=terms)
    assert parse_roster(encode_roster(Roster({A: (node,)}))).sites == {A: (node,)}


@pytest.mark.parametrize("entry", [{"kind": "fido2"}, {"kind": "piv", "fido2": {"rp_id": "node.secur-e-health"}}])
def test_terms_are_for_fido2_keys_and_for_no_others(entry: dict[str, object]) -> None:
    with pytest.raises(OperatorError, match="states its terms"):
        parse_roster(_file(a={"nodes": [entry | {"public_key": _pem(_key())}]}))


@pytest.mark.parametrize("evidence", ["test", "virtual", "hardware"])
def test_a_software_key_shows_no_evidence(evidence: str) -> None:
    entry = {"kind": "software", "evidence": evidence, "public_key": _pem(_key())}
    with pytest.raises(OperatorError, match="a software key shows no evidence"):
        parse_roster(_file(a={"nodes": [entry]}))


def test_a_key_that_no_site_endorses_is_unknown() -> None:
    with pytest.raises(PeerProtocolError, match="No site"):
        Roster({}).node("0" * 64)


def test_one_key_at_two_sites_is_refused() -> None:
    entry = {"nodes": [{"kind": "tpm", "public_key": _pem(_key())}]}
    with pytest.raises(OperatorError, match="twice"):
        parse_roster(_file(a=entry, b=entry))


@pytest.mark.parametrize(
    "key",
    [
        _pem(ed25519.Ed25519PrivateKey.generate().public_key()),
        _pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
        "no key at all",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ],
    ids=["ed25519", "secp256k1", "text", "damaged"],
)
def test_a_key_of_another_kind_is_refused(key: str) -> None:
    with pytest.raises(OperatorError, match="public key of a"):
        parse_roster(_file(a={"nodes": [{"kind": "tpm", "public_key": key}]}))


def test_unknown_kinds_fields_and_site_names_are_refused() -> None:
    node = {"kind": "tpm", "public_key": _pem(_key())}
    for bad in (
        _file(a={"nodes": [node | {"kind": "abacus"}]}),
        _file(a={"nodes": [node | {"evidence": "hearsay"}]}),
        _file(a={"nodes": [node | {"extra": 1}]}),
        _file(**{"Hospital A": {"nodes": [node]}}),
        json.dumps({"format": "other", "sites": {}}).encode(),
    ):
        with pytest.raises(OperatorError):
            parse_roster(bad)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(OperatorError):
        parse_roster(data)
