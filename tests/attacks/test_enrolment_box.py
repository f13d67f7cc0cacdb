"""Attacks on a box that enrols: whoever stands between it and its hospital, or is the registrar."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.makers import build_store
from agent.core.base64url import encode_bytes
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.ids import SiteID
from agent.enrolment.line import EnrolmentStoppedError
from agent.enrolment.messages import State
from agent.identity.key import init_key
from agent.statements.roots import EvidenceClass, KeyKind, key_id, public_key_bytes
from agent.trust.token import ek_digest, parse_token
from tests.simulators.enrolling import EnrollingBox
from tests.simulators.registrar import OTHER_SITE, SITE, Asked, PlayedRegistrar, Said, node_file
from tests.simulators.superlink import prepare_tls
from tests.simulators.swtpm import Swtpm, shared_maker
from tests.simulators.tokens import token_text


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make("a") as tpm:
        yield tpm


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[PlayedRegistrar]:
    with PlayedRegistrar(tmp_path / "registrar") as played:
        yield played


@pytest.fixture
def box(tmp_path: Path, registrar: PlayedRegistrar) -> EnrollingBox:
    return EnrollingBox.make(tmp_path / "box", registrar)


def refused(box: EnrollingBox, text: str) -> SecureHealthError:
    with pytest.raises(SecureHealthError) as caught:
        box.enrol(text)
    assert box.folder.load_record() is None
    return caught.value


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return public_key_bytes(key.public_key())


def test_another_server_at_the_registrars_address_is_told_by_the_pin(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token(tls_pin=secrets.token_bytes(32))
    assert refused(box, text).code == "enrolment.wrong_pin"
    assert [asked.path for asked in registrar.asked] == ["/v1/ca.pem"]


def test_a_copy_of_the_pinned_authority_does_not_make_another_server_the_registrar(
    tmp_path: Path, registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token()
    other = prepare_tls(tmp_path / "other")
    (token,) = registrar.tokens.values()
    with PlayedRegistrar(tmp_path / "impostor") as impostor:
        impostor.before = lambda asked: Said(body=registrar.authority) if asked.path == "/v1/ca.pem" else None
        redirected = token_text(replace(token, registrar=impostor.address), registrar.site_key)
        assert refused(box, redirected).code == "enrolment.not_the_registrar"
        assert [asked.path for asked in impostor.asked] == ["/v1/ca.pem"]
    assert other.root.read_bytes() != registrar.authority
    assert parse_token(text).token == token


def test_an_authority_with_another_one_appended_brings_no_second_root(
    tmp_path: Path, registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    other = prepare_tls(tmp_path / "other").root.read_bytes()
    registrar.before = lambda asked: Said(body=registrar.authority + other) if asked.path == "/v1/ca.pem" else None
    box.enrol(registrar.token())
    assert box.folder.authority.read_bytes() == registrar.authority


def test_a_swapped_root_is_refused_before_anything_is_sent(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    text = registrar.token()
    registrar.root = b'{"another": "root"}'
    assert refused(box, text).code == "enrolment.wrong_root"
    assert {asked.method for asked in registrar.asked} == {"GET"}


def test_a_token_that_somebody_else_signed_is_refused_before_its_secret_is_used(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    registrar.token()
    (token,) = registrar.tokens.values()
    forged = token_text(token, ec.generate_private_key(ec.SECP256R1()))
    assert refused(box, forged).code == "token.not_genuine"
    assert {asked.method for asked in registrar.asked} == {"GET"}


def test_one_hospital_cannot_issue_a_token_for_another(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    registrar.token(site=OTHER_SITE)
    (token,) = registrar.tokens.values()
    assert refused(box, token_text(token, registrar.site_key)).code == "token.not_genuine"


def test_a_token_for_a_hospital_that_the_repository_does_not_know_is_refused(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    assert refused(box, registrar.token(site=SiteID("nowhere"))).code == "enrolment.unknown_site"


def test_every_altered_token_is_refused(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    text = registrar.token()
    for place in range(5, len(text), 7):
        altered = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        # An altered address may lead nowhere: then the box tries until it is told to stop.
        with pytest.raises((SecureHealthError, EnrolmentStoppedError)):
            box.enrol(altered)
        box.patience_s = box.clock.waited_s + 5
    assert box.folder.load_record() is None
    assert {asked.method for asked in registrar.asked} <= {"GET"}


def test_a_stick_of_another_consortium_sends_an_unattended_box_nowhere(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    box.preset, box.confirms = "00" * 32, None
    with pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.not_preset"
    assert registrar.asked == []
    assert not box.folder.trust(registrar.snapshot().root_digest).exists()
    assert not box.folder.authority.exists()


def test_an_expired_token_is_refused_without_asking_anybody(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    text = registrar.token()
    box.clock.ahead = timedelta(days=8)
    assert refused(box, text).code == "token.expired"
    assert registrar.asked == []
    assert box.folder.load_pending() is None


def test_a_token_that_one_box_used_enrols_no_other(
    tmp_path: Path, registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token()
    box.enrol(text)
    thief = EnrollingBox.make(tmp_path / "thief", registrar)
    error = refused(thief, text)
    assert (error.code, error.details["registrar_code"]) == ("enrolment.refused", "enrol.token_used")
    assert len(registrar.nodes[SITE]) == 1


def test_a_token_for_one_box_is_refused_by_every_other(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    text = registrar.token(ek_digest=ek_digest(b"name of another box"))
    assert refused(box, text).code == "enrolment.other_box"
    assert registrar.asked == []


def test_an_enrolled_box_ignores_the_token_of_another_consortium(
    tmp_path: Path, registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    record = box.enrol(registrar.token())
    with PlayedRegistrar(tmp_path / "swap") as swap:
        text = swap.token()
        for replaces in (False, True):
            with pytest.raises(OperatorError) as caught:
                box.enrol(text, replaces=replaces)
            assert caught.value.code == "enrolment.other_consortium"
        assert swap.asked == []
    assert box.folder.load_record() == record


def test_an_enrolled_box_ignores_the_token_of_another_hospital(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    record = box.enrol(registrar.token())
    with pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token(site=OTHER_SITE, by_site=False), replaces=True)
    assert caught.value.code == "enrolment.other_site"
    assert box.folder.load_record() == record


def test_a_pending_token_of_another_consortium_does_not_survive_an_enrolment(
    tmp_path: Path, registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    with PlayedRegistrar(tmp_path / "swap") as swap:
        swap.tool_works, box.registrar = False, swap
        with pytest.raises(EnrolmentStoppedError):
            box.enrol(swap.token())
    box.patience_s, box.registrar = box.patience_s * 2, registrar
    box.enrol(registrar.token())
    assert box.enrolment.resume() is None


def test_a_registrar_that_says_enrolled_without_publishing_enrols_nobody(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    registrar.publishes = False
    assert refused(box, registrar.token()).code == "enrolment.not_published"


def test_a_registrar_that_says_enrolled_at_once_enrols_nobody(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    registrar.before = lambda asked: (
        Said(body={"state": "enrolled"}) if asked.method == "GET" and "enrolments/" in asked.path else None
    )
    assert refused(box, registrar.token()).code == "enrolment.not_published"


@pytest.mark.parametrize("wrong", ["site", "key"])
def test_a_record_under_another_hospital_or_with_another_key_enrols_nobody(
    registrar: PlayedRegistrar, box: EnrollingBox, wrong: str
) -> None:
    registrar.publishes = False
    key = spki(ec.generate_private_key(ec.SECP256R1())) if wrong == "key" else public_key_bytes(box.key.public_key())
    registrar.publish(node_file(key, key, KeyKind.SOFTWARE, site=OTHER_SITE if wrong == "site" else SITE))
    assert refused(box, registrar.token()).code == "enrolment.not_published"


@pytest.mark.parametrize("wrong", ["link", "kind", "name"])
def test_a_record_that_names_the_box_in_another_way_enrols_nobody(
    registrar: PlayedRegistrar, box: EnrollingBox, wrong: str
) -> None:
    registrar.publishes = False
    key = public_key_bytes(box.key.public_key())
    link = spki(ec.generate_private_key(ec.SECP256R1())) if wrong == "link" else key
    node = node_file(key, link, KeyKind.PIV if wrong == "kind" else KeyKind.SOFTWARE)
    registrar.publish(node.model_copy(update={"node": "another"}) if wrong == "name" else node)
    assert refused(box, registrar.token()).code == "enrolment.wrong_record"


def test_another_hospital_that_claims_the_boxs_key_keeps_nobody_out(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    key = public_key_bytes(box.key.public_key())
    registrar.publish(node_file(key, key, KeyKind.SOFTWARE, site=OTHER_SITE))
    assert box.enrol(registrar.token()).site == SITE


def test_evidence_over_an_altered_nonce_is_worth_nothing(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    def alter(asked: Asked, said: Said) -> Said:
        if asked.method == "POST" and isinstance(said.body, dict):
            return replace(said, body=said.body | {"nonce": encode_bytes(secrets.token_bytes(32))})
        return said

    registrar.after = alter
    error = refused(box, registrar.token())
    assert error.details["registrar_code"] == "statements.unverified"


def test_nobody_but_the_hospital_may_ask_in_its_name(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    def ask_for_itself(asked: Asked, said: Said) -> Said:
        if isinstance(said.body, dict) and "exchange" in said.body:
            asker = {"asker_key": key_id(registrar.key.public_key()), "nonce": encode_bytes(secrets.token_bytes(32))}
            return replace(said, body=said.body | {"exchange": asker})
        return said

    registrar.after = ask_for_itself
    assert refused(box, registrar.token()).code == "enrolment.not_the_site"
    assert registrar.requests("PUT", "/endorsement/evidence") == 0


def test_a_registrar_that_never_has_enough_does_not_wear_out_the_key(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    def forget(_: Asked, said: Said) -> Said:
        for known in registrar.enrolments.values():
            known.state = State.OPEN
        return said

    registrar.after = forget
    assert refused(box, registrar.token()).code == "enrolment.never_enough"
    assert registrar.requests("PUT", "/evidence") == 16


def test_a_key_outside_a_tpm_is_asked_to_open_no_credential(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    credential = {"blob": encode_bytes(b"blob"), "encrypted_seed": encode_bytes(b"seed")}
    registrar.before = lambda asked: Said(body={"credential": credential}) if asked.path.endswith("evidence") else None
    assert refused(box, registrar.token()).code == "identity.no_activation"


def test_a_credential_for_another_tpm_is_not_opened(tmp_path: Path, tpm: Swtpm, registrar: PlayedRegistrar) -> None:
    stores = (build_store(EvidenceClass.TEST, [path.read_bytes() for path in tpm.ca_certificates]),)
    registrar.stores = stores
    with shared_maker().make("b") as other:
        # The registrar makes its challenge for the box that it would rather have.
        theirs = EnrollingBox(tmp_path / "theirs", registrar, init_key(other.uri))
        registrar.tool_works = False
        with pytest.raises(EnrolmentStoppedError):
            theirs.enrol(registrar.token())
        (stolen,) = [known.credentials["registrar"] for known in registrar.enrolments.values()]
    registrar.before = lambda asked: Said(body={"credential": stolen}) if asked.path.endswith("/evidence") else None
    box = EnrollingBox(tmp_path / "ours", registrar, init_key(tpm.uri))
    with pytest.raises(PeerProtocolError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "identity.foreign_credential"


def test_an_honest_tpm_box_is_enrolled(tmp_path: Path, tpm: Swtpm, registrar: PlayedRegistrar) -> None:
    registrar.stores = (build_store(EvidenceClass.TEST, [path.read_bytes() for path in tpm.ca_certificates]),)
    box = EnrollingBox(tmp_path / "box", registrar, init_key(tpm.uri))
    ek_name, _ = box.key.evidence_names()
    assert box.enrol(registrar.token(ek_digest=ek_digest(ek_name))).site == SITE
    assert registrar.requests("PUT", "/endorsement/activation") == 1
