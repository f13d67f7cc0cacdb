"""A box that is on record and sends heartbeats, well or as a test says; no agent runs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.statements.envelope import Proof, Statement, encode_proof
from agent.statements.kinds import Heartbeat, SessionCertificate
from agent.statements.roots import key_id, public_key_bytes
from agent.trust.peers import node_name
from agent.trust.records import public_pem
from tests.simulators.authority import FoundedConsortium

LIFETIME_S = 3600
"""What a software key may vouch for."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def sign(statement: Statement, key: ec.EllipticCurvePrivateKey) -> Proof:
    """As a plain key signs."""
    draft = Proof(statement.payload_type(), statement.payload(), key_id(key.public_key()), b"")
    signature = key.sign(draft.signed_bytes(), ec.ECDSA(hashes.SHA256()))
    return Proof(draft.payload_type, draft.payload, draft.key_id, signature)


def request_body(certificate: Proof, heartbeat: Proof) -> bytes:
    """What is posted."""
    return json.dumps(
        {"certificate": encode_proof(certificate).decode(), "heartbeat": encode_proof(heartbeat).decode()}
    ).encode()


@dataclass
class BeatingBox:
    """The box.

    Args:
        consortium: Digest of the pinned root, hex.
        site: Its hospital.
        root: Its hardware key, played by software.
        session: Its session key.
    """

    consortium: str
    site: str
    root: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    session: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @classmethod
    def on_record(cls, consortium: FoundedConsortium, site: str) -> Self:
        """One that its hospital has endorsed."""
        box = cls(consortium.publisher.load().root_digest, site)
        pem = public_pem(box.root.public_key())
        consortium.enrol(site, node=box.node, public_key=pem, link_key=pem)
        return box

    @property
    def key_id(self) -> str:
        """Of its hardware key, hex."""
        return key_id(self.root.public_key())

    @property
    def node(self) -> str:
        """Its name."""
        return node_name(self.key_id)

    def certificate(self, **changes: Any) -> Proof:  # noqa: ANN401 - any part of it
        """Its hardware key vouches for its session key."""
        issued_s = int(time.time()) - 10
        fields: dict[str, Any] = {
            "consortium": self.consortium,
            "site": self.site,
            "node": self.node,
            "root_key": self.key_id,
            "session_key": public_key_bytes(self.session.public_key()).hex(),
            "issued_s": issued_s,
            "expires_s": issued_s + LIFETIME_S,
            "timestamp_version": 1,
        }
        return sign(SessionCertificate.model_validate(fields | changes), self.root)

    def heartbeat(self, **changes: Any) -> Heartbeat:  # noqa: ANN401 - any part of it
        """That it is well."""
        fields: dict[str, Any] = {
            "consortium": self.consortium,
            "site": self.site,
            "node": self.node,
            "release": "1.4.0",
            "link": "online",
            "session": "valid",
            "health": "well",
            "trouble": "",
            "uptime_s": 3600,
            "issued_s": int(time.time()),
        }
        return Heartbeat.model_validate(fields | changes)

    def body(self, **changes: Any) -> bytes:  # noqa: ANN401 - any part of the heartbeat
        """A whole request."""
        return request_body(self.certificate(), sign(self.heartbeat(**changes), self.session))

    def beat(self, client: httpx.Client, **changes: Any) -> httpx.Response:  # noqa: ANN401 - the same
        """Send one."""
        return client.post("/v1/heartbeats", content=self.body(**changes))
