"""A steward before the console: what a person does with its pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

LIMIT_S = 30


@dataclass(frozen=True)
class Visit:
    """One browser at one console.

    Args:
        driver: The browser.
        origin: The console's.
    """

    driver: webdriver.Chrome
    origin: str

    def open(self, path: str) -> None:
        """Go to a page."""
        self.driver.get(self.origin + path)

    def press(self, label: str) -> None:
        """Press the button, or follow the link, with these words."""

        def pressed(_: object) -> bool:
            found = self.driver.find_elements(By.CSS_SELECTOR, "button, a")
            named = [each for each in found if each.text == label and each.is_displayed()]
            if named:
                named[0].click()
            return bool(named)

        self._until(pressed, f"there is no {label!r}")

    def click(self, selector: str) -> None:
        """Press what a CSS selector finds, whatever language it speaks."""
        self._until(lambda _: bool(self.driver.find_elements(By.CSS_SELECTOR, selector)), f"there is no {selector}")
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def make_key(self, steward: str, person: str) -> None:
        """Have the browser's security key make a credential."""
        self.open("/keys/new")
        self.driver.find_element(By.ID, "steward").send_keys(steward)
        self.driver.find_element(By.ID, "person").send_keys(person)
        self.press("Make the credential")
        self.wait_for("has to sign it")

    def sign(self, study: str, begin: str, finish: str) -> None:
        """Begin on a study's page, and sign on the next one."""
        self.open(f"/studies/{study}")
        self.press(begin)
        self.press(finish)

    def wait_for(self, words: str) -> None:
        """Until the page says so."""
        self._until(lambda _: words in self.text, f"{words!r} does not come")

    def wait_for_any(self, pattern: str) -> None:
        """Until the page says something of that form."""
        self._until(lambda _: re.search(pattern, self.text) is not None, f"nothing like {pattern!r} comes")

    def wait_for_page(self, path: str) -> None:
        """Until the browser is there."""
        self._until(lambda _: self.driver.current_url == self.origin + path, f"{path!r} is not reached")

    def _until(self, holds: Callable[[object], bool], trouble: str) -> None:
        # A page that is just being replaced fails in many ways; the next look finds the new one.
        wait = WebDriverWait(self.driver, LIMIT_S, ignored_exceptions=(WebDriverException,))
        try:
            wait.until(holds)
        except TimeoutException as error:
            raise AssertionError(f"{trouble} on {self.driver.current_url}: {self.text[:800]}") from error

    @property
    def text(self) -> str:
        """What stands on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text
