"""A founded consortium whose registrar runs as a process, with hospitals' own tools, and boxes that enrol there."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from securesystemslib.signer import CryptoSigner, Signer

from agent.attestation.binding import Exchange
from agent.attestation.credential import Credential, activation_answer
from agent.attestation.enrolling import ENDORSEMENT_LABEL, ENROLMENT_LABEL, token_proof
from agent.attestation.evidence import Evidence, encode_evidence
from agent.attestation.possession import POSSESSION_TYPE
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.clock import SystemClock
from agent.core.ids import SiteID
from agent.enrolment.client import Enrolment, Surroundings
from agent.enrolment.conversation import Box, gather_evidence
from agent.enrolment.line import Patience
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.identity.key import HardwareKey
from agent.service.trust import found_repository
from agent.statements.envelope import Proof, encode_proof, pre_authentication_encoding
from agent.statements.kinds import SiteRequest
from agent.statements.roots import KeyKind, key_id, public_key_bytes
from agent.trust.records import NodeFile, ServerRecord
from agent.trust.token import Token, issue_token, registrar_secret, site_secret
from provisioning.authority.endorsing import Decide, EndorsingTool, decide_later, opened_tool
from provisioning.authority.signers import load_file_key
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_office import issuer_of
from provisioning.authority.site_repository import SitePlace
from provisioning.tokens.register import SiteRegister
from provisioning.tokens.state import SiteTokenFiles
from provisioning.tokens.token import Destination, IssuedToken, Issuer, TokenEntry, issue, make_tokens
from tests.simulators.authority import FoundedConsortium
from tests.simulators.registrar_process import let_in
from tests.simulators.superlink import SimulatorError, free_port, wait_until

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
DAY_S = 86_400


@dataclass
class RegistrarHost:
    """A context manager: the process ends with it.

    Args:
        directory: Of the authority.
        consortium: Founded there.
        address: The registrar's `host:port`.
        database: SQLAlchemy URL; SQLite where empty.
    """

    directory: Path
    consortium: FoundedConsortium
    address: str
    database: str = ""
    process: subprocess.Popen[bytes] | None = None
    sites: dict[str, CryptoSigner] = field(default_factory=dict)

    @classmethod
    def found(cls, directory: Path, *sites: str, database: str = "", **changes: Any) -> Self:  # noqa: ANN401 - any part of a plan
        """Found it, take hospitals in, and let each sign its first record."""
        address = f"127.0.0.1:{free_port()}"
        consortium = FoundedConsortium.found(directory, SystemClock(), registrar=address, **changes)
        host = cls(directory, consortium, address, database)
        for name in sites:
            consortium.publish(consortium.add_site(name).renew())
            host.sites[name] = consortium.sites[name][0]  # type: ignore[assignment]
        settings = directory / "registrar.toml"
        text = settings.read_text(encoding="utf-8")
        first = f'database = "{database}"\n' if database else ""
        settings.write_text(first + text.replace("0.0.0.0", "127.0.0.1"), encoding="utf-8")
        return host

    @property
    def door(self) -> Path:
        """What the door let in."""
        return self.directory / "door.txt"

    @property
    def root_digest(self) -> str:
        """Of the consortium, hex."""
        return hashlib.sha256(self.root).hexdigest()

    @property
    def root(self) -> bytes:
        """`1.root.json`."""
        return (self.directory / "repository" / "1.root.json").read_bytes()

    @property
    def registrar_key(self) -> str:
        """Id of the key that names the registrar, hex."""
        return key_id(load_file_key(self.directory / "keys" / "registrar.pem", lambda what: what).public_key())

    @property
    def authority(self) -> Path:
        """Certificate of the TLS authority."""
        return self.directory / "tls" / "authority.pem"

    @property
    def trust(self) -> ssl.SSLContext:
        """In its TLS authority alone."""
        return ssl.create_default_context(cafile=str(self.authority))

    @property
    def let_in(self) -> list[str]:
        """Ids of link keys that the door let in."""
        return let_in(self.door)

    @property
    def log(self) -> str:
        """What the process said."""
        return (self.directory / "registrar.log").read_text(encoding="utf-8", errors="replace")

    def start(self, moment: str = "") -> None:
        """Start the process, and wait until it answers."""
        command = [sys.executable, "-m", "tests.simulators.registrar_process"]
        command += [str(self.directory / "registrar.toml"), str(self.door), *([moment] if moment else [])]
        with (self.directory / "registrar.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, limit_s=START_LIMIT_S, what="the registrar listens")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns its exit status."""
        process, self.process = self.process, None
        assert process is not None
        if process.poll() is None:
            process.send_signal(how)
        try:
            return process.wait(STOP_LIMIT_S)
        finally:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.stop(signal.SIGKILL)

    def wait_for_end(self) -> int:
        """It ends by itself; returns its exit status."""
        assert self.process is not None
        status = self.process.wait(STOP_LIMIT_S)
        self.process = None
        return status

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SimulatorError(f"the registrar ended with status {self.process.returncode}\n{self.log[-3000:]}")
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.stop()

    # Hospitals.

    def issuer(self, site: str) -> Issuer:
        """The hospital's key."""
        return issuer_of(self.sites[site])

    def nodes(self, site: str) -> tuple[NodeFile, ...]:
        """Boxes that the hospital put on record, as published."""
        return self.consortium.desk(site, self.sites[site]).nodes

    def make_token(self, site: str, **changes: Any) -> Token:  # noqa: ANN401 - any part of a token
        """A token that nobody knows yet."""
        certificate = x509.load_pem_x509_certificate(self.authority.read_bytes())
        pin = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
        fields: dict[str, Any] = {
            "registrar": self.address,
            "id": secrets.token_bytes(8),
            "secret": secrets.token_bytes(16),
            "tls_pin": pin,
            "root_digest": bytes.fromhex(self.root_digest),
            "site": SiteID(site),
            "expires_s": int(datetime.now(UTC).timestamp()) + DAY_S,
        }
        return Token(**(fields | changes))

    def token(self, site: str, **changes: Any) -> Token:  # noqa: ANN401 - any part of a token
        """A token that the registrar knows."""
        token = self.make_token(site, **changes)
        with self.register(site) as register:
            register.add(TokenEntry.of(token, self.issuer(site).public_key))
        return token

    def issue(self, site: str, state: Path, count: int = 1) -> list[IssuedToken]:
        """Tokens, as the hospital's operator issues them."""
        destination = Destination(self.address, self.make_token(site).tls_pin, bytes.fromhex(self.root_digest))
        expires_s = int(datetime.now(UTC).timestamp()) + DAY_S
        tokens = make_tokens(
            destination, SiteID(site), boxes=[None] * count, expires_s=expires_s, random_bytes=secrets.token_bytes
        )
        with self.register(site) as register:
            return issue(tokens, self.issuer(site), register, SiteTokenFiles(state / "tokens"))

    @contextmanager
    def register(self, site: str) -> Iterator[SiteRegister]:
        """Where the hospital makes tokens known."""
        with self.line(site) as line:
            yield SiteRegister(line)

    def line(self, site: str, *, signer: Signer | None = None) -> SiteLine:
        """The hospital's line."""
        return SiteLine(
            ServerRecord(address=self.address, root_certificates=self.authority.read_text("ascii")),
            consortium=self.root_digest,
            site=SiteID(site),
            key=issuer_of(signer or self.sites[site]),
            clock=SystemClock(),
            random_bytes=secrets.token_bytes,
        )

    @contextmanager
    def tool(self, site: str, state: Path, decide: Decide = decide_later) -> Iterator[EndorsingTool]:
        """The hospital's endorsing tool."""
        place = SitePlace(state, self.address, self.root)
        with opened_tool(
            SiteID(site),
            self.sites[site],
            place,
            SystemClock(),
            random_bytes=secrets.token_bytes,
            decide=lambda _: decide,
        ) as tool:
            yield tool

    def client(self) -> httpx.Client:
        """Anybody's."""
        return httpx.Client(base_url=f"https://{self.address}", verify=self.trust, timeout=30)

    def site_headers(self, site: str, method: str, path: str, body: bytes = b"", /, **changes: Any) -> dict[str, str]:  # noqa: ANN401 - any part of a request
        """A hospital's signed request."""
        signer = changes.pop("signer", None) or self.sites[site]
        issuer = issuer_of(signer)
        fields: dict[str, Any] = {
            "consortium": self.root_digest,
            "site": site,
            "method": method,
            "path": path,
            "body": hashlib.sha256(body).hexdigest(),
            "issued_s": int(datetime.now(UTC).timestamp()),
            "nonce": secrets.token_hex(32),
        }
        request = SiteRequest.model_validate(fields | changes)
        unsigned = Proof(request.payload_type(), request.payload(), key_id(issuer.public_key), b"")
        signed = Proof(unsigned.payload_type, unsigned.payload, unsigned.key_id, issuer.sign(unsigned.signed_bytes()))
        return {"authorization": f"DSSE {_padded(encode_proof(signed))}", "content-type": "application/json"}


