"""Stewards as played in tests: a passkey in a browser, a smartcard, and the hospital's record of both."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.audit.leaves import Leaf, encode_leaf, parse_leaf
from agent.core.base64url import encode_bytes
from agent.core.ids import SiteID
from agent.governance.approval import Approval, Evidence, PIVEvidence, StewardProof, WebAuthnEvidence
from agent.governance.book import ApprovalBook, BoxIdentity, Matter
from agent.governance.challenge import Act, Challenge
from agent.governance.stewards import admitted
from agent.statements.roots import hash_for
from agent.trust.records import StewardFile, public_pem
from tests.simulators.authenticator import UP, UV

SITE = SiteID("hospital-a")
ORIGIN = "http://localhost:8470"
RP_ID = "localhost"
BOX = BoxIdentity("c0" * 32, SITE, "box-1")


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class PasskeySteward:
    """A steward's browser and security key in one, which can be bent.

    Args:
        name: Of the key.
        person: Whose it is.
        count: Its signature counter; None where it keeps none.
    """

    name: str
    person: str | None = None
    site: str = SITE
    count: int | None = 0
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def record(self) -> StewardFile:
        """As the hospital puts it on record."""
        return StewardFile(
            site=self.site,
            steward=self.name,
            person=self.person,
            rp_id=RP_ID,
            credential_id=hashlib.sha256(self.name.encode()).hexdigest(),
            public_key=public_pem(self.key.public_key()),
        )

    def evidence(
        self,
        act: Act,
        *,
        origin: str = ORIGIN,
        rp_id: str = RP_ID,
        flags: int = UP | UV,
        client: Mapping[str, object] | None = None,
    ) -> WebAuthnEvidence:
        """An assertion; `client` replaces fields of the client data."""
        if self.count is not None:
            self.count += 1
        data = hashlib.sha256(rp_id.encode()).digest() + struct.pack(">BI", flags, self.count or 0)
        fields = {"type": "webauthn.get", "challenge": encode_bytes(act.digest), "origin": origin, "crossOrigin": False}
        client_data = json.dumps({**fields, **(client or {})}).encode()
        signature = self.key.sign(data + hashlib.sha256(client_data).digest(), ec.ECDSA(hashes.SHA256()))
        return WebAuthnEvidence(
            authenticator_data=encode_bytes(data),
            client_data_json=encode_bytes(client_data),
            signature=encode_bytes(signature),
        )


@dataclass
class CardSteward:
    """A steward with a smartcard."""

    name: str
    person: str | None = None
    site: str = SITE
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    @property
    def record(self) -> StewardFile:
        """As the hospital puts it on record."""
        return StewardFile(
            site=self.site, steward=self.name, person=self.person, public_key=public_pem(self.key.public_key())
        )

    def evidence(self, act: Act) -> PIVEvidence:
        """A signature."""
        signature = self.key.sign(act.message(), ec.ECDSA(hash_for(self.key.public_key())))
        return PIVEvidence(signature=encode_bytes(signature))


Steward = PasskeySteward | CardSteward


def approval_by(steward: Steward, challenge: Challenge, evidence: Evidence | None = None) -> Approval:
    """A steward's approval."""
    return Approval(steward=steward.name, evidence=evidence or steward.evidence(challenge), challenge=challenge)


def proof_by(steward: Steward, act: Act, evidence: Evidence | None = None) -> StewardProof:
    """A steward's proof of any other act."""
    return StewardProof(steward=steward.name, evidence=evidence or steward.evidence(act))


class KeptLog:
    """An audit log in memory; leaves go through their bytes."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    @property
    def size(self) -> int:
        return len(self.kept)

    def append(self, leaf: Leaf, /) -> int:
        self.kept.append(encode_leaf(leaf))
        return len(self.kept) - 1

    def leaves(self, start: int, stop: int, /) -> Iterator[Leaf]:
        return map(parse_leaf, self.kept[start:stop])


@dataclass
class Records:
    """What a hospital has on record, as tests change it."""

    found: list[StewardFile] = field(default_factory=list)
    barred: set[str] = field(default_factory=set)

    def stewards(self) -> Mapping[str, StewardFile]:
        return admitted(self.found, barred=self.barred)


@dataclass
class Desk:
    """One box's book of approvals, and the hands that hold it."""

    directory: Path
    now_s: int = 1_800_000_000
    box: BoxIdentity = BOX
    audit: KeptLog = field(default_factory=KeptLog)
    records: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The agent starts anew on the same disk."""
        self.book = ApprovalBook(
            self.directory,
            self.audit,
            self.box,
            self.records,
            origins=frozenset({ORIGIN}),
            now_s=lambda: self.now_s,
        )

    def employ(self, *stewards: Steward) -> None:
        """The hospital puts keys on record."""
        self.records.found += [steward.record for steward in stewards]

    def ask(self, matter: Matter, *, days: int = 90) -> Challenge:
        """What is to be signed."""
        return self.book.request(matter, not_after_s=self.now_s + days * 86400)

    def approve(self, steward: Steward, matter: Matter) -> Approval:
        """A steward approves, as it should be."""
        return self.book.accept(approval_by(steward, self.ask(matter)))
