"""What a box remembers of its consortium's repository beside the files themselves, so that none of it runs backwards.

    online     the newest timestamp and snapshot, and the latest signed time, under the keys that signed them
    roles      the newest version of each other role, under the keys that signed it
    sites      each hospital's keys, pinned at first sight, and which of its boxes' keys it revoked

Versions count only under the keys that signed them: whoever steals keys can run their versions ahead, and the way back
is a rotation of those keys by the role above (TUF 5.3.11). A hospital's keys are pinned on their own: that the role
above lists others is not enough.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32, Seconds
from agent.trust.records import PEMText, parse_public_pem

MAX_PINS_BYTES: Final = 32 << 20
MAX_ROLES: Final = 4096
MAX_SITE_KEYS: Final = 8
MAX_REVOKED: Final = 256
"""Of one hospital: so many are remembered beside what it says itself."""
TIMESTAMP_AGE_S: Final = 2 * 86400
"""How old the timestamp that a session certificate names may be, in seconds, against the newest one: a timestamp counts
for a day, and a session that began then lives for a day at most."""
_REMEMBERED_EVERY_S: Final = 1800

Version = Annotated[int, Field(gt=0, lt=1 << 53)]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Moment(_Stored):
    """A timestamp that was seen: its version, and when it says that it was signed."""

    version: Version
    issued_s: Seconds


class OnlinePin(_Stored):
    """What the online roles showed.

    Args:
        keys: Digest of their keys and thresholds.
        timestamp: The newest timestamp.
        snapshot: Version of the newest snapshot.
        seen: Timestamps of the last days, oldest first.
    """

    keys: Hex32
    timestamp: Moment
    snapshot: Version
    seen: Annotated[tuple[Moment, ...], Field(max_length=256)] = ()


class RolePin(_Stored):
    """The newest version of a role, under the keys with this digest."""

    keys: Hex32
    version: Version


class SitePin(_Stored):
    """A hospital's keys.

    Args:
        keys: PEM, sorted.
        threshold: How many of them sign.
        version: Of the role's metadata that was last accepted under them.
        revoked: Ids of keys of its boxes that it revoked once.
    """

    keys: Annotated[tuple[PEMText, ...], Field(min_length=1, max_length=MAX_SITE_KEYS)]
    threshold: Annotated[int, Field(ge=1, le=MAX_SITE_KEYS)]
    version: Version
    revoked: Annotated[tuple[Hex32, ...], Field(max_length=MAX_REVOKED)] = ()

    @property
    def public_keys(self) -> tuple[ec.EllipticCurvePublicKey, ...]:
        """The keys themselves."""
        return tuple(map(parse_public_pem, self.keys))

    def has_keys_of(self, other: SitePin) -> bool:
        """Whether both name the same keys."""
        return (self.keys, self.threshold) == (other.keys, other.threshold)


class Pins(_Stored):
    """The whole memory."""

    format: Literal["secur-e-health/pins/1"] = "secur-e-health/pins/1"
    online: OnlinePin | None = None
    roles: Annotated[dict[str, RolePin], Field(max_length=MAX_ROLES)] = {}
    sites: Annotated[dict[IdentifierText, SitePin], Field(max_length=MAX_ROLES)] = {}

    def oldest_timestamp(self, online_keys: str) -> int:
        """The oldest timestamp version that a session certificate may still name; 0 where none is known to be old."""
        online = self._online_under(online_keys)
        if online is None:
            return 0
        latest_s = online.timestamp.issued_s - TIMESTAMP_AGE_S
        return max((moment.version for moment in online.seen if moment.issued_s <= latest_s), default=0)

    def with_online(self, keys: str, timestamp: Moment, snapshot: int) -> Self:
        """Remember what the online roles show now.

        Args:
            keys: Digest of their keys.
            timestamp: Version and signed time.
            snapshot: Version.

        Raises:
            PeerProtocolError: Version or time runs backwards (`trust.rolled_back`).
        """
        before = self._online_under(keys)
        seen = () if before is None else before.seen
        if before is not None:
            check_not_older("timestamp", before.timestamp.version, timestamp.version)
            check_not_older("snapshot", before.snapshot, snapshot)
            if timestamp.issued_s < before.timestamp.issued_s:
                raise rolled_back("its newest timestamp says that it was signed before the one before it")
        if not seen or timestamp.issued_s >= seen[-1].issued_s + _REMEMBERED_EVERY_S:
            seen = (*_recent(seen, timestamp.issued_s), timestamp)
        online = OnlinePin(keys=keys, timestamp=timestamp, snapshot=snapshot, seen=seen)
        return self.model_copy(update={"online": online})

    def with_role(self, name: str, keys: str, version: int) -> Self:
        """Remember a role's version.

        Args:
            name: The role.
            keys: Digest of its keys.
            version: Of its metadata.

        Raises:
            PeerProtocolError: It runs backwards (`trust.rolled_back`).
        """
        before = self.roles.get(name)
        if before is not None and before.keys == keys:
            check_not_older(name, before.version, version)
        return self.model_copy(update={"roles": {**self.roles, name: RolePin(keys=keys, version=version)}})

    def with_site(self, site: str, pin: SitePin) -> Self:
        """Remember a hospital's keys; what it revoked stays remembered."""
        if before := self.sites.get(site):
            pin = pin.model_copy(update={"revoked": before.revoked})
        return self.model_copy(update={"sites": {**self.sites, site: pin}})

    def with_revoked(self, site: str, key_ids: Collection[str]) -> Self:
        """Remember that a hospital, whose keys are pinned, revoked these keys: no key comes back.

        A thief of the hospital's own key, or tools of its that were shown an old state, could sign without them.
        """
        pin = self.sites[site]
        revoked = (*pin.revoked, *sorted(set(key_ids) - set(pin.revoked)))[:MAX_REVOKED]
        pin = pin.model_copy(update={"revoked": revoked})
        return self.model_copy(update={"sites": {**self.sites, site: pin}})

    def encode(self) -> bytes:
        """JSON; the inverse of `parse_pins`."""
        return self.model_dump_json(exclude_none=True).encode()

    def _online_under(self, keys: str) -> OnlinePin | None:
        return self.online if self.online is not None and self.online.keys == keys else None


