"""The console for everybody: by keyboard, at a telephone's width and on a wall, in four languages, by WCAG 2.2 AA."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from agent.console.words import LANGUAGES
from tests.simulators.console import resize
from tests.simulators.console_desk import Desk, opened_desk
from tests.simulators.console_visit import Visit
from tests.simulators.played_box import RISK, TRIAGE, WOUNDS, PlayedBox

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


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with opened_desk(tmp_path) as desk:
        yield desk


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_meets_wcag_and_fits_a_telephone_and_a_wall(tmp_path: Path, language: str) -> None:
    with opened_desk(tmp_path, language=language) as desk:
        driver, visit = desk.driver, desk.visit
        make_ready(desk.box, visit)
        for path in (*PAGES, driver.current_url.removeprefix(visit.origin)):
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
