"""One look at the release repository, and what follows from it: choose, fetch, hand over to the slot tool."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tuf.api.metadata import TargetFile

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.files import store_atomically
from agent.statements.kinds import Seconds
from agent.statements.release import Release, Version
from agent.trust.channels import IMAGE_NAME, RECORD_NAME, Channel, VersionText, delta_name, release_path
from agent.trust.fetcher import BoundedFetcher
from agent.update.box import Box, load_box, load_root
from agent.update.channel import check_named, check_release, choose
from agent.update.delta import Base, apply_delta
from agent.update.download import Downloads, Progress, Wait, check_room, kept_on_disk, whole_or_none
from agent.update.incoming import Incoming, other_image
from agent.update.release import MAX_RECORD_BYTES, verify_release
from agent.update.repository import ReleaseRepository
from agent.update.window import Window

MAX_STATE_BYTES: Final = 1 << 16
_STATE_FILE, _PIN_FILE = "updater.json", "pin"

log = structlog.get_logger()


class UpdaterState(BaseModel):
    """`updater.json`: what `seh-agent update status` shows.

    Args:
        checked_s: When the repository was last read, in seconds since 1970.
        offered: The release that this box should take; None where it has it.
        code: Of the last failure; empty where all is well.
        sentence: What happened.
        next_step: What to do.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["secur-e-health/updater/1"] = "secur-e-health/updater/1"
    checked_s: Seconds | None = None
    offered: VersionText | None = None
    code: Annotated[str, Field(max_length=100)] = ""
    sentence: Annotated[str, Field(max_length=2000)] = ""
    next_step: Annotated[str, Field(max_length=2000)] = ""


