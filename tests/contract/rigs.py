"""What the key contract runs against: one rig a kind of key, each able to take its device away and give it back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from agent.identity.key import Nobody, Person, init_key
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.pcscd import card_inserted
from tests.simulators.person import Technician
from tests.simulators.piv_card import PIVApplet
from tests.simulators.softhsm import PIN, SoftHSM
from tests.simulators.swtpm import shared_maker


@dataclass(frozen=True, slots=True)
class Rig:
    """A place where a key can be made.

    Args:
        uri: For `init_key` and `open_key`.
        pull_out: Take the device away.
        put_back: Give it back.
        swap: Put another device, with a key of its own, in its place.
        person: Who stands at the box.
    """

    uri: str
    pull_out: Callable[[], object]
    put_back: Callable[[], object]
    swap: Callable[[], object]
    person: Person


@contextmanager
def software_rig(directory: Path) -> Iterator[Rig]:
    path, aside = directory / "key.pem", directory / "aside.pem"

    def pull_out() -> None:
        path.rename(aside)

    def put_back() -> None:
        aside.rename(path)

    def swap() -> None:
        path.unlink()
        path.with_name("key.pem.passphrase").unlink()
        init_key(f"software:{path}")

    yield Rig(f"software:{path}", pull_out, put_back, swap, Nobody())


@contextmanager
def tpm_rig(directory: Path) -> Iterator[Rig]:
    with shared_maker().make() as tpm:

        def swap() -> None:
            tpm.swap("b")
            init_key(tpm.uri)

        yield Rig(tpm.uri, tpm.stop, tpm.start, swap, Nobody())


@contextmanager
def piv_rig(_: Path, *, slot_name: str = "9e") -> Iterator[Rig]:
    card = VirtualCard(PIVApplet(secrets.randbits(24)))
    with card_inserted(card) as slot:

        def swap() -> None:
            other = PIVApplet(secrets.randbits(24))
            other.add_key(int(slot_name, 16))
            slot.remove()
            slot.insert(VirtualCard(other))

        uri = f"piv:{slot.reader}?slot={slot_name}"
        yield Rig(uri, slot.remove, lambda: slot.insert(card), swap, Technician())


@contextmanager
def fido2_rig(directory: Path) -> Iterator[Rig]:
    def card() -> VirtualCard:
        return VirtualCard(CTAPApplet(Authenticator()))

    ours = card()
    with card_inserted(ours) as slot:

        def swap() -> None:
            slot.remove()
            slot.insert(card())

        uri = f"fido2:{directory}/key.json?reader={quote(slot.reader)}"
        yield Rig(uri, slot.remove, lambda: slot.insert(ours), swap, Technician())


@contextmanager
def pkcs11_rig(directory: Path, *, with_pin_file: bool) -> Iterator[Rig]:
    token = SoftHSM(directory)
    uri = token.uri
    if with_pin_file:
        (directory / "pin").write_text(PIN)
        uri += f"&pin-source={directory}/pin"

    def swap() -> None:
        token.swap()
        init_key(uri, person=Technician(pin=PIN))

    yield Rig(uri, token.pull_out, token.put_back, swap, Nobody() if with_pin_file else Technician(pin=PIN))


RIG_FOR_SCHEME: dict[str, Callable[[Path], AbstractContextManager[Rig]]] = {
    "fido2": fido2_rig,
    "piv": piv_rig,
    "piv-with-pin": partial(piv_rig, slot_name="9a"),
    "pkcs11": partial(pkcs11_rig, with_pin_file=True),
    "pkcs11-with-pin": partial(pkcs11_rig, with_pin_file=False),
    "software": software_rig,
    "tpm": tpm_rig,
}