@dataclass
class PlainBox:
    """A box with a software key that does step by step what a test says.

    Args:
        host: Where it enrols.
        token: Its token.
        client: Its line.
        key: Its key.
    """

    host: RegistrarHost
    token: Token
    client: httpx.Client
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    name: str = ""
    nonce: bytes = b""

    @property
    def secret(self) -> str:
        """What proves its token to the registrar."""
        return encode_bytes(registrar_secret(self.token))

    @property
    def key_id(self) -> str:
        """Of its key, hex."""
        return key_id(self.key.public_key())

    def fields(self, **changes: object) -> dict[str, object]:
        """What it opens with."""
        public_key = encode_bytes(public_key_bytes(self.key.public_key()))
        return {
            "token": encode_bytes(self.token.id),
            "secret": self.secret,
            "kind": KeyKind.SOFTWARE.value,
            "public_key": public_key,
            "link_key": public_key,
            "ek_name": "",
            "key_name": encode_bytes(bytes.fromhex(self.key_id)),
        } | changes

    def open(self, **changes: object) -> httpx.Response:
        """Begin, or go on."""
        response = self.client.post("/v1/enrolments", json=self.fields(**changes))
        if response.is_success:
            self.name, self.nonce = response.json()["enrolment"], decode_bytes(response.json()["nonce"])
        return response

    def exchange(self, label: str, asker_key: str, nonce: bytes, **changes: Any) -> Exchange:  # noqa: ANN401 - any part
        """Somebody's asking."""
        fields = {"consortium": self.host.root_digest, "token": self.token.id.hex(), "site": self.token.site}
        return Exchange(label=label, asker_key=asker_key, nonce=nonce, **(fields | changes))

    def evidence(self, exchange: Exchange) -> bytes:
        """That its key is in its hands."""
        data = exchange.qualifying_data(b"", bytes.fromhex(self.key_id))
        message = pre_authentication_encoding(POSSESSION_TYPE, data)
        signature = self.key.sign(message, ec.ECDSA(hashes.SHA256()))
        public_key = public_key_bytes(self.key.public_key())
        return encode_evidence(Evidence(KeyKind.SOFTWARE, public_key, {"possession": signature}))

    def put(self, place: str, content: bytes) -> httpx.Response:
        """Send something of this enrolment."""
        headers = {"authorization": f"Bearer {self.secret}"}
        return self.client.put(f"/v1/enrolments/{self.name}/{place}", content=content, headers=headers)

    def registrar_exchange(self, **changes: Any) -> Exchange:  # noqa: ANN401 - any part of it
        """The registrar's asking."""
        return self.exchange(ENROLMENT_LABEL, self.host.registrar_key, self.nonce, **changes)

    def prove(self) -> httpx.Response:
        """Show its key to the registrar."""
        return self.put("evidence", self.evidence(self.registrar_exchange()))

    def situation(self) -> dict[str, Any]:
        """How far it is."""
        headers = {"authorization": f"Bearer {self.secret}"}
        response = self.client.get(f"/v1/enrolments/{self.name}", headers=headers)
        response.raise_for_status()
        return dict(response.json())

    def answer_site(self, *, proof: bytes | None = None) -> httpx.Response:
        """Answer the hospital's asking."""
        asked = self.situation()["exchange"]
        exchange = self.exchange(ENDORSEMENT_LABEL, asked["asker_key"], decode_bytes(asked["nonce"]))
        data = exchange.qualifying_data(b"", bytes.fromhex(self.key_id))
        link_key = public_key_bytes(self.key.public_key())
        proof = token_proof(site_secret(self.token), data, link_key) if proof is None else proof
        fields = {"evidence": encode_bytes(self.evidence(exchange)), "proof": encode_bytes(proof)}
        return self.client.put(
            f"/v1/enrolments/{self.name}/endorsement/evidence",
            json=fields,
            headers={"authorization": f"Bearer {self.secret}"},
        )

    def wait_enrolled(self, *, limit_s: float = 30.0) -> None:
        """Until the registrar says so."""
        wait_until(lambda: self.situation()["state"] == "enrolled", limit_s=limit_s, what="the box is enrolled")


