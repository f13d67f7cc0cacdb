"""A box with an audit log, whose key its hardware vouched for; no agent runs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.bundle import Voucher, encode_bundle
from agent.audit.leaves import LogOpened, MessageRefused
from agent.audit.log import LOG_FILE_NAME, AuditLog, log_origin
from agent.statements.chain import NodeRecord
from agent.statements.envelope import encode_proof
from agent.statements.kinds import AuditLogKey
from agent.statements.roots import KeyKind, RootKey, public_key_bytes
from tests.simulators.beating_box import BeatingBox, sign
from tests.simulators.clock import SetClock
from tests.simulators.witness import PlayedWitness

CONSORTIUM, SITE = "ab" * 32, "hospital-a"
CLOCK = SetClock()
NOW_S = int(CLOCK.wall.timestamp())


@dataclass(frozen=True)
class AuditedBox:
    """A box with a log of seven leaves."""

    identity: BeatingBox
    key: Ed25519PrivateKey
    directory: Path

    @classmethod
    def in_(cls, directory: Path, identity: BeatingBox | None = None) -> AuditedBox:
        box = cls(identity or BeatingBox(CONSORTIUM, SITE), Ed25519PrivateKey.generate(), directory)
        with box.log() as log:
            box.fill(log)
        return box

    def fill(self, log: AuditLog, *, study: str = "study-a") -> None:
        log.append(self.opened())
        for round_ in range(6):
            log.append(MessageRefused(at_s=NOW_S + round_, study=study, rule="not_expired"))

    def opened(self, previous: str = "") -> LogOpened:
        key = self.key.public_key().public_bytes_raw().hex()
        return LogOpened(
            at_s=NOW_S, consortium=CONSORTIUM, site=SITE, node=self.identity.node, key=key, previous=previous
        )

    @property
    def origin(self) -> str:
        return log_origin("consortium-a", SITE, self.identity.node, self.key)

    def log(self) -> AuditLog:
        return AuditLog.open(self.directory, self.key, self.origin)

    def voucher(self, **changes: object) -> Voucher:
        fields = {
            "consortium": CONSORTIUM,
            "site": SITE,
            "node": self.identity.node,
            "log_key": self.key.public_key().public_bytes_raw().hex(),
            "origin": self.origin,
            "issued_s": NOW_S,
        }
        statement = sign(AuditLogKey.model_validate(fields | changes), self.identity.session)
        certificate = self.identity.certificate(issued_s=NOW_S - 10, expires_s=NOW_S + 3000)
        root = RootKey(KeyKind.SOFTWARE, public_key_bytes(self.identity.root.public_key()))
        record = NodeRecord(SITE, self.identity.node, root)
        return Voucher(record, encode_proof(certificate), encode_proof(statement))

    def export(self, *witnesses: PlayedWitness) -> bytes:
        with self.log() as log:
            return encode_bundle(log, self.voucher(), [witness.key for witness in witnesses], size=log.size)

    def database(self, *statements: str) -> None:
        """What somebody does who has the disk."""
        database = sqlite3.connect(self.directory / LOG_FILE_NAME, isolation_level=None)
        for statement in statements:
            database.execute(statement)
        database.close()
