"""What an attacker may try with a TPM's evidence; each test is named after its attack."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from agent.attestation.appraise import (
    BOOT_REGISTERS,
    Appraisal,
    Candidate,
    Policy,
    appraise_evidence,
    challenge,
    confirm_activation,
)
from agent.attestation.binding import Exchange
from agent.attestation.credential import activation_answer
from agent.attestation.evidence import encode_evidence, parse_evidence
from agent.attestation.makers import TrustStore
from agent.attestation.structures import AttestType, Attribute
from agent.core.errors import PeerProtocolError
from agent.statements.roots import EvidenceClass, KeyKind
from agent.trust.makers import load_maker_stores
from tests.simulators.forged_tpm import (
    BOUND,
    EK_USAGE,
    PLATFORM_USAGE,
    BootLog,
    ForgedTPM,
    Maker,
    attest,
    ecc_public,
    name_of,
    now_s,
    quote_info,
    rsa_public,
    sized,
)

MAKER = Maker()
POLICY = Policy((MAKER.store(),))
EXCHANGE = Exchange("enrolment v1", "aa" * 32, "c0" * 32, "token-1", "north", bytes(range(32)))
DAY = datetime.timedelta(days=1)


@pytest.fixture
def tpm() -> ForgedTPM:
    return ForgedTPM(MAKER)


def refused(sentence: str) -> pytest.RaisesExc[PeerProtocolError]:
    return pytest.raises(PeerProtocolError, match=sentence)


def appraise(tpm: ForgedTPM, policy: Policy = POLICY, exchange: Exchange = EXCHANGE, **changes: bytes) -> Candidate:
    return appraise_evidence(tpm.evidence(EXCHANGE, **changes), exchange, policy, now_s=now_s())


def activate(tpm: ForgedTPM, candidate: Candidate) -> Appraisal:
    secret = secrets.token_bytes(32)
    opened = tpm.open_credential(challenge(candidate, secret, random_bytes=secrets.token_bytes))
    return confirm_activation(candidate, secret, activation_answer(opened or b"", candidate.qualifying_data))


def test_honest_evidence_is_accepted(tpm: ForgedTPM) -> None:
    appraisal = activate(tpm, appraise(tpm))
    assert (appraisal.evidence, appraisal.public_key) == (EvidenceClass.HARDWARE, tpm.spki)
    assert appraisal.ek_name == name_of(tpm.ek_public)


@pytest.mark.parametrize("magic", [0, 0xFF544346, 0x00544347])
@pytest.mark.parametrize("what", ["certify_info", "quote_info"])
def test_forged_tpm_generated(tpm: ForgedTPM, magic: int, what: str) -> None:
    # A key that signs anything could sign this; a restricted key never signs what begins otherwise.
    honest = tpm.evidence(EXCHANGE).parts[what]
    with refused("no TPM generated"):
        appraise(tpm, POLICY, EXCHANGE, **{what: magic.to_bytes(4, "big") + honest[4:]})


@pytest.mark.parametrize("missing", [Attribute.FIXED_TPM, Attribute.FIXED_PARENT, Attribute.SENSITIVE_DATA_ORIGIN])
def test_key_that_could_leave_its_tpm(missing: Attribute) -> None:
    with refused("node key may do other things"):
        appraise(ForgedTPM(MAKER, node_attributes=(BOUND | Attribute.SIGN) & ~missing))
    with refused("attestation key may do other things"):
        appraise(ForgedTPM(MAKER, ak_attributes=(BOUND | Attribute.RESTRICTED | Attribute.SIGN) & ~missing))


def test_attestation_key_that_signs_whatever_it_is_given() -> None:
    with refused("attestation key may do other things"):
        appraise(ForgedTPM(MAKER, ak_attributes=BOUND | Attribute.SIGN))


@pytest.mark.parametrize("extra", [Attribute.DECRYPT, Attribute.RESTRICTED])
def test_node_key_with_a_second_purpose(extra: Attribute) -> None:
    with refused("node key may do other things"):
        appraise(ForgedTPM(MAKER, node_attributes=BOUND | Attribute.SIGN | extra))


def test_endorsement_key_that_signs() -> None:
    attributes = BOUND | Attribute.RESTRICTED | Attribute.DECRYPT | Attribute.SIGN
    with refused("endorsement key may do other things"):
        appraise(ForgedTPM(MAKER, ek_attributes=attributes))


def test_ek_certificate_of_an_unknown_maker() -> None:
    with refused("No known maker"):
        appraise(ForgedTPM(Maker("Somebody Else")))


def test_ek_certificate_of_an_impostor_with_the_makers_name() -> None:
    with refused("No known maker"):
        appraise(ForgedTPM(Maker(MAKER.name)))


def test_impostor_sent_along_as_an_intermediate(tpm: ForgedTPM) -> None:
    impostor = Maker("Impostor")
    forged = ForgedTPM(impostor)
    with refused("No known maker"):
        appraise(forged, ek_intermediates=impostor.certificate.public_bytes(Encoding.PEM))


def test_honest_intermediate_is_a_help(tpm: ForgedTPM) -> None:
    below = MAKER.subordinate("Factory 7")
    tpm = ForgedTPM(below)
    assert appraise(tpm, ek_intermediates=below.certificate.public_bytes(Encoding.PEM))
    with refused("No known maker"):
        appraise(tpm)


def test_customer_of_the_maker_as_an_authority() -> None:
    # Any holder of an EK certificate could else issue more of them.
    customer = MAKER.subordinate("A Customer", authority=False)
    with refused("No known maker"):
        appraise(ForgedTPM(customer), ek_intermediates=customer.certificate.public_bytes(Encoding.PEM))


def test_authority_beyond_its_path_length() -> None:
    factory = MAKER.subordinate("Factory", path_length=0)
    line = factory.subordinate("Line")
    pems = b"".join(c.certificate.public_bytes(Encoding.PEM) for c in (line, factory))
    assert appraise(ForgedTPM(factory), ek_intermediates=pems)
    with refused("No known maker"):
        appraise(ForgedTPM(line), ek_intermediates=pems)


@pytest.mark.parametrize(("begins", "ends"), [(-3 * DAY, -DAY), (DAY, 3 * DAY)])
def test_ek_certificate_out_of_date(tpm: ForgedTPM, begins: datetime.timedelta, ends: datetime.timedelta) -> None:
    tpm.ek_certificate = MAKER.certify("ek", tpm.ek.public_key(), usages=[EK_USAGE], begins_in=begins, ends_in=ends)
    with refused("out of date"):
        appraise(tpm)


def test_platform_certificate_in_the_ek_certificates_place(tpm: ForgedTPM) -> None:
    tpm.ek_certificate = MAKER.certify("ek", tpm.ek.public_key(), usages=[PLATFORM_USAGE])
    with refused("another use"):
        appraise(tpm)


def test_card_key_in_the_endorsement_keys_place(tpm: ForgedTPM) -> None:
    """A smartcard decrypts too, and its maker certifies its keys: with one as EK, all the rest could be software."""
    tpm.ek_certificate = MAKER.certify("YubiKey PIV Attestation 9d", tpm.ek.public_key())
    with refused("nothing in it says that it is about a TPM"):
        appraise(tpm)
    tpm.ek_certificate = MAKER.certify("a server", tpm.ek.public_key(), names=[x509.DNSName("server.example")])
    with refused("nothing in it says that it is about a TPM"):
        appraise(tpm)


def test_ek_certificate_that_names_its_tpm_instead_of_its_use_is_accepted(tpm: ForgedTPM) -> None:
    values = {"2.23.133.2.1": "id:54455354", "2.23.133.2.2": "model", "2.23.133.2.3": "id:0001"}
    parts = [x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in values.items()]
    tpm.ek_certificate = MAKER.certify("ek", tpm.ek.public_key(), names=[x509.DirectoryName(x509.Name(parts))])
    assert appraise(tpm)


def test_authoritys_own_certificate_in_the_ek_certificates_place(tpm: ForgedTPM) -> None:
    tpm.ek_certificate = MAKER.certify("ek", tpm.ek.public_key(), authority=True)
    with refused("authority's own"):
        appraise(tpm)


def test_ek_certificate_about_another_key(tpm: ForgedTPM) -> None:
    tpm.ek_certificate = MAKER.certify("ek", ec.generate_private_key(ec.SECP384R1()).public_key(), usages=[EK_USAGE])
    with refused("another key"):
        appraise(tpm)


def roca_key() -> rsa.RSAPublicKey:
    """A key as the broken generator makes them: primes k * M + (65537^a mod M), M the product of small primes."""
    small = [p for p in range(2, 702) if all(p % d for d in range(2, p))][:126]
    product = 1
    for factor in small:
        product *= factor

    def prime() -> int:
        # Two bits at the top, so that the product of two has 2048.
        base = (3 << 1022) // product + 1
        while True:
            candidate = (base + secrets.randbits(40)) * product + pow(65537, secrets.randbits(64), product)
            if candidate.bit_length() == 1024 and pow(2, candidate - 1, candidate) == 1:
                return candidate

    return rsa.RSAPublicNumbers(65537, prime() * prime()).public_key()


def test_roca(tpm: ForgedTPM) -> None:
    key = roca_key()
    tpm.ek_certificate = MAKER.certify("ek", key, usages=[EK_USAGE])
    tpm.ek_public = rsa_public(key, BOUND | Attribute.RESTRICTED | Attribute.DECRYPT)
    with refused("ROCA"):
        appraise(tpm)


def test_honest_rsa_is_not_taken_for_roca(tpm: ForgedTPM) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    tpm.ek_certificate = MAKER.certify("ek", key, usages=[EK_USAGE])
    tpm.ek_public = rsa_public(key, BOUND | Attribute.RESTRICTED | Attribute.DECRYPT)
    assert appraise(tpm)


def test_no_maker_and_nobody_vouched(tpm: ForgedTPM) -> None:
    with refused("no hospital has vouched"):
        appraise(tpm, ek_certificate=b"")


def test_vouched_for_by_name_counts_less_than_a_maker(tpm: ForgedTPM) -> None:
    policy = Policy(POLICY.stores, vouched_eks=frozenset({name_of(tpm.ek_public)}))
    assert appraise(tpm, policy, ek_certificate=b"").evidence is EvidenceClass.VIRTUAL
    with refused("no hospital has vouched"):
        appraise(ForgedTPM(MAKER), policy, ek_certificate=b"")


def test_simulator_passed_off_as_hardware(tmp_path: Path, tpm: ForgedTPM) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "simulator.pem").write_bytes(MAKER.certificate.public_bytes(Encoding.PEM))
    production = Policy(load_maker_stores(tmp_path, environment="production"))
    with refused("No known maker"):
        appraise(tpm, production)
    testing = Policy(load_maker_stores(tmp_path, environment="test"))
    assert appraise(tpm, testing).evidence is EvidenceClass.TEST


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "endorsement v1"},
        {"asker_key": "bb" * 32},
        {"consortium": "d1" * 32},
        {"token": "token-2"},
        {"site": "south"},
        {"nonce": bytes(32)},
    ],
    ids=lambda changes: "relayed to another " + next(iter(changes)),
)
def test_relayed_proof(tpm: ForgedTPM, changes: dict[str, Any]) -> None:
    with refused("another exchange"):
        appraise(tpm, exchange=replace(EXCHANGE, **changes))


def test_field_shifted_into_its_neighbour(tpm: ForgedTPM) -> None:
    shifted = replace(EXCHANGE, token="token-", site="1north")
    joined = replace(EXCHANGE, token="token-1", site="north")
    names = b"ek", b"key"
    assert shifted.qualifying_data(*names) != joined.qualifying_data(*names)


def test_node_key_swapped_after_certification(tpm: ForgedTPM) -> None:
    stranger = ecc_public(ec.generate_private_key(ec.SECP256R1()).public_key(), BOUND | Attribute.SIGN)
    with refused("another than the one that is to be enrolled"):
        appraise(tpm, node_public=stranger)


def test_certificate_for_another_key(tpm: ForgedTPM) -> None:
    info = attest(AttestType.CERTIFY, tpm.qualifying_data(EXCHANGE), sized(name_of(tpm.ak_public)) + sized(b""))
    with refused("certified another key"):
        appraise(tpm, certify_info=info)


def test_quote_in_the_certificates_place(tpm: ForgedTPM) -> None:
    with refused("certified another key"):
        appraise(tpm, certify_info=tpm.evidence(EXCHANGE).parts["quote_info"])


def test_certificate_in_the_quotes_place(tpm: ForgedTPM) -> None:
    with refused("something else than one bank"):
        appraise(tpm, quote_info=tpm.evidence(EXCHANGE).parts["certify_info"])


def test_attestation_signed_by_another_key(tpm: ForgedTPM) -> None:
    other = ForgedTPM(MAKER).evidence(EXCHANGE).parts["certify_signature"]
    with refused("not signed by the key"):
        appraise(tpm, certify_signature=other)


def test_quote_that_leaves_registers_out(tpm: ForgedTPM) -> None:
    del tpm.registers[4]
    with refused("leaves registers out"):
        appraise(tpm)


def test_quote_of_the_weak_bank(tpm: ForgedTPM) -> None:
    info = attest(AttestType.QUOTE, tpm.qualifying_data(EXCHANGE), quote_info(tpm.registers, bank=0x0004))
    with refused("leaves registers out"):
        appraise(tpm, quote_info=info)


def test_register_values_other_than_quoted(tpm: ForgedTPM) -> None:
    honest = tpm.evidence(EXCHANGE).parts["registers"]
    with refused("not those that the TPM quoted"):
        appraise(tpm, registers=bytes(32) + honest[32:])


def test_unhealthy_boot_state(tpm: ForgedTPM) -> None:
    healthy = Policy(POLICY.stores, reference_values={4: frozenset({tpm.registers[4]})})
    assert appraise(tpm, healthy)
    tpm.registers[4] = bytes(32)
    with refused("not known as healthy"):
        appraise(tpm, healthy)


def boot(*measured: tuple[int, bytes]) -> BootLog:
    log = BootLog()
    for register, data in measured:
        log.measure(register, 0x80000001, data)
    return log


def with_log(tpm: ForgedTPM, log: BootLog, encoded: bytes | None = None) -> ForgedTPM:
    tpm.registers.update(dict.fromkeys(BOOT_REGISTERS, bytes(32)) | log.registers)
    tpm.event_log = encoded or log.encoded()
    return tpm


def test_log_that_explains_the_quote_is_accepted(tpm: ForgedTPM) -> None:
    candidate = appraise(with_log(tpm, boot((0, b"firmware"), (4, b"loader"), (4, b"kernel"), (7, b"secure boot"))))
    assert [event.data for event in candidate.events] == [b"firmware", b"loader", b"kernel", b"secure boot"]
    assert all(event.is_bound() for event in candidate.events)


def test_log_with_an_event_left_out(tpm: ForgedTPM) -> None:
    with refused("does not lead to"):
        appraise(with_log(tpm, boot((4, b"loader"), (4, b"rootkit")), boot((4, b"loader")).encoded()))


def test_log_with_all_of_a_registers_events_left_out(tpm: ForgedTPM) -> None:
    with refused("does not lead to what the TPM quoted for register 4"):
        appraise(with_log(tpm, boot((0, b"firmware"), (4, b"rootkit")), boot((0, b"firmware")).encoded()))


def test_log_with_invented_events_before_a_fresh_start(tpm: ForgedTPM) -> None:
    """The event that tells where register 0 began, in the middle, would make all before it up."""
    honest, forged = boot((0, b"firmware")), boot((0, b"what was never there"))
    forged.append(0, 0x00000003, {}, b"StartupLocality\x00\x00")
    forged.measure(0, 0x80000001, b"firmware")
    with refused("a startup event after others"):
        appraise(with_log(tpm, honest, forged.encoded()))


def test_log_of_a_start_at_another_locality_is_accepted(tpm: ForgedTPM) -> None:
    log = BootLog().append(0, 0x00000003, {}, b"StartupLocality\x00\x03")
    log.registers[0] = bytes(31) + b"\x03"
    assert appraise(with_log(tpm, log.measure(0, 0x80000001, b"firmware"))).events


def test_log_with_events_in_another_order(tpm: ForgedTPM) -> None:
    with refused("does not lead to"):
        appraise(with_log(tpm, boot((4, b"a"), (4, b"b")), boot((4, b"b"), (4, b"a")).encoded()))


def test_log_with_a_friendly_description_of_something_else(tpm: ForgedTPM) -> None:
    log = boot((4, b"rootkit"))
    candidate = appraise(with_log(tpm, log, log.encoded().replace(b"rootkit", b"kernel!")))
    assert not candidate.events[0].is_bound()


def test_software_keys_beside_an_honest_ek(tpm: ForgedTPM) -> None:
    # The attacker owns an honest TPM and shows its EK, but keeps AK and node key in software: only activation tells.
    attacker = ForgedTPM(MAKER)
    attacker.ek_certificate, attacker.ek_public = tpm.ek_certificate, tpm.ek_public
    candidate = appraise(attacker)
    secret = secrets.token_bytes(32)
    credential = challenge(candidate, secret, random_bytes=secrets.token_bytes)
    assert tpm.open_credential(credential) is None  # the honest TPM refuses: no key of that name lives in it
    with refused("did not open the credential"):
        confirm_activation(candidate, secret, activation_answer(b"", candidate.qualifying_data))


def test_credential_for_another_keys_name(tpm: ForgedTPM) -> None:
    candidate = appraise(tpm)
    credential = challenge(candidate, b"s" * 32, random_bytes=secrets.token_bytes)
    assert tpm.open_credential(credential, name=name_of(tpm.node_public)) is None
    assert tpm.open_credential(credential) == b"s" * 32


def test_answer_replayed_from_another_exchange(tpm: ForgedTPM) -> None:
    candidate = appraise(tpm)
    with refused("did not open"):
        confirm_activation(candidate, b"s" * 32, activation_answer(b"s" * 32, bytes(32)))


@pytest.mark.parametrize(
    "alter",
    [
        lambda parts: {k: v for k, v in parts.items() if k != "quote_info"},
        lambda parts: parts | {"ek_public": b""},
        lambda parts: parts | {"ak_public": parts["ak_public"] + b"\x00"},
        lambda parts: parts | {"certify_info": parts["certify_info"][:-1]},
        lambda parts: parts | {"ek_certificate": b"\x30\x82\xff\xff"},
        lambda parts: parts | {"ek_certificate": bytes(9000)},
        lambda parts: parts | {"event_log": b"noise"},
        lambda parts: parts | {"ek_intermediates": b"noise"},
    ],
)
def test_evidence_that_cannot_be_read(tpm: ForgedTPM, alter: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    evidence = tpm.evidence(EXCHANGE)
    with refused("cannot be read"):
        appraise_evidence(replace(evidence, parts=alter(dict(evidence.parts))), EXCHANGE, POLICY, now_s=now_s())


@pytest.mark.parametrize("bits", [0, 8, 64, 129, 1024, 65535])
def test_endorsement_key_with_an_impossible_cipher(tpm: ForgedTPM, bits: int) -> None:
    claimed = BOUND | Attribute.RESTRICTED | Attribute.DECRYPT
    tpm.ek_public = ecc_public(tpm.ek.public_key(), claimed, name_algorithm=0x000C, storage_bits=bits)
    with refused("cannot be read"):
        challenge(appraise(tpm), bytes(32), random_bytes=secrets.token_bytes)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": [], "public_key": b"", "parts": {}},
        {"kind": {}, "public_key": b"", "parts": {}},
        {"kind": "tpm", "public_key": "", "parts": {}},
        {"kind": "tpm", "public_key": b"", "parts": {1: b""}},
        {"kind": "tpm", "public_key": b"", "parts": {"a": "b"}},
        {"kind": "quantum", "public_key": b"", "parts": {}},
        {"kind": "tpm", "public_key": b"", "parts": dict.fromkeys(map(str, range(33)), b"")},
        {"kind": "tpm", "public_key": b""},
        cbor2.CBORTag(35, "(a+)+$"),
        cbor2.CBORTag(0, "2026-01-01T00:00:00Z"),
        [],
        None,
    ],
)
def test_evidence_in_a_form_that_makes_no_sense(data: object) -> None:
    with refused("cannot be read"):
        parse_evidence(cbor2.dumps(data))


@given(st.binary(max_size=300))
def test_evidence_of_noise(data: bytes) -> None:
    with refused("cannot be read"):
        parse_evidence(data)


def test_evidence_with_a_part_named_twice(tpm: ForgedTPM) -> None:
    honest = encode_evidence(tpm.evidence(EXCHANGE))
    assert set(parse_evidence(honest).parts) == set(tpm.evidence(EXCHANGE).parts)
    doubled = b"\xa4" + honest[1:] + b"\x64kind" + b"\x63piv"
    with refused("cannot be read"):
        parse_evidence(doubled)


def test_evidence_of_another_kind_of_key(tpm: ForgedTPM) -> None:
    with refused("another kind"):
        appraise_evidence(replace(tpm.evidence(EXCHANGE), kind=KeyKind.PIV), EXCHANGE, POLICY, now_s=now_s())


def test_empty_trust_store_trusts_nobody(tpm: ForgedTPM) -> None:
    with refused("No known maker"):
        appraise(tpm, Policy((TrustStore(EvidenceClass.HARDWARE, ()),)))
