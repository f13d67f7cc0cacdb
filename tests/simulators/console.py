"""The console, served in a thread, and browsers that look at it."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
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
from provisioning.authority.tls import ServerFiles
from tests.simulators.superlink import wait_until

LIMIT_S = 30
NAME = "box.example"
"""How browsers call a console on the hospital's network."""


@dataclass(frozen=True)
class Place:
    """Where a console will be served."""

    listener: socket.socket
    settings: ConsoleSection


@contextmanager
def reserved(tls: ServerFiles | None = None) -> Iterator[Place]:
    """A free port on loopback.

    Args:
        tls: Where the console shall believe that it is on the hospital's network, as `NAME`; browsers find it here.
    """
    # A browser takes http://localhost for as good as HTTPS (Secure Contexts 3.1), with no certificate to install.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = ConsoleSection(address=f"127.0.0.1:{port}")
        if tls is not None:
            files = {"certificate": tls.certificate, "private_key": tls.key}
            settings = ConsoleSection(address=f"192.0.2.1:{port}", name=NAME, **files)
        yield Place(listener, settings)


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
def browser(
    profile: Path, *, width: int = 1280, height: int = 900, language: str = "en", trusted: Path | None = None
) -> Iterator[webdriver.Chrome]:
    """Chromium, headless.

    Args:
        profile: Directory of its own.
        width, height: Of its window, in CSS pixels.
        language: Which it asks pages for.
        trusted: A certificate that it takes for good at `NAME`, which it finds on loopback.
    """
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    if trusted is not None:
        key = x509.load_pem_x509_certificate(trusted.read_bytes()).public_key()
        digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        options.add_argument(f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}")
        options.add_argument(f"--host-resolver-rules=MAP {NAME} 127.0.0.1")
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
