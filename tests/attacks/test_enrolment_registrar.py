"""What strangers, thieves and neighbouring hospitals try at the registrar, over its real HTTPS interface."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.enrolling import ENDORSEMENT_LABEL
from agent.core.base64url import encode_bytes
from agent.core.errors import OperatorError
from agent.statements.roots import KeyKind
from agent.trust.records import public_pem
from agent.trust.token import ek_digest
from provisioning.registrar.guard import HEADERS, MAX_EVIDENCE_REQUEST_BYTES, MAX_SMALL_BYTES
from provisioning.registrar.limits import ADDRESS_RATE, MAX_HELD_FROM_ADDRESS_BYTES, TOKEN_RATE
from provisioning.registrar.run import BoxProtocol
from provisioning.tokens.token import TokenEntry
from tests.simulators.authority import new_node, new_signer
from tests.simulators.registrar_host import PlainBox, RegistrarHost, own_client

A, B = "hospital-a", "hospital-b"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistrarHost]:
    with RegistrarHost.found(tmp_path_factory.mktemp("registrar") / "authority", A, B) as host:
        yield host


@pytest.fixture
def client(host: RegistrarHost) -> Iterator[httpx.Client]:
    with own_client(host) as client:
        yield client


@pytest.fixture
def box(host: RegistrarHost, client: httpx.Client) -> PlainBox:
    return PlainBox(host, host.token(A), client)


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    """In the form that boxes read."""
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert set(response.json()) == {"code", "sentence", "next_step"}
    assert response.json()["sentence"].endswith(".")


def send(
    host: RegistrarHost, client: httpx.Client, site: str, method: str, path: str, body: bytes = b"", **changes: object
) -> httpx.Response:
    headers = host.site_headers(site, method, path, body, **changes)
    return client.request(method, path, content=body or None, headers=headers)


# Tokens.


def test_stolen_token_after_its_box_began_is_refused(box: PlainBox) -> None:
    assert box.open().status_code == 201
    thief = PlainBox(box.host, box.token, box.client)
    assert_refused(thief.open(), 409, "enrol.token_used")
    assert box.prove().status_code == 200
    assert box.situation()["state"] == "appraised"


def test_stolen_token_before_its_box_began_keeps_the_box_out_and_is_seen(box: PlainBox) -> None:
    thief = PlainBox(box.host, box.token, box.client)
    assert thief.open().status_code == 201
    assert_refused(box.open(), 409, "enrol.token_used")


def test_stolen_token_with_a_swapped_link_key_is_refused(box: PlainBox) -> None:
    box.open()
    other = ec.generate_private_key(ec.SECP256R1())
    swapped = PlainBox(box.host, box.token, box.client, other).fields()["link_key"]
    assert_refused(box.open(link_key=swapped), 409, "enrol.token_used")


def test_reused_token_begins_nothing_new_for_the_same_box(box: PlainBox) -> None:
    first, again = box.open().json(), box.open().json()
    assert first == again


def test_expired_token_is_refused(host: RegistrarHost, client: httpx.Client) -> None:
    box = PlainBox(host, host.token(A, expires_s=1_700_000_000), client)
    assert_refused(box.open(), 403, "enrol.token_expired")


def test_token_that_was_altered_is_refused(box: PlainBox) -> None:
    box.token = replace(box.token, secret=secrets.token_bytes(16))
    assert_refused(box.open(), 403, "enrol.unknown_token")


def test_token_that_nobody_issued_tells_nothing_apart_from_a_wrong_secret(box: PlainBox) -> None:
    known = PlainBox(box.host, replace(box.token, secret=bytes(16)), box.client).open()
    unknown = PlainBox(box.host, replace(box.token, id=bytes(8)), box.client).open()
    assert (known.status_code, known.json()) == (unknown.status_code, unknown.json())


def test_token_for_another_box_is_refused(host: RegistrarHost, client: httpx.Client) -> None:
    box = PlainBox(host, host.token(A, ek_digest=ek_digest(b"\x00\x0b" + bytes(32))), client)
    assert_refused(box.open(), 403, "enrol.other_box")


def test_token_of_another_hospital_cannot_be_made_known(host: RegistrarHost) -> None:
    token = host.make_token(B)
    entry = TokenEntry.of(token, host.issuer(A).public_key)
    with host.line(A) as line, pytest.raises(OperatorError) as caught:
        line.call("POST", "/tokens", entry.model_dump_json(exclude_none=True).encode())
    assert caught.value.details["registrar_code"] == "registrar.foreign_token"


def test_token_signed_by_a_strangers_key_cannot_be_made_known(host: RegistrarHost) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    with host.register(A) as register, pytest.raises(OperatorError):
        register.add(TokenEntry.of(host.make_token(A), stranger))


def test_token_id_cannot_be_taken_over(host: RegistrarHost) -> None:
    token = host.token(A)
    with host.register(A) as register:
        register.add(TokenEntry.of(token, host.issuer(A).public_key))
        other = TokenEntry.of(replace(token, secret=bytes(16)), host.issuer(A).public_key)
        with pytest.raises(OperatorError) as caught:
            register.add(other)
    assert caught.value.details["registrar_code"] == "registrar.other_token"


# Evidence.


def test_evidence_for_another_asker_is_refused(box: PlainBox) -> None:
    box.open()
    exchange = box.exchange(box.registrar_exchange().label, "00" * 32, box.nonce)
    assert_refused(box.put("evidence", box.evidence(exchange)), 422, "statements.unverified")
    assert box.situation()["state"] == "open"


def test_evidence_relayed_from_another_enrolment_is_refused(box: PlainBox) -> None:
    other = PlainBox(box.host, box.host.token(A), box.client, box.key)
    other.open()
    box.open()
    assert_refused(box.put("evidence", other.evidence(other.registrar_exchange())), 422, "statements.unverified")


def test_evidence_of_another_boxs_key_is_refused(box: PlainBox) -> None:
    other = PlainBox(box.host, box.token, box.client)
    box.open()
    other.name, other.nonce = box.name, box.nonce
    assert_refused(box.put("evidence", other.evidence(box.registrar_exchange())), 422, "appraisal.another_key")


@pytest.mark.parametrize("changes", [{"site": B}, {"token": "00" * 8}, {"consortium": "00" * 32}, {"nonce": bytes(32)}])
def test_evidence_replayed_from_elsewhere_is_refused(box: PlainBox, changes: dict[str, object]) -> None:
    box.open()
    exchange = box.registrar_exchange()
    for name, value in changes.items():
        exchange = replace(exchange, **{name: value})  # type: ignore[arg-type]
    assert_refused(box.put("evidence", box.evidence(exchange)), 422, "statements.unverified")


def test_evidence_for_the_hospital_is_none_for_the_registrar(box: PlainBox) -> None:
    box.open()
    exchange = replace(box.registrar_exchange(), label=ENDORSEMENT_LABEL)
    assert_refused(box.put("evidence", box.evidence(exchange)), 422, "statements.unverified")


def test_a_kind_that_lies_about_itself_is_refused(box: PlainBox) -> None:
    box.open(kind=KeyKind.TPM.value)
    assert_refused(box.prove(), 422, "appraisal.another_key")


# One box and another's enrolment.


def test_another_boxs_enrolment_is_out_of_reach(box: PlainBox) -> None:
    box.open()
    other = PlainBox(box.host, box.host.token(A), box.client, name=box.name)
    headers = {"authorization": f"Bearer {other.secret}"}
    response = box.client.get(f"/v1/enrolments/{box.name}", headers=headers)
    assert_refused(response, 403, "registrar.not_authorised")
    assert box.client.get("/v1/enrolments/nothing", headers=headers).json() == response.json()
    assert_refused(other.put("evidence", b"x"), 403, "registrar.not_authorised")


def test_steps_out_of_turn_are_refused(box: PlainBox) -> None:
    box.open()
    answer = json.dumps({"answer": encode_bytes(bytes(32))}).encode()
    assert_refused(box.put("activation", answer), 409, "enrol.wrong_state")
    assert_refused(box.put("endorsement/activation", answer), 409, "enrol.wrong_state")
    fields = {"evidence": encode_bytes(b"x"), "proof": encode_bytes(bytes(32))}
    assert_refused(box.put("endorsement/evidence", json.dumps(fields).encode()), 409, "enrol.wrong_state")


# Hospitals.


def test_a_hospital_cannot_see_anothers_boxes(host: RegistrarHost, client: httpx.Client, box: PlainBox) -> None:
    box.open()
    box.prove()
    path = f"/v1/sites/{A}/enrolments"
    assert box.name in {each["enrolment"] for each in send(host, client, A, "GET", path).json()["enrolments"]}
    assert_refused(send(host, client, A, "GET", path, signer=host.sites[B]), 403, "registrar.not_authorised")
    assert_refused(send(host, client, B, "GET", path), 403, "registrar.not_authorised")
    theirs = send(host, client, B, "GET", f"/v1/sites/{B}/enrolments").json()["enrolments"]
    assert box.name not in {each["enrolment"] for each in theirs}


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("refusal", {"sentence": "No.", "next_step": "None."}),
        ("credential", {"blob": "AA", "encrypted_seed": "AA"}),
    ],
)
def test_a_hospital_cannot_touch_anothers_boxes(
    host: RegistrarHost, client: httpx.Client, box: PlainBox, place: str, fields: dict[str, str]
) -> None:
    box.open()
    box.prove()
    path = f"/v1/sites/{B}/enrolments/{box.name}/{place}"
    response = send(host, client, B, "POST", path, json.dumps(fields).encode())
    assert_refused(response, 404, "registrar.no_such_enrolment")
    assert box.situation()["state"] == "appraised"


def test_a_hospitals_request_replayed_is_refused(host: RegistrarHost, client: httpx.Client) -> None:
    path = f"/v1/sites/{A}/enrolments"
    headers = host.site_headers(A, "GET", path)
    assert client.get(path, headers=headers).status_code == 200
    assert_refused(client.get(path, headers=headers), 403, "registrar.replayed")


@pytest.mark.parametrize(
    "changes",
    [
        {"issued_s": 1_700_000_000},
        {"issued_s": 4_000_000_000},
        {"consortium": "00" * 32},
        {"method": "POST"},
        {"path": f"/v1/sites/{A}/tokens"},
        {"body": "00" * 32},
        {"site": B},
    ],
)
def test_a_hospitals_request_for_something_else_is_refused(
    host: RegistrarHost, client: httpx.Client, changes: dict[str, object]
) -> None:
    path = f"/v1/sites/{A}/enrolments"
    headers = host.site_headers(A, "GET", path, signer=host.sites[A], **changes)
    assert_refused(client.get(path, headers=headers), 403, "registrar.not_authorised")


def test_a_hospitals_request_with_another_query_is_refused(host: RegistrarHost, client: httpx.Client) -> None:
    path = f"/v1/sites/{A}/enrolments"
    assert_refused(
        client.get(f"{path}?a=b", headers=host.site_headers(A, "GET", path)), 403, "registrar.not_authorised"
    )


@pytest.mark.parametrize("header", ["", "DSSE", "DSSE !!", "DSSE e30=", "Bearer AAAA", "DSSE " + "A" * 20_000])
def test_a_request_without_a_hospitals_signature_is_refused(client: httpx.Client, header: str) -> None:
    response = client.get(f"/v1/sites/{A}/enrolments", headers={"authorization": header})
    assert_refused(response, 403, "registrar.not_authorised")


def test_a_hospital_that_nobody_knows_is_refused(host: RegistrarHost, client: httpx.Client) -> None:
    path = "/v1/sites/hospital-z/enrolments"
    response = send(host, client, "hospital-z", "GET", path, signer=new_signer())
    assert_refused(response, 403, "registrar.not_authorised")


def test_a_hospital_cannot_ask_in_anothers_name(host: RegistrarHost, client: httpx.Client, box: PlainBox) -> None:
    box.open()
    box.prove()
    body = json.dumps({"asker_key": "00" * 32, "nonce": encode_bytes(bytes(32))}).encode()
    response = send(host, client, A, "POST", f"/v1/sites/{A}/enrolments/{box.name}/exchange", body)
    assert_refused(response, 409, "registrar.another_asker")


# What is published.


def publish(
    host: RegistrarHost, client: httpx.Client, site: str, metadata: bytes, targets: dict[str, bytes]
) -> httpx.Response:
    files = {path: encode_bytes(data) for path, data in targets.items()}
    body = json.dumps({"metadata": encode_bytes(metadata), "targets": files}).encode()
    return send(host, client, site, "POST", f"/v1/sites/{site}/metadata", body)


def test_a_hospital_cannot_publish_anothers_box(host: RegistrarHost, client: httpx.Client) -> None:
    before, of_b = host.nodes(A), host.nodes(B)
    staged = host.consortium.desk(A).endorse(new_node(A))
    # 409 where B's own record has another version by now: its signature is not even looked at.
    assert publish(host, client, B, staged.metadata, dict(staged.targets)).status_code in {409, 422}
    assert host.nodes(A) == before
    assert host.nodes(B) == of_b


def test_an_old_record_of_the_hospital_cannot_be_published_again(host: RegistrarHost, client: httpx.Client) -> None:
    first = host.consortium.desk(A).endorse(new_node(A))
    assert publish(host, client, A, first.metadata, dict(first.targets)).status_code == 200
    second = host.consortium.desk(A).endorse(new_node(A))
    assert publish(host, client, A, second.metadata, dict(second.targets)).status_code == 200
    assert_refused(publish(host, client, A, first.metadata, {}), 409, "authority.may_not_follow")


def test_a_record_of_another_boxs_link_key_enrols_nobody(
    host: RegistrarHost, client: httpx.Client, box: PlainBox
) -> None:
    box.open()
    box.prove()
    pem = new_node(A).link_key
    fields = {"public_key": _pem(box), "node": box.key_id[:16], "link_key": pem}
    staged = host.consortium.desk(A).endorse(new_node(A, **fields))
    assert publish(host, client, A, staged.metadata, dict(staged.targets)).json() == {"endorsed": []}
    assert box.situation()["state"] == "appraised"


def test_a_box_that_the_registrar_did_not_appraise_is_not_let_in(
    host: RegistrarHost, client: httpx.Client, box: PlainBox
) -> None:
    box.open()
    fields = {"public_key": _pem(box), "node": box.key_id[:16], "link_key": _pem(box)}
    staged = host.consortium.desk(A).endorse(new_node(A, **fields))
    assert publish(host, client, A, staged.metadata, dict(staged.targets)).json() == {"endorsed": []}
    assert box.situation()["state"] == "open"
    assert box.key_id not in host.let_in


def _pem(box: PlainBox) -> str:
    return public_pem(box.key.public_key())


# Size, number, form.


@pytest.mark.parametrize(
    ("method", "path", "limit_bytes"),
    [
        ("POST", "/v1/enrolments", MAX_SMALL_BYTES),
        ("PUT", "/v1/enrolments/x/evidence", MAX_EVIDENCE_REQUEST_BYTES),
    ],
)
def test_a_body_too_large_is_not_read(client: httpx.Client, method: str, path: str, limit_bytes: int) -> None:
    announced = client.request(method, path, content=b"x" * (limit_bytes + 1))
    assert_refused(announced, 413, "registrar.too_large")
    chunked = (b"x" * 65_536 for _ in range(limit_bytes // 65_536 + 2))
    assert_refused(client.request(method, path, content=chunked), 413, "registrar.too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"token": 1}',
        b"[" * 15_000,
        b"\xff",
        json.dumps({"token": "A" * 11, "secret": "A" * 43, "kind": "tpm"}).encode(),
    ],
)
def test_a_body_that_is_nonsense_is_named_as_such(client: httpx.Client, body: bytes) -> None:
    assert_refused(client.post("/v1/enrolments", content=body), 400, "registrar.bad_request")


@pytest.mark.parametrize("text", ["' OR '1'='1", "x'; DROP TABLE enrolments; --", "%00", '" OR ""="', "\\", "..%2f.."])
def test_text_that_looks_like_a_query_is_text(host: RegistrarHost, box: PlainBox, text: str) -> None:
    box.open()
    headers = {"authorization": f"Bearer {box.secret}"}
    assert box.client.get(f"/v1/enrolments/{text}", headers=headers).status_code in {403, 404}
    path = f"/v1/sites/{text}/enrolments"
    assert box.client.get(path, headers={"authorization": "DSSE AAAA"}).status_code in {403, 404}
    assert box.situation()["state"] == "open"


@pytest.mark.parametrize(
    "path", ["/repository/../registrar.toml", "/repository/%2e%2e/keys/online.pem", "/repository/..%2fregistrar.toml"]
)
def test_nothing_beside_the_repository_is_served(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert_refused(response, 404, "registrar.no_such_place")


def test_nothing_lists_what_there_is(client: httpx.Client) -> None:
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/repository", "/repository/", "/repository/sites/"):
        assert client.get(path).status_code in {404, 405}, path


def test_the_repository_cannot_be_written(client: httpx.Client) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert client.request(method, "/repository/timestamp.json", content=b"{}").status_code == 405


def test_every_answer_says_what_browsers_may_do(client: httpx.Client) -> None:
    for path in ("/v1/ca.pem", "/repository/1.root.json", "/nothing", "/v1/enrolments/x"):
        response = client.get(path)
        assert {name: response.headers.get(name) for name in HEADERS} == dict(HEADERS)
        assert "server" not in response.headers


def test_a_flood_from_one_address_is_held_up_and_no_other(host: RegistrarHost, client: httpx.Client) -> None:
    statuses = [client.get("/v1/ca.pem").status_code for _ in range(int(3 * ADDRESS_RATE.burst))]
    assert statuses[: int(ADDRESS_RATE.burst)].count(200) == ADDRESS_RATE.burst
    assert 429 in statuses
    refused = next(answer for answer in iter(lambda: client.get("/v1/ca.pem"), None) if answer.status_code == 429)
    assert_refused(refused, 429, "registrar.too_many")
    assert refused.headers["retry-after"]
    with host.client() as other:
        assert other.get("/v1/ca.pem").status_code == 200


def test_a_flood_with_one_token_is_held_up(box: PlainBox) -> None:
    box.open()
    headers = {"authorization": f"Bearer {box.secret}"}
    path = f"/v1/enrolments/{box.name}"
    statuses = [box.client.get(path, headers=headers).status_code for _ in range(int(2 * TOKEN_RATE.burst))]
    assert 429 in statuses


def test_nothing_secret_is_logged(host: RegistrarHost, box: PlainBox) -> None:
    box.open()
    box.prove()
    assert box.situation()["state"] == "appraised"
    assert box.name in host.log
    assert box.secret not in host.log
    assert box.token.secret.hex() not in host.log


def tls_connection(host: RegistrarHost, source: str) -> ssl.SSLSocket:
    name, _, port = host.address.rpartition(":")
    plain = socket.create_connection((name, int(port)), timeout=60, source_address=(source, 0))
    return host.trust.wrap_socket(plain, server_hostname=name)


def test_connections_from_one_address_are_counted(host: RegistrarHost) -> None:
    held: list[ssl.SSLSocket] = []
    try:
        with pytest.raises(OSError, match=r"reset|EOF|closed|Broken"):  # noqa: PT012 - which one of them it is, is open
            for _ in range(BoxProtocol.max_from_address + 1):
                held.append(tls_connection(host, "127.9.9.9"))
            held[-1].sendall(b"GET /v1/ca.pem HTTP/1.1\r\n\r\n")
            if not held[-1].recv(1):
                raise ConnectionResetError("closed")
        with host.client() as other:
            assert other.get("/v1/ca.pem").status_code == 200
    finally:
        for one in held:
            one.close()


def test_bodies_of_strangers_that_are_never_finished_do_not_fill_the_memory(host: RegistrarHost) -> None:
    size = MAX_EVIDENCE_REQUEST_BYTES
    head = f"PUT /v1/enrolments/x/evidence HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n".encode()
    count = MAX_HELD_FROM_ADDRESS_BYTES // size + 1
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            line = stack.enter_context(tls_connection(host, "127.9.9.11"))
            line.settimeout(5)
            with contextlib.suppress(TimeoutError, OSError):
                line.sendall(head + bytes(size - 1))
        answer = line.recv(4096)
        assert b" 429 " in answer.partition(b"\r\n")[0]
        with host.client() as other:
            assert other.put("/v1/enrolments/x/evidence", content=bytes(size)).status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /v1/ca.pem HTTP/1.1\r\nhost: a\r\n"])
def test_a_connection_that_only_dribbles_is_closed(host: RegistrarHost, sent: bytes) -> None:
    with tls_connection(host, "127.9.9.10") as line:
        line.sendall(sent)
        begin = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
        patience_s = BoxProtocol.patience_s
        assert patience_s * 0.9 < time.monotonic() - begin < patience_s * 2
