"""python-tuf's exceptions in our own terms: whose fault, in plain words, with the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)

from agent.core.errors import HardwareError, NetworkError, PeerProtocolError, SecureHealthError

_STAYS: Final = "The state known before stays in force"
_MALFORMED = (RepositoryError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Subject:
    """Which repository an error speaks of.

    Args:
        name: As people call it.
        keeper: Whom to tell.
    """

    name: str = "consortium's trust repository"
    keeper: str = "the consortium's operator"


CONSORTIUM: Final = Subject()


@contextmanager
def translated(subject: Subject = CONSORTIUM) -> Iterator[None]:
    """Raise what python-tuf raises as an error of ours.

    Args:
        subject: The repository that was read.

    Raises:
        NetworkError: A file cannot be had.
        PeerProtocolError: What was had does not verify.
        HardwareError: The disk does not take it.
    """
    try:
        yield
    except (DownloadError, OSError, *_MALFORMED) as error:
        raise next(say(error, subject) for kind, say in _TABLE if isinstance(error, kind)) from error


def _rolled_back(error: Exception, subject: Subject) -> SecureHealthError:
    return PeerProtocolError(
        "trust.wrong_version",
        f"A file of the {subject.name} has another version than it should: {error}.",
        next_step=f"{_STAYS}. Tell {subject.keeper}: a backup was restored, or somebody shows this box the past.",
    )


def _not_signed(error: Exception, subject: Subject) -> SecureHealthError:
    return PeerProtocolError(
        "trust.not_signed",
        f"A file of the {subject.name} lacks signatures: {error}.",
        next_step=f"{_STAYS}. Tell {subject.keeper}: somebody without the keys wrote it.",
    )


def _expired(error: Exception, subject: Subject) -> SecureHealthError:
    return expired(str(error).removesuffix(" is expired"), subject)


def _altered(error: Exception, subject: Subject) -> SecureHealthError:
    return PeerProtocolError(
        "trust.altered_file",
        f"A file of the {subject.name} is not the one that was signed: {error}.",
        next_step=f"{_STAYS}, and the file is fetched again. If it repeats, somebody on the way alters it.",
    )


def _slow(_: Exception, subject: Subject) -> SecureHealthError:
    return NetworkError(
        "trust.slow",
        f"The {subject.name} sends too slowly, and was cut off.",
        next_step=f"{_STAYS}, and it is tried again. If it lasts, have the line to it checked.",
    )


def _oversize(error: Exception, subject: Subject) -> SecureHealthError:
    return PeerProtocolError(
        "trust.oversize_file",
        f"A file of the {subject.name} is larger than it may be: {error}.",
        next_step=f"{_STAYS}. Tell {subject.keeper}.",
    )


def _unreachable(error: Exception, subject: Subject) -> SecureHealthError:
    return NetworkError(
        "trust.unreachable",
        f"The {subject.name} cannot be read: {error}.",
        next_step=f"{_STAYS}, and it is tried again. If it lasts, check the network, the firewall and the proxy.",
    )


def _malformed(error: Exception, subject: Subject) -> SecureHealthError:
    return bad_repository(f"python-tuf says {type(error).__name__}: {str(error)[:200]}", subject)


def _not_stored(error: Exception, subject: Subject) -> SecureHealthError:
    return HardwareError(
        "trust.not_stored",
        f"The {subject.name} cannot be kept on this box: {getattr(error, 'strerror', None) or error}.",
        next_step=f"{_STAYS}. Free space on the disk, or have it checked.",
    )


def expired(what: str, subject: Subject = CONSORTIUM) -> PeerProtocolError:
    """Something was not renewed in time."""
    return PeerProtocolError(
        "trust.expired",
        f"The {subject.name} was not renewed in time: {what} has expired.",
        next_step=f"{_STAYS} for as long as it counts. If this box's clock is right, tell {subject.keeper}.",
    )


def check_not_expired(what: str, expires_s: int, now_s: int, subject: Subject = CONSORTIUM) -> None:
    """Check that something still counts.

    Args:
        what: For the sentence.
        expires_s: Until when it does, exclusive, in seconds since 1970.
        now_s: The present, likewise.
        subject: The repository that was read.

    Raises:
        PeerProtocolError: It does not.
    """
    if expires_s <= now_s:
        raise expired(what, subject)


def bad_repository(what: str, subject: Subject = CONSORTIUM) -> PeerProtocolError:
    """The repository is not built as a consortium's is."""
    return PeerProtocolError(
        "trust.bad_repository",
        f"The {subject.name} cannot be used: {what}.",
        next_step=f"{_STAYS}. Tell {subject.keeper}.",
    )


_TABLE: Final[tuple[tuple[type[Exception], Callable[[Exception, Subject], SecureHealthError]], ...]] = (
    (ExpiredMetadataError, _expired),
    (BadVersionNumberError, _rolled_back),
    (UnsignedMetadataError, _not_signed),
    (LengthOrHashMismatchError, _altered),
    (SlowRetrievalError, _slow),
    (DownloadLengthMismatchError, _oversize),
    (DownloadError, _unreachable),
    (OSError, _not_stored),
    (Exception, _malformed),
)
"""The first kind that fits."""