def parse_pins(data: bytes) -> Pins:
    """Parse what was stored.

    Raises:
        OperatorError: It is damaged (`trust.bad_pins`).
    """
    if len(data) > MAX_PINS_BYTES:
        raise _bad_pins(f"it is larger than {MAX_PINS_BYTES} bytes")
    try:
        pins = Pins.model_validate_json(data)
    except ValidationError as error:
        raise _bad_pins(explain_invalid(error, whole="file")) from error
    if "format" not in pins.model_fields_set:
        raise _bad_pins("it names no format")  # an empty object would be a memory of nothing
    return pins


def rolled_back(what: str) -> PeerProtocolError:
    """Something in the repository is older than what this box has seen."""
    return PeerProtocolError(
        "trust.rolled_back",
        f"The consortium's trust repository is older than what this box has seen: {what}.",
        next_step="The state known before stays in force. Tell the consortium's operator: a backup was restored, or "
        "somebody shows this box the past.",
    )


def check_not_older(what: str, before: int, now: int) -> None:
    """Check that a version does not run backwards.

    Raises:
        PeerProtocolError: It does.
    """
    if now < before:
        raise rolled_back(f"version {now} of {what} came after version {before}")


def _recent(seen: tuple[Moment, ...], now_s: int) -> tuple[Moment, ...]:
    """Those younger than the limit, and the one before them."""
    old = [moment for moment in seen if moment.issued_s <= now_s - TIMESTAMP_AGE_S]
    return (*old[-1:], *seen[len(old) :])


def _bad_pins(what: str) -> OperatorError:
    return OperatorError(
        "trust.bad_pins",
        f"What this box remembers of its consortium's repository cannot be used: {what}.",
        next_step="Restore it from a backup, or enrol this box anew: without it, an older state could pass for the "
        "newest.",
    )
