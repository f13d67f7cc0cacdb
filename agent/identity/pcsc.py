"""Readers and cards over PC/SC, through the plain calls of libpcsclite.

A context belongs to one connection of one thread and is made anew for every use: when pcscd restarts, only what was
under way fails. Cards are taken exclusively and given back reset, so that a PIN that was verified here counts nowhere
else. pyscard's higher layers are avoided: they leave cards as they are and keep contexts for the life of the process.

Source: PC/SC Workgroup Part 5; pcsc-lite 1.9 API.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from smartcard import scard

from agent.core.errors import HardwareError

BUSY_TIMEOUT_S = 3.0
"""How long another program may hold a card before we say so."""
_RETRY_S = 0.02
_SERVICE_GONE = frozenset(
    {
        scard.SCARD_E_NO_SERVICE,
        scard.SCARD_E_SERVICE_STOPPED,
        scard.SCARD_F_COMM_ERROR,
        scard.SCARD_E_INVALID_HANDLE,
        scard.SCARD_F_INTERNAL_ERROR,
    }
)
_READER_GONE = frozenset(
    {scard.SCARD_E_NO_READERS_AVAILABLE, scard.SCARD_E_UNKNOWN_READER, scard.SCARD_E_READER_UNAVAILABLE}
)
_CARD_GONE = frozenset({scard.SCARD_E_NO_SMARTCARD, scard.SCARD_W_REMOVED_CARD, scard.SCARD_W_RESET_CARD})


class PCSCConnection:
    """One card, held exclusively until `close`.

    Args:
        context: Its own PC/SC context, released with it.
        card: PC/SC handle.
        protocol: T=0 or T=1, as connected.
        reader: Where the card is.
    """

    def __init__(self, context: int, card: int, protocol: int, reader: str) -> None:
        self.reader = reader
        self._context = context
        self._card = card
        self._protocol_header = scard.SCARD_PCI_T0 if protocol == scard.SCARD_PROTOCOL_T0 else scard.SCARD_PCI_T1
        self._disposition = scard.SCARD_RESET_CARD

    @classmethod
    def open(cls, reader: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Take the card in `reader`.

        Args:
            reader: Its full name.
            busy_timeout_s: How long to wait while another program holds the card.

        Raises:
            HardwareError: No service, no such reader, no card, or somebody else holds it for too long.
        """
        deadline = time.monotonic() + busy_timeout_s
        context = _establish()
        while True:
            result, card, protocol = scard.SCardConnect(
                context, reader, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
            )
            if result == scard.SCARD_S_SUCCESS:
                return cls(context, card, protocol, reader)
            if result != scard.SCARD_E_SHARING_VIOLATION or time.monotonic() > deadline:
                scard.SCardReleaseContext(context)
                raise _pcsc_error(result, reader)
            time.sleep(_RETRY_S)

    def transmit(self, command: bytes) -> bytes:
        """Send one command APDU; return the response data and the two status bytes.

        Raises:
            HardwareError: The card was pulled out, or the service went away.
        """
        result, response = scard.SCardTransmit(self._card, self._protocol_header, list(command))
        if result != scard.SCARD_S_SUCCESS:
            raise _pcsc_error(result, self.reader)
        return bytes(byte & 0xFF for byte in response)

    def leave_as_is(self) -> None:
        """On `close`, do not reset the card: it turned out to be somebody else's."""
        self._disposition = scard.SCARD_LEAVE_CARD

    def reset_on_close(self) -> None:
        """On `close`, reset the card after all: what we did there must not last."""
        self._disposition = scard.SCARD_RESET_CARD

    def close(self) -> None:
        """Give the card back, reset."""
        scard.SCardDisconnect(self._card, self._disposition)
        scard.SCardReleaseContext(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def list_readers_with_card(name: str = "") -> tuple[str, ...]:
    """Names of the readers that hold a card and whose name contains `name`.

    Raises:
        HardwareError: There is no PC/SC service, or no reader (`identity.no_reader`).
    """
    with _context() as context:
        readers = [reader for reader in _list_readers(context) if name in reader]
        if not readers:
            raise _pcsc_error(scard.SCARD_E_NO_READERS_AVAILABLE, name)
        states = _states(context, readers)
    return tuple(reader for reader, state in states if state & scard.SCARD_STATE_PRESENT)


@contextmanager
def _context() -> Iterator[int]:
    context = _establish()
    try:
        yield context
    finally:
        scard.SCardReleaseContext(context)


def _establish() -> int:
    result, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
    if result != scard.SCARD_S_SUCCESS:
        raise _pcsc_error(result, "")
    return int(context)


def _list_readers(context: int) -> list[str]:
    result, readers = scard.SCardListReaders(context, [])
    if result == scard.SCARD_E_NO_READERS_AVAILABLE:
        return []
    if result != scard.SCARD_S_SUCCESS:
        raise _pcsc_error(result, "")
    return list(readers)


def _states(context: int, readers: list[str]) -> list[tuple[str, int]]:
    result, found = scard.SCardGetStatusChange(context, 0, [(reader, scard.SCARD_STATE_UNAWARE) for reader in readers])
    if result in _READER_GONE:  # unplugged since it was listed
        return []
    if result not in {scard.SCARD_S_SUCCESS, scard.SCARD_E_TIMEOUT}:
        raise _pcsc_error(result, "")
    return [(reader, state) for reader, state, _ in found]


def _pcsc_error(result: int, reader: str) -> HardwareError:
    if result in _SERVICE_GONE:
        return HardwareError(
            "identity.no_card_service",
            "The smartcard service (pcscd) does not answer.",
            next_step="Nothing is lost; it is tried again. If it repeats, run `systemctl status pcscd.socket`.",
        )
    if result in _READER_GONE:
        return HardwareError(
            "identity.no_reader",
            f"There is no smartcard reader {reader!r}." if reader else "There is no smartcard reader.",
            next_step="Plug the reader (or the security key) in.",
        )
    if result in _CARD_GONE:
        return HardwareError(
            "identity.no_card",
            f"There is no card in the reader {reader!r}, or it was pulled out.",
            next_step="Put the card in; the work goes on by itself.",
        )
    if result == scard.SCARD_E_SHARING_VIOLATION:
        return HardwareError(
            "identity.card_busy",
            f"Another program holds the card in the reader {reader!r}.",
            next_step="Close the other program, or wait; it is tried again.",
        )
    return HardwareError(
        "identity.card_mute",
        f"The card in the reader {reader!r} does not answer ({scard.SCardGetErrorMessage(result)}).",
        next_step="Take the card out, put it back the right way round, and try again.",
        result=result,
    )
