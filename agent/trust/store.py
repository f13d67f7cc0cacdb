"""What a box keeps of its consortium's repository: three files and a folder, each written whole or not at all.

1.root.json     the pinned root metadata, from which all else follows
trusted.cbor    the newest state that verified: every file of it in one, so that no power cut mixes two states
pins.json       what never runs backwards (`agent.trust.pins`); written before `trusted.cbor`
tuf/            python-tuf's own cache, its memory against rollback beside ours; it may be lost
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import cbor2

from agent.core.cbor import decode_plain
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.trust.delegations import MAX_ROOT_BYTES
from agent.trust.pins import MAX_PINS_BYTES, Pins, parse_pins
from agent.trust.tuf_faults import translated

MAX_STATE_BYTES: Final = 256 << 20
_FORMAT: Final = "secur-e-health/trusted/1"
_MAX_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class StoredState:
    """Every file of one state of the repository.

    Args:
        roots: Root metadata from version 1 on.
        timestamp: Metadata.
        snapshot: Metadata.
        targets: Metadata.
        roles: Delegated roles' metadata by name.
        records: Target files by SHA-256, hex.
        pins: What was remembered with it.
    """

    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    roles: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    records: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    pins: Pins = field(default_factory=Pins, repr=False)

    def encode(self) -> bytes:
        """CBOR; the inverse of `parse_state`."""
        return cbor2.dumps(
            {
                "format": _FORMAT,
                "roots": list(self.roots),
                "timestamp": self.timestamp,
                "snapshot": self.snapshot,
                "targets": self.targets,
                "roles": dict(self.roles),
                "records": dict(self.records),
                "pins": self.pins.encode(),
            },
            canonical=True,
        )


def parse_state(data: bytes) -> StoredState:
    """Parse what `StoredState.encode` gave; nothing in it is verified yet.

    Raises:
        OperatorError: It is damaged (`trust.bad_state`).
    """
    try:
        fields = decode_plain(data, max_depth=_MAX_DEPTH, text_keys=True)
    except ValueError as error:
        raise _bad_state("it is no CBOR") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise _bad_state("it has another format")
    roots = fields.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, bytes) for root in roots):
        raise _bad_state("its roots are missing")
    timestamp, snapshot, targets, pins = (
        _parse_bytes(fields.get(name)) for name in ("timestamp", "snapshot", "targets", "pins")
    )
    roles, records = _parse_files(fields.get("roles")), _parse_files(fields.get("records"))
    return StoredState(tuple(roots), timestamp, snapshot, targets, roles, records, parse_pins(pins))


class TrustStore:
    """The directory, held by this process alone until it is closed."""

    def __init__(self, directory: Path) -> None:
        """Take hold of a directory that `agent.trust.repository.bootstrap` made.

        Raises:
            OperatorError: Another process holds it (`trust.in_use`), or it was never made (`trust.not_pinned`).
            HardwareError: It cannot be read or written.
        """
        self._directory = directory
        self._lock = _lock(directory)
        try:
            self.root = _read(directory / "1.root.json", MAX_ROOT_BYTES)
            with translated():
                self.cache.mkdir(mode=0o700, exist_ok=True)
                for leftover in self.cache.glob("tmp*"):
                    leftover.unlink()
        except SecureHealthError:
            self.close()
            raise

    @property
    def cache(self) -> Path:
        """python-tuf's folder."""
        return self._directory / "tuf"

    def close(self) -> None:
        """Let go of the directory."""
        self._lock.close()

    def load_state(self) -> StoredState | None:
        """The newest state that verified, or None where there is none yet.

        Raises:
            OperatorError: It is damaged.
            HardwareError: It cannot be read.
        """
        path = self._directory / "trusted.cbor"
        return parse_state(_read(path, MAX_STATE_BYTES)) if path.exists() else None

    def load_pins(self) -> Pins:
        """What never runs backwards; empty where nothing was seen yet.

        Raises:
            OperatorError: It is damaged.
            HardwareError: It cannot be read.
        """
        return load_pins(self._directory)

    def keep(self, state: StoredState) -> None:
        """Store a state that verified, with its pins.

        Raises:
            HardwareError: The disk does not take it (`trust.not_stored`); the state before is unharmed.
        """
        # Pins first: should the power fail between the two, the older state still stands, and nothing older will do.
        self.keep_pins(state.pins)
        _store(self._directory / "trusted.cbor", state.encode())

    def keep_pins(self, pins: Pins) -> None:
        """Store what never runs backwards.

        Raises:
            HardwareError: The disk does not take it (`trust.not_stored`); what was stored before is unharmed.
        """
        _store(self._directory / "pins.json", pins.encode())


def load_pins(directory: Path) -> Pins:
    """What never runs backwards; empty where nothing was seen yet. Whoever holds the directory may go on meanwhile.

    Raises:
        OperatorError: It is damaged.
        HardwareError: It cannot be read.
    """
    path = directory / "pins.json"
    return parse_pins(_read(path, MAX_PINS_BYTES)) if path.exists() else Pins()


def pin_root(directory: Path, root: bytes) -> None:
    """Make a directory whose trust begins at `root`.

    Raises:
        OperatorError: It already begins at another root (`trust.other_root`).
        HardwareError: It cannot be written.
    """
    path = directory / "1.root.json"
    with translated():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and _read(path, MAX_ROOT_BYTES) != root:
        raise OperatorError(
            "trust.other_root",
            f"{directory} belongs to another consortium.",
            next_step="A box belongs to one consortium. Leave that one first.",
        )
    _store(path, root)


def _store(path: Path, data: bytes) -> None:
    with translated():
        store_atomically(path, data, mode=0o600)


def _lock(directory: Path) -> BinaryIO:
    if not (directory / "1.root.json").exists():
        raise OperatorError(
            "trust.not_pinned",
            f"{directory} holds no consortium's trust root.",
            next_step="Enrol this box first.",
        )
    with translated():
        stream = (directory / "lock").open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise OperatorError(
            "trust.in_use",
            f"Another process uses the trust repository in {directory}.",
            next_step="Stop it first, or wait until it has ended.",
        ) from error
    return stream


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise HardwareError(
            "trust.not_readable",
            f"{path} cannot be read: {error.strerror}.",
            next_step="Check its owner, its permissions and the disk.",
        ) from error
    if len(data) > limit_bytes:
        raise _bad_state(f"it is larger than {limit_bytes} bytes")
    return data


def _parse_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise _bad_state("a part is missing")
    return value


def _parse_files(value: object) -> dict[str, bytes]:
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(data, bytes) for name, data in value.items()
    ):
        raise _bad_state("a part is missing")
    return value


def _bad_state(what: str) -> OperatorError:
    return OperatorError(
        "trust.bad_state",
        f"What this box keeps of its consortium's repository is damaged: {what}.",
        next_step="It is fetched again as soon as the registrar can be reached. If it repeats, have the disk checked.",
    )
