"""A release channel's file: which of the releases that the maker signed are offered to whom.

It is a target of the `channels` role, which can only choose: what may run is said by the releases' own threshold.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.release import VERSION_PATTERN, Version

RELEASES_ROLE: Final = "releases"
CHANNELS_ROLE: Final = "channels"
RECORD_NAME: Final = "release.json"
IMAGE_NAME: Final = "app.raw"
UPDATE_LABEL: Final = "SEH-UPDATE"
"""Of a stick that brings a release."""
EVERY_SITE: Final = "*"
BUCKETS: Final = 100
MAX_CHANNEL_BYTES: Final = 1 << 18
MAX_OFFERS: Final = 256

VersionText = Annotated[str, Field(pattern=f"^{VERSION_PATTERN}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Offer(_Part):
    """One release as a channel offers it.

    Args:
        version: X.Y.Z.
        percentage: Of the boxes, by `bucket_of`.
        sites: The hospitals that it is offered to; `*` for all.
        halted: Whether it is offered to nobody any more.
    """

    version: VersionText
    percentage: Annotated[int, Field(ge=0, le=100)]
    sites: Annotated[tuple[IdentifierText | Literal["*"], ...], Field(min_length=1, max_length=1000)]
    halted: bool = False

    @property
    def release(self) -> Version:
        """What versions are ordered by."""
        return Version.parse(self.version)

    def reaches(self, site: str | None, bucket: int) -> bool:
        """Whether a box of `site` (None: of no hospital yet) in `bucket` may take it."""
        named = EVERY_SITE in self.sites or (site is not None and site in self.sites)
        return not self.halted and named and bucket < self.percentage


class Channel(_Part):
    """The whole file.

    Args:
        channel: Its name.
        releases: What is offered, each version once.
    """

    channel: IdentifierText
    releases: Annotated[tuple[Offer, ...], Field(max_length=MAX_OFFERS)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        versions = [offer.version for offer in self.releases]
        if len(set(versions)) != len(versions):
            raise ValueError("a version is offered twice")
        return self

    def offer(self, version: str) -> Offer | None:
        """How a version is offered; None where it is not."""
        return next((offer for offer in self.releases if offer.version == version), None)

    def encode(self) -> bytes:
        """JSON; the inverse of `parse_channel`."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def parse_channel(data: bytes, name: str) -> Channel:
    """Parse a channel's file.

    Args:
        data: As its role lists it.
        name: Of the channel that it must be.

    Raises:
        PeerProtocolError: It is no such file (`update.bad_channel`).
    """
    if len(data) > MAX_CHANNEL_BYTES:
        raise _bad_channel(name, f"it is larger than {MAX_CHANNEL_BYTES} bytes")
    try:
        channel = Channel.model_validate_json(data)
    except ValidationError as error:
        raise _bad_channel(name, explain_invalid(error, whole="file")) from error
    if channel.channel != name:
        raise _bad_channel(name, f"it is the channel {channel.channel}")
    return channel


def channel_path(name: str) -> str:
    """Target path of a channel."""
    return f"{CHANNELS_ROLE}/{name}.json"


def release_path(version: str, name: str) -> str:
    """Target path of a release's file."""
    return f"{RELEASES_ROLE}/{version}/{name}"


def delta_name(base: str) -> str:
    """How a release's delta from an older one is called."""
    return f"from-{base}.zst"


def bucket_of(key_id: str | None, version: str) -> int:
    """In which of `BUCKETS` parts of all boxes a box is, for one release: another part for each.

    Args:
        key_id: Of the box's key; None where it is not enrolled: such a box comes last.
        version: Of the release.
    """
    if key_id is None:
        return BUCKETS - 1
    return int.from_bytes(hashlib.sha256(f"{key_id}|{version}".encode()).digest()) % BUCKETS


def _bad_channel(name: str, what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.bad_channel",
        f"The release channel {name} cannot be used: {what}.",
        next_step="The release that runs stays. Tell the maker of the software.",
    )
