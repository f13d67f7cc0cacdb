"""What runs on this box, and who it is, as far as the updater may know: read from what others wrote, changed by none.

<slots>/current/meta.json          the running release's signed record
<slots>/current/app.raw            its image, for deltas
/run/secur-e-health/slots/*.json   what the slot tool says of itself
<state>/enrolment/record.json      the box's hospital and key
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.config import AgentConfig, UpdateSection
from agent.core.errors import OperatorError
from agent.core.ids import IdentifierText
from agent.core.version import software_version
from agent.statements.kinds import Hex32
from agent.statements.release import Release, Version
from agent.trust.channels import VersionText
from agent.update.channel import Audience, Running
from agent.update.delta import Base
from agent.update.release import MAX_RECORD_BYTES, ReleaseKeys, parse_release_keys, verify_release

MAX_FILE_BYTES: Final = 1 << 18
_CURRENT, _IMAGE, _RECORD = "current", "app.raw", "meta.json"


@dataclass(frozen=True, slots=True)
class Box:
    """What an update starts from.

    Args:
        running: The release here.
        image: Its image, for deltas; None where there is none.
        audience: Who the box is.
        keys: Who may sign releases.
        on_trial: Whether the release here has yet to show itself.
        failed: The release that was given up last.
        staged: The release that waits in the other slot for its turn.
    """

    running: Running
    image: Base | None
    audience: Audience
    keys: ReleaseKeys
    on_trial: bool = False
    failed: Version | None = None
    staged: Version | None = None


class _Said(BaseModel):
    """What another program of ours says; it may say more in another release."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SlotSaid(_Said):
    """A slot."""

    version: VersionText
    epoch: Annotated[int, Field(ge=0)]


class SlotsSaid(_Said):
    """`status.json` of the slot tool.

    Args:
        floor: The least security epoch that may run here.
        phase: `steady`, `staged`, `trial` or `unknown`.
        active: The slot that runs.
        window: When a staged release takes over.
        failed: The release that was given up last.
        slots: What each slot holds.
    """

    floor: Annotated[int, Field(ge=0)] = 0
    phase: Annotated[str, Field(max_length=20)] = "unknown"
    active: Annotated[str, Field(max_length=1)] | None = None
    window: Annotated[str, Field(max_length=20)] | None = None
    failed: VersionText | None = None
    slots: dict[str, SlotSaid | None] = {}

    @property
    def other(self) -> SlotSaid | None:
        """What the slot that does not run holds."""
        return next((slot for name, slot in self.slots.items() if name != self.active), None)


class Answer(_Said):
    """`answer.json` of the slot tool: what became of the last request.

    Args:
        version: Which release it was about.
        code: Of the failure; None where there was none.
        sentence: What happened.
    """

    version: str | None = None
    code: str | None = None
    sentence: Annotated[str, Field(max_length=2000)] = ""


class _Enrolled(_Said):
    site: IdentifierText
    key_id: Hex32


SaidT = TypeVar("SaidT", bound=_Said)


def load_slots(settings: UpdateSection) -> SlotsSaid:
    """What the slot tool says; nothing known where it says nothing."""
    return _load(settings.slots_status / "status.json", SlotsSaid) or SlotsSaid()


def load_answer(settings: UpdateSection) -> Answer | None:
    """What became of the last request; None where nothing was asked since the box started."""
    return _load(settings.slots_status / "answer.json", Answer)


def load_keys(settings: UpdateSection) -> ReleaseKeys:
    """Who may sign releases.

    Raises:
        OperatorError: The package's list is missing or damaged.
    """
    return parse_release_keys(_required(settings.keys_file))


def load_root(settings: UpdateSection) -> bytes:
    """Where trust in the release repository begins.

    Raises:
        OperatorError: The package's file is missing.
    """
    return _required(settings.root_file)


def load_box(config: AgentConfig) -> Box:
    """What an update starts from.

    Raises:
        OperatorError: The package is damaged, or this software runs without a release's version.
    """
    settings = config.update
    keys = load_keys(settings)
    said = load_slots(settings)
    running, base = _running(settings, keys, said.floor)
    own = config.node.state_directory / "enrolment" / "record.json"
    enrolled = _load(settings.enrolment, _Enrolled) or _load(own, _Enrolled)
    audience = Audience() if enrolled is None else Audience(enrolled.site, enrolled.key_id)
    failed = None if said.failed is None else Version.parse(said.failed)
    staged = Version.parse(said.other.version) if said.phase == "staged" and said.other is not None else None
    return Box(running, base, audience, keys, on_trial=said.phase == "trial", failed=failed, staged=staged)


def _running(settings: UpdateSection, keys: ReleaseKeys, floor: int) -> tuple[Running, Base | None]:
    slot = settings.slots / _CURRENT
    record = _read(slot / _RECORD, MAX_RECORD_BYTES)
    if record is None:
        return Running(Version.parse(software_version()), floor), None
    release: Release = verify_release(record, keys)
    return Running(release.version, floor), Base(slot / _IMAGE, release.image_bytes)


def _load(path: Path, kind: type[SaidT]) -> SaidT | None:
    data = _read(path, MAX_FILE_BYTES)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        return None


def _read(path: Path, limit_bytes: int) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(limit_bytes)
    except OSError:
        return None


def _required(path: Path) -> bytes:
    data = _read(path, MAX_FILE_BYTES)
    if data is None:
        raise OperatorError(
            "update.no_package_file",
            f"{path} cannot be read: it came with the package, and says whose releases may run here.",
            next_step="Install the package again.",
        )
    return data
