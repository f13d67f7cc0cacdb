"""What boxes tell of themselves: believed only when the key that hospital and hardware vouch for has signed it, now.

1. It must be a heartbeat, by its form; what it says is believed not before the end.
2. Its hospital must be on record, with a record that counts.
3. The session certificate must hold against that record: not revoked, not stale, not ended.
4. That session's key must have signed it.
5. It must speak about this consortium and the box whose key it is.
6. It must be of now; that it is later than the last one, the store sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.core.errors import PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.chain import verify_session, verify_statement
from agent.statements.envelope import parse_proof
from agent.statements.kinds import Heartbeat
from agent.trust.snapshot import TrustSnapshot
from agent.trust.tuf_faults import check_not_expired

FRESH_S: Final = 300
"""How far from now, either way, a heartbeat may have been signed."""


@dataclass(frozen=True, slots=True)
class BoxHeartbeat:
    """A box's last heartbeat; see `agent.statements.kinds.Heartbeat`.

    Args:
        key_id: Of the box's hardware key, hex.
        site: The hospital.
        node: The box.
        release: The version of its software.
        link: How it stands to the SuperLink.
        session: What its key can prove.
        health: `well`, `degraded` or `needs-person`.
        trouble: Code of what is wrong; empty when nothing is.
        uptime_s: How long its agent had been running.
        issued_s: When it was signed, by the box's clock.
        session_expires_s: Until when the box's key has vouched for it.
        seen_s: When it was taken, by the registrar's clock.
    """

    key_id: str
    site: str
    node: str
    release: str
    link: str
    session: str
    health: str
    trouble: str
    uptime_s: int
    issued_s: int
    session_expires_s: int
    seen_s: int


def verify_heartbeat(certificate: bytes, heartbeat: bytes, snapshot: TrustSnapshot, *, now_s: int) -> BoxHeartbeat:
    """Verify a heartbeat against what the repository says.

    Args:
        certificate: DSSE envelope of the session certificate.
        heartbeat: DSSE envelope of the statement.
        snapshot: The newest.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: It does not count; the sentence says why.
        NetworkError: The box knows a newer repository than this registrar (`statements.view_behind`).
    """
    proof = parse_proof(heartbeat)
    site = SiteID(Heartbeat.parse(proof.payload).site)
    record = snapshot.sites.get(site)
    if record is None:
        raise _not_taken("the consortium has no such hospital, or none whose record counts")
    check_not_expired(f"what {site} signed", record.expires_s, now_s)
    session = verify_session(certificate, snapshot.view(site), now_s=now_s)
    said = verify_statement(proof, session, Heartbeat, now_s=now_s)
    if (said.consortium, said.site, said.node) != (snapshot.root_digest, session.record.site, session.record.node):
        raise _not_taken("it speaks about another box or consortium than its key's")
    if abs(now_s - said.issued_s) >= FRESH_S:
        raise _not_taken("it was signed too long ago, or by a clock that is wrong")
    return BoxHeartbeat(
        key_id=session.record.root.key_id,
        site=said.site,
        node=said.node,
        release=said.release,
        link=said.link,
        session=said.session,
        health=said.health,
        trouble=said.trouble,
        uptime_s=said.uptime_s,
        issued_s=said.issued_s,
        session_expires_s=session.expires_s,
        seen_s=now_s,
    )


def _not_taken(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "registrar.heartbeat_not_taken",
        f"The registrar does not take a box's heartbeat: {what}.",
        next_step="See `seh-agent status` at the box, and set its clock right. The box goes on without it.",
    )
