"""What a box with a TPM, or somebody who has one, tries at the registrar; and that an honest box gets through whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from agent.attestation.credential import Credential
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.errors import PeerProtocolError
from agent.identity.key import HardwareKey, init_key
from agent.statements.roots import EvidenceClass
from agent.trust.token import ek_digest
from provisioning.authority.endorsing import EndorsingTool
from tests.attacks.test_enrolment_registrar import assert_refused
from tests.simulators.registrar_host import KeyBox, RegistrarHost
from tests.simulators.swtpm import shared_maker

SITE = "hospital-a"


@pytest.fixture(scope="module")
def keys() -> Iterator[tuple[HardwareKey, HardwareKey]]:
    """In two different TPMs."""
    maker = shared_maker()
    with maker.make("one") as one, maker.make("two") as two:
        yield init_key(one.uri), init_key(two.uri)


def makers() -> str:
    return "".join(path.read_text(encoding="ascii") for path in shared_maker().ca_certificates)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, keys: tuple[HardwareKey, HardwareKey]) -> Iterator[RegistrarHost]:
    assert keys  # their maker's certificates are there once one was made
    directory = tmp_path_factory.mktemp("registrar") / "authority"
    with RegistrarHost.found(directory, SITE, makers={"test": makers()}, minimum_evidence="test") as host:
        yield host


@pytest.fixture
def client(host: RegistrarHost) -> Iterator[httpx.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def box(host: RegistrarHost, client: httpx.Client, keys: tuple[HardwareKey, HardwareKey]) -> KeyBox:
    box = KeyBox(host, host.token(SITE), client, hardware=keys[0])
    assert box.open().status_code == 201
    return box


@contextmanager
def looking(tool: EndorsingTool) -> Iterator[None]:
    """The hospital's tool at work."""
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.05):
            tool.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def test_an_honest_box_is_enrolled(
    host: RegistrarHost, client: httpx.Client, keys: tuple[HardwareKey, HardwareKey], tmp_path: Path
) -> None:
    token = host.issue(SITE, tmp_path / "state")[0].token
    box = KeyBox(host, token, client, hardware=keys[0])
    with host.tool(SITE, tmp_path / "state") as tool, looking(tool):
        record = box.enrol_whole(tmp_path / "box")
    (node,) = [node for node in host.nodes(SITE) if node.root.key_id == box.key_id]
    assert (record.site, record.node) == (SITE, node.node)
    assert node.root.evidence is EvidenceClass.TEST
    assert bytes.fromhex(node.ek_name) == keys[0].evidence_names()[0]
    assert box.key_id in host.let_in


def test_evidence_replayed_is_refused(box: KeyBox) -> None:
    old = box.evidence(box.registrar_exchange())
    again = KeyBox(box.host, box.host.token(SITE), box.client, hardware=box.held)
    again.open()
    assert_refused(again.put("evidence", old), 422, "attestation.not_shown")


def test_evidence_relayed_from_another_box_is_refused(box: KeyBox, keys: tuple[HardwareKey, HardwareKey]) -> None:
    other = KeyBox(box.host, box.token, box.client, hardware=keys[1], name=box.name, nonce=box.nonce)
    assert_refused(box.put("evidence", other.evidence(other.registrar_exchange())), 422, "appraisal.another_key")


def test_another_tpms_name_is_refused(
    host: RegistrarHost, client: httpx.Client, keys: tuple[HardwareKey, HardwareKey]
) -> None:
    stranger = keys[1].evidence_names()[0]
    token = host.token(SITE, ek_digest=ek_digest(stranger))
    box = KeyBox(host, token, client, hardware=keys[0])
    assert_refused(box.open(), 403, "enrol.other_box")
    lie = KeyBox(host, token, client, hardware=keys[0])
    from_lie = lie.fields()["key_name"]
    assert lie.open(ek_name=encode_bytes(stranger), key_name=from_lie).status_code == 201
    assert_refused(lie.prove(), 422, "appraisal.another_key")


def test_a_credential_for_another_tpm_opens_nothing(box: KeyBox, keys: tuple[HardwareKey, HardwareKey]) -> None:
    answer = box.prove()
    fields = answer.json()["credential"]
    credential = Credential(decode_bytes(fields["blob"]), decode_bytes(fields["encrypted_seed"]))
    with pytest.raises(PeerProtocolError, match="made for another box"):
        keys[1].activate(credential)


def test_a_guessed_answer_is_refused_and_the_true_one_taken(box: KeyBox) -> None:
    answer = box.prove()
    guess = b'{"answer": "' + b"A" * 43 + b'"}'
    assert_refused(box.put("activation", guess), 422, "attestation.not_shown")
    assert box.situation()["state"] == "challenged"
    assert box.activate(answer, box.qualifying_data).status_code == 200
    assert box.situation()["state"] == "appraised"


def test_an_answer_bound_to_another_exchange_is_refused(box: KeyBox) -> None:
    answer = box.prove()
    elsewhere = box.registrar_exchange(site="hospital-b").qualifying_data(*box.held.evidence_names())
    assert_refused(box.activate(answer, elsewhere), 422, "attestation.not_shown")


def test_a_box_that_forgot_its_challenge_gets_another(box: KeyBox) -> None:
    first = box.prove()
    second = box.prove()
    assert first.json() != second.json()  # new signatures, so new evidence
    assert_refused(box.activate(first, box.qualifying_data), 422, "attestation.not_shown")
    assert box.activate(second, box.qualifying_data).status_code == 200


def test_the_same_evidence_twice_gets_the_same_credential(box: KeyBox) -> None:
    evidence = box.evidence(box.registrar_exchange())
    assert box.put("evidence", evidence).json() == box.put("evidence", evidence).json()


@pytest.mark.parametrize(("known", "code"), [(True, "appraisal.not_admitted"), (False, "attestation.unknown_maker")])
def test_a_tpm_of_software_is_none_of_hardware(
    tmp_path: Path, keys: tuple[HardwareKey, HardwareKey], known: bool, code: str
) -> None:
    trusted = {"test": makers()} if known else {}
    strict = RegistrarHost.found(tmp_path / "authority", SITE, minimum_evidence="hardware", makers=trusted)
    with strict as host, host.client() as client:
        box = KeyBox(host, host.token(SITE), client, hardware=keys[0])
        box.open()
        assert_refused(box.prove(), 422, code)
        assert box.situation()["state"] == "open"
