"""What an attacker may try with signed statements; each test is named after its attack."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import NetworkError, PeerProtocolError
from agent.statements.chain import NodeRecord, Session, TrustView, verify_session, verify_statement
from agent.statements.envelope import Proof, Statement, encode_proof
from agent.statements.kinds import Possession, SessionCertificate
from agent.statements.roots import (
    LONGEST_LIFETIME_S,
    EvidenceClass,
    FIDO2Terms,
    KeyKind,
    RootKey,
    encode_assertion,
    public_key_bytes,
    verify_proof,
)

NOW_S = 1_800_000_000
CONSORTIUM, OTHER_CONSORTIUM = "c0" * 32, "d1" * 32
CHALLENGE = "ab" * 32


@dataclass
class Node:
    """A node with a plain key as its root, and the verifier's view of it."""

    root_key: ec.EllipticCurvePrivateKey
    session_key: ec.EllipticCurvePrivateKey
    view: TrustView

    def certificate(self, **changes: object) -> SessionCertificate:
        fields: dict[str, object] = {
            "consortium": CONSORTIUM,
            "site": "north",
            "node": "box-1",
            "root_key": RootKey(KeyKind.TPM, public_key_bytes(self.root_key.public_key())).key_id,
            "session_key": public_key_bytes(self.session_key.public_key()).hex(),
            "issued_s": NOW_S - 60,
            "expires_s": NOW_S + 3600,
            "timestamp_version": 7,
        }
        return SessionCertificate.model_validate(fields | changes)

    def session(self, **changes: object) -> Session:
        return verify_session(self.envelope(**changes), self.view, now_s=NOW_S)

    def envelope(self, **changes: object) -> bytes:
        return encode_proof(sign(self.root_key, self.certificate(**changes)))


def sign(key: ec.EllipticCurvePrivateKey, statement: Statement) -> Proof:
    root = RootKey(KeyKind.TPM, public_key_bytes(key.public_key()))
    proof = Proof(statement.payload_type(), statement.payload(), root.key_id, b"")
    return replace(proof, signature=key.sign(proof.signed_bytes(), ec.ECDSA(hashes.SHA256())))


def new_node(kind: KeyKind = KeyKind.TPM) -> Node:
    root_key, session_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = RootKey(kind, public_key_bytes(root_key.public_key()), EvidenceClass.HARDWARE)
    records = {root.key_id: NodeRecord("north", "box-1", root)}
    return Node(root_key, session_key, TrustView(CONSORTIUM, records, frozenset(), 5, 9))


@pytest.fixture
def node() -> Node:
    return new_node()


def refused(sentence: str) -> pytest.RaisesExc[PeerProtocolError]:
    return pytest.raises(PeerProtocolError, match=sentence)


def test_honest_chain_is_accepted(node: Node) -> None:
    session = node.session()
    proof = sign(node.session_key, Possession(purpose="ping", challenge=CHALLENGE))
    assert verify_statement(proof, session, Possession, now_s=NOW_S).challenge == CHALLENGE
    assert (session.record.site, session.expires_s) == ("north", NOW_S + 3600)


def test_altered_payload(node: Node) -> None:
    proof = sign(node.root_key, node.certificate())
    longer = proof.payload.replace(b"1800003600", b"1800003601")
    with refused("signature does not hold"):
        verify_session(encode_proof(replace(proof, payload=longer)), node.view, now_s=NOW_S)


@pytest.mark.parametrize("position", [0, 9, 40, -1])
def test_altered_signature(node: Node, position: int) -> None:
    proof = sign(node.root_key, node.certificate())
    signature = bytearray(proof.signature)
    signature[position] ^= 1
    with refused("signature does not hold"):
        verify_session(encode_proof(replace(proof, signature=bytes(signature))), node.view, now_s=NOW_S)


def test_statement_of_another_kind(node: Node) -> None:
    other = sign(node.root_key, Possession(purpose="ping", challenge=CHALLENGE))
    with refused("another kind"):
        verify_session(encode_proof(other), node.view, now_s=NOW_S)


def test_statement_relabelled_as_another_kind(node: Node) -> None:
    # The payload type is inside the signature: a label glued on afterwards breaks it.
    class Lookalike(SessionCertificate):
        kind = "lookalike"

    lookalike = Lookalike.model_validate(node.certificate().model_dump())
    relabelled = replace(sign(node.root_key, lookalike), payload_type=SessionCertificate.payload_type())
    with refused("signature does not hold"):
        verify_session(encode_proof(relabelled), node.view, now_s=NOW_S)


def test_statement_replayed_to_another_asker(node: Node) -> None:
    proof = sign(node.session_key, Possession(purpose="ping", challenge="11" * 32))
    answer = verify_statement(proof, node.session(), Possession, now_s=NOW_S)
    assert answer.challenge != CHALLENGE  # the second asker compares with its own


