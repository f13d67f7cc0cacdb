"""Finding the FIDO2 authenticator that is meant: over USB HID, or in a card reader (NFC)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Final

import structlog
from fido2 import hid
from fido2.ctap import STATUS, CtapDevice, CtapError
from fido2.ctap2.base import Ctap2
from fido2.hid import CAPABILITY, CTAPHID, CtapHidDevice
from fido2.hid.base import HidDescriptor
from typing_extensions import override

from agent.core.errors import HardwareError
from agent.identity.apdu import NOT_THERE, SW, CardConnection, SmartcardProtocol

log = structlog.get_logger()

FIDO_AID: Final = bytes.fromhex("A0000006472F0001")
_POLL_S = 0.05
_INS_MESSAGE, _INS_GET_RESPONSE = 0x10, 0x11
_P1_POLLING, _P1_CANCEL = 0x80, 0x11
_SW_UPDATE = 0x9100
_NONSENSE: Final = (
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, NotImplementedError),
    *(struct.error, RecursionError, MemoryError),
)
"""What `fido2` raises over an answer that a device bent."""
_TELLING: Final = {
    "identity.card_busy": 3,
    "identity.foreign_key": 2,
    "identity.not_the_stewards_key": 2,
    "identity.authenticator_refused": 1,
}
"""Which of several devices' failures a person should read first."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """An open authenticator.

    Args:
        device: What it is, in plain words.
        reader: Its card reader; empty over USB.
        ctap: CTAP2 commands to it.
    """

    device: str
    reader: str
    ctap: Ctap2


Objection = Callable[[Authenticator], HardwareError | None]
"""Why an authenticator is not the one that is meant; None if it is."""


class CardAuthenticator(CtapDevice):
    """An authenticator on a card, over our own exclusive connection.

    Args:
        connection: To the card, held by the caller.

    Raises:
        HardwareError: The card has no FIDO2 application.

    Source: CTAP 2.1, 11.3 (NFC).
    """

    def __init__(self, connection: CardConnection) -> None:
        self._protocol = SmartcardProtocol(connection)
        self._protocol.select(FIDO_AID)

    @property
    @override
    def capabilities(self) -> int:
        """CTAP2; older ones fail at their first command."""
        return CAPABILITY.CBOR

    @override
    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        """Send one CTAP2 request; wait through the authenticator's keep-alives."""
        if cmd != CTAPHID.CBOR:
            raise CtapError(CtapError.ERR.INVALID_COMMAND)
        cancelled = event or Event()
        response, sw = self._protocol.exchange(_INS_MESSAGE, _P1_POLLING, 0x00, data, cla=0x80)
        last: STATUS | None = None
        while sw == _SW_UPDATE:
            status = STATUS(response[0]) if response[:1] in (b"\x01", b"\x02") else STATUS.PROCESSING
            if on_keepalive is not None and status != last:
                on_keepalive(status)
            last = status
            p1 = _P1_CANCEL if cancelled.wait(_POLL_S) else 0x00
            response, sw = self._protocol.exchange(_INS_GET_RESPONSE, p1, 0x00, cla=0x80)
        if sw != SW.OK or not response:
            raise CtapError(CtapError.ERR.INVALID_COMMAND if sw in NOT_THERE else CtapError.ERR.OTHER)
        return response

    @classmethod
    @override
    def list_devices(cls) -> Iterator[CtapDevice]:
        """None: the readers are looked through by `hold_authenticator`."""
        return iter(())


@contextmanager
def hold_authenticator(
    reader: str, objection: Objection, *, busy_timeout_s: float | None = None
) -> Iterator[Authenticator]:
    """Hold the first authenticator to which there is no objection: those on USB first, then those in card readers.

    Args:
        reader: Part of a card reader's name, to look only there; empty for everywhere.
        objection: Says what is wrong with an authenticator.
        busy_timeout_s: How long another program may hold a card; None for the usual time.

    Raises:
        HardwareError: There is none; of several objections, the one that helps most.
    """
    seen: list[HardwareError] = []
    for place, opener in _places(reader, busy_timeout_s):
        with ExitStack() as held:
            found = _open(held, place, opener, objection)
            if isinstance(found, Authenticator):
                with _failures_of(found.device):
                    yield found
                return
            seen.append(found)
    raise max(seen, key=lambda error: _TELLING.get(error.code, 0), default=_no_authenticator(reader))