@dataclass(frozen=True, slots=True)
class UpdateFolder:
    """The updater's directory.

    Args:
        path: Made where it is missing.
    """

    path: Path

    @property
    def incoming(self) -> Incoming:
        """What waits for the slot tool."""
        return Incoming(self.path / "incoming")

    @property
    def trust(self) -> Path:
        """What is kept of the release repository."""
        return self.path / "releases"

    @property
    def downloads(self) -> Path:
        """What is being fetched."""
        return self.path / "downloads"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory: one process at a time brings an update.

        Raises:
            OperatorError: Another one does (`update.in_use`).
            HardwareError: The disk does not take it.
        """
        with kept_on_disk(self.path / "-"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            stream = (self.path / "lock").open("ab")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OperatorError(
                    "update.in_use",
                    "This box is bringing an update already.",
                    next_step="Wait until it is done; `seh-agent update status` says how it stands.",
                ) from error
            yield

    def load_state(self) -> UpdaterState:
        """How it stands; nothing known where nothing was stored, or where that cannot be read."""
        try:
            with (self.path / _STATE_FILE).open("rb") as stream:
                return UpdaterState.model_validate_json(stream.read(MAX_STATE_BYTES))
        except (OSError, ValidationError):
            return UpdaterState()

    def note(self, **changes: object) -> None:
        """Store what changed.

        Raises:
            HardwareError: The disk does not take it.
        """
        state = self.load_state().model_copy(update=changes)
        self._store(_STATE_FILE, state.model_dump_json().encode())

    def load_pin(self) -> Version | None:
        """The newest release that somebody here lets this box take; None for any.

        Raises:
            PeerProtocolError: The file is damaged.
        """
        try:
            return Version.parse(json.loads((self.path / _PIN_FILE).read_bytes())["newest"])
        except FileNotFoundError:
            return None

    def store_pin(self, version: Version | None) -> None:
        """Let this box take no newer release; None to let it take any.

        Raises:
            HardwareError: The disk does not take it.
        """
        if version is None:
            (self.path / _PIN_FILE).unlink(missing_ok=True)
        else:
            self._store(_PIN_FILE, json.dumps({"newest": str(version)}).encode())

    def _store(self, name: str, data: bytes) -> None:
        with kept_on_disk(self.path / f"{name}.partial"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            store_atomically(self.path / name, data)


class Updater:
    """Looks, fetches and hands over; one look a time.

    Args:
        folder: Its directory.
        repository: Opened.
        box: What runs here.
        clock: For what it notes.
        wait: Waits so many seconds between two attempts.
        progress: Told how far a fetch is.
    """

    def __init__(
        self,
        folder: UpdateFolder,
        repository: ReleaseRepository,
        box: Box,
        clock: Clock,
        *,
        wait: Wait,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._box = box
        self._clock = clock
        self._progress = progress
        self._downloads = Downloads(folder.downloads, repository.fetcher, wait)

    def look(self, channel: str) -> tuple[Channel, Version | None]:
        """Read the repository.

        Args:
            channel: To choose from.

        Returns:
            What the channel offers, and the release that this box should take.

        Raises:
            SecureHealthError: It cannot be read, or does not verify; it is noted, too.
        """
        self._folder.incoming.forget_up_to(self._box.running.version)
        with noted(self._folder):
            self._repository.refresh()
            offered = self._repository.channel(channel)
            chosen = choose(offered, self._box.audience, self._box.running, self._folder.load_pin())
            checked_s = int(self._clock.now().timestamp())
            self._folder.note(checked_s=checked_s, offered=None if chosen is None else str(chosen))
        return offered, chosen

    def take(self, version: Version, window: Window | None) -> Release:
        """Fetch a release, and ask the slot tool to install it.

        Args:
            version: As chosen.
            window: When it may change over; None for at once.

        Raises:
            SecureHealthError: It cannot be had, or may not run here; it is noted, too.
        """
        with noted(self._folder):
            check_not_on_trial(self._box)
            record = self._repository.small_file(release_path(str(version), RECORD_NAME), MAX_RECORD_BYTES)
            release = verify_release(record, self._box.keys)
            check_release(release, self._box.running, version)
            if not self._folder.incoming.holds(release):
                self._folder.incoming.finish(release, self._image(release))
                self._downloads.clear()
            self._folder.incoming.hand_over(release, record, window)
        log.info("update_handed_over", version=str(version))
        return release

    def run(self, channel: str, window: Window | None, *, automatic: bool) -> Version | None:
        """What the timer calls: look, and take what this box should have, unless that waits or failed here.

        Returns:
            The release that was handed over, if any.

        Raises:
            SecureHealthError: As `look` and `take` say.
        """
        offered, chosen = self.look(channel)
        self._drop_if_halted(offered)
        if chosen is None or not automatic or self._box.on_trial:
            return None
        if chosen in {self._box.failed, self._box.staged} or self._is_waiting(chosen):
            return None
        self.take(chosen, window)
        return chosen

    def take_named(self, channel: str, version: Version | None, window: Window | None) -> Version | None:
        """What a person asks for: the release that the channel has for this box, or one by name.

        Returns:
            The release that was handed over; None where there is nothing to take.

        Raises:
            SecureHealthError: As `look` and `take` say; also where the channel does not offer it.
        """
        offered, chosen = self.look(channel)
        if version is not None:
            check_named(offered, version)
            chosen = version
        if chosen is not None:
            self.take(chosen, window)
        return chosen

    def _drop_if_halted(self, offered: Channel) -> None:
        """A release that waits here for its hour, and that its maker has halted since, is not to run."""
        staged = self._box.staged
        offer = None if staged is None else offered.offer(str(staged))
        if staged is not None and offer is not None and offer.halted:
            with noted(self._folder):
                self._folder.incoming.ask_drop(staged)
            log.warning("update_halted", version=str(staged))

    def _is_waiting(self, version: Version) -> bool:
        # Asked for and gone means refused, or lost: a full disk must not keep a box from a release for good.
        waiting = self._folder.incoming.waiting()
        return waiting is not None and waiting.version == str(version)

    def _image(self, release: Release) -> Path:
        image = self._target(release, IMAGE_NAME)
        if image is None or (image.length, image.hashes["sha256"]) != (release.image_bytes, release.image_sha256):
            raise other_image(release)
        delta = self._target(release, delta_name(str(self._box.running.version)))
        if self._box.image is not None and delta is not None and delta.length < image.length:
            try:
                return self._from_delta(release, self._box.image, delta)
            except PeerProtocolError as error:
                log.warning("delta_refused", code=error.code, sentence=error.sentence)
        check_room(self._folder.path, self._downloads.room_needed(image))
        return self._downloads.fetch(self._repository.url_of(image), image, self._progress)

    def _from_delta(self, release: Release, base: Base, delta: TargetFile) -> Path:
        check_room(self._folder.path, self._downloads.room_needed(delta) + release.image_bytes)
        fetched = self._downloads.fetch(self._repository.url_of(delta), delta, self._progress)
        place = self._folder.incoming.begin(release)
        with kept_on_disk(place), whole_or_none(place):
            apply_delta(base, fetched, place, sha256=release.image_sha256, length=release.image_bytes)
        return place

    def _target(self, release: Release, name: str) -> TargetFile | None:
        return self._repository.target(release_path(str(release.version), name))


@contextmanager
def opened_updater(config: AgentConfig, clock: Clock, *, wait: Wait, progress: Progress) -> Iterator[Updater]:
    """The updater that a box's configuration asks for.

    Args:
        config: The box's.
        clock: For expiry and limits.
        wait: Waits so many seconds between two attempts.
        progress: Told how far a fetch is.

    Raises:
        OperatorError: No repository is configured (`update.no_repository`), another process brings an update, or the
            package is damaged.
        HardwareError: The disk does not take it.
    """
    settings = config.update
    if settings.url is None:
        raise OperatorError(
            "update.no_repository",
            "No release repository is configured on this box.",
            next_step="Name it in the configuration ([update] url), or bring releases on a stick labelled SEH-UPDATE.",
        )
    folder, box, root = UpdateFolder(settings.directory), load_box(config), load_root(settings)
    fetcher = BoundedFetcher(clock, proxy=config.network.proxy)
    try:
        with folder.held():
            repository = ReleaseRepository(folder.trust, settings.url, root, fetcher, clock)
            yield Updater(folder, repository, box, clock, wait=wait, progress=progress)
    finally:
        fetcher.close()


def check_not_on_trial(box: Box) -> None:
    """Check that the release here is not on trial itself.

    Raises:
        OperatorError: It is (`update.on_trial`).
    """
    if box.on_trial:
        raise OperatorError(
            "update.on_trial",
            f"Release {box.running.version} is on trial on this box; no other one is taken before it has shown itself.",
            next_step="Wait some minutes, then try again.",
        )


@contextmanager
def noted(folder: UpdateFolder) -> Iterator[None]:
    """Note what failed, for whoever asks how the updates do; or that nothing did.

    Raises:
        SecureHealthError: What failed.
    """
    try:
        yield
    except SecureHealthError as error:
        with suppress(HardwareError):  # the disk may be what failed
            folder.note(code=error.code, sentence=error.sentence[:2000], next_step=error.next_step[:2000])
        raise
    folder.note(code="", sentence="", next_step="")
