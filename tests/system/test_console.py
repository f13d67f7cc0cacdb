"""A steward at the console, in a real browser with a virtual security key: from a new key to a stopped study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.simulators.console import browser, give_key, reserved, served
from tests.simulators.console_desk import Desk, opened_desk
from tests.simulators.console_visit import Visit
from tests.simulators.played_box import RISK, PlayedBox
from tests.simulators.superlink import prepare_tls

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with opened_desk(tmp_path) as desk:
        yield desk


def test_a_steward_enrols_a_key_reads_approves_watches_and_withdraws_in_mid_run(desk: Desk) -> None:
    visit = desk.visit
    visit.make_key("steward-a", "The hospital's data steward")
    assert desk.box.offered[0].key_id[:8] in visit.text
    visit.open("/")
    assert "One new key waits for the hospital's signature" in visit.text
    desk.box.endorse()

    visit.open(f"/studies/{RISK}")
    for words in ("Cardiology group of hospital-b", "6 fields of each record", "epsilon 1.5", "Stewards have approved"):
        assert words in visit.text
    visit.press("Approve with your key")
    visit.wait_for("Your key signs exactly this")
    assert not desk.box.turn(RISK)
    visit.press("Sign and approve")
    visit.wait_for("Approved by steward-a")

    visit.open("/rounds")
    for number in (1, 2):
        assert desk.box.turn(RISK)
        visit.wait_for(f"Round {number} of 20 is under way")  # by itself: nobody loads the page anew

    visit.sign(RISK, "Withdraw with your key", "Sign and withdraw")
    visit.wait_for("Earlier approvals")
    assert not desk.box.turn(RISK)
    visit.open("/rounds")
    visit.wait_for("Round 2 of 20 is over")
    visit.open("/record?search=approval-withdrawn")
    visit.wait_for("Approval withdrawn")
    assert desk.complaints() == []


def test_a_second_browser_without_the_key_gets_nowhere(desk: Desk, tmp_path: Path) -> None:
    desk.endorsed()
    with browser(tmp_path / "other") as driver:
        give_key(driver)
        visit = Visit(driver, desk.visit.origin)
        visit.sign(RISK, "Approve with your key", "Sign and approve")
        visit.wait_for("The key was not used")
        assert desk.box.study(RISK).line.state == "waiting"


def test_nothing_is_signed_that_the_page_does_not_show(desk: Desk) -> None:
    desk.endorsed()
    desk.visit.open(f"/studies/{RISK}")
    desk.visit.press("Approve with your key")
    desk.visit.wait_for("What is signed")
    desk.driver.execute_script("document.getElementById('payload').append(' ')")
    desk.visit.press("Sign and approve")
    desk.visit.wait_for("What would be signed is not what this page shows.")
    assert desk.box.study(RISK).line.state == "waiting"


def test_a_page_that_updates_itself_can_be_stopped_and_keeps_what_was_opened(desk: Desk) -> None:
    desk.endorsed()
    desk.visit.sign(RISK, "Approve with your key", "Sign and approve")
    desk.visit.wait_for("Approved by steward-a")
    desk.box.turn(RISK)
    desk.visit.open("/rounds")
    desk.driver.find_element(By.TAG_NAME, "summary").click()
    desk.driver.execute_script("document.activeElement.blur()")
    desk.box.turn(RISK)
    desk.visit.wait_for("Round 2 of 20 is under way")
    assert desk.driver.find_element(By.TAG_NAME, "details").get_attribute("open") is not None
    desk.visit.press("Updates by itself: stop")
    before = requests_made(desk.driver)
    desk.box.turn(RISK)
    desk.driver.execute_async_script(
        "setTimeout(arguments[0], 2 * Number(document.querySelector('[data-live]').dataset.live) + 200)"
    )
    assert requests_made(desk.driver) == before
    assert "Round 2 of 20 is under way" in desk.visit.text


def requests_made(driver: webdriver.Chrome) -> int:
    """How often the page has asked the console since it was opened."""
    return int(driver.execute_script("return performance.getEntriesByType('resource').length"))


def test_on_the_hospital_s_network_a_key_opens_the_door(tmp_path: Path) -> None:
    tls = prepare_tls(tmp_path)
    with reserved(tls) as place:
        box = PlayedBox(tmp_path / "book", place.settings.origin)
        with served(place, box) as origin, browser(tmp_path / "profile", trusted=tls.certificate) as driver:
            give_key(driver)
            visit = Visit(driver, origin)
            visit.open(f"/studies/{RISK}")
            visit.wait_for("No key is on record for this console yet.")
            visit.make_key("steward-a", "The hospital's data steward")
            box.endorse()
            visit.open("/sign-in")
            visit.press("Sign in with your key")
            visit.wait_for("Signed in as steward-a")
            visit.sign(RISK, "Approve with your key", "Sign and approve")
            visit.wait_for("Approved by steward-a")
            cookie = driver.get_cookies()
            assert [(each["secure"], each["httpOnly"], each["sameSite"]) for each in cookie] == [(True, True, "Strict")]
            assert box.records.found[0].rp_id == place.settings.name
            visit.press("Sign out")
            visit.open("/record")
            visit.wait_for("Sign in with your key")
