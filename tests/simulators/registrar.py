"""A registrar with a hospital's tool behind it, in the test's own process, that does as told: well, or anything else.

It answers over real HTTPS. What stands in its repository is given by `PlayedRegistrar.snapshot`, as if verified.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.appraise import Candidate, Policy, appraise_evidence, challenge, confirm_activation
from agent.attestation.binding import Exchange
from agent.attestation.enrolling import ENDORSEMENT_LABEL, ENROLMENT_LABEL, token_proof
from agent.attestation.evidence import Evidence, parse_evidence
from agent.attestation.makers import TrustStore
from agent.attestation.possession import verify_possession
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.errors import PeerProtocolError
from agent.core.ids import SiteID
from agent.enrolment.messages import State
from agent.statements.roots import KeyKind, RootKey, key_id, load_public_key
from agent.trust.peers import node_name
from agent.trust.records import ConsortiumRecord, EvidenceTerms, NodeFile, ServerRecord, public_pem
from agent.trust.snapshot import Environment, SiteRecord, TrustSnapshot
from agent.trust.token import Token, registrar_secret, site_secret
from tests.simulators.superlink import prepare_tls
from tests.simulators.tokens import token_text

SITE = SiteID("hospital-a")
OTHER_SITE = SiteID("hospital-b")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    body: bytes
    secret: str


@dataclass(frozen=True, slots=True)
class Said:
    """One answer.

    Args:
        status: HTTP status.
        body: JSON where it is no bytes.
        endless: The body is repeated for as long as the other side reads.
        hang_up: The connection ends without an answer.
    """

    status: int = 200
    body: object = b""
    endless: bool = False
    hang_up: bool = False

    @property
    def data(self) -> bytes:
        """As sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refusal(status: int, code: str) -> Said:
    """An error in the registrar's form."""
    return Said(status, {"code": code, "sentence": "The registrar says no.", "next_step": "Ask the registrar."})


@dataclass(slots=True)
class Enrolled:
    """One enrolment, as the registrar keeps it."""

    name: str
    token: Token
    public_key: bytes
    link_key: bytes
    kind: KeyKind
    names: tuple[bytes, bytes]
    nonce: bytes
    site_nonce: bytes
    state: State = State.OPEN
    seen: bool = False
    answers: dict[str, tuple[Candidate, bytes]] = field(default_factory=dict)
    credentials: dict[str, dict[str, str]] = field(default_factory=dict)