def test_statement_replayed_after_its_session(node: Node) -> None:
    session = node.session()
    proof = sign(node.session_key, Possession(purpose="ping", challenge=CHALLENGE))
    with refused("session has ended"):
        verify_statement(proof, session, Possession, now_s=session.expires_s)


def test_statement_replayed_into_another_consortium(node: Node) -> None:
    with refused("another consortium"):
        node.session(consortium=OTHER_CONSORTIUM)


def test_statement_signed_by_another_session_key(node: Node) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with refused("another key"):
        verify_statement(
            sign(stranger, Possession(purpose="ping", challenge=CHALLENGE)), node.session(), Possession, now_s=NOW_S
        )


def test_session_key_cannot_certify_another_session_key(node: Node) -> None:
    with refused("no hospital"):
        verify_session(encode_proof(sign(node.session_key, node.certificate())), node.view, now_s=NOW_S)


def test_hardware_key_as_its_own_session_key(node: Node) -> None:
    with refused("vouches for itself"):
        node.session(session_key=public_key_bytes(node.root_key.public_key()).hex())


def test_expired(node: Node) -> None:
    with refused("expired"):
        node.session(issued_s=NOW_S - 3600, expires_s=NOW_S)


def test_from_the_future(node: Node) -> None:
    with refused("future"):
        node.session(issued_s=NOW_S + 3600, expires_s=NOW_S + 7200)


@pytest.mark.parametrize("kind", [kind for kind in KeyKind if kind is not KeyKind.FIDO2])
def test_longer_lived_than_its_kind_of_key_may_vouch(kind: KeyKind) -> None:
    node, longest_s = new_node(kind), LONGEST_LIFETIME_S[kind]
    assert node.session(issued_s=NOW_S, expires_s=NOW_S + longest_s)
    with refused("counts for longer"):
        node.session(issued_s=NOW_S, expires_s=NOW_S + longest_s + 1)


def test_negative_lifetime_with_skewed_clock(node: Node) -> None:
    with refused("counts for longer"):
        node.session(issued_s=NOW_S + 60, expires_s=NOW_S + 30)


def test_from_a_revoked_root(node: Node) -> None:
    view = replace(node.view, revoked=frozenset(node.view.records))
    with refused("revoked"):
        verify_session(node.envelope(), view, now_s=NOW_S)


def test_from_a_root_that_no_site_has_on_record(node: Node) -> None:
    with refused("no hospital"):
        verify_session(node.envelope(), replace(node.view, records={}), now_s=NOW_S)


def test_record_filed_under_another_keys_id(node: Node) -> None:
    (record,) = node.view.records.values()
    stranger = new_node()
    (stranger_id,) = stranger.view.records
    with refused("no hospital"):
        verify_session(stranger.envelope(), replace(node.view, records={stranger_id: record}), now_s=NOW_S)


@pytest.mark.parametrize("changes", [{"site": "south"}, {"node": "box-2"}])
def test_speaking_for_another_node(node: Node, changes: dict[str, object]) -> None:
    with refused("another site or node"):
        node.session(**changes)


def test_naming_another_root_inside(node: Node) -> None:
    with refused("another key than the one that signed"):
        node.session(root_key="ee" * 32)


def test_node_that_lives_in_the_past(node: Node) -> None:
    with refused("too long"):
        node.session(timestamp_version=4)


def test_verifier_that_lives_in_the_past_is_told_to_refresh(node: Node) -> None:
    with pytest.raises(NetworkError, match="newer state") as failure:
        node.session(timestamp_version=10)
    assert failure.value.code == "statements.view_behind"


@pytest.mark.parametrize("evidence", [EvidenceClass.NONE, EvidenceClass.TEST, EvidenceClass.VIRTUAL])
def test_weaker_evidence_than_the_study_demands(node: Node, evidence: EvidenceClass) -> None:
    (record,) = node.view.records.values()
    weaker = replace(record, root=replace(record.root, evidence=evidence))
    view = replace(node.view, records={weaker.root.key_id: weaker}, minimum_evidence=EvidenceClass(evidence + 1))
    with refused("wanted here"):
        verify_session(node.envelope(), view, now_s=NOW_S)


@pytest.mark.parametrize("claimed", [EvidenceClass.TEST, EvidenceClass.VIRTUAL, EvidenceClass.HARDWARE])
def test_software_key_recorded_as_better_than_it_is(claimed: EvidenceClass) -> None:
    node = new_node(KeyKind.SOFTWARE)
    (record,) = node.view.records.values()
    boasting = replace(record, root=replace(record.root, evidence=claimed))
    view = replace(node.view, records={boasting.root.key_id: boasting}, minimum_evidence=EvidenceClass.TEST)
    with refused("evidence of class none"):
        verify_session(node.envelope(), view, now_s=NOW_S)


def test_two_signatures_in_one_envelope(node: Node) -> None:
    envelope = json.loads(node.envelope())
    envelope["signatures"].append(dict(envelope["signatures"][0], keyid="ff" * 32))
    with refused("exactly one signature"):
        verify_session(json.dumps(envelope).encode(), node.view, now_s=NOW_S)


