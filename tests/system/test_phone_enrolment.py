"""From a box that has no token to its hospital's signed record: by a code, a telephone and the operator's word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner

from agent.core.clock import SystemClock
from agent.core.ids import SiteID
from agent.enrolment.conversation import Box
from agent.enrolment.phone import Code, PresetRegistrar, token_by_phone
from agent.identity.key import init_key
from agent.statements.roots import public_key_bytes
from agent.trust.fingerprint import box_words
from agent.trust.token import parse_token
from provisioning.authority.endorsing import Verdict, Waiting
from tests.simulators.passkey import PlayedPasskey
from tests.simulators.registrar_host import KeyBox, RegistrarHost

SITE = "hospital-a"
pytestmark = pytest.mark.slow


def post(client: httpx.Client, path: str, fields: dict[str, object]) -> Any:  # noqa: ANN401 - JSON
    response = client.post(path, json=fields)
    assert response.is_success, response.text
    return response.json()


def invite(host: RegistrarHost, directory: Path, *options: str) -> str:
    """What the operator's command says."""
    key = host.sites[SITE]
    assert isinstance(key, CryptoSigner)
    path = directory / "site.pem"
    path.write_bytes(key._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    command = [sys.executable, "-c", "from provisioning.cli.main import main; main()", "site", "passkey"]
    command += ["--site", SITE, "--key", f"file:{path}", "--state", str(directory / "state"), *options]
    command += ["--registrar", host.address, "--root", str(host.directory / "repository" / "1.root.json")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=os.environ).stdout


def approve(host: RegistrarHost, client: httpx.Client, passkey: PlayedPasskey, code: Code) -> str:
    """A technician with the telephone; returns the words that the page shows."""
    page = code.address.removeprefix(f"https://{host.address}")
    assert "Approve a box" in client.get(page).text
    options = post(client, f"{page}/options", {"code": code.grouped})
    return str(post(client, f"{page}/approval", {"answer": passkey.sign(options)})["words"])


def test_a_box_without_a_token_is_enrolled(tmp_path: Path) -> None:
    with RegistrarHost.found(tmp_path / "authority", SITE) as host, host.client() as client:
        passkey = PlayedPasskey(f"https://{host.address}")
        page = invite(host, tmp_path).split(host.address)[-1].strip()
        made = post(client, f"{page}/registration", {"answer": passkey.create(post(client, f"{page}/options", {}))})
        assert made == {"site": SITE}

        key = init_key(f"software:{tmp_path / 'node.key'}")
        shown: list[str] = []

        def show(code: Code) -> None:
            shown.append(approve(host, client, passkey, code))

        pin = host.make_token(SITE).tls_pin
        text = token_by_phone(
            Box(key, key.public_key()),
            PresetRegistrar(host.address, pin),
            SystemClock(),
            show=show,
            wait=lambda _: False,
            random_bytes=os.urandom,
        )
        words = box_words(*key.evidence_names(), public_key_bytes(key.public_key()))
        assert shown == [words]
        token = parse_token(text).token
        assert token.site == SiteID(SITE)

        box = KeyBox(host, token, client, hardware=key)
        asked: list[str] = []

        def compare(waiting: Waiting) -> Verdict:
            asked.append(waiting.words)
            return Verdict.ENDORSE if waiting.words == words else Verdict.REFUSE

        ending = threading.Event()
        with host.tool(SITE, tmp_path / "tool", compare) as tool:

            def look() -> None:
                while not ending.wait(0.1):
                    tool.look()

            thread = threading.Thread(target=look)
            thread.start()
            try:
                record = box.enrol_with(text, tmp_path / "box")
            finally:
                ending.set()
                thread.join()
        assert set(asked) == {words}
        assert [node.node for node in host.nodes(SITE)] == [record.node]
        assert host.let_in == [key.key_id]
        assert "1 passkey(s)" in invite(host, tmp_path, "--forget")


def test_pages_of_a_stranger_say_nothing(tmp_path: Path) -> None:
    with RegistrarHost.found(tmp_path / "authority", SITE) as host, host.client() as client:
        page = client.get("/approve/0123")
        assert page.status_code == 200
        assert SITE not in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        refused = client.post("/approve/0123/options", content=json.dumps({"code": "AAAAAAAA"}))
        assert refused.json()["code"] == "pairing.gone"
        assert client.post(f"/v1/sites/{SITE}/passkeys").status_code == 403