def visit_authenticators(reader: str, visit: Callable[[Authenticator], None]) -> None:
    """Show every authenticator to `visit`; those that cannot be had are passed over."""

    def look_at(authenticator: Authenticator) -> HardwareError:
        visit(authenticator)
        return _no_authenticator(reader)

    for place, opener in _places(reader, 0.0):
        with ExitStack() as held:
            _open(held, place, opener, look_at)


def ctap_failure(error: CtapError, device: str) -> HardwareError:
    """The failure of an authenticator that refused a command."""
    return HardwareError(
        "identity.authenticator_refused",
        f"The {device} refused a command ({error.code}).",
        next_step="Take it out, put it back and try again; if it repeats, use another one.",
        status=int(error.code),
    )


Opener = Callable[[ExitStack], CtapDevice]
"""Opens a device whose closing is left to the stack."""


def _places(reader: str, busy_timeout_s: float | None) -> Iterator[tuple[str, Opener]]:
    if not reader:
        for descriptor in hid.list_descriptors():  # type: ignore[no-untyped-call] # fido2 leaves it untyped
            yield "", _hid_opener(descriptor)
    yield from _card_places(reader, busy_timeout_s)


def _hid_opener(descriptor: HidDescriptor) -> Opener:
    def opener(held: ExitStack) -> CtapDevice:
        connection = hid.open_connection(descriptor)  # type: ignore[no-untyped-call] # fido2 leaves it untyped
        held.callback(connection.close)
        return CtapHidDevice(descriptor, connection)

    return opener


def _card_places(reader: str, busy_timeout_s: float | None) -> Iterator[tuple[str, Opener]]:
    try:
        # A box whose only key is on USB needs neither pyscard nor pcscd.
        from agent.identity import pcsc  # noqa: PLC0415 - optional library

        names = pcsc.list_readers_with_card(reader)
    except (ImportError, HardwareError) as error:
        log.debug("no_card_readers", error=error)
        return
    timeout_s = pcsc.BUSY_TIMEOUT_S if busy_timeout_s is None else busy_timeout_s

    def opener_for(name: str) -> Opener:
        def opener(held: ExitStack) -> CtapDevice:
            connection = held.enter_context(pcsc.PCSCConnection.open(name, busy_timeout_s=timeout_s))
            connection.leave_as_is()
            device = CardAuthenticator(connection)
            # Only an authenticator is reset when it is given back, so that no PIN token outlives the call.
            connection.reset_on_close()
            return device

        return opener

    yield from ((name, opener_for(name)) for name in names)


def _open(held: ExitStack, reader: str, opener: Opener, objection: Objection) -> Authenticator | HardwareError:
    device = f"security key in {reader}" if reader else "security key on USB"
    try:
        with _failures_of(device):
            authenticator = Authenticator(device, reader, Ctap2(opener(held)))
            return objection(authenticator) or authenticator
    except HardwareError as error:
        return error


@contextmanager
def _failures_of(device: str) -> Iterator[None]:
    try:
        yield
    except CtapError as error:
        raise ctap_failure(error, device) from error
    except _NONSENSE as error:
        log.warning("authenticator_answers_nonsense", device=device, reason=repr(error))
        raise _nonsense(device) from error
    except (OSError, ValueError, hid.ConnectionFailure) as error:
        raise _gone(device, error) from error


def _no_authenticator(reader: str) -> HardwareError:
    return HardwareError(
        "identity.no_authenticator",
        f"There is no security key in the reader {reader}." if reader else "There is no security key.",
        next_step="Plug it in, or lay it on the reader, and give the command again; a running agent goes on by itself.",
    )


def _nonsense(device: str) -> HardwareError:
    return HardwareError(
        "identity.authenticator_answer",
        f"The answer of the {device} makes no sense.",
        next_step="Take it out, put it back and try again; if it repeats, use another one.",
    )


def _gone(device: str, error: Exception) -> HardwareError:
    return HardwareError(
        "identity.authenticator_mute",
        f"The {device} does not answer.",
        next_step="Take it out, put it back and try again.",
        reason=type(error).__name__,
    )