def test_same_meaning_in_other_bytes(node: Node) -> None:
    # A second encoding would give one statement two digests.
    proof = sign(node.root_key, node.certificate())
    spaced = replace(proof, payload=proof.payload.replace(b",", b", "))
    signature = node.root_key.sign(spaced.signed_bytes(), ec.ECDSA(hashes.SHA256()))
    with refused("canonical"):
        verify_session(encode_proof(replace(spaced, signature=signature)), node.view, now_s=NOW_S)


def test_doubled_field(node: Node) -> None:
    proof = sign(node.root_key, node.certificate())
    doubled = replace(proof, payload=proof.payload.replace(b"{", b'{"site":"south",', 1))
    signature = node.root_key.sign(doubled.signed_bytes(), ec.ECDSA(hashes.SHA256()))
    with refused("canonical"):
        verify_session(encode_proof(replace(doubled, signature=signature)), node.view, now_s=NOW_S)


class Authenticator:
    """Signs as a FIDO2 key does, with every field in the attacker's hand."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = RootKey(
            KeyKind.FIDO2, public_key_bytes(self.key.public_key()), EvidenceClass.HARDWARE, FIDO2Terms("node.example")
        )

    def prove(
        self,
        statement: Statement,
        *,
        rp_id: str = "node.example",
        flags: int = 0x05,
        count: int = 1,
        client_data_hash: bytes | None = None,
    ) -> Proof:
        proof = Proof(statement.payload_type(), statement.payload(), self.root.key_id, b"")
        data = hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + count.to_bytes(4, "big")
        signed = client_data_hash if client_data_hash is not None else hashlib.sha256(proof.signed_bytes()).digest()
        signature = self.key.sign(data + signed, ec.ECDSA(hashes.SHA256()))
        return replace(proof, signature=encode_assertion(data, signature))


PING = Possession(purpose="ping", challenge=CHALLENGE)


def test_honest_assertion_is_accepted_and_its_counter_returned() -> None:
    authenticator = Authenticator()
    assert verify_proof(authenticator.prove(PING, count=41), authenticator.root) == 41


def test_assertion_with_a_zero_hash() -> None:
    authenticator = Authenticator()
    with refused("signature does not hold"):
        verify_proof(authenticator.prove(PING, client_data_hash=bytes(32)), authenticator.root)


def test_assertion_for_another_relying_party() -> None:
    authenticator = Authenticator()
    with refused("another relying party"):
        verify_proof(authenticator.prove(PING, rp_id="steward.example"), authenticator.root)


def test_assertion_without_a_touch() -> None:
    authenticator = Authenticator()
    with refused("nobody touched"):
        verify_proof(authenticator.prove(PING, flags=0x04), authenticator.root)


def test_assertion_without_user_verification() -> None:
    authenticator = Authenticator()
    with refused("not verified"):
        verify_proof(authenticator.prove(PING, flags=0x01), authenticator.root)


def test_assertion_of_a_key_that_can_be_copied_to_other_devices() -> None:
    authenticator = Authenticator()
    with refused("copied to other devices"):
        verify_proof(authenticator.prove(PING, flags=0x0D), authenticator.root)


@pytest.mark.parametrize("count", [0, 6, 7])
def test_assertion_of_a_cloned_key(count: int) -> None:
    authenticator = Authenticator()
    root = replace(authenticator.root, fido2=FIDO2Terms("node.example", last_count=7))
    with refused("cloned"):
        verify_proof(authenticator.prove(PING, count=count), root)


def test_assertion_of_a_key_that_keeps_no_counter_is_accepted() -> None:
    authenticator = Authenticator()
    assert verify_proof(authenticator.prove(PING, count=0), authenticator.root) == 0


def test_assertion_passed_off_as_a_plain_signature() -> None:
    authenticator = Authenticator()
    with refused("signature does not hold"):
        verify_proof(authenticator.prove(PING), replace(authenticator.root, kind=KeyKind.TPM, fido2=None))


def test_plain_signature_passed_off_as_an_assertion() -> None:
    authenticator = Authenticator()
    plain = sign(authenticator.key, PING)
    with refused("assertion|relying party"):
        verify_proof(plain, authenticator.root)


@pytest.mark.parametrize("cut", [0, 1, 2, 38, 39])
def test_assertion_cut_short(cut: int) -> None:
    authenticator = Authenticator()
    proof = authenticator.prove(PING)
    with refused("no assertion"):
        verify_proof(replace(proof, signature=proof.signature[:cut]), authenticator.root)


def test_client_data_cannot_be_a_statement() -> None:
    # What a browser signs is JSON; what we sign begins with DSSE's own word.
    assert sign(ec.generate_private_key(ec.SECP256R1()), PING).signed_bytes().startswith(b"DSSEv1 ")


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP521R1()])
def test_key_on_a_curve_that_we_do_not_use(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    with refused("curve other"):
        verify_proof(sign(key, PING), RootKey(KeyKind.TPM, public_key_bytes(key.public_key())))
