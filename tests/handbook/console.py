"""`python -m tests.handbook.console`: photograph every page of the console for docs/, in headless Chromium."""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.handbook.errors import ROOT
from tests.simulators.console import browser, give_key, reserved, resize, served
from tests.simulators.console_visit import Visit
from tests.simulators.played_box import RISK, PlayedBox

PICTURES = ROOT / "docs" / "images"
DESK = (1280, 800)
PHONE = (360, 740)
WALL = (2560, 1440)
ROUNDS = 13
COLOURS = 128


def photograph(driver: webdriver.Chrome, name: str, *, whole: bool = True) -> Path:
    """Take the page that the browser shows; all of its height, or what its window shows."""
    picture = PICTURES / f"console-{name}.png"
    driver.execute_script("window.scrollTo(0, 0); if (document.activeElement) document.activeElement.blur();")
    options = {"format": "png", "captureBeyondViewport": whole}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", options)
    # Flat colours: a palette shows them as well, in a third of the bytes.
    with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as drawn:
        drawn.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
    return picture


def tour(driver: webdriver.Chrome, box: PlayedBox, visit: Visit) -> None:
    """Every page, in the order in which a steward comes to them."""
    visit.open("/keys/new")
    photograph(driver, "new-key")
    visit.make_key("steward-a", "The hospital's data steward")
    photograph(driver, "key-made")
    visit.open("/")
    photograph(driver, "overview-first")
    box.endorse()
    for path, name in (("/", "overview"), ("/studies", "studies"), ("/studies/wound-healing", "study-unbounded")):
        visit.open(path)
        photograph(driver, name)
    visit.open("/studies/triage")
    photograph(driver, "study-not-permitted")
    visit.open(f"/studies/{RISK}")
    photograph(driver, "study")
    visit.press("Approve with your key")
    driver.find_element(By.CSS_SELECTOR, "details > summary").click()
    photograph(driver, "sign")
    visit.press("Sign and approve")
    visit.wait_for("Approved by steward-a")
    photograph(driver, "approved")
    for _ in range(ROUNDS):
        box.turn(RISK)
    for path, name in (("/rounds", "rounds"), ("/budget", "budget"), ("/record", "record"), ("/health", "health")):
        visit.open(path)
        photograph(driver, name)
    visit.open("/keys")
    photograph(driver, "keys")
    visit.open("/nowhere")
    photograph(driver, "error")
    visit.open("/sign-in")
    photograph(driver, "sign-in")
    resize(driver, *PHONE)
    for path, name in (("/", "overview-phone"), (f"/studies/{RISK}", "study-phone")):
        visit.open(path)
        photograph(driver, name, whole=False)
    resize(driver, *WALL)
    visit.open("/")
    photograph(driver, "overview-wall", whole=False)
    resize(driver, *DESK)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    visit.open(f"/studies/{RISK}")
    photograph(driver, "study-dark", whole=False)


def main() -> int:
    """Take them all."""
    with tempfile.TemporaryDirectory() as place, reserved() as console:
        box = PlayedBox(Path(place, "book"), console.settings.origin)
        with served(console, box) as origin, browser(Path(place, "profile"), width=DESK[0], height=DESK[1]) as driver:
            give_key(driver)
            tour(driver, box, Visit(driver, origin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
