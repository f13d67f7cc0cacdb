"""What the pages show, and what their buttons do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.console.views import MAX_SEARCH
from agent.core.box_view import AuditView, StateView
from agent.core.errors import NetworkError, OperatorError
from agent.core.version import software_version
from agent.governance.approval import parse_approval
from agent.trust.records import StewardFile
from tests.simulators.played_box import RISK, TRIAGE, WOUNDS, refusals
from tests.simulators.surfer import LAN, House, parse

PATHS = (
    "/",
    "/studies",
    f"/studies/{RISK}",
    f"/studies/{WOUNDS}",
    f"/studies/{TRIAGE}",
    "/rounds",
    "/budget",
    "/record",
    "/health",
    "/keys",
    "/keys/new",
    "/sign-in",
    "/nowhere",
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("language", ["en", "de", "fr", "nl"])
def test_every_page_is_whole_in_every_language_and_loads_nothing_from_elsewhere(house: House, language: str) -> None:
    surfer = house.steward()
    surfer.approve(RISK)
    assert house.box.turn(RISK)
    for path in PATHS:
        answer = surfer.get(path, accept_language=language)
        page = parse(answer)
        assert (path, answer.status_code) == (path, 404 if path == "/nowhere" else 200)
        assert page.language == language
        assert [link for link in page.links if not link.startswith(("/", "#"))] == []
        assert not {"style", "onclick", "onload", "onsubmit"} & page.attributes
        assert "style" not in page.tags


def test_the_overview_says_what_needs_a_person(house: House) -> None:
    first = parse(house.surfer().get("/")).text
    assert "Nobody can approve studies here yet" in first
    surfer = house.steward()
    second = parse(surfer.get("/")).text
    assert "2 studies wait for your decision" in second
    assert "Nobody can approve" not in second
    for study in (RISK, WOUNDS):
        surfer.approve(study)
    assert "Nothing needs you" in parse(surfer.get("/")).text


def test_the_overview_repeats_what_the_agent_asks_of_a_person(house: House) -> None:
    house.box.state = StateView(
        link="lost",
        trouble="fleet.no_contact",
        sentence="The SuperLink does not answer.",
        next_step="Check the line.",
        session_sentence="The card is not in its reader.",
        session_next_step="Put it in.",
    )
    text = parse(house.surfer().get("/")).text
    for words in ("No contact", "The SuperLink does not answer.", "Check the line.", "Put it in."):
        assert words in text


def test_a_box_that_governs_nothing_yet_has_an_overview_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OperatorError("service.not_governed", "This box keeps no permits.", next_step="Enrol it.")

    for name in ("audit", "studies", "stewards", "rounds", "doctor"):
        monkeypatch.setattr(type(house.box), name, refuse)
    assert "none kept" in parse(house.surfer().get("/")).text
    assert house.surfer().get("/studies").status_code == 409


def test_a_stopped_agent_is_said_in_words(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NetworkError("service.not_running", "No agent runs on this box.", next_step="Start it.")

    monkeypatch.setattr(type(house.box), "status", refuse)
    answer = house.surfer().get("/", accept_language="de")
    assert answer.status_code == 503
    text = parse(answer).text
    assert "Das ging nicht" in text
    assert "No agent runs on this box. Start it. service.not_running" in text


def test_a_study_is_told_in_plain_words_with_every_rule(house: House) -> None:
    view = house.box.study(RISK)
    text = parse(house.steward().get(f"/studies/{RISK}")).text
    for finding in view.findings:
        assert finding.sentence in text
        assert finding.rule in text
    for words in (
        view.line.requester,
        view.purpose,
        view.legal_basis,
        "20 rounds",
        "at least 4 hospitals",
        "epsilon 1.5",
    ):
        assert words in text
    assert "no result is more than 4.48 times likelier" in text
    assert "Nothing bounds" not in text


def test_a_study_without_a_bound_says_so_and_what_a_silent_hospital_shows(house: House) -> None:
    text = parse(house.steward().get(f"/studies/{WOUNDS}")).text
    assert "Nothing bounds what the results reveal" in text
    assert "Your approval accepts that." in text


def test_what_no_approval_could_let_run_cannot_be_approved(house: House) -> None:
    text = parse(house.steward().get(f"/studies/{TRIAGE}")).text
    assert "there is nothing to approve" in text
    assert "Approve with your key" not in text
    assert "This site serves no study for drug development research." in text


def test_an_approval_shows_what_is_signed_and_counts_once_it_is(house: House) -> None:
    surfer = house.steward()
    place = surfer.begin(RISK)
    text = parse(surfer.get(place)).text
    view = house.box.study(RISK)
    for words in (view.line.title, "epsilon 1.5", "cardiology", view.line.study_digest[:8], view.dataset_digest[:8]):
        assert words in text
    assert house.box.study(RISK).line.state == "waiting"
    sent = surfer.script(place, {"answer": surfer.assertion(place)})
    assert sent.json() == {"to": f"/studies/{RISK}"}
    assert house.box.study(RISK).line.state == "approved"
    assert "Approved by steward-a" in parse(surfer.get(f"/studies/{RISK}")).text
    (record,) = house.directory.glob("1.json")
    assert parse_approval(record.read_bytes()).steward == "steward-a"


def test_a_withdrawal_counts_before_the_next_message(house: House) -> None:
    surfer = house.steward()
    surfer.approve(RISK)
    assert house.box.turn(RISK)
    place = surfer.begin(RISK, "withdraw/1")
    assert house.box.turn(RISK)
    assert surfer.script(place, {"answer": surfer.assertion(place)}).status_code == 200
    assert not house.box.turn(RISK)
    page = parse(surfer.get(f"/studies/{RISK}")).text
    assert "Withdrawn" in page
    assert "Earlier approvals" in page


def test_a_refusal_is_noted_and_can_be_thought_over(house: House) -> None:
    surfer = house.steward()
    assert surfer.post(f"/studies/{RISK}/refuse", {"steward": "steward-a"}).headers["location"] == f"/studies/{RISK}"
    assert (refusals(house.box), house.box.study(RISK).line.state) == (1, "refused")
    assert surfer.approve(RISK).status_code == 200
    assert house.box.study(RISK).line.state == "approved"


def test_rounds_and_receipts_are_drawn(house: House) -> None:
    surfer = house.steward()
    surfer.approve(RISK)
    for _ in range(3):
        house.box.turn(RISK)
    page = parse(surfer.get("/rounds"))
    assert "Round 3 of 20 is under way" in page.text
    assert page.tags.count("rect") == 2 + 3  # the study's progress, and a bar a round
    assert page.data["live"]


def test_the_budget_has_a_bar_and_the_numbers(house: House) -> None:
    page = parse(house.surfer().get("/budget", accept_language="de"))
    rows = house.box.budget()
    assert page.tags.count("svg") == len(rows)
    for words in ("Verbraucht 1,3", "Reserviert 1,5", "Übrig 5,2", "1 von 2"):
        assert words in page.text


def test_the_record_is_searched(house: House) -> None:
    surfer = house.surfer()
    assert len(house.box.audit(None, "triage").leaves) == 1
    page = parse(surfer.get("/record?search=triage"))
    assert ("Permit decided" in page.text, "Record begun" in page.text) == (True, False)
    assert surfer.get(f"/record?search={'x' * (MAX_SEARCH + 1)}").status_code == 404


def test_the_record_goes_back_page_by_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    real = house.box.audit(None, "")
    asked: list[int | None] = []

    def answer(_: object, start: int | None = None, search: str = "") -> AuditView:
        asked.append(start)
        return real.model_copy(update={"following": 3 if start is None else None})

    monkeypatch.setattr(type(house.box), "audit", answer)
    surfer = house.surfer()
    assert "/record?start=3&search=a%26b" in parse(surfer.get("/record?search=a%26b")).links
    assert "/record?search=" in parse(surfer.get("/record?start=3")).links
    assert asked == [None, 3]


def test_the_export_is_whole_and_said_to_be_so_long(house: House) -> None:
    answer = house.surfer().get("/record/export")
    exported = json.loads(answer.content)
    assert len(answer.content) == int(answer.headers["content-length"])
    assert [leaf["kind"] for leaf in exported["leaves"]] == [leaf.kind for leaf in reversed(house.box.audit().leaves)]
    assert answer.headers["content-disposition"] == f'attachment; filename="audit-{exported["size"]}.json"'


def test_health_puts_what_is_wrong_first(house: House) -> None:
    text = parse(house.surfer().get("/health")).text
    assert "One thing is worth a look." in text
    assert text.index("disk") < text.index("TPM") < text.index("GPU")


def test_a_new_key_is_offered_and_its_record_can_be_carried_to_who_signs(house: House) -> None:
    surfer = house.steward("steward-b")
    page = parse(surfer.get("/keys/new"))
    record = StewardFile.model_validate_json(surfer.get("/keys/record").content)
    assert (record.steward, record.rp_id, record.site) == ("steward-b", "localhost", "hospital-a")
    assert record.key_id[:8] in page.text
    assert "seh-provision steward add steward-b.json --site hospital-a" in page.text
    assert "On record" in parse(surfer.get("/keys")).text


@pytest.mark.parametrize(
    ("steward", "person", "code"), [("Not A Name", "x", "core.bad_identifier"), ("fine", " ", "console.no_person")]
)
def test_a_key_without_a_usable_name_is_not_made(house: House, steward: str, person: str, code: str) -> None:
    answer = house.surfer().script("/keys/options", {"steward": steward, "person": person})
    assert (answer.status_code, answer.json()["code"]) == (409, code)


def test_a_box_of_no_hospital_takes_no_key(house: House) -> None:
    house.box.state = StateView(link="waiting for enrolment")
    answer = house.surfer().script("/keys/options", {"steward": "steward-a", "person": "x"})
    assert answer.json()["code"] == "console.no_site"


def test_two_stewards_choose_whose_key_signs(house: House) -> None:
    surfer = house.steward("steward-a")
    house.steward("steward-b")
    page = parse(surfer.get(f"/studies/{RISK}"))
    assert page.tags.count("option") > page.tags.count("select")
    assert "steward-b" in page.text


def test_a_language_is_kept(house: House) -> None:
    surfer = house.surfer()
    assert surfer.post("/language", {"language": "nl", "page": "/budget"}).headers["location"] == "/budget"
    assert parse(surfer.get("/budget", accept_language="de")).language == "nl"
    surfer.post("/language", {"language": "xx", "page": "/budget"})
    assert parse(surfer.get("/budget", accept_language="de")).language == "de"


def test_what_was_begun_elsewhere_leads_back_to_the_study(house: House) -> None:
    answer = house.surfer().get(f"/studies/{RISK}/sign/7")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{RISK}")


def test_a_steward_signs_in_on_the_hospital_s_network_and_out_again(tmp_path: Path) -> None:
    house = House(tmp_path, LAN)
    surfer = house.steward()
    assert surfer.get("/").headers["location"] == "/sign-in"
    assert surfer.sign_in().json() == {"to": "/"}
    assert "Signed in as steward-a" in parse(surfer.get("/")).text
    assert surfer.approve(RISK).status_code == 200
    assert house.box.study(RISK).approvals[0].steward == "steward-a"
    assert surfer.post("/sign-out").headers["location"] == "/sign-in"
    assert surfer.get("/").headers["location"] == "/sign-in"


def test_who_has_no_key_on_record_is_told_how_to_get_one(tmp_path: Path) -> None:
    page = parse(House(tmp_path, LAN).surfer().get("/sign-in"))
    assert "No key is on record for this console yet." in page.text
    assert "/keys/new" in page.links


def test_a_fault_of_ours_is_said_without_its_inside(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(house.box), "budget", lambda _: 1 / 0)
    with capture_logs() as logs:
        answer = house.surfer().get("/budget")
    assert (logs[-1]["event"], answer.status_code) == ("console_request_broke", 500)
    assert "ZeroDivisionError" not in answer.text
    assert "console.internal" in answer.text
    assert software_version() not in answer.headers.get("server", "")


@pytest.mark.parametrize(("number", "words"), [(0, "Before the first round"), (21, "After the last round")])
def test_what_is_no_round_of_training_is_called_by_its_name(house: House, number: int, words: str) -> None:
    surfer = house.steward()
    surfer.approve(RISK)
    house.box.turn(RISK)
    house.box.played[RISK] = house.box.played[RISK].model_copy(update={"round": number})
    text = parse(surfer.get("/rounds")).text
    assert words in text
    assert f"Round {number} of" not in text


def test_the_record_says_in_a_line_what_left_and_what_was_decided(house: House) -> None:
    surfer = house.steward()
    surfer.approve(RISK)
    house.box.turn(RISK)
    text = parse(surfer.get("/record")).text
    assert f"Masked update sent {RISK} - round 1, 2.4 MB" in text
    assert f"Permit decided {TRIAGE} - not permitted" in text


def test_where_two_must_approve_the_second_is_asked_after_the_first(house: House) -> None:
    first = house.steward("steward-a")
    second = house.steward("steward-b")
    house.box.known[RISK] = house.box.known[RISK].model_copy(update={"approvals_needed": 2})
    assert first.approve(RISK, "steward-a").status_code == 200
    page = parse(second.get(f"/studies/{RISK}")).text
    assert "1 of 2 approvals by different people are given." in page
    assert "Approve with your key" in page
    assert second.approve(RISK, "steward-b").status_code == 200
    page = parse(second.get(f"/studies/{RISK}")).text
    assert "Approve with your key" not in page
    assert page.count("Withdraw with your key") == 2