class PlayedRegistrar:
    """Answers until its `with` block ends.

    Args:
        directory: For its TLS files.
        stores: Makers of TPMs that it and the hospital trust.
    """

    def __init__(self, directory: Path, *, stores: tuple[TrustStore, ...] = ()) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.site_key = ec.generate_private_key(ec.SECP256R1())
        self.root = json.dumps({"a root": secrets.token_hex(8)}).encode()
        self.stores = stores
        self.before: Callable[[Asked], Said | None] = lambda _: None
        self.after: Callable[[Asked, Said], Said] = lambda _, said: said
        self.asked: list[Asked] = []
        self.enrolments: dict[bytes, Enrolled] = {}
        self.tokens: dict[bytes, Token] = {}
        self.nodes: dict[SiteID, tuple[NodeFile, ...]] = {SITE: (), OTHER_SITE: ()}
        self.publishes = True
        self.tool_works = True
        self.environment = Environment.TEST
        self._lock = threading.Lock()
        self._files = prepare_tls(directory)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def authority(self) -> bytes:
        """Its TLS authority's certificate, PEM."""
        return self._files.root.read_bytes()

    def token(self, *, by_site: bool = True, **changes: Any) -> str:  # noqa: ANN401 - any part of a token
        """Issue a token; returns its text."""
        certificate = x509.load_pem_x509_certificate(self.authority)
        token = Token(
            registrar=self.address,
            id=secrets.token_bytes(8),
            secret=secrets.token_bytes(16),
            tls_pin=hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest(),
            root_digest=hashlib.sha256(self.root).digest(),
            site=SITE,
            expires_s=int((datetime.now(UTC) + timedelta(days=7)).timestamp()),
        )
        token = replace(token, **changes)
        self.tokens[token.id] = token
        return token_text(token, self.site_key if by_site else self.key)

    @property
    def consortium(self) -> ConsortiumRecord:
        """`consortium.json`."""
        server = ServerRecord(address=self.address, root_certificates=self.authority.decode())
        pem = public_pem(self.key.public_key())
        return ConsortiumRecord(
            id="played",
            name="The Played Consortium",
            registrar=server,
            superlink=server,
            registrar_key=pem,
            coordinator=pem,
            evidence=EvidenceTerms(minimum="none", kinds=tuple(KeyKind)),
        )

    def snapshot(self) -> TrustSnapshot:
        """What stands in the repository."""
        sites = {
            site: SiteRecord(
                site=site,
                version=1 + len(nodes),
                nodes=nodes,
                stewards=(),
                revoked=frozenset(),
                expires_s=1 << 33,
                keys=(self.site_key.public_key() if site == SITE else self.key.public_key(),),
            )
            for site, nodes in self.nodes.items()
        }
        return TrustSnapshot(
            root_digest=hashlib.sha256(self.root).hexdigest(),
            environment=self.environment,
            root_version=1,
            timestamp_version=1 + len(self.asked),
            oldest_timestamp=0,
            expires_s=1 << 33,
            consortium=self.consortium,
            sites=sites,
            set_aside={},
            studies=(),
            issued_s=int(datetime.now(UTC).timestamp()),
        )

    def requests(self, method: str, end: str) -> int:
        """How many came of one kind."""
        return sum(asked.method == method and asked.path.endswith(end) for asked in self.asked)

    def respond(self, asked: Asked) -> Said:
        """Answer one request; one after the other."""
        with self._lock:
            self.asked.append(asked)
            return self.before(asked) or self.after(asked, self._answer(asked))

    def _answer(self, asked: Asked) -> Said:
        if asked.path == "/v1/ca.pem":
            return Said(body=self.authority)
        if asked.path == "/repository/1.root.json":
            return Said(body=self.root)
        if asked.path == "/v1/heartbeats":
            return Said(body={})
        if (asked.method, asked.path) == ("POST", "/v1/enrolments"):
            return self._open(json.loads(asked.body), asked)
        name, _, place = asked.path.removeprefix("/v1/enrolments/").partition("/")
        found = next((known for known in self.enrolments.values() if known.name == name), None)
        if found is None or not hmac.compare_digest(asked.secret, encode_bytes(registrar_secret(found.token))):
            return refusal(403, "enrol.unknown")
        return self._situation(found) if asked.method == "GET" else self._put(found, place, asked.body)

    def _open(self, fields: dict[str, str], asked: Asked) -> Said:
        token = self.tokens.get(decode_bytes(fields["token"]))
        if token is None or fields["secret"] != encode_bytes(registrar_secret(token)):
            return refusal(403, "enrol.unknown_token")
        public_key = decode_bytes(fields["public_key"])
        known = self.enrolments.get(token.id)
        if known is not None and known.public_key != public_key:
            return refusal(409, "enrol.token_used")
        if known is None:
            names = decode_bytes(fields["ek_name"]), decode_bytes(fields["key_name"])
            known = Enrolled(
                secrets.token_hex(8),
                token,
                public_key,
                decode_bytes(fields["link_key"]),
                KeyKind(fields["kind"]),
                names,
                secrets.token_bytes(32),
                secrets.token_bytes(32),
            )
            self.enrolments[token.id] = known
        return Said(201, {"enrolment": known.name, "nonce": encode_bytes(known.nonce), "state": known.state.value})

    def _situation(self, known: Enrolled) -> Said:
        if known.state is State.APPRAISED and not known.seen:
            known.seen = True  # the hospital's tool looks once in a while
        elif known.state is State.APPRAISED and self.tool_works:
            known.state = State.EXCHANGED
        elif known.state is State.EVIDENCED:
            known.state = State.CREDENTIALED if "site" in known.credentials else State.ENDORSED
        elif known.state is State.ANSWERED:
            known.state = State.ENDORSED
        elif known.state is State.ENDORSED:
            known.state = State.ENROLLED
            self._publish(known)
        fields: dict[str, object] = {"state": known.state.value}
        if known.state is State.EXCHANGED:
            asker = key_id(self.site_key.public_key())
            fields["exchange"] = {"asker_key": asker, "nonce": encode_bytes(known.site_nonce)}
        if known.state is State.CREDENTIALED:
            asker = key_id(self.site_key.public_key())
            fields["exchange"] = {"asker_key": asker, "nonce": encode_bytes(known.site_nonce)}
            fields["credential"] = known.credentials["site"]
        if known.state is State.REFUSED:
            fields["refusal"] = {"sentence": "The hospital says no.", "next_step": "Ask the hospital."}
        return Said(body=fields)

    def _put(self, known: Enrolled, place: str, body: bytes) -> Said:
        try:
            return self._PLACES[place](self, known, body)
        except PeerProtocolError as error:
            return refusal(422, error.code)

    def _evidence(self, known: Enrolled, body: bytes) -> Said:
        self._appraise(known, parse_evidence(body), "registrar")
        if "registrar" not in known.credentials:
            known.state = State.APPRAISED
            return Said(body={})
        known.state = State.CHALLENGED
        return Said(body={"credential": known.credentials["registrar"]})

    def _activation(self, known: Enrolled, body: bytes) -> Said:
        confirm_activation(*known.answers["registrar"], decode_bytes(json.loads(body)["answer"]))
        known.state = State.APPRAISED
        return Said(body={})

    def _site_evidence(self, known: Enrolled, body: bytes) -> Said:
        fields = json.loads(body)
        data = self._exchange(known, "site").qualifying_data(*known.names)
        proof = token_proof(site_secret(known.token), data, known.link_key)
        if not hmac.compare_digest(decode_bytes(fields["proof"]), proof):
            return refusal(403, "endorse.no_proof")
        self._appraise(known, parse_evidence(decode_bytes(fields["evidence"])), "site")
        known.state = State.EVIDENCED
        return Said(body={})

    def _site_activation(self, known: Enrolled, body: bytes) -> Said:
        confirm_activation(*known.answers["site"], decode_bytes(json.loads(body)["answer"]))
        known.state = State.ANSWERED
        return Said(body={})

    _PLACES: dict[str, Callable[[PlayedRegistrar, Enrolled, bytes], Said]] = {  # noqa: RUF012 - read only
        "evidence": _evidence,
        "activation": _activation,
        "endorsement/evidence": _site_evidence,
        "endorsement/activation": _site_activation,
    }

    def _exchange(self, known: Enrolled, who: str) -> Exchange:
        label, key, nonce = {
            "registrar": (ENROLMENT_LABEL, self.key, known.nonce),
            "site": (ENDORSEMENT_LABEL, self.site_key, known.site_nonce),
        }[who]
        root = hashlib.sha256(self.root).hexdigest()
        return Exchange(label, key_id(key.public_key()), root, known.token.id.hex(), known.token.site, nonce)

    def _appraise(self, known: Enrolled, evidence: Evidence, who: str) -> None:
        if evidence.public_key != known.public_key or evidence.kind is not known.kind:
            raise PeerProtocolError("played.another_key", "Another key.", next_step="None.")
        exchange = self._exchange(known, who)
        if known.kind is not KeyKind.TPM:
            verify_possession(evidence, RootKey(known.kind, known.public_key), exchange.qualifying_data(*known.names))
            return
        now_s = int(datetime.now(UTC).timestamp())
        candidate = appraise_evidence(evidence, exchange, Policy(self.stores), now_s=now_s)
        secret = secrets.token_bytes(32)
        known.answers[who] = candidate, secret
        credential = challenge(candidate, secret, random_bytes=secrets.token_bytes)
        known.credentials[who] = {
            "blob": encode_bytes(credential.blob),
            "encrypted_seed": encode_bytes(credential.encrypted_seed),
        }

    def _publish(self, known: Enrolled) -> None:
        if self.publishes:
            self.publish(node_file(known.public_key, known.link_key, known.kind, site=known.token.site))

    def publish(self, node: NodeFile) -> None:
        """Let a record stand in its site's signed metadata."""
        self.nodes[SiteID(node.site)] += (node,)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registrar = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                secret = self.headers.get("authorization", "").removeprefix("Bearer ")
                said = registrar.respond(Asked(self.command, self.path, body, secret))
                if said.hang_up:
                    return
                self.send_response(said.status)
                if not said.endless:
                    self.send_header("content-length", str(len(said.data)))
                self.end_headers()
                try:
                    self.wfile.write(said.data)
                    while said.endless:
                        self.wfile.write(said.data)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                return

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()


def node_file(public_key: bytes, link_key: bytes, kind: KeyKind, *, site: str = SITE) -> NodeFile:
    """A node's record as a hospital would sign it."""
    key = load_public_key(public_key)
    return NodeFile(
        site=site,
        node=node_name(key_id(key)),
        kind=kind,
        evidence="none",
        public_key=public_pem(key),
        link_key=public_pem(load_public_key(link_key)),
        enrolled=datetime.now(UTC),
    )
