"""Card readers of the demonstration, each with one device in it: a smartcard or a security key."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding

from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.makers import authenticator_maker, card_maker
from tests.simulators.pcscd import DRIVER, Slot, VirtualReaders
from tests.simulators.piv_card import PIVApplet
from tests.simulators.reader_room import PCSCD

POLLS_BEFORE_TOUCH = 2
"""The security key says that it waits for a touch before it has one."""


def missing_packages() -> list[str]:
    """Debian packages that readers need and that are not installed."""
    return [package for package, file in (("pcscd", PCSCD), ("vsmartcard-vpcd", DRIVER)) if not Path(file).exists()]


def maker_certificates() -> list[str]:
    """Makers of the cards and security keys, PEM."""
    return [maker.root.public_bytes(Encoding.PEM).decode("ascii") for maker in (card_maker(), authenticator_maker())]


class DeviceReaders:
    """Empty readers that take one device each.

    Args:
        slots: Their slots.
    """

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self._slots = slots

    def insert_card(self, number: int) -> str:
        """Put a new smartcard into reader `number`; returns the URI of a key that signs unattended."""
        reader = self._insert(number, VirtualCard(PIVApplet(secrets.randbits(24))))
        return f"piv:{reader}?slot=9e"

    def insert_security_key(self, number: int, record: Path) -> str:
        """Put a new security key into reader `number`; returns the URI of a key that `record` shall remember."""
        applet = CTAPApplet(Authenticator(), polls_before_touch=POLLS_BEFORE_TOUCH)
        return f"fido2:{record}?reader={self._insert(number, VirtualCard(applet))}"

    def _insert(self, number: int, card: VirtualCard) -> str:
        slot = self._slots[number]
        slot.insert(card)
        return quote(slot.reader)


@contextmanager
def open_readers(count: int) -> Iterator[DeviceReaders]:
    """Have so many readers, which this process and those that it starts from then on see."""
    # A short path: UNIX socket paths end at 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="seh-pcsc-") as directory,
        VirtualReaders.start(Path(directory), slots=count) as readers,
    ):
        readers.publish()
        yield DeviceReaders(readers.slots)
