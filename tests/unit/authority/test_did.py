"""What others can check of a box's membership, read with their libraries and not with ours."""

from __future__ import annotations

import json
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey
from pydid import DIDDocument
from pydid.verification_method import JsonWebKey2020, VerificationMethod
from securesystemslib.signer import CryptoSigner

from agent.trust.records import SitePaths, parse_public_pem
from provisioning.authority.did import DIDNames
from provisioning.authority.roles import SITE_LIFETIME
from tests.simulators.authority import FoundedConsortium, served
from tests.simulators.clock import SetClock

A = "hospital-a"


@pytest.fixture
def consortium(tmp_path: Path) -> FoundedConsortium:
    founded = FoundedConsortium.found(tmp_path / "authority")
    founded.add_site(A)
    return founded


def resolve(consortium: FoundedConsortium, did: str) -> DIDDocument:
    """As the did:web method says (3.2), but for TLS."""
    host, *path = did.removeprefix("did:web:").split(":")
    assert unquote(host) == "127.0.0.1:8443"
    assert path[0] == "repository"
    with (
        served(consortium.layout.repository) as url,
        urllib.request.urlopen(url + "/".join(path[1:]) + "/did.json") as answer,
    ):
        document = DIDDocument.deserialize(json.load(answer))
    assert document.id == did
    return document


def method(document: DIDDocument, name: str) -> VerificationMethod:
    found = document.dereference(name)
    assert isinstance(found, JsonWebKey2020)
    return found


def published(consortium: FoundedConsortium, path: str) -> bytes:
    """A target, as the repository serves it now."""
    source = consortium.desk(A)
    assert source.metadata is not None
    digest = source.metadata.targets[path].hashes["sha256"]
    return consortium.publisher.files.target(path, digest)


def verify(token: bytes, key: VerificationMethod) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the credential of a JWT that `key` signed."""
    read = jws.deserialize_compact(token, ECKey.import_key(key.public_key_jwk), algorithms=["ES256", "ES384"])
    return read.headers(), json.loads(read.payload)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["P-256", "P-384"])
def test_membership_is_verified_from_the_hospital_s_identifier_on(
    consortium: FoundedConsortium, curve: ec.EllipticCurve
) -> None:
    site = "hospital-b"
    consortium.add_site(site, CryptoSigner(ec.generate_private_key(curve)))
    node = consortium.enrol(site)
    names = DIDNames("127.0.0.1:8443", SitePaths(site))
    desk = consortium.desk(site)
    assert desk.metadata is not None
    path = names.membership(node.node)
    token = consortium.publisher.files.target(path, desk.metadata.targets[path].hashes["sha256"])
    hospital = resolve(consortium, names.site)
    unverified = jws.extract_compact(token).headers()
    headers, credential = verify(token, method(hospital, unverified["kid"]))
    assert (headers["typ"], headers["cty"], headers["alg"]) == ("vc+jwt", "vc", f"ES{curve.key_size}")
    assert headers["kid"] in set(hospital.assertion_method or ())
    # VC Data Model 2.0: 4.3 context first, 4.4 type, 4.7 issuer, 4.8 subject, 4.9 validity.
    assert credential["@context"][0] == "https://www.w3.org/ns/credentials/v2"
    assert credential["type"][0] == "VerifiableCredential"
    assert credential["issuer"] == headers["kid"].partition("#")[0] == names.site
    assert credential["credentialSubject"]["id"] == names.node(node.node)
    begin, end = (datetime.fromisoformat(credential[name]) for name in ("validFrom", "validUntil"))
    assert begin <= consortium.clock.now() < end <= consortium.clock.now() + SITE_LIFETIME


def test_box_s_identifier_leads_to_its_key_and_to_its_hospital(consortium: FoundedConsortium) -> None:
    node = consortium.enrol(A)
    names = DIDNames("127.0.0.1:8443", SitePaths(A))
    document = resolve(consortium, names.node(node.node))
    (key,) = document.verification_method
    assert document.authentication == document.assertion_method == [key.id]
    assert document.controller in ([names.site], names.site)
    public = ECKey.import_key(key.public_key_jwk).public_key
    ours = parse_public_pem(node.public_key)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public.public_bytes(*form) == ours.public_bytes(*form)


def test_altered_membership_is_refused(consortium: FoundedConsortium) -> None:
    node = consortium.enrol(A)
    names = DIDNames("127.0.0.1:8443", SitePaths(A))
    token = published(consortium, names.membership(node.node))
    (key,) = resolve(consortium, names.site).verification_method
    verify(token, key)
    header, payload, signature = token.split(b".")
    other = b"A" if payload[-8:-7] != b"A" else b"B"
    with pytest.raises(BadSignatureError):
        verify(b".".join((header, payload[:-8] + other + payload[-7:], signature)), key)
    (foreign,) = resolve(consortium, names.node(node.node)).verification_method
    with pytest.raises(BadSignatureError):
        verify(token, foreign)


def test_revoked_box_has_neither_identifier_nor_membership(consortium: FoundedConsortium) -> None:
    node, other = consortium.enrol(A), consortium.enrol(A)
    names = DIDNames("127.0.0.1:8443", SitePaths(A))
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "lost"))
    assert not (consortium.layout.repository / names.node_document(node.node)).exists()
    assert (consortium.layout.repository / names.node_document(other.node)).exists()
    desk = consortium.desk(A)
    assert desk.metadata is not None
    assert not {names.node_document(node.node), names.membership(node.node)} & desk.metadata.targets.keys()
    assert SitePaths(A).node(node.node) in desk.metadata.targets


def test_a_box_more_leaves_the_other_boxes_documents_untouched(consortium: FoundedConsortium) -> None:
    first = consortium.layout.repository / DIDNames("127.0.0.1:8443", SitePaths(A)).node_document(
        consortium.enrol(A).node
    )
    before = first.stat().st_ino
    second = consortium.enrol(A)
    assert first.stat().st_ino == before
    first.write_bytes(b"damaged")
    consortium.publish(consortium.desk(A).revoke(second.root.key_id, "lost"))
    assert json.loads(first.read_bytes())["id"].endswith(first.parent.name)


def test_renewal_makes_memberships_anew(consortium: FoundedConsortium) -> None:
    node, gone = consortium.enrol(A), consortium.enrol(A)
    consortium.publish(consortium.desk(A).revoke(gone.root.key_id, "lost"))
    names = DIDNames("127.0.0.1:8443", SitePaths(A))
    (key,) = resolve(consortium, names.site).verification_method
    _, before = verify(published(consortium, names.membership(node.node)), key)
    assert isinstance(consortium.clock, SetClock)
    assert not consortium.desk(A).needs_renewal
    consortium.clock.move(timedelta(days=40).total_seconds())
    assert consortium.desk(A).needs_renewal
    consortium.publish(consortium.desk(A).renew())
    assert not consortium.desk(A).needs_renewal
    _, after = verify(published(consortium, names.membership(node.node)), key)
    assert datetime.fromisoformat(after["validUntil"]) == datetime.fromisoformat(before["validUntil"]) + timedelta(
        days=40
    )
    assert after["validFrom"] == before["validFrom"]
    desk = consortium.desk(A)
    assert desk.metadata is not None
    assert names.membership(gone.node) not in desk.metadata.targets
