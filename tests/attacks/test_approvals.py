"""Approvals that nobody gave, or gave for something else, or took back: none of them counts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from agent.audit.leaves import ApprovalRefused, StewardEnrolled
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.governance.approval import Approval, StewardProof, WebAuthnEvidence, parse_approval
from agent.governance.book import REQUEST_LIFE_S, BoxIdentity, Matter, fitting
from agent.governance.challenge import Challenge, WithdrawalChallenge
from agent.governance.stewards import RosterStewards
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import NODE_RP_ID, EvidenceClass, KeyKind
from agent.trust.records import StewardFile
from agent.trust.roster import Roster, roster_node
from tests.simulators.authenticator import UP, UV
from tests.simulators.makers import certify, common_name
from tests.simulators.steward import (
    ORIGIN,
    SITE,
    CardSteward,
    Desk,
    PasskeySteward,
    approval_by,
    new_key,
    proof_by,
)

LeafT = TypeVar("LeafT")
MATTER = Matter("heart-risk", "5d" * 32, "cleveland", "da" * 32, 2.0)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "approvals")


@pytest.fixture
def steward(desk: Desk) -> PasskeySteward:
    found = PasskeySteward("dr-a", person="Dr A")
    desk.employ(found)
    return found


def standing(desk: Desk, matter: Matter = MATTER) -> tuple[Approval, ...]:
    found = desk.book.standing(matter.study_digest, matter.dataset)
    return fitting(found, dataset_digest=matter.dataset_digest, epsilon=matter.epsilon)


def refused(desk: Desk, approval: Approval) -> SecureHealthError:
    before = desk.audit.size
    with pytest.raises((OperatorError, PeerProtocolError)) as caught:
        desk.book.accept(approval)
    assert desk.audit.size == before
    assert not standing(desk)
    return caught.value


def test_an_honest_approval_counts_and_outlives_a_restart(desk: Desk, steward: PasskeySteward) -> None:
    given = desk.approve(steward, MATTER)
    assert standing(desk) == (given,)
    desk.restart()
    assert standing(desk) == (given,)


def test_a_smartcard_approves(desk: Desk) -> None:
    card = CardSteward("dr-c")
    desk.employ(card)
    given = desk.approve(card, MATTER)
    assert standing(desk) == (given,)


def test_replayed_assertion(desk: Desk, steward: PasskeySteward) -> None:
    first = desk.approve(steward, MATTER)
    desk.book.withdraw(1, proof_by(steward, desk.book.begin_withdrawal(1)))
    assert refused(desk, first).code == "approval.not_asked"
    again = Approval(steward="dr-a", evidence=first.evidence, challenge=desk.ask(MATTER))
    assert "something else was signed" in refused(desk, again).sentence


@pytest.mark.parametrize(
    "other",
    [
        {"study_digest": "ee" * 32},
        {"study": "another-study"},
        {"dataset": "hungarian"},
        {"dataset_digest": "ee" * 32},
        {"epsilon": 20.0},
        {"epsilon": None},
        {"site": "hospital-b"},
        {"node": "box-2"},
        {"root_digest": "ee" * 32},
        {"sequence": 7},
        {"not_after_s": 1_900_000_000},
    ],
    ids=lambda other: next(iter(other)),
)
def test_assertion_for_another_study_data_set_epsilon_site_box_or_time(
    desk: Desk, steward: PasskeySteward, other: dict[str, Any]
) -> None:
    asked = desk.ask(MATTER)
    signed = asked.model_copy(update=other)
    elsewhere = approval_by(steward, signed)
    assert refused(desk, elsewhere).code == "approval.not_asked"
    assert "something else was signed" in refused(desk, approval_by(steward, asked, elsewhere.evidence)).sentence


def test_an_approval_is_void_for_all_but_what_it_names(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    for other in (
        replace(MATTER, study_digest="ee" * 32),
        replace(MATTER, dataset="hungarian"),
        replace(MATTER, dataset_digest="ee" * 32),
        replace(MATTER, epsilon=2.1),
        replace(MATTER, epsilon=None),
    ):
        assert not standing(desk, other)


@pytest.mark.parametrize(
    "box",
    [
        BoxIdentity("c0" * 32, SITE, "box-2"),
        BoxIdentity("c1" * 32, SITE, "box-1"),
    ],
    ids=["box", "consortium"],
)
def test_approvals_copied_to_another_box_with_its_log(desk: Desk, steward: PasskeySteward, box: BoxIdentity) -> None:
    desk.approve(steward, MATTER)
    desk.box = box
    desk.restart()
    assert not standing(desk)
    assert "another box" in desk.book.given()[0].trouble


@pytest.mark.parametrize("flags", [UP, UV, 0], ids=["not verified", "not present", "neither"])
def test_user_not_verified(desk: Desk, steward: PasskeySteward, flags: int) -> None:
    asked = desk.ask(MATTER)
    assert refused(desk, approval_by(steward, asked, steward.evidence(asked, flags=flags)))


def test_a_passkey_that_can_be_copied(desk: Desk, steward: PasskeySteward) -> None:
    asked = desk.ask(MATTER)
    error = refused(desk, approval_by(steward, asked, steward.evidence(asked, flags=UP | UV | 0x08)))
    assert "can be copied" in error.sentence


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:8471",
        "https://localhost:8470",
        "http://localhost",
        "http://localhost:8470.evil.example",
        "http://LOCALHOST:8470",
        "",
        "null",
    ],
)
def test_wrong_origin(desk: Desk, steward: PasskeySteward, origin: str) -> None:
    asked = desk.ask(MATTER)
    error = refused(desk, approval_by(steward, asked, steward.evidence(asked, origin=origin)))
    assert "address that is not this box's" in error.sentence


@pytest.mark.parametrize(
    "client",
    [
        {"crossOrigin": True},
        {"crossOrigin": 1},
        {"topOrigin": "https://evil.example"},
        {"type": "webauthn.create"},
        {"type": "payment.get"},
        {"challenge": ""},
        {"challenge": None},
        {"origin": [ORIGIN]},
        {"padding": "x" * 5000},
    ],
    ids=lambda client: "-".join(f"{name}:{str(value)[:12]}" for name, value in client.items()),
)
def test_client_data_of_another_page_or_ceremony(
    desk: Desk, steward: PasskeySteward, client: dict[str, object]
) -> None:
    asked = desk.ask(MATTER)
    assert refused(desk, approval_by(steward, asked, steward.evidence(asked, client=client)))


@pytest.mark.parametrize("client_data", [b"[]", b"7", b'"text"', b"\xff", b"{", b"[" * 4000], ids=repr)
def test_client_data_that_is_no_object(desk: Desk, steward: PasskeySteward, client_data: bytes) -> None:
    asked = desk.ask(MATTER)
    evidence = steward.evidence(asked).model_copy(update={"client_data_json": encode_bytes(client_data)})
    assert refused(desk, approval_by(steward, asked, evidence)).code == "approval.not_signed"


@pytest.mark.parametrize("rp_id", [NODE_RP_ID, "evil.example", "localhost.", ""])
def test_wrong_rp_id(desk: Desk, steward: PasskeySteward, rp_id: str) -> None:
    asked = desk.ask(MATTER)
    error = refused(desk, approval_by(steward, asked, steward.evidence(asked, rp_id=rp_id)))
    assert "another relying party" in error.sentence


def test_node_credential_used_as_stewards(desk: Desk) -> None:
    node = PasskeySteward("dr-a")
    with pytest.raises(ValidationError, match="made for boxes"):
        StewardFile.model_validate({**node.record.model_dump(), "rp_id": NODE_RP_ID})
    key = new_key()
    box = roster_node(SITE, KeyKind.PIV, EvidenceClass.NONE, key.public_key())
    steward = CardSteward("dr-a", key=key)
    honest = CardSteward("dr-b")
    roster = Roster({SITE: (box,)}, None, {SITE: (steward.record, honest.record)})
    assert set(RosterStewards(roster, SITE).stewards()) == {"dr-b"}


def test_a_statement_of_a_node_is_no_approval(desk: Desk) -> None:
    """What the same card signs as a box, word for word the same payload, under another type."""
    card = CardSteward("dr-c")
    desk.employ(card)
    asked = desk.ask(MATTER)
    as_node = pre_authentication_encoding("application/vnd.secur-e-health.session-certificate.v1+json", asked.payload())
    for message in (as_node, asked.payload(), asked.digest):
        evidence = card.evidence(asked).model_copy(update={"signature": encode_bytes(_sign(card, message))})
        assert refused(desk, approval_by(card, asked, evidence)).code == "approval.not_signed"


def test_a_withdrawal_is_no_approval_and_an_approval_no_withdrawal(desk: Desk) -> None:
    card = CardSteward("dr-c")
    desk.employ(card)
    given = desk.approve(card, MATTER)
    with pytest.raises(PeerProtocolError):
        desk.book.withdraw(1, StewardProof(steward="dr-c", evidence=given.evidence))
    assert standing(desk)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_cloned_key(desk: Desk, steward: PasskeySteward, count: int) -> None:
    steward.count = 1
    desk.approve(steward, replace(MATTER, study_digest="ee" * 32))  # shows 2
    desk.restart()
    clone = PasskeySteward("dr-a", count=count - 1, key=steward.key)
    error = refused(desk, approval_by(clone, desk.ask(MATTER)))
    assert error.code == "approval.cloned_key"


def test_a_key_that_keeps_no_counter(desk: Desk) -> None:
    steward = PasskeySteward("dr-n", count=None)
    desk.employ(steward)
    desk.approve(steward, MATTER)
    assert desk.approve(steward, MATTER) in standing(desk)


def test_expired_approval(desk: Desk, steward: PasskeySteward) -> None:
    given = desk.approve(steward, MATTER)
    desk.now_s = given.challenge.not_after_s - 1
    assert standing(desk)
    desk.now_s += 1
    assert not standing(desk)
    assert "run out" in desk.book.given()[0].trouble


def test_a_request_that_waited_too_long(desk: Desk, steward: PasskeySteward) -> None:
    asked = desk.ask(MATTER)
    desk.now_s += REQUEST_LIFE_S
    assert refused(desk, approval_by(steward, asked)).code == "approval.not_asked"


def test_a_request_of_before_a_restart(desk: Desk, steward: PasskeySteward) -> None:
    asked = desk.ask(MATTER)
    desk.restart()
    assert refused(desk, approval_by(steward, asked)).code == "approval.not_asked"


def test_withdrawn_approval_used(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    assert standing(desk)
    desk.book.withdraw(1, proof_by(steward, desk.book.begin_withdrawal(1)))
    assert not standing(desk)
    desk.restart()
    assert not standing(desk)
    with pytest.raises(OperatorError, match="was withdrawn by dr-a already"):
        desk.book.begin_withdrawal(1)


def test_another_steward_of_the_hospital_may_withdraw(desk: Desk, steward: PasskeySteward) -> None:
    colleague = CardSteward("dr-c")
    desk.employ(colleague)
    desk.approve(steward, MATTER)
    desk.book.withdraw(1, proof_by(colleague, desk.book.begin_withdrawal(1)))
    assert not standing(desk)


def test_withdrawal_by_a_stranger(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    act = desk.book.begin_withdrawal(1)
    stranger, mask = PasskeySteward("dr-x"), PasskeySteward("dr-a", count=100)
    for proof in (proof_by(stranger, act), proof_by(mask, act)):
        with pytest.raises((OperatorError, PeerProtocolError)):
            desk.book.withdraw(1, proof)
    assert standing(desk)


def test_withdrawal_of_another_approval(desk: Desk, steward: PasskeySteward) -> None:
    for _ in range(2):
        desk.approve(steward, MATTER)
    evidence = steward.evidence(desk.book.begin_withdrawal(1))
    with pytest.raises(PeerProtocolError, match="something else was signed"):
        desk.book.withdraw(2, StewardProof(steward="dr-a", evidence=evidence))
    assert len(standing(desk)) == 2


def test_one_person_approving_twice_where_two_are_wanted(desk: Desk, steward: PasskeySteward) -> None:
    second_key = CardSteward("dr-a-card", person="  dr  a ")
    colleague = PasskeySteward("dr-b", person="Dr B")
    desk.employ(second_key, colleague)
    desk.approve(steward, MATTER)
    desk.approve(steward, MATTER)
    assert desk.book.people(standing(desk)) == 1
    desk.approve(second_key, MATTER)
    assert desk.book.people(standing(desk)) == 1
    desk.approve(colleague, MATTER)
    assert desk.book.people(standing(desk)) == 2


def test_one_key_under_two_names(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    desk.employ(PasskeySteward("dr-b", person="Dr B", key=steward.key))
    assert not standing(desk)
    with pytest.raises(OperatorError, match="no steward"):
        desk.approve(steward, MATTER)


def test_steward_revoked_by_the_site(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    desk.records.barred.add(steward.record.key_id)
    assert not standing(desk)
    assert refused(desk, approval_by(steward, desk.ask(MATTER))).code == "approval.unknown_steward"
    act = desk.book.begin_withdrawal(1)
    with pytest.raises(OperatorError):
        desk.book.withdraw(1, proof_by(steward, act))


def test_steward_taken_off_the_record_and_another_key_put_under_the_name(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    desk.records.found = [PasskeySteward("dr-a").record]
    assert not standing(desk)
    desk.records.found = []
    assert not standing(desk)


def test_unendorsed_steward(desk: Desk) -> None:
    stranger = PasskeySteward("dr-x")
    assert refused(desk, approval_by(stranger, desk.ask(MATTER))).code == "approval.unknown_steward"
    with pytest.raises(OperatorError):
        desk.book.refuse(MATTER, "dr-x")


def test_steward_of_another_hospital(desk: Desk) -> None:
    stranger = PasskeySteward("dr-x", site="hospital-b")
    desk.employ(stranger)
    assert refused(desk, approval_by(stranger, desk.ask(MATTER))).code == "approval.not_signed"


def test_one_steward_in_the_name_of_another(desk: Desk, steward: PasskeySteward) -> None:
    colleague = PasskeySteward("dr-b")
    desk.employ(colleague)
    asked = desk.ask(MATTER)
    forged = Approval(steward="dr-b", evidence=steward.evidence(asked), challenge=asked)
    assert "signature does not hold" in refused(desk, forged).sentence


def test_card_where_a_passkey_is_on_record_and_the_other_way(desk: Desk, steward: PasskeySteward) -> None:
    card = CardSteward("dr-c")
    desk.employ(card)
    asked = desk.ask(MATTER)
    as_card = CardSteward("dr-a", key=steward.key)
    assert refused(desk, approval_by(as_card, asked)).code == "approval.not_signed"
    as_passkey = PasskeySteward("dr-c")
    assert refused(desk, approval_by(as_passkey, asked)).code == "approval.not_signed"


def test_a_card_whose_certificate_has_run_out(desk: Desk, tmp_path: Path) -> None:
    card = CardSteward("dr-c", key=new_key())
    record = card.record.model_copy(update={"certificate": _certificate(card.key, until_s=desk.now_s)})
    desk.records.found = [record]
    assert "run out" in refused(desk, approval_by(card, desk.ask(MATTER))).sentence
    desk.now_s -= 1
    assert desk.approve(card, MATTER) in standing(desk)


def test_a_record_with_a_strangers_certificate() -> None:
    card = CardSteward("dr-c", key=new_key())
    certificate = _certificate(new_key(), until_s=1_900_000_000)
    with pytest.raises(ValidationError, match="another key's"):
        StewardFile.model_validate({**card.record.model_dump(), "certificate": certificate})


def test_sequence_reused(desk: Desk, steward: PasskeySteward) -> None:
    seen = [desk.approve(steward, MATTER).challenge.sequence for _ in range(2)]
    seen += [desk.ask(MATTER).sequence, desk.ask(MATTER).sequence]
    desk.restart()
    seen.append(desk.approve(steward, MATTER).challenge.sequence)
    assert seen == [1, 2, 3, 4, 5]
    assert [entry.leaf.sequence for entry in desk.book.given()] == [1, 2, 5]
    desk.book.withdraw(1, proof_by(steward, desk.book.begin_withdrawal(1)))
    desk.audit.append(desk.book.given()[0].leaf)  # the same leaf once more, after it was withdrawn
    assert [entry.leaf.sequence for entry in desk.book.given() if entry.stands] == [2, 5]


def test_two_stewards_asked_at_once_have_two_numbers(desk: Desk, steward: PasskeySteward) -> None:
    colleague = PasskeySteward("dr-b")
    desk.employ(colleague)
    first, second = desk.ask(MATTER), desk.ask(MATTER)
    desk.book.accept(approval_by(colleague, second))
    desk.book.accept(approval_by(steward, first))
    assert desk.book.people(standing(desk)) == 2


@pytest.mark.parametrize("field", ["epsilon", "not_after_s", "dataset_digest", "study_digest", "steward", "signature"])
def test_approval_file_edited_on_disk(desk: Desk, steward: PasskeySteward, field: str) -> None:
    desk.employ(PasskeySteward("dr-b"))
    desk.approve(steward, MATTER)
    path = desk.directory / "1.json"
    content = json.loads(path.read_bytes())
    if field == "steward":
        content["steward"] = "dr-b"
    elif field == "signature":
        content["evidence"]["signature"] = content["evidence"]["signature"][:-4] + "AAAA"
    else:
        old = content["challenge"][field]
        content["challenge"][field] = "ee" * 32 if isinstance(old, str) else old + 1
    path.write_text(json.dumps(content))
    assert not standing(desk)
    assert "not the one that the log names" in desk.book.given()[0].trouble


def test_any_flipped_bit_of_an_approval_on_disk(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    path = desk.directory / "1.json"
    data = path.read_bytes()
    for place in range(0, len(data), 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert not standing(desk), place
    path.write_bytes(data)
    assert standing(desk)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"x" * 100_000], ids=["empty", "bare", "no text", "large"])
def test_approval_file_spoilt_on_disk(desk: Desk, steward: PasskeySteward, data: bytes) -> None:
    desk.approve(steward, MATTER)
    (desk.directory / "1.json").write_bytes(data)
    assert not standing(desk)
    (desk.directory / "1.json").unlink()
    assert not standing(desk)


def test_approval_file_put_there_without_the_log(desk: Desk, steward: PasskeySteward) -> None:
    asked = desk.ask(MATTER)
    (desk.directory / "1.json").write_bytes(approval_by(steward, asked).encode())
    assert not standing(desk)


def test_files_of_two_approvals_exchanged(desk: Desk, steward: PasskeySteward) -> None:
    desk.approve(steward, MATTER)
    desk.approve(steward, replace(MATTER, epsilon=0.1))
    first, second = desk.directory / "1.json", desk.directory / "2.json"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert not desk.book.standing(MATTER.study_digest, MATTER.dataset)


def test_refusal_ends_what_was_asked_and_not_signed(desk: Desk, steward: PasskeySteward) -> None:
    asked = desk.ask(MATTER)
    desk.book.refuse(MATTER, "dr-a")
    with pytest.raises(OperatorError, match="not asked for"):
        desk.book.accept(approval_by(steward, asked))


def leaves(desk: Desk, kind: type[LeafT]) -> list[LeafT]:
    return [leaf for leaf in desk.audit.leaves(0, desk.audit.size) if isinstance(leaf, kind)]


def test_a_flood_of_refusals_does_not_fill_the_log(desk: Desk, steward: PasskeySteward) -> None:
    for _ in range(3):
        desk.book.refuse(MATTER, steward.record.steward)
    challenge = desk.ask(MATTER)
    desk.book.refuse(MATTER, steward.record.steward)
    assert refused(desk, approval_by(steward, challenge)).code == "approval.not_asked"
    desk.restart()
    desk.book.refuse(MATTER, steward.record.steward)
    assert desk.audit.size == 1
    desk.approve(steward, MATTER)
    desk.book.refuse(MATTER, steward.record.steward)
    assert len(leaves(desk, ApprovalRefused)) == 2


def test_approval_denied_later_as_given_by_another_key_of_that_name(desk: Desk, steward: PasskeySteward) -> None:
    """The hospital puts another key under the name: the log still says by which one the approval was given."""
    desk.approve(steward, MATTER)
    desk.approve(steward, replace(MATTER, study="other"))
    successor = PasskeySteward(steward.record.steward)
    desk.records.found[:] = [successor.record]
    desk.approve(successor, MATTER)
    kept = desk.audit.leaves(0, desk.audit.size)
    kinds = [leaf.key_id if isinstance(leaf, StewardEnrolled) else leaf.kind for leaf in kept]
    first, second = steward.record.key_id, successor.record.key_id
    assert kinds == [first, "approval-given", "approval-given", second, "approval-given"]


def test_a_flood_of_requests_is_bounded(desk: Desk, steward: PasskeySteward) -> None:
    first = desk.ask(MATTER)
    for _ in range(100):
        last = desk.ask(MATTER)
    assert refused(desk, approval_by(steward, first)).code == "approval.not_asked"
    assert desk.book.accept(approval_by(steward, last))


@pytest.mark.parametrize("text", ["", "A", "AAAAA", "AB", "A===", "ä", "A A"])
def test_signature_that_is_no_base64url(desk: Desk, steward: PasskeySteward, text: str) -> None:
    content = json.loads(approval_by(steward, desk.ask(MATTER)).encode())
    content["evidence"]["signature"] = text
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        parse_approval(json.dumps(content).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"{" * 5000, b"x" * 70_000, b'{"steward":"dr-a"}'],
    ids=["empty", "bare", "list", "null", "deep", "large", "half"],
)
def test_records_of_strangers_are_refused_in_plain_words(data: bytes) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        parse_approval(data)
    assert caught.value.code == "approval.bad_record"


def test_what_is_signed_has_one_form(desk: Desk) -> None:
    asked = desk.ask(MATTER)
    assert Challenge.parse(asked.payload()) == asked
    for bent in (asked.payload() + b" ", asked.payload().replace(b'"node"', b' "node"'), b"x" * 10_000, b"{}"):
        with pytest.raises(PeerProtocolError):
            Challenge.parse(bent)
    with pytest.raises(PeerProtocolError):
        WithdrawalChallenge.parse(asked.payload())


def test_evidence_keeps_webauthns_own_names(desk: Desk, steward: PasskeySteward) -> None:
    given = desk.approve(steward, MATTER)
    kept = json.loads(given.encode())["evidence"]
    assert set(kept) == {"kind", "authenticatorData", "clientDataJSON", "signature"}
    assert isinstance(given.evidence, WebAuthnEvidence)
    assert json.loads(decode_bytes(kept["clientDataJSON"]))["origin"] == ORIGIN


def _sign(card: CardSteward, message: bytes) -> bytes:
    return card.key.sign(message, ec.ECDSA(hashes.SHA384()))


def _certificate(key: ec.EllipticCurvePrivateKey, *, until_s: int) -> str:
    name = common_name("Dr C (test)")
    until = datetime.fromtimestamp(until_s, UTC)
    return certify(name, name, key.public_key(), key, ca=False, not_after=until).public_bytes(Encoding.PEM).decode()
