"""A steward's desk: a console in a thread, its played box, and a browser with a virtual security key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium import webdriver

from tests.simulators.console import browser, give_key, reserved, served
from tests.simulators.console_visit import Visit
from tests.simulators.played_box import PlayedBox


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


@contextmanager
def opened_desk(place: Path, *, language: str = "en") -> Iterator[Desk]:
    """A desk with nothing on it.

    Args:
        place: For the box's book and the browser's profile.
        language: Which the browser asks pages for.
    """
    with reserved() as console:
        box = PlayedBox(place / "book", console.settings.origin)
        with served(console, box) as origin, browser(place / "profile", language=language) as driver:
            give_key(driver)
            yield Desk(box, driver, Visit(driver, origin))
