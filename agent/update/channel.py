"""Which release this box should take, by what its channel offers. Pure: values in, a choice out."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.release import Release, Version
from agent.trust.channels import Channel, Offer, bucket_of


@dataclass(frozen=True, slots=True)
class Audience:
    """Who this box is, as channels see it.

    Args:
        site: Its hospital; None before it is enrolled.
        key_id: Of its key; None likewise.
    """

    site: str | None = None
    key_id: str | None = None

    def is_reached_by(self, offer: Offer) -> bool:
        """Whether an offer is made to this box."""
        return offer.reaches(self.site, bucket_of(self.key_id, offer.version))


@dataclass(frozen=True, slots=True)
class Running:
    """What runs here.

    Args:
        version: Of the release.
        epoch: The least security epoch that may run here.
    """

    version: Version
    epoch: int


def choose(channel: Channel, audience: Audience, running: Running, pin: Version | None) -> Version | None:
    """The release to take; None where what runs here is right.

    Args:
        channel: As its role signed it.
        audience: This box.
        running: What runs here.
        pin: The newest release that somebody here lets it take.
    """
    offered = [offer.release for offer in channel.releases if audience.is_reached_by(offer)]
    allowed = [version for version in offered if version > running.version and (pin is None or version <= pin)]
    return max(allowed, default=None)


def check_named(channel: Channel, version: Version) -> None:
    """Check that somebody may ask for a release by name: percentage and sites do not count then, a halt does.

    Raises:
        OperatorError: The channel does not offer it, or halted it (`update.not_offered`).
    """
    offer = channel.offer(str(version))
    if offer is None or offer.halted:
        why = "does not offer it" if offer is None else "offers it no more: it was halted"
        raise OperatorError(
            "update.not_offered",
            f"Release {version} cannot be taken: the channel {channel.channel} {why}.",
            next_step="See `seh-agent update check` for what is offered.",
        )


def check_release(release: Release, running: Running, wanted: Version | None = None) -> None:
    """Check that a verified record may follow what runs here.

    Args:
        release: The record.
        running: What runs here.
        wanted: The release that was chosen, where one was.

    Raises:
        PeerProtocolError: It is the record of another release (`update.other_release`), or below the floor
            (`update.below_floor`).
        OperatorError: It is not newer (`update.not_newer`).
    """
    if wanted is not None and release.version != wanted:
        raise PeerProtocolError(
            "update.other_release",
            f"The record of release {wanted} is that of release {release.version}.",
            next_step="Nothing of it is used. Tell the maker of the software.",
        )
    if release.version <= running.version:
        raise OperatorError(
            "update.not_newer",
            f"Release {release.version} is not newer than {running.version}, which runs here.",
            next_step="Nothing is to be done. To go back one release: `seh-agent update rollback`.",
        )
    if release.epoch < running.epoch:
        raise PeerProtocolError(
            "update.below_floor",
            f"Release {release.version} must not run here any more: its security epoch is {release.epoch}, and this "
            f"box's floor is {running.epoch}.",
            next_step="Take a newer release.",
        )
