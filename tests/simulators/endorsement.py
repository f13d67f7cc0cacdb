"""A hospital's endorsing tool with a registrar between it and the boxes that does as told: carry honestly, or cheat."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, MetaFile, TargetFile, Targets

from agent.attestation.binding import Exchange
from agent.attestation.enrolling import ENDORSEMENT_LABEL, token_proof
from agent.attestation.evidence import encode_evidence
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.enrolment.conversation import gather_evidence
from agent.identity.key import HardwareKey, init_key
from agent.statements.roots import KeyKind, key_id, public_key_bytes
from agent.trust.records import CONSORTIUM_TARGET, EvidenceTerms, NodeFile, SitePaths, parse_record
from agent.trust.token import Token, site_secret
from provisioning.authority.endorsing import Decide, EndorsingTool, decide_later
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_office import SiteOffice
from provisioning.tokens.state import KeptToken, SiteTokenFiles, UsedTokenFiles
from tests.simulators.clock import SetClock
from tests.simulators.repository import PlayedRepository, consortium, new_signer
from tests.simulators.tokens import TOKEN

SITE = SiteID("hospital-a")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(slots=True)
class PlayedBox:
    """A box with a software key and a token."""

    key: HardwareKey
    token: Token

    def evidence(self, exchange: Exchange) -> bytes:
        """What its key shows."""
        return encode_evidence(gather_evidence(self.key, exchange.qualifying_data(*self.key.evidence_names())))

    def proof(self, exchange: Exchange) -> bytes:
        """Of its token."""
        data = exchange.qualifying_data(*self.key.evidence_names())
        return token_proof(site_secret(self.token), data, public_key_bytes(self.key.public_key()))


class CarryingRegistrar(SiteLine):
    """In place of the line: keeps what the tool says, and serves what the test made of it."""

    def __init__(self, repository: PlayedRepository) -> None:
        self.repository = repository
        self.waiting: dict[str, dict[str, object]] = {}
        self.refusals: dict[str, dict[str, str]] = {}
        self.asked: dict[str, dict[str, str]] = {}
        self.published: list[str] = []
        self.conflicts = 0

    def add(self, box: PlayedBox, *, name: str = "one", **changes: object) -> None:
        """A box waits for its hospital."""
        ek_name, key_name = box.key.evidence_names()
        public_key = _text(public_key_bytes(box.key.public_key()))
        self.waiting[name] = {
            "enrolment": name,
            "state": "appraised",
            "token": box.token.id.hex(),
            "kind": box.key.kind.value,
            "public_key": public_key,
            "link_key": public_key,
            "ek_name": _text(ek_name),
            "key_name": _text(key_name),
        } | changes

    def answer(self, box: PlayedBox, asker_key: str, *, name: str = "one", **changes: object) -> None:
        """The box answers what the tool asked."""
        asked = self.asked[name]
        root = self.repository.root_digest
        exchange = Exchange(ENDORSEMENT_LABEL, asker_key, root, box.token.id.hex(), SITE, _bytes(asked["nonce"]))
        self.waiting[name] |= {
            "state": "evidenced",
            "nonce": asked["nonce"],
            "evidence": _text(box.evidence(exchange)),
            "proof": _text(box.proof(exchange)),
        } | changes

    def call(self, method: str, place: str, body: bytes = b"") -> bytes:
        if method == "GET":
            return json.dumps({"enrolments": list(self.waiting.values())}).encode()
        fields = json.loads(body)
        if place == "/metadata":
            if self.conflicts:
                self.conflicts -= 1
                raise OperatorError(
                    "site_line.refused", "Not next.", next_step="None.", registrar_code="authority.may_not_follow"
                )
            self._publish(fields)
            return b"{}"
        _, _, name, what = place.split("/")
        if what == "exchange":
            self.asked[name] = fields
            self.waiting[name]["state"] = "exchanged"
        elif what == "refusal":
            self.refusals[name] = fields
            del self.waiting[name]
        return b"{}"

    def _publish(self, fields: dict[str, object]) -> None:
        data, files = _bytes(str(fields["metadata"])), fields["targets"]
        assert isinstance(files, dict)
        role = Metadata[Targets].from_bytes(data).signed
        name = SitePaths(SITE).role
        self.repository.files[f"{role.version}.{name}.json"] = data
        self.repository.snapshot.meta[f"{name}.json"] = MetaFile.from_data(role.version, data, ["sha256"])
        for path, content in files.items():
            target = TargetFile.from_data(path, _bytes(content), ["sha256"])
            self.repository.files[target.get_prefixed_paths()[0]] = _bytes(content)
        self.repository.publish()
        for path, content in files.items():
            if path.endswith("/node.json"):
                self._settle(parse_record(NodeFile, _bytes(content)))

    def _settle(self, node: NodeFile) -> None:
        """Boxes that stand on record wait no more."""
        key = _text(node.root.public_key)
        for name in [name for name, waiting in self.waiting.items() if waiting["public_key"] == key]:
            self.published.append(name)
            del self.waiting[name]


@dataclass(slots=True)
class EndorsingScene:
    """A hospital with its tool, and boxes that come."""

    directory: Path
    environment: str = "test"
    decide: Decide = decide_later
    clock: SetClock = field(default_factory=lambda: SetClock(datetime.now(UTC)))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    repository: PlayedRepository = field(init=False)
    registrar: CarryingRegistrar = field(init=False)
    tool: EndorsingTool = field(init=False)
    close: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.repository = PlayedRepository.found(self.clock, environment=self.environment)
        record = consortium().model_copy(
            update={"evidence": EvidenceTerms(minimum="none", kinds=(KeyKind.TPM, KeyKind.SOFTWARE))}
        )
        self.repository.put(self.repository.targets, CONSORTIUM_TARGET, record.encode())
        self.repository.sign_targets()
        self.repository.delegate_site(SITE, new_signer(self.key))
        self.repository.publish()
        self.registrar = CarryingRegistrar(self.repository)
        self.open_tool()
        self.tool.prepare()

    @property
    def asker_key(self) -> str:
        """Id of the hospital's key."""
        return key_id(self.key.public_key())

    def open_tool(self) -> None:
        """Start the tool, as after a restart."""
        copy = self.repository.client(self.directory / "trust")
        self.close = copy.close
        office = SiteOffice(SITE, new_signer(self.key), copy, self.registrar, self.clock)
        self.tool = EndorsingTool(
            office,
            kept=SiteTokenFiles(self.directory / "tokens"),
            used=UsedTokenFiles(self.directory / "used"),
            random_bytes=os.urandom,
            decide=lambda waiting: self.decide(waiting),  # noqa: PLW0108 - a test changes it later
        )

    def restart_tool(self) -> None:
        """End it and start it."""
        self.close()
        self.open_tool()

    def token(self, *, kept: bool = True, lasts_s: int = 3600) -> Token:
        """A token, by the hospital's own key or the registrar's."""
        expires_s = int(self.clock.now().timestamp()) + lasts_s
        token = replace(
            TOKEN, id=secrets.token_bytes(8), secret=secrets.token_bytes(16), site=SITE, expires_s=expires_s
        )
        if kept:
            SiteTokenFiles(self.directory / "tokens").add(KeptToken.of(token, site_secret(token)))
        return token

    def box(self, token: Token) -> PlayedBox:
        """A box with a key of its own."""
        return PlayedBox(init_key(f"software:{self.directory / secrets.token_hex(4)}.key"), token)

    def revoke(self, box: PlayedBox) -> None:
        """The hospital revokes a box's key."""
        with self.repository.client(self.directory / "office") as copy:
            office = SiteOffice(SITE, new_signer(self.key), copy, self.registrar, self.clock)
            office.publish(lambda desk: desk.revoke(box.key.key_id, "Lost."))

    def nodes(self) -> list[str]:
        """Key ids on record at the hospital, as anybody reads them."""
        with self.repository.client(self.directory / "reader") as reader:
            return [node.root.key_id for node in reader.refresh().sites[SITE].nodes]