def _padded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


@dataclass
class KeyBox(PlainBox):
    """The same with a hardware key.

    Args:
        hardware: Its key.
    """

    hardware: HardwareKey | None = None

    @property
    def held(self) -> HardwareKey:
        """Its key."""
        assert self.hardware is not None
        return self.hardware

    @property
    def key_id(self) -> str:
        return self.held.key_id

    def fields(self, **changes: object) -> dict[str, object]:
        ek_name, key_name = self.held.evidence_names()
        public_key = encode_bytes(public_key_bytes(self.held.public_key()))
        return (
            super().fields()
            | {
                "kind": self.held.kind.value,
                "public_key": public_key,
                "link_key": public_key,
                "ek_name": encode_bytes(ek_name),
                "key_name": encode_bytes(key_name),
            }
            | changes
        )

    def evidence(self, exchange: Exchange) -> bytes:
        """All that its key can show."""
        return encode_evidence(gather_evidence(self.held, exchange.qualifying_data(*self.held.evidence_names())))

    def activate(self, answer: httpx.Response, qualifying_data: bytes) -> httpx.Response:
        """Open the registrar's credential."""
        fields = answer.json()["credential"]
        credential = Credential(decode_bytes(fields["blob"]), decode_bytes(fields["encrypted_seed"]))
        opened = activation_answer(self.held.activate(credential), qualifying_data)
        return self.put("activation", json.dumps({"answer": encode_bytes(opened)}).encode())

    @property
    def qualifying_data(self) -> bytes:
        """Of the registrar's asking."""
        return self.registrar_exchange().qualifying_data(*self.held.evidence_names())

    def enrol_whole(self, directory: Path) -> EnrolmentRecord:
        """Enrol as a box does, by its own client, from the token's text to the repository."""
        return self.enrol_with(token_text_of(self.host, self.token), directory)

    def enrol_with(self, text: str, directory: Path) -> EnrolmentRecord:
        """The same with a token's text."""
        around = Surroundings(
            folder=EnrolmentFolder.of(directory),
            open_repository=lambda place, url, root, digest: found_repository(
                place, url, root, digest, SystemClock(), proxy=None
            ),
            clock=SystemClock(),
            patience=Patience(lambda seconds: threading.Event().wait(seconds), lambda _: None, random.Random(1)),
            tell=lambda _: None,
            confirm=lambda *_: True,
        )
        return Enrolment(Box(self.held, self.held.public_key()), around).start(text)


def token_text_of(host: RegistrarHost, token: Token) -> str:
    """A token as its hospital's key issues it."""
    issuer = host.issuer(token.site)
    return issue_token(token, issuer.public_key, issuer.sign)


@contextmanager
def own_client(host: RegistrarHost) -> Iterator[httpx.Client]:
    """A client with an address of its own, so that no test uses up another's share of requests."""
    address = f"127.{secrets.randbelow(200) + 2}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    transport = httpx.HTTPTransport(verify=host.trust, local_address=address)
    with httpx.Client(base_url=f"https://{host.address}", transport=transport, timeout=30) as client:
        yield client
