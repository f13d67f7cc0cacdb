"""The hospitals' node keys: in software TPMs, on virtual smartcards, in virtual security keys, or in files."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from agent.identity.key import HardwareKey, init_key
from tests.simulators.person import Technician
from tests.simulators.swtpm import SwtpmMaker

if TYPE_CHECKING:
    from tests.demo.readers import DeviceReaders

MOST_READERS: Final = 16
"""Readers of one pcscd: PCSCLITE_MAX_READERS_CONTEXTS of pcsc-lite."""
_PROBE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of key.

    Args:
        place: Where the key is, as the live view says it.
        why_not: Why there can be none here; empty where there can.
        in_reader: Whether its device sits in a card reader.
    """

    place: str
    why_not: Callable[[], str]
    in_reader: bool = False


def why_no_tpm() -> str:
    """Why no software TPM can be used here; empty where one can."""
    missing = _missing_tools("swtpm", "swtpm_setup", "swtpm_localca")
    if missing or importlib.util.find_spec("tpm2_pytss"):
        return missing
    return "the Python package tpm2-pytss is not installed"


def why_no_reader() -> str:
    """Why no virtual card reader can be used here; empty where one can."""
    try:
        # Loaded here: its libraries are needed for these kinds of key only.
        from tests.demo.readers import missing_packages  # noqa: PLC0415
    except ImportError as error:
        return f"the Python package {error.name} is not installed"
    return _not_installed(missing_packages()) or _missing_tools("unshare", "setpriv") or _why_no_namespaces()


KINDS: Final[Mapping[str, Kind]] = {
    "tpm": Kind("key in its TPM", why_no_tpm),
    "piv": Kind("key on a smartcard", why_no_reader, in_reader=True),
    "fido2": Kind("key in a security key", why_no_reader, in_reader=True),
    "software": Kind("key in a file", str),
}
"""What `--key` can name."""


def deal_kinds(kinds: tuple[str, ...], hospitals: int) -> tuple[str, ...]:
    """The kind of each hospital's key: they take the kinds in turn."""
    return tuple(kinds[number % len(kinds)] for number in range(hospitals))


def readers_needed(kinds: tuple[str, ...]) -> int:
    """How many card readers keys of these kinds take."""
    return sum(KINDS[kind].in_reader for kind in kinds)


def describe_key(key: HardwareKey) -> str:
    """A key in a few words."""
    return KINDS[key.kind.value].place


class KeyMaker:
    """Makes each hospital's key in a device of its own; inside its `with` block it is thread-safe.

    Args:
        directory: Holds a directory a site.
        kinds: The kind of each site's key.
    """

    def __init__(self, directory: Path, kinds: Mapping[str, str]) -> None:
        self._directory, self._kinds = directory, kinds
        self._stack = ExitStack()
        self._tpms: SwtpmMaker | None = None
        self._readers: DeviceReaders | None = None
        self._in_reader = [site for site, kind in kinds.items() if KINDS[kind].in_reader]

    def make(self, site: str, technician: Technician) -> HardwareKey:
        """Make the key of one site.

        Args:
            site: Whose.
            technician: Chooses PINs, and touches what wants a touch.
        """
        return init_key(self._uri(site), person=technician)

    def certificates(self) -> dict[str, str]:
        """Makers of all devices (PEM), by class of evidence; call it when every key was made."""
        pems = []
        if self._tpms is not None:
            pems += [path.read_text("ascii") for path in self._tpms.ca_certificates]
        if self._readers is not None:
            from tests.demo.readers import maker_certificates  # noqa: PLC0415 - as below

            pems += maker_certificates()
        return {"test": "".join(pems)} if pems else {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if "tpm" in self._kinds.values():
                self._tpms = stack.enter_context(SwtpmMaker())
            if self._in_reader:
                # Loaded here: its libraries are needed for these kinds of key only.
                from tests.demo.readers import open_readers  # noqa: PLC0415

                self._readers = stack.enter_context(open_readers(len(self._in_reader)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _uri(self, site: str) -> str:
        """Where the key shall be; its device is there from then on."""
        home, kind = self._directory / site, self._kinds[site]
        if kind == "software":
            return f"software:{home / 'node.key'}"
        if kind == "tpm":
            assert self._tpms is not None
            return self._stack.enter_context(self._tpms.make(site)).uri
        assert self._readers is not None
        number = self._in_reader.index(site)
        if kind == "piv":
            return self._readers.insert_card(number)
        return self._readers.insert_security_key(number, home / "security-key.json")


def _missing_tools(*tools: str) -> str:
    return _not_installed([tool for tool in tools if shutil.which(tool) is None])


def _not_installed(missing: list[str]) -> str:
    return f"{', '.join(missing)} is not installed" if missing else ""


def _why_no_namespaces() -> str:
    """The readers live in namespaces of their own, which not every machine lets its users have."""
    mapping = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", "--net", *mapping, "true"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_PROBE_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        return "this machine does not allow the namespaces that virtual card readers live in"
    return ""
