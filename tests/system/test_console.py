"""A steward at the console, in a real browser with a virtual security key: from a new key to a stopped study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from agent.console.words import LANGUAGES
from tests.simulators.console import browser, give_key, reserved, resize, served
from tests.simulators.console_visit import Visit
from tests.simulators.played_box import RISK, TRIAGE, WOUNDS, PlayedBox
from tests.simulators.superlink import prepare_tls

pytestmark = pytest.mark.slow
DESK = (1280, 900)
NARROW = (360, 740)
WALL = (3840, 2160)
MOST_TABS = 60
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PAGES = (
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


@dataclass
class Desk:
    """A console, its box, and a steward's browser."""

    box: PlayedBox
    driver: webdriver.Chrome
    visit: Visit

    def endorsed(self) -> None:
        """A key that the hospital has put on record."""
        self.visit.make_key("steward-a", "The hospital's data steward")
        self.box.endorse()

    def complaints(self) -> list[dict[str, Any]]:
        """What the browser's own console says."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with reserved() as place:
        box = PlayedBox(tmp_path / "book", place.settings.origin)
        with served(place, box) as origin, browser(tmp_path / "profile") as driver:
            give_key(driver)
            yield Desk(box, driver, Visit(driver, origin))


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


def test_the_keyboard_alone_is_enough_and_shows_where_it_is(desk: Desk) -> None:
    desk.endorsed()
    desk.visit.open("/")
    press_by_keyboard(desk, "Skip to the content")
    press_by_keyboard(desk, "Read and decide")
    press_by_keyboard(desk, "Early warning of cardiac events after surgery")
    press_by_keyboard(desk, "Approve with your key")
    press_by_keyboard(desk, "Sign and approve")
    desk.visit.wait_for("Approved by steward-a")
    press_by_keyboard(desk, "Withdraw with your key")
    press_by_keyboard(desk, "Sign and withdraw")
    desk.visit.wait_for("Earlier approvals")


def press_by_keyboard(desk: Desk, label: str) -> None:
    """Go on from control to control until the one with these words, and press it."""
    desk.visit.wait_for(label) if label != "Skip to the content" else None
    for _ in range(MOST_TABS):
        ActionChains(desk.driver).send_keys(Keys.TAB).perform()
        focus = desk.driver.switch_to.active_element
        style = "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
        kind, width = desk.driver.execute_script(style, focus)
        assert (kind, width >= 2) == ("solid", True), f"nobody sees that {focus.tag_name} {focus.text!r} has the focus"
        if focus.text == label:
            focus.send_keys(Keys.ENTER)
            return
    raise AssertionError(f"no key leads to {label!r} on {desk.driver.current_url}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_meets_wcag_and_fits_a_telephone_and_a_wall(tmp_path: Path, language: str) -> None:
    with reserved() as place:
        box = PlayedBox(tmp_path / "book", place.settings.origin)
        with served(place, box) as origin, browser(tmp_path / "profile", language=language) as driver:
            give_key(driver)
            visit = Visit(driver, origin)
            make_ready(box, visit)
            for path in (*PAGES, driver.current_url.removeprefix(origin)):
                visit.open(path)
                assert driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == language
                # Colours and sizes of controls are the same in every language.
                for scheme, size in (("light", DESK), ("dark", NARROW))[: 2 if language == "en" else 1]:
                    media = [{"name": "prefers-color-scheme", "value": scheme}]
                    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
                    resize(driver, *size)
                    assert violations(driver) == [], f"{path} in {language}, {scheme}, {size[0]} pixels"
                for size in (NARROW, WALL, DESK):
                    resize(driver, *size)
                    width = driver.execute_script("return document.documentElement.scrollWidth")
                    assert width <= size[0], f"{path} in {language} at {size[0]} pixels"


def make_ready(box: PlayedBox, visit: Visit) -> None:
    """A running study, and another one about to be signed, on whose page the browser ends."""
    driver = visit.driver
    visit.open("/keys/new")
    driver.find_element(By.ID, "steward").send_keys("steward-a")
    driver.find_element(By.ID, "person").send_keys("The hospital's data steward")
    visit.click("[data-key] button")
    visit.wait_for("seh-provision steward add")
    box.endorse()
    for study in (RISK, WOUNDS):
        visit.open(f"/studies/{study}")
        visit.click("form[action$='/approve'] button")
        if study == RISK:
            visit.click("[data-sign] button")
            visit.wait_for("steward-a")
            visit.wait_for_page(f"/studies/{RISK}")
            for _ in range(3):
                assert box.turn(RISK)
    visit.wait_for_page(f"/studies/{WOUNDS}/sign/2")


def violations(driver: webdriver.Chrome) -> list[str]:
    """What axe-core finds on the page, folded-out parts included."""
    driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    driver.execute_script(AXE)
    ask = "axe.run(document, {runOnly: arguments[0]}).then(arguments[arguments.length - 1])"
    found = driver.execute_async_script(ask, RULES)
    return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found["violations"]]


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


def test_motion_rests_where_a_person_wants_it_to(desk: Desk) -> None:
    desk.endorsed()
    desk.visit.sign(RISK, "Approve with your key", "Sign and approve")
    desk.visit.wait_for("Approved by steward-a")
    desk.box.turn(RISK)
    for wish, moves in (("no-preference", True), ("reduce", False)):
        media = [{"name": "prefers-reduced-motion", "value": wish}]
        desk.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        desk.visit.open("/rounds")
        running = desk.driver.execute_script("return document.getAnimations().length")
        assert (running > 0) is moves


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
            cookie = json.loads(json.dumps(driver.get_cookies()))
            assert [(each["secure"], each["httpOnly"], each["sameSite"]) for each in cookie] == [(True, True, "Strict")]
            assert box.records.found[0].rp_id == place.settings.name
            visit.press("Sign out")
            visit.open("/record")
            visit.wait_for("Sign in with your key")
