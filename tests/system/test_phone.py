"""A technician's telephone: a real browser with a virtual authenticator, over the registrar's own pages."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions
from selenium.webdriver.support.wait import WebDriverWait
from starlette.requests import Request

from agent.attestation.pairing import pairing_code
from agent.core.clock import SystemClock
from agent.core.errors import SecureHealthError
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind
from agent.trust.fingerprint import box_words
from provisioning.authority.appraisal import Subject
from provisioning.registrar.asked import AskedRequest
from provisioning.registrar.guard import Guard, error_answer
from provisioning.registrar.pairing import PairingDesk, PairingState
from provisioning.registrar.passkeys import PasskeyServer
from provisioning.registrar.phone import phone_routes
from provisioning.registrar.store import Store
from tests.simulators.superlink import wait_until

pytestmark = pytest.mark.slow
SITE = SiteID("hospital-a")
SUBJECT = Subject(KeyKind.TPM, b"public", b"\x00\x0bek", b"\x00\x0bkey")
SECRET = bytes(32)
PHONE = (390, 844)
LIMIT_S = 30


@dataclass
class Phone:
    """A telephone's browser, the registrar's pages, and a box that shows a code."""

    browser: webdriver.Chrome
    origin: str
    desk: PairingDesk
    name: str = ""
    code: str = ""

    def show(self) -> None:
        """A box shows a code."""
        self.name, _ = self.desk.begin(SECRET, SUBJECT, b"link")
        nonce = self.desk.reveal(self.name, SECRET, bytes(32))
        names = SUBJECT.ek_name, SUBJECT.key_name
        self.code = pairing_code(*names, b"link", registrar_nonce=nonce, box_nonce=bytes(32))

    def make_passkey(self) -> str:
        """Follow an invitation; returns what the page says."""
        self.browser.get(f"{self.origin}/approve/passkey/{self.desk.invite(SITE)}")
        self.browser.find_element(By.CSS_SELECTOR, "button").click()
        return self.shown("done")

    def type_code(self, code: str, *, reveals: str) -> str:
        """Type a code, and confirm; returns what the page says."""
        self.browser.get(f"{self.origin}/approve/{self.name}")
        self.browser.find_element(By.ID, "code").send_keys(code)
        self.browser.find_element(By.CSS_SELECTOR, "button").click()
        return self.shown(reveals)

    def shown(self, element: str) -> str:
        """What stands in an element, once it is shown."""
        found = self.browser.find_element(By.ID, element)
        WebDriverWait(self.browser, LIMIT_S).until(lambda _: found.is_displayed())
        return found.text

    @property
    def state(self) -> PairingState:
        """As the box hears it."""
        return self.desk.situation(self.name, SECRET).state


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    clock = SystemClock()
    store = Store.open(f"sqlite:///{tmp_path / 'registrar.db'}", clock)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A browser takes http://localhost for as good as HTTPS (Secure Contexts 3.1), with no certificate to install.
        origin = f"http://localhost:{listener.getsockname()[1]}"
        desk = PairingDesk(PasskeyServer(origin), store, lambda *_: "SEH1:A TOKEN", clock, secrets.token_bytes)
        with serving(desk, listener), browsing(tmp_path) as browser:
            phone = Phone(browser, origin, desk)
            phone.show()
            yield phone
    store.close()


class serving:  # noqa: N801 - reads as what it does
    """The pages, answered in a thread."""

    def __init__(self, desk: PairingDesk, listener: socket.socket) -> None:
        app = FastAPI(openapi_url=None)

        async def nobody(site: str, asked: AskedRequest) -> str:
            raise AssertionError(site)

        async def say(_: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, SecureHealthError)
            return error_answer(error)

        app.include_router(phone_routes(desk, "The Northern Consortium", nobody))
        app.add_exception_handler(SecureHealthError, say)
        config = uvicorn.Config(Guard(app, SystemClock()), http="h11", ws="none", lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))

    def __enter__(self) -> None:
        self._thread.start()
        wait_until(lambda: self._server.started, limit_s=LIMIT_S, what="the pages are served")

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()


class browsing:  # noqa: N801 - the same
    """A telephone's browser with an authenticator that verifies its person."""

    def __init__(self, directory: Path) -> None:
        options = Options()
        options.binary_location = "/usr/bin/chromium"
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory / 'profile'}"):
            options.add_argument(argument)
        self._browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))

    def __enter__(self) -> webdriver.Chrome:
        width, height = PHONE
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        authenticator = VirtualAuthenticatorOptions()
        authenticator.protocol = VirtualAuthenticatorOptions.Protocol.CTAP2
        authenticator.transport = VirtualAuthenticatorOptions.Transport.INTERNAL
        authenticator.has_resident_key = True
        authenticator.has_user_verification = True
        authenticator.is_user_verified = True
        self._browser.add_virtual_authenticator(authenticator)
        return self._browser

    def __exit__(self, *_: object) -> None:
        self._browser.quit()


def test_a_technician_makes_a_passkey_and_approves_a_box(phone: Phone) -> None:
    assert "Your passkey is ready" in phone.make_passkey()
    said = phone.type_code(f"{phone.code[:4].lower()}-{phone.code[4:]}", reveals="done")
    assert "Approved" in said
    assert SITE in said
    assert box_words(SUBJECT.ek_name, SUBJECT.key_name, b"link") in said
    assert phone.state is PairingState.APPROVED


def test_a_wrong_code_is_said_in_plain_words_and_ends_it(phone: Phone) -> None:
    phone.make_passkey()
    assert "not the code on the box's screen" in phone.type_code("AAAAAAAA", reveals="trouble")
    assert phone.state is PairingState.REFUSED
    assert "Begin again at the box" in phone.type_code(phone.code, reveals="trouble")


def test_a_telephone_without_a_passkey_approves_nothing(phone: Phone) -> None:
    assert "Try again" in phone.type_code(phone.code, reveals="trouble")
    assert phone.state is PairingState.WAITING


def test_an_invitation_that_is_used_up_says_so(phone: Phone) -> None:
    phone.browser.get(f"{phone.origin}/approve/passkey/{'0' * 32}")
    phone.browser.find_element(By.CSS_SELECTOR, "button").click()
    assert "Nothing waits here" in phone.shown("trouble")


@pytest.mark.parametrize("page", ["approval", "passkey"])
def test_pages_fit_a_telephone_and_load_nothing_from_elsewhere(phone: Phone, page: str) -> None:
    place = phone.name if page == "approval" else f"passkey/{phone.desk.invite(SITE)}"
    phone.browser.get(f"{phone.origin}/approve/{place}")
    width = phone.browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= PHONE[0]
    loaded = phone.browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert loaded
    assert all(name.startswith(f"{phone.origin}/approve/assets/") for name in loaded)
    low = phone.browser.execute_script("return document.querySelector('button').getBoundingClientRect().height")
    assert low >= 44  # what a finger hits (WCAG 2.2, 2.5.5)
    assert phone.browser.get_log("browser") == []  # type: ignore[no-untyped-call]
