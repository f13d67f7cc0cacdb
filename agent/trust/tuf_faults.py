"""python-tuf's exceptions in our own terms: whose fault, in plain words, with the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def translated() -> Iterator[None]:
    """Raise what python-tuf raises as an error of ours.

    Raises:
        NetworkError: A file cannot be had.
        PeerProtocolError: What was had does not verify.
        HardwareError: The disk does not take it.
    """
    try:
        yield
    except (DownloadError, OSError, *_MALFORMED) as error:
        raise next(say(error) for kind, say in _TABLE if isinstance(error, kind)) from error


def _rolled_back(error: Exception) -> SecureHealthError:
    return PeerProtocolError(
        "trust.wrong_version",
        f"A file of the consortium's trust repository has another version than it should: {error}.",
        next_step=f"{_STAYS}. Tell the consortium's operator: a backup was restored, or somebody shows this box the "
        "past.",
    )


def _not_signed(error: Exception) -> SecureHealthError:
    return PeerProtocolError(
        "trust.not_signed",
        f"A file of the consortium's trust repository lacks signatures: {error}.",
        next_step=f"{_STAYS}. Tell the consortium's operator: somebody without the keys wrote it.",
    )


def _expired(error: Exception) -> SecureHealthError:
    return expired(str(error).removesuffix(" is expired"))


def _altered(error: Exception) -> SecureHealthError:
    return PeerProtocolError(
        "trust.altered_file",
        f"A file of the consortium's trust repository is not the one that was signed: {error}.",
        next_step=f"{_STAYS}, and the file is fetched again. If it repeats, somebody on the way alters it.",
    )


def _slow(_: Exception) -> SecureHealthError:
    return NetworkError(
        "trust.slow",
        "The consortium's trust repository sends too slowly, and was cut off.",
        next_step=f"{_STAYS}, and it is tried again. If it lasts, have the line to the registrar checked.",
    )


def _oversize(error: Exception) -> SecureHealthError:
    return PeerProtocolError(
        "trust.oversize_file",
        f"A file of the consortium's trust repository is larger than it may be: {error}.",
        next_step=f"{_STAYS}. Tell the consortium's operator.",
    )


def _unreachable(error: Exception) -> SecureHealthError:
    return NetworkError(
        "trust.unreachable",
        f"The consortium's trust repository cannot be read: {error}.",
        next_step=f"{_STAYS}, and it is tried again. If it lasts, check the network, the firewall and the proxy.",
    )


def _malformed(error: Exception) -> SecureHealthError:
    return bad_repository(f"python-tuf says {type(error).__name__}: {str(error)[:200]}")


def _not_stored(error: Exception) -> SecureHealthError:
    return HardwareError(
        "trust.not_stored",
        f"The consortium's trust repository cannot be kept on this box: {getattr(error, 'strerror', None) or error}.",
        next_step=f"{_STAYS}. Free space on the disk, or have it checked.",
    )


def expired(what: str) -> PeerProtocolError:
    """Something was not renewed in time."""
    return PeerProtocolError(
        "trust.expired",
        f"The consortium's trust repository was not renewed in time: {what} has expired.",
        next_step=f"{_STAYS} for as long as it counts. If this box's clock is right, tell the consortium's operator.",
    )


def check_not_expired(what: str, expires_s: int, now_s: int) -> None:
    """Check that something still counts.

    Args:
        what: For the sentence.
        expires_s: Until when it does, exclusive, in seconds since 1970.
        now_s: The present, likewise.

    Raises:
        PeerProtocolError: It does not.
    """
    if expires_s <= now_s:
        raise expired(what)


def bad_repository(what: str) -> PeerProtocolError:
    """The repository is not built as a consortium's is."""
    return PeerProtocolError(
        "trust.bad_repository",
        f"The consortium's trust repository cannot be used: {what}.",
        next_step=f"{_STAYS}. Tell the consortium's operator.",
    )


_TABLE: Final[tuple[tuple[type[Exception], Callable[[Exception], SecureHealthError]], ...]] = (
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
