"""Who may decide for this hospital, now: the keys that its own role put on record, less those that cannot count."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.core.ids import SiteID
from agent.statements.kinds import Hex32
from agent.statements.roots import key_id
from agent.trust.records import StewardFile, parse_public_pem
from agent.trust.roster import Roster
from agent.trust.snapshot import TrustSource

MAX_KEYS: Final = 1024
"""How many keys' counters are remembered; far more than any hospital has stewards."""
_MAX_FILE_BYTES: Final = 1 << 18


class StewardSource(Protocol):
    """Where the stewards of this box's hospital are looked up, at every use; thread-safe."""

    def stewards(self) -> Mapping[str, StewardFile]:
        """Those that count now, by name."""
        ...


@dataclass(frozen=True, slots=True)
class RepositoryStewards:
    """As the hospital's own role says in the trust repository.

    Args:
        source: Of snapshots.
        site: The hospital.
    """

    source: TrustSource
    site: SiteID

    def stewards(self) -> Mapping[str, StewardFile]:
        """Those that count now; none where the hospital's role has expired, or is not on record."""
        record = self.source.current().sites.get(self.site)
        # Read once and never refreshed, it would count for ever: whoever keeps the repository from us keeps no steward.
        if record is None or record.expires_s <= self.source.now_s():
            return {}
        boxes = {node.root.key_id for node in record.nodes}
        links = {key_id(parse_public_pem(node.link_key)) for node in record.nodes}
        return admitted(record.stewards, barred=boxes | links | record.revoked)


@dataclass(frozen=True, slots=True)
class RosterStewards:
    """As the pinned roster says.

    Args:
        roster: Pinned.
        site: The hospital.
    """

    roster: Roster
    site: SiteID

    def stewards(self) -> Mapping[str, StewardFile]:
        """Those that count."""
        boxes = {node.root.key_id for nodes in self.roster.sites.values() for node in nodes}
        return admitted(self.roster.stewards.get(self.site, ()), barred=boxes)


def admitted(records: Iterable[StewardFile], *, barred: Collection[str]) -> dict[str, StewardFile]:
    """The records that count, by name.

    Args:
        records: As the hospital put them on record.
        barred: Ids of keys that cannot decide: those of boxes, and those that were revoked. A key that stands under
            two names counts under neither: it would be two people.
    """
    found = tuple(records)
    often = Counter(record.key_id for record in found)
    return {record.steward: record for record in found if often[record.key_id] == 1 and record.key_id not in barred}


def steward_named(source: StewardSource, name: str) -> StewardFile:
    """The steward with this name.

    Raises:
        OperatorError: The hospital has none on record (`approval.unknown_steward`).
    """
    steward = source.stewards().get(name)
    if steward is None:
        raise OperatorError(
            "approval.unknown_steward",
            f"The hospital has no steward {name[:80]!r} on record who may decide here.",
            next_step="Put the key on record with `seh-provision steward add`; the box sees it at its next look at the "
            "repository. A revoked key, and one that a box uses too, never counts.",
        )
    return steward


def people(stewards: Iterable[StewardFile]) -> int:
    """How many different people hold these keys; two keys of one person count once."""
    return len({_person(steward) for steward in stewards})


def _person(steward: StewardFile) -> str:
    if steward.person is None:
        return f"key {steward.steward}"
    return f"person {' '.join(unicodedata.normalize('NFKC', steward.person).casefold().split())}"


class _CountersFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["secur-e-health/steward-counters/1"] = "secur-e-health/steward-counters/1"
    counters: Annotated[dict[Hex32, Annotated[int, Field(gt=0, lt=1 << 32)]], Field(max_length=MAX_KEYS)] = {}


class StewardCounters:
    """The highest signature counter that each steward's key has shown here, across restarts. Thread-safe.

    Source: WebAuthn Level 3, 6.1.1: a clone cannot keep up with what its original counts.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: The file; made, with its directory, when a counter is first seen.

        Raises:
            OperatorError: It cannot be read (`approval.bad_counters`).
        """
        self._path = path
        self._seen: dict[str, int] = _load_counters(path)
        self._lock = Lock()

    def check(self, key_id: str, count: int) -> None:
        """Check that a verified signature's counter rose, and remember it before the signature counts.

        Args:
            key_id: Of the key.
            count: As signed; 0 where the key keeps none.

        Raises:
            PeerProtocolError: It did not rise (`approval.cloned_key`).
            HardwareError: The disk does not take it (`approval.not_stored`).
        """
        with self._lock:
            before = self._seen.get(key_id, 0)
            if not (count or before):
                return  # it keeps no counter
            if count <= before:
                raise PeerProtocolError(
                    "approval.cloned_key",
                    "The signature counter of a steward's key did not rise, so somebody may have copied the key.",
                    next_step="Nothing was approved or withdrawn. If it repeats, have the hospital revoke the key "
                    "(`seh-provision steward revoke`), and give the steward another one.",
                )
            seen = dict(list({**self._seen, key_id: count}.items())[-MAX_KEYS:])
            data = _CountersFile(counters=seen).model_dump_json().encode()
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                store_atomically(self._path, data, mode=0o600)
            except OSError as error:
                raise not_stored(self._path, error) from error
            self._seen = seen


def not_stored(path: Path, error: OSError) -> HardwareError:
    """The failure of a disk that does not take what was decided."""
    return HardwareError(
        "approval.not_stored",
        f"What was decided cannot be written to {path}: {error.strerror}.",
        next_step="Nothing was decided. Free space on the disk, or have it checked, and begin anew.",
    )


def _load_counters(path: Path) -> dict[str, int]:
    try:
        with path.open("rb") as stream:
            return dict(_CountersFile.model_validate_json(stream.read(_MAX_FILE_BYTES)).counters)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise bad_counters(path) from error


def bad_counters(path: Path) -> OperatorError:
    """The failure of a file that remembers what was seen or given out before."""
    return OperatorError(
        "approval.bad_counters",
        f"{path} cannot be read, which remembers what stewards' keys have signed.",
        next_step="Restore it from a backup, or remove it: then keys are taken as if seen for the first time.",
    )
