"""The console, served in a thread, and browsers that look at it."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions
from starlette.types import ASGIApp

from agent.console.app import create_app
from agent.console.run import server_of
from agent.core.box_view import Box
from agent.core.clock import SystemClock
from agent.core.config import ConsoleSection
from tests.simulators.superlink import wait_until

LIMIT_S = 30


@dataclass(frozen=True)
class Place:
    """Where a console will be served."""

    listener: socket.socket
    settings: ConsoleSection


@contextmanager
def reserved(certificate: Path | None = None, private_key: Path | None = None) -> Iterator[Place]:
    """A free port on loopback."""
    # A browser takes http://localhost for as good as HTTPS (Secure Contexts 3.1), with no certificate to install.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        yield Place(listener, ConsoleSection(address=address, certificate=certificate, private_key=private_key))


@contextmanager
def served(place: Place, box: Box, app: ASGIApp | None = None) -> Iterator[str]:
    """The console's address; it is answered inside the block."""
    app = app or create_app(box, place.settings, SystemClock(), secrets.token_bytes)
    server = server_of(app, place.settings)
    thread = threading.Thread(target=server.run, args=([place.listener],))
    thread.start()
    try:
        wait_until(lambda: server.started, limit_s=LIMIT_S, what="the console is served")
        yield place.settings.origin
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@contextmanager
def browser(profile: Path, *, width: int = 1280, height: int = 900, language: str = "en") -> Iterator[webdriver.Chrome]:
    """Chromium, headless.

    Args:
        profile: Directory of its own.
        width, height: Of its window, in CSS pixels.
        language: Which it asks pages for.
    """
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        resize(driver, width, height)
        yield driver
    finally:
        driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    """Give the window another size."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def give_key(driver: webdriver.Chrome) -> None:
    """Plug a security key into the browser; its person knows the PIN and touches it."""
    authenticator = VirtualAuthenticatorOptions()
    authenticator.protocol = VirtualAuthenticatorOptions.Protocol.CTAP2
    authenticator.transport = VirtualAuthenticatorOptions.Transport.USB
    authenticator.has_resident_key = False
    authenticator.has_user_verification = True
    authenticator.is_user_verified = True
    driver.add_virtual_authenticator(authenticator)
