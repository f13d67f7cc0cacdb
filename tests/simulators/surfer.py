"""A browser without a window: it asks the console itself, keeps its cookie, and carries its pages' token."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from agent.console.app import create_app
from agent.core.base64url import encode_bytes
from agent.core.config import ConsoleSection
from tests.simulators.clock import SetClock
from tests.simulators.passkey import PlayedPasskey
from tests.simulators.played_box import PlayedBox

LOOPBACK = ConsoleSection()
LAN = ConsoleSection(
    address="192.0.2.1:8470", name="box.example", certificate=Path("console.pem"), private_key=Path("console.key")
)
_READ = re.compile(r'name="((?:study|dataset)_digest)" value="([^"]*)"')
_TOKEN = re.compile(r'data-token="([^"]+)"')


@dataclass
class House:
    """A console with its box.

    Args:
        directory: For the box's book.
        settings: Of the console.
    """

    directory: Path
    settings: ConsoleSection = LOOPBACK
    clock: SetClock = field(default_factory=SetClock)

    def __post_init__(self) -> None:
        self.box = PlayedBox(self.directory, self.settings.origin)
        self.app: ASGIApp = create_app(self.box, self.settings, self.clock, secrets.token_bytes)

    def surfer(self, key: PlayedPasskey | None = None) -> Surfer:
        """Another browser, with a security key or none."""
        return Surfer(self.app, self.settings, key)

    def steward(self, name: str = "steward-a") -> Surfer:
        """A browser whose key the hospital has on record."""
        surfer = self.surfer(PlayedPasskey(self.settings.origin))
        made = surfer.make_key(name)
        assert made.status_code == 200, made.text
        self.box.endorse()
        return surfer


@dataclass
class Surfer:
    """One browser.

    Args:
        app: The console's.
        settings: Its settings.
        key: The browser's security key.
    """

    app: ASGIApp
    settings: ConsoleSection
    key: PlayedPasskey | None = None
    cookies: dict[str, str] = field(default_factory=dict)
    set_cookie: str = ""
    """The last one, with its attributes."""

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Open a page."""
        return self._ask("GET", path, headers, None)

    def post(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        content: bytes | None = None,
        **headers: str,
    ) -> httpx.Response:
        """Send a form, as a page's own button does."""
        sent = {"token": self.token() if token is None else token, **(fields or {})}
        body = httpx.QueryParams(sent).__str__().encode() if content is None else content
        form = {"content-type": "application/x-www-form-urlencoded", "origin": self.settings.origin}
        return self._ask("POST", path, form | headers, body)

    def script(
        self, path: str, content: Mapping[str, Any], *, token: str | None = None, **headers: str
    ) -> httpx.Response:
        """Send what a page's script sends."""
        own = {"origin": self.settings.origin, "x-csrf-token": self.token() if token is None else token}
        body = httpx.Request("POST", "http://x", json=content).content
        return self._ask("POST", path, {"content-type": "application/json"} | own | headers, body)

    def token(self) -> str:
        """What this session's pages carry."""
        found = _TOKEN.search(self.get("/sign-in").text)
        assert found is not None
        return found[1]

    def make_key(self, name: str) -> httpx.Response:
        """Have the security key make a credential, and offer it."""
        assert self.key is not None
        asked = self.script("/keys/options", {"steward": name, "person": f"The owner of {name}"})
        if asked.status_code != 200:
            return asked
        return self.script("/keys/registration", {"answer": self.key.create(asked.json())})

    def sign_in(self) -> httpx.Response:
        """Sign in with the security key."""
        assert self.key is not None
        asked = self.script("/sign-in/options", {})
        return self.script("/sign-in", {"answer": self.key.sign(asked.json())})

    def begin(self, study: str, act: str = "approve", steward: str = "steward-a") -> str:
        """Press the button on the study's page; returns where the console leads."""
        sent = self.post(f"/studies/{study}/{act}", {"steward": steward} | self.read(study))
        assert sent.status_code == 303, sent.text
        return str(sent.headers["location"])

    def read(self, study: str) -> dict[str, str]:
        """What the study's page has its form say."""
        return dict(_READ.findall(self.get(f"/studies/{study}").text))

    def assertion(self, place: str) -> dict[str, Any]:
        """Have the key sign what a page shows."""
        assert self.key is not None
        return self.key.sign({"publicKey": {"rpId": self.settings.name, "challenge": self.shown_challenge(place)}})

    def shown_challenge(self, place: str) -> str:
        """What a page asks to have signed, base64url."""
        page = parse(self.get(place))
        return encode_bytes(bytes.fromhex(page.data["challenge"]))

    def approve(self, study: str, steward: str = "steward-a") -> httpx.Response:
        """Approve, as it should be."""
        place = self.begin(study, steward=steward)
        return self.script(place, {"answer": self.assertion(place)})

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = asyncio.run(self._request(method, path, sent, body))
        if "set-cookie" in answer.headers:
            self.set_cookie = answer.headers["set-cookie"]
            name, _, value = self.set_cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer

    async def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=self.settings.origin, trust_env=False) as client:
            return await client.request(method, path, headers=headers, content=body)


class Page(HTMLParser):
    """What tests look for in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data: dict[str, str] = {}
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.language = ""

    @property
    def text(self) -> str:
        """Its words, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name.startswith("data-"):
                self.data[name.removeprefix("data-")] = value or ""
            if name in {"src", "href", "action"}:
                self.links.append(value or "")
            if tag == "html" and name == "lang":
                self.language = value or ""

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(answer: httpx.Response) -> Page:
    """Read a page."""
    page = Page()
    page.feed(answer.text)
    return page
