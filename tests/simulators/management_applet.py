"""Yubico's management application, as far as ykman needs it to know what else is on a card."""

from __future__ import annotations

from tests.simulators.card import UNKNOWN_INSTRUCTION, CardError, Command, tlv

CAPABILITY_U2F, CAPABILITY_PIV, CAPABILITY_FIDO2 = 0x02, 0x10, 0x200
_READ_CONFIGURATION = 0x1D


class ManagementApplet:
    """Says which applications the card has.

    Args:
        serial: The card's.
        capabilities: The sum of the applications'.
        firmware: The card's.
    """

    aid = bytes.fromhex("A000000527471117")

    def __init__(self, serial: int, capabilities: int, *, firmware: tuple[int, int, int] = (5, 4, 3)) -> None:
        self._serial, self._capabilities, self._firmware = serial, capabilities.to_bytes(2, "big"), firmware

    def select(self) -> bytes:
        """A version in words."""
        return b"Virtual mgr - FW version " + ".".join(map(str, self._firmware)).encode()

    def reset(self) -> None:
        """Nothing is volatile."""

    def handle(self, command: Command) -> bytes:
        """READ CONFIG."""
        if command.ins != _READ_CONFIGURATION:
            raise CardError(UNKNOWN_INSTRUCTION)
        # Supported and enabled, over USB (01, 03) and NFC (0D, 0E).
        configuration = b"".join(tlv(tag, self._capabilities) for tag in (0x01, 0x03, 0x0D, 0x0E))
        configuration += tlv(0x02, self._serial.to_bytes(4, "big")) + tlv(0x04, b"\x01")
        configuration += tlv(0x05, bytes(self._firmware))
        return bytes([len(configuration)]) + configuration
