"""How the boxes of a consortium do: those on record, held against what each one last told of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from agent.core.ids import SiteID
from agent.statements.roots import KeyKind
from agent.trust.records import NodeFile
from agent.trust.snapshot import TrustSnapshot
from provisioning.registrar.heartbeats import BoxHeartbeat

SILENT_S: Final = 900
"""Five heartbeats."""
_RENEW: Final = "Somebody must run `seh-agent key renew` at the box."
_ATTENDED: Final[Mapping[KeyKind, str]] = {
    KeyKind.FIDO2: _RENEW,
    KeyKind.PIV: f"Where its card wants a PIN: {_RENEW[0].lower()}{_RENEW[1:]}",
}
"""Keys that may want their person each day: without a session there is nothing to sign a heartbeat with."""


class Condition(StrEnum):
    """How a box does, the most pressing first."""

    SILENT = "silent"  # heard of before, and not now
    UNHEARD = "never heard of"
    NEEDS_PERSON = "needs a person"
    DEGRADED = "degraded"
    WELL = "well"


@dataclass(frozen=True, slots=True)
class FleetBox:
    """One box on record that is not revoked.

    Args:
        site: The hospital.
        node: The box.
        condition: How it does.
        needs_person: Whether somebody has to come to it.
        sentence: What is wrong, and what helps; empty where all is well.
        key: What holds its key.
        key_id: Of that key, hex.
        is_spare: Whether another box of the hospital speaks for it.
        release: The version of its software; empty where it was never heard of, like all below.
        seen_s: When it was last heard of, in seconds since 1970.
        session: What its key could prove then.
        session_expires_s: Until when its key has vouched for it.
        link: How it stood to the SuperLink.
        trouble: Code of what was wrong.
        uptime_s: How long its agent had been running.
    """

    site: str
    node: str
    condition: Condition
    needs_person: bool
    sentence: str
    key: str
    key_id: str
    is_spare: bool
    release: str = ""
    seen_s: int | None = None
    session: str = ""
    session_expires_s: int | None = None
    link: str = ""
    trouble: str = ""
    uptime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """All of them at one moment.

    Args:
        consortium: Its name.
        now_s: The moment.
        boxes: Silent ones first, then by how they do; of each, those first that were not heard of for longest.
        boxless: Hospitals without a box that could be heard of, and why.
    """

    consortium: str
    now_s: int
    boxes: tuple[FleetBox, ...]
    boxless: Mapping[str, str]

    @property
    def counts(self) -> Mapping[Condition, int]:
        """How many boxes do how."""
        found = Counter(box.condition for box in self.boxes)
        return {condition: found[condition] for condition in Condition}


def survey(snapshot: TrustSnapshot, heartbeats: Mapping[str, BoxHeartbeat], *, now_s: int) -> Fleet:
    """See how a consortium's boxes do.

    Args:
        snapshot: Who is on record.
        heartbeats: The last of each box, by its key's id.
        now_s: Seconds since 1970.
    """
    order = list(Condition)
    boxes = sorted(_boxes(snapshot, heartbeats, now_s), key=lambda box: (order.index(box.condition), box.seen_s or 0))
    present = {box.site for box in boxes}
    boxless = dict.fromkeys(snapshot.sites, "It has no box yet, or revoked those that it had.")
    boxless |= snapshot.set_aside
    return Fleet(
        consortium=snapshot.consortium.name,
        now_s=now_s,
        boxes=tuple(boxes),
        boxless={site: why for site, why in sorted(boxless.items()) if site not in present},
    )


def _boxes(snapshot: TrustSnapshot, heartbeats: Mapping[str, BoxHeartbeat], now_s: int) -> Iterator[FleetBox]:
    for site, record in sorted(snapshot.sites.items()):
        speaker = snapshot.speaker(SiteID(site))
        for node in record.nodes:
            key_id = node.root.key_id
            if key_id not in record.revoked:
                is_spare = speaker is not None and speaker.node != node.node
                yield _box(node, key_id, heartbeats.get(key_id), is_spare=is_spare, now_s=now_s)


def _box(node: NodeFile, key_id: str, beat: BoxHeartbeat | None, *, is_spare: bool, now_s: int) -> FleetBox:
    condition, needs_person, sentence = _judge(node.kind, beat, now_s)
    known = FleetBox(node.site, node.node, condition, needs_person, sentence, node.kind.value, key_id, is_spare)
    if beat is None:
        return known
    return replace(
        known,
        release=beat.release,
        seen_s=beat.seen_s,
        session=beat.session,
        session_expires_s=beat.session_expires_s,
        link=beat.link,
        trouble=beat.trouble,
        uptime_s=beat.uptime_s,
    )


def _judge(kind: KeyKind, beat: BoxHeartbeat | None, now_s: int) -> tuple[Condition, bool, str]:
    renew = _ATTENDED.get(kind, "")
    if beat is None:
        why = f" Its key may not have vouched for it yet. {renew}" if renew else ""
        return Condition.UNHEARD, bool(renew), f"Nothing came from it for 90 days, or ever.{why}"
    if now_s - beat.seen_s >= SILENT_S:
        ended = bool(renew) and now_s >= beat.session_expires_s
        why = f" Its key vouched for it until {utc(beat.session_expires_s)}. {renew}" if ended else ""
        return Condition.SILENT, ended, f"Nothing came from it since {utc(beat.seen_s)}.{why}"
    if beat.health == "needs-person":
        return Condition.NEEDS_PERSON, True, f"Its key vouches for it until {utc(beat.session_expires_s)}. {_RENEW}"
    if beat.health == "well":
        return Condition.WELL, False, ""
    key = "; its key does not renew its word" if beat.session == "due" else ""
    trouble = f" [{beat.trouble}]" if beat.trouble else ""
    return Condition.DEGRADED, False, f"Its link to the SuperLink is {beat.link}{key}.{trouble}"


def utc(seconds: int) -> str:
    """A moment, in seconds since 1970, to the minute."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def ago(seconds: int) -> str:
    """How long ago, as people say it."""
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name} ago"
    return "now"
