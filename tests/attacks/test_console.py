"""Attacks on the hospital's console: from other pages, other people's browsers, and other studies' approvals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from agent.console.guard import BURST, MAX_BODY_BYTES
from agent.console.run import BrowserProtocol
from agent.console.sessions import IDLE_LIMIT_S
from agent.console.words import LANGUAGES
from agent.core.base64url import decode_bytes, encode_bytes
from tests.simulators.console import reserved, served
from tests.simulators.passkey import PlayedPasskey
from tests.simulators.played_box import RISK, TRIAGE, WOUNDS, PlayedBox, refusals, risk_study
from tests.simulators.surfer import LAN, LOOPBACK, House, Surfer, parse

ELSEWHERE = "https://elsewhere.example"
OWN_SCRIPTS = 2  # passkeys.js and console.js
ACTS = (
    f"/studies/{RISK}/approve",
    f"/studies/{RISK}/refuse",
    f"/studies/{RISK}/withdraw/1",
    "/language",
    "/sign-out",
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def lan(tmp_path: Path) -> House:
    return House(tmp_path, LAN)


# Cross-site request forgery


@pytest.mark.parametrize("path", ACTS)
@pytest.mark.parametrize("origin", [ELSEWHERE, "null", "", "http://localhost:8471", "https://localhost:8470"])
def test_a_form_of_another_page_does_nothing(house: House, path: str, origin: str) -> None:
    surfer = house.steward()
    answer = surfer.post(path, {"steward": "steward-a"}, origin=origin)
    assert answer.status_code == 403
    assert refusals(house.box) == 0


@pytest.mark.parametrize("path", ACTS)
@pytest.mark.parametrize("token", ["", "x" * 43])
def test_a_form_without_this_session_s_token_does_nothing(house: House, path: str, token: str) -> None:
    surfer = house.steward()
    answer = surfer.post(path, {"steward": "steward-a"}, token=token)
    assert (answer.status_code, "console.stale_page" in answer.text) == (403, True)
    assert refusals(house.box) == 0


def test_another_session_s_token_is_no_good(house: House) -> None:
    surfer, other = house.steward(), house.surfer()
    assert surfer.post(f"/studies/{RISK}/refuse", {"steward": "steward-a"}, token=other.token()).status_code == 403


def test_a_script_elsewhere_cannot_pass_for_a_form(house: House) -> None:
    surfer = house.steward()
    answer = surfer.post("/language", {"language": "de"}, content_type="text/plain", sec_fetch_site="cross-site")
    assert answer.status_code == 403


def test_nothing_is_changed_by_opening_a_page(house: House) -> None:
    surfer = house.steward()
    before = house.box.audit().size
    for path in (*ACTS, "/keys/options", "/keys/registration", "/sign-in/options"):
        assert surfer.get(path).status_code in {303, 404}
    assert house.box.audit().size == before


# Clickjacking, and what a page may load


@pytest.mark.parametrize(
    "path", ["/", f"/studies/{RISK}", "/sign-in", "/nowhere", "/static/console.js", "/record/export"]
)
def test_no_page_can_be_framed_nor_run_another_s_script(house: House, path: str) -> None:
    headers = house.surfer().get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src", "form-action")} == {"'self'"}
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_tls_is_demanded_for_good_where_there_is_tls(house: House, tmp_path: Path) -> None:
    assert "strict-transport-security" not in house.surfer().get("/").headers
    assert "strict-transport-security" in House(tmp_path / "lan", LAN).surfer().get("/sign-in").headers


def test_pages_stay_in_no_cache(house: House) -> None:
    assert house.surfer().get(f"/studies/{RISK}").headers["cache-control"] == "no-store"


# DNS rebinding


@pytest.mark.parametrize(
    "host",
    [
        "elsewhere.example",
        "elsewhere.example:8470",
        "localhost",
        "localhost:8471",
        "127.0.0.1:8470",
        "",
        "localhost:8470.",
    ],
)
@pytest.mark.parametrize("path", ["/", "/record/export", "/static/console.js"])
def test_a_name_that_was_bent_to_this_box_gets_nothing(house: House, host: str, path: str) -> None:
    answer = house.surfer().get(path, host=host)
    assert (answer.status_code, answer.text) == (421, "Misdirected Request")


# Session fixation and theft


def test_a_planted_session_is_not_signed_in_with(lan: House) -> None:
    attacker = lan.surfer()
    attacker.get("/sign-in")
    victim = lan.steward()
    victim.cookies = dict(attacker.cookies)
    assert victim.sign_in().status_code == 200
    assert victim.cookies != attacker.cookies
    assert victim.get("/").status_code == 200
    assert attacker.get("/").headers["location"] == "/sign-in"


def test_a_session_that_was_made_up_is_not_taken_over(lan: House) -> None:
    surfer = lan.surfer()
    surfer.cookies = {"__Host-seh": "a" * 43}
    surfer.get("/sign-in")
    assert surfer.cookies["__Host-seh"] != "a" * 43


def test_the_cookie_is_for_this_console_s_pages_alone(house: House, lan: House) -> None:
    for surfer, secure in ((house.surfer(), False), (lan.surfer(), True)):
        surfer.get("/sign-in")
        attributes = {part.strip() for part in surfer.set_cookie.split(";")[1:]}
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= attributes
        assert ("Secure" in attributes, surfer.set_cookie.startswith("__Host-")) == (secure, secure)


def test_a_session_that_signed_out_is_over(lan: House) -> None:
    surfer = lan.steward()
    surfer.sign_in()
    stolen = Surfer(lan.app, LAN, cookies=dict(surfer.cookies))
    assert stolen.get("/").status_code == 200
    surfer.post("/sign-out")
    assert stolen.get("/").headers["location"] == "/sign-in"


def test_a_page_that_updates_itself_keeps_nobody_signed_in(lan: House) -> None:
    surfer = lan.steward()
    surfer.sign_in()
    for _ in range(3):
        assert surfer.get("/", x_live="1").status_code == 200
        lan.clock.move(IDLE_LIMIT_S / 3)
    lan.clock.move(1)
    assert surfer.get("/", x_live="1").headers["location"] == "/sign-in"


# Without the key


@pytest.mark.parametrize(
    "path", ["/", "/studies", f"/studies/{RISK}", "/rounds", "/budget", "/record", "/record/export", "/health", "/keys"]
)
def test_a_browser_that_did_not_sign_in_sees_nothing_of_the_box(lan: House, path: str) -> None:
    lan.steward()
    answer = lan.surfer().get(path)
    assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/sign-in", "")
    for shown in ("/sign-in", "/keys/new"):
        text = lan.surfer().get(shown).text
        assert not any(words in text for words in (RISK, "cardiology", "box-7f3a21c9"))


@pytest.mark.parametrize("path", [*ACTS[:3], f"/studies/{RISK}/sign/1"])
def test_a_browser_that_did_not_sign_in_does_nothing(lan: House, path: str) -> None:
    lan.steward()
    surfer = lan.surfer()
    answer = surfer.post(path, {"steward": "steward-a"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert (refusals(lan.box), lan.box.study(RISK).line.state) == (0, "waiting")


def test_a_second_browser_without_the_key_gets_nowhere(house: House) -> None:
    house.steward()
    stranger = house.surfer(PlayedPasskey(LOOPBACK.origin))
    place = stranger.begin(RISK)
    answer = stranger.script(place, {"answer": stranger.assertion(place)})
    assert answer.status_code == 422
    assert house.box.study(RISK).line.state == "waiting"


def test_a_key_that_the_hospital_has_not_signed_approves_nothing(house: House) -> None:
    surfer = house.surfer(PlayedPasskey(LOOPBACK.origin))
    assert surfer.make_key("steward-x").status_code == 200
    assert surfer.post(f"/studies/{RISK}/approve", {"steward": "steward-x"}).status_code == 409
    assert "No key answers in this browser yet." in parse(surfer.get(f"/studies/{RISK}")).text


def test_a_key_that_the_hospital_has_not_signed_does_not_sign_in(lan: House) -> None:
    lan.steward()
    stranger = lan.surfer(PlayedPasskey(LAN.origin))
    stranger.make_key("steward-x")
    answer = stranger.sign_in()
    assert (answer.status_code, answer.json()["code"]) == (403, "console.key_refused")


def test_another_key_under_a_steward_s_credential_does_not_sign_in(lan: House) -> None:
    steward = lan.steward()
    assert steward.key is not None
    stranger = lan.surfer(PlayedPasskey(LAN.origin, credential_id=steward.key.credential_id))
    assert stranger.sign_in().status_code == 403


def test_a_touch_without_the_pin_is_not_enough(house: House, lan: House) -> None:
    surfer = house.steward()
    assert surfer.key is not None
    surfer.key.verified = False
    place = surfer.begin(RISK)
    assert surfer.script(place, {"answer": surfer.assertion(place)}).status_code == 422
    assert house.box.study(RISK).line.state == "waiting"
    assert surfer.make_key("steward-b").json()["code"] == "console.key_refused"
    other = lan.steward()
    assert other.key is not None
    other.key.verified = False
    assert other.sign_in().status_code == 403


def test_a_passkey_that_other_devices_may_have_is_not_taken(house: House) -> None:
    surfer = house.surfer(PlayedPasskey(LOOPBACK.origin, synchronised=True))
    answer = surfer.make_key("steward-a")
    assert (answer.status_code, "other devices" in answer.json()["sentence"]) == (403, True)
    assert house.box.offered == []


def test_who_signed_in_cannot_act_in_another_s_name(lan: House) -> None:
    surfer = lan.steward("steward-a")
    lan.steward("steward-b")
    surfer.sign_in()
    place = surfer.begin(RISK, steward="steward-b")
    assert "steward-a" in parse(surfer.get(place)).text
    assert surfer.script(place, {"answer": surfer.assertion(place)}).status_code == 200
    assert lan.box.study(RISK).approvals[0].steward == "steward-a"


# Assertions that were made for something else


def test_a_sign_in_that_was_overheard_cannot_be_replayed(lan: House) -> None:
    surfer = lan.steward()
    assert surfer.key is not None
    answer = surfer.key.sign(surfer.script("/sign-in/options", {}).json())
    assert surfer.script("/sign-in", {"answer": answer}).status_code == 200
    for other in (surfer, lan.surfer()):
        other.script("/sign-in/options", {})
        assert other.script("/sign-in", {"answer": answer}).status_code == 403
    assert lan.surfer().script("/sign-in", {"answer": answer}).status_code == 403


def test_an_approval_that_was_made_cannot_be_replayed(house: House) -> None:
    surfer = house.steward()
    place = surfer.begin(RISK)
    answer = surfer.assertion(place)
    assert surfer.script(place, {"answer": answer}).status_code == 200
    assert surfer.script(place, {"answer": answer}).json()["code"] == "console.nothing_pending"
    withdrawal = surfer.begin(RISK, "withdraw/1")
    assert surfer.script(withdrawal, {"answer": answer}).status_code == 422
    surfer.script(withdrawal, {"answer": surfer.assertion(withdrawal)})
    again = surfer.begin(RISK)
    assert surfer.script(again, {"answer": answer}).status_code == 422
    assert house.box.study(RISK).line.state == "withdrawn"


def test_an_assertion_for_one_study_approves_no_other(house: House) -> None:
    surfer = house.steward()
    risk, wounds = surfer.begin(RISK), surfer.begin(WOUNDS)
    assert surfer.script(wounds, {"answer": surfer.assertion(risk)}).status_code == 422
    crossed = risk.replace(RISK, WOUNDS)
    assert surfer.script(crossed, {"answer": surfer.assertion(risk)}).json()["code"] == "console.nothing_pending"
    assert {house.box.study(study).line.state for study in (RISK, WOUNDS)} == {"waiting"}


def test_a_sign_in_is_no_approval_and_an_approval_no_sign_in(lan: House) -> None:
    surfer = lan.steward()
    assert surfer.key is not None
    surfer.sign_in()
    place = surfer.begin(RISK)
    door = surfer.key.sign(surfer.script("/sign-in/options", {}).json())
    assert surfer.script(place, {"answer": door}).status_code == 422
    surfer.script("/sign-in/options", {})
    assert surfer.script("/sign-in", {"answer": surfer.assertion(place)}).status_code == 403


@pytest.mark.parametrize("origin", ["https://localhost:8470", "http://localhost:8471", ELSEWHERE])
def test_an_assertion_of_a_page_elsewhere_approves_nothing(house: House, origin: str) -> None:
    surfer = house.steward()
    assert surfer.key is not None
    surfer.key.origin = origin
    place = surfer.begin(RISK)
    assert surfer.script(place, {"answer": surfer.assertion(place)}).status_code == 422
    assert surfer.make_key("steward-b").json()["code"] == "console.key_refused"


def test_what_another_session_began_cannot_be_finished_here(house: House) -> None:
    surfer = house.steward()
    place = surfer.begin(RISK)
    other = house.surfer(surfer.key)
    assert other.script(place, {"answer": surfer.assertion(place)}).json()["code"] == "console.nothing_pending"


@pytest.mark.parametrize("part", ["study_digest", "dataset_digest"])
def test_a_study_replaced_while_the_steward_reads_it_is_not_what_the_key_signs(house: House, part: str) -> None:
    surfer = house.steward()
    read = surfer.read(RISK)
    assert len(read) == 2
    answer = surfer.post(f"/studies/{RISK}/approve", {"steward": "steward-a"} | read | {part: "5d" * 32})
    assert (answer.status_code, "another one than the page showed" in answer.text) == (409, True)
    assert surfer.post(f"/studies/{RISK}/approve", {"steward": "steward-a"}).status_code == 409
    assert surfer.post(f"/studies/{RISK}/approve", {"steward": "steward-a"} | read).status_code == 303


def test_what_a_rule_refuses_is_not_approved_by_asking_for_it_directly(house: House) -> None:
    surfer = house.steward()
    answer = surfer.post(f"/studies/{TRIAGE}/approve", {"steward": "steward-a"})
    assert (answer.status_code, "permit.purpose" in answer.text) == (409, True)


def test_an_answer_that_is_bent_is_refused_in_words(house: House) -> None:
    surfer = house.steward()
    place = surfer.begin(RISK)
    good = surfer.assertion(place)
    signature = decode_bytes(good["response"]["signature"])
    bent: list[dict[str, object]] = [
        {},
        {"answer": None},
        {"answer": {"response": []}},
        {"answer": {"response": {**good["response"], "signature": 7}}},
        {"answer": {"response": {**good["response"], "signature": encode_bytes(signature[:-1])}}},
        {"answer": {"response": {**good["response"], "clientDataJSON": encode_bytes(b"{" * 5000)}}},
    ]
    for content in bent:
        answer = surfer.script(place, content)
        assert (answer.status_code in {400, 403, 422}, "sentence" in answer.json()) == (True, True), content
    for body in (b"[]", b"{", b"\xff", b'{"answer":' + b"[" * 20_000):
        answer = surfer.post(place, content=body, content_type="application/json")
        assert answer.status_code in {400, 403}
    assert house.box.study(RISK).line.state == "waiting"


# Script in what a stranger wrote


def test_a_study_s_words_never_become_a_page_s_script(house: House) -> None:
    script = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"
    house.box.known[RISK] = risk_study(title=script).model_copy(
        update={"purpose": script, "legal_basis": script, "fields": (script,), "sites": (script,)}
    )
    surfer = house.steward()
    surfer.approve(RISK)
    house.box.turn(RISK)
    paths = (
        "/",
        "/studies",
        f"/studies/{RISK}",
        "/rounds",
        "/record",
        f"/record?search={httpx.QueryParams({'a': script})}",
    )
    for path in paths:
        for language in LANGUAGES:
            answer = surfer.get(path, accept_language=language)
            page = parse(answer)
            assert page.tags.count("script") == OWN_SCRIPTS
            assert "onerror" not in page.attributes
            assert "49" not in page.text.split("{{")[-1][:10]


def test_a_search_is_shown_as_words(house: House) -> None:
    page = parse(house.surfer().get('/record?search="><script>x</script>'))
    assert page.tags.count("script") == OWN_SCRIPTS


# Open redirect


@pytest.mark.parametrize(
    "page",
    [
        ELSEWHERE,
        "//elsewhere.example",
        "/\\elsewhere.example",
        "/%2f/elsewhere",
        "javascript:alert(1)",
        "/a\r\nX: y",
        "",
        "/?x=//e",
    ],
)
def test_nobody_is_sent_elsewhere_from_here(house: House, page: str) -> None:
    answer = house.surfer().post("/language", {"language": "de", "page": page})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("name", ["..%2f..", "%2f%2felsewhere.example", "A", "a" * 64])
def test_a_study_s_name_leads_nowhere_else(house: House, name: str) -> None:
    for answer in (house.surfer().get(f"/studies/{name}"), house.surfer().get(f"/studies/{name}/sign/1")):
        assert answer.status_code in {404, 409}
        assert "location" not in answer.headers


# Files, floods, and slow senders


@pytest.mark.parametrize("name", ["..%2fapp.py", "../app.py", "%2e%2e/app.py", "console.css%00", "locale"])
def test_no_file_but_the_pages_own_is_given_out(house: House, name: str) -> None:
    assert house.surfer().get(f"/static/{name}").status_code == 404


def test_an_oversized_body_is_not_read(house: House) -> None:
    surfer = house.surfer()
    assert surfer.post("/language", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert surfer.post("/language", content=b"", content_length="9" * 13).status_code == 413


def test_a_body_that_does_not_say_its_size_ends_at_the_limit(house: House) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 4096
            yield b"x" * 4096

    async def send() -> int:
        transport = httpx.ASGITransport(house.app)
        async with httpx.AsyncClient(transport=transport, base_url=LOOPBACK.origin, trust_env=False) as client:
            answer = await client.post("/language", content=endless(), headers={"origin": LOOPBACK.origin})
            return answer.status_code

    assert asyncio.run(send()) == 413
    assert sent <= MAX_BODY_BYTES + 2 * 4096


def test_a_form_of_thousands_of_fields_is_refused(house: House) -> None:
    surfer = house.surfer()
    body = b"token=" + surfer.token().encode() + b"&a=b" * 5000
    assert surfer.post("/language", content=body).status_code == 400


def test_who_asks_without_end_is_answered_no_more_until_time_has_passed(house: House) -> None:
    surfer = house.surfer()
    answers = [surfer.get("/static/mark.svg").status_code for _ in range(int(BURST) + 1)]
    assert (answers[0], answers[-1]) == (200, 429)
    house.clock.move(1)
    assert surfer.get("/static/mark.svg").status_code == 200


def test_who_never_finishes_asking_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BrowserProtocol, "patience_s", 0.2)
    with reserved() as place, served(place, PlayedBox(tmp_path)) as origin:
        port = int(origin.rpartition(":")[2])
        for said in (b"", b"GET / HTTP/1.1\r\nhost: localhost\r\nx-slow: "):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
                slow.sendall(said)
                assert hung_up(slow)


def test_one_address_takes_only_so_many_connections(tmp_path: Path) -> None:
    with reserved() as place, served(place, PlayedBox(tmp_path)) as origin, ExitStack() as stack:
        port = int(origin.rpartition(":")[2])
        for _ in range(BrowserProtocol.max_from_address):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        one_more = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert hung_up(one_more)


def hung_up(channel: socket.socket) -> bool:
    """Waits for the other side; whether it ended the connection without a word."""
    try:
        return channel.recv(1) == b""
    except ConnectionResetError:
        return True
