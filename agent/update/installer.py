"""The slot tool's workflows: a release is staged, tried, committed or given up; the box always has one that may run.

Each command reads the state, and leaves it so that a power cut at any moment loses at most that command. Which slot
runs follows from the state alone: `activate`, before every start of the agent, verifies it and sets the link.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from agent.core.errors import OperatorError, SecureHealthError, SoftwareError
from agent.statements.release import Release
from agent.update.floor import Counters
from agent.update.handover import IMAGE_FILE, RECORD_FILE, Handover
from agent.update.release import MAX_RECORD_BYTES, ReleaseKeys, verify_release
from agent.update.slots import RECORD_FILE as STORED_RECORD_FILE
from agent.update.slots import Slots, opened_regular, read_regular
from agent.update.state import TRIES, Event, Phase, SlotName, State
from agent.update.store import Memory, StateStore
from agent.update.trial import MAX_HEALTH_BYTES, Health, Judgement, Limits, Verdict, judge, parse_health
from agent.update.volatile import Volatile
from agent.update.window import parse_window

_RESERVE: Final = 3
"""Space for how many halves of the first payload each slot takes at once."""


class NothingRunsError(OperatorError):
    """Neither slot holds a release that may run."""


class Services(Protocol):
    """What the slot tool asks of the service manager."""

    def restart_agent(self) -> None:
        """Start the agent anew, and with it `activate`."""

    def watch(self, on: bool) -> None:
        """Have `confirm` run every few seconds, or no more."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the slot tool works with.

    Args:
        slots: The two slots.
        store: Its state.
        keys: Who may sign releases.
        counters: The TPM; None where there is none.
        volatile: What it remembers within one boot.
        health: The agent's health.json.
        services: The service manager.
        now_s: The clock since boot.
        local_time: The time of day here.
    """

    slots: Slots
    store: StateStore
    keys: ReleaseKeys
    counters: Counters | None
    volatile: Volatile
    health: Path
    services: Services
    now_s: Callable[[], int]
    local_time: Callable[[], datetime]


class Installer:
    """The workflows.

    Args:
        machine: What they work with.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._slots = machine.slots

    def init(self, payload: Path) -> bool:
        """Make the slots and put the package's payload into one; on a box that has them, stage it if it is newer.

        Args:
            payload: Directory with app.raw and release.json.

        Returns:
            Whether the payload is to run now.

        Raises:
            SecureHealthError: The payload may not run here, or the disk or the TPM fails.
        """
        record, release = self._read_record(payload)
        if self._machine.store.peek() is not None:
            state = self._load()
            if release.version <= self._release(state.good).version:
                return False
            self._switch(self._stage(state, payload, record, release, None))
            return True
        self._slots.reserve(_RESERVE * release.image_bytes // 2)
        self._begin(payload, record, release, self._machine.store.load(lambda _: release.epoch))
        self._slots.point(SlotName.A)
        return True

    def install(self, incoming: Path, handover: Handover) -> Phase:
        """Do what the updater asks.

        Args:
            incoming: Directory that holds `<version>/app.raw` and `<version>/release.json`; anybody's.
            handover: What is asked.

        Returns:
            Where the update stands now.

        Raises:
            SecureHealthError: It may not be, or the disk or the TPM fails; what runs, runs on.
        """
        if handover.action == "rollback":
            return self.rollback(handover.version)
        if handover.action == "drop":
            return self.drop(handover.version)
        source = incoming / handover.version
        record, release = self._read_record(source)
        if str(release.version) != handover.version:
            raise _wrong_release("the record speaks of another version")
        window = None if handover.window is None else str(handover.window)
        return self._switch_in_window(self._stage(self._load(), source, record, release, window)).phase

    def switch(self) -> None:
        """Have the staged release take over now, on trial.

        Raises:
            SecureHealthError: None is staged, or it may not run here.
        """
        self._switch(self._load())

    def activate(self, payload: Path) -> Release:
        """Choose the release that runs, verify it, point `current` to it and measure it; count a try if it is on trial.

        Args:
            payload: The package's, for a box on which neither slot holds a release that may run.

        Returns:
            It.

        Raises:
            SecureHealthError: None may run, or the disk or the TPM fails.
        """
        try:
            state, release = self._runnable(self._counted(self._load()))
        except NothingRunsError as nothing:
            state, release = self._begin_anew(payload, nothing)
        self._slots.point(state.active)
        self._measure(release)
        if state.phase is Phase.TRIAL:
            self._machine.volatile.begin_watch(self._machine.now_s(), state.active, str(release.version))
        self._machine.services.watch(_needs_watch(state) or release.epoch > state.floor)
        return release

    def confirm(self, limits: Limits) -> Judgement | None:
        """Do what is due: judge a release on trial, switch to a staged one in its window, raise the floor.

        Args:
            limits: How long a trial takes.

        Returns:
            The judgement, where a release is on trial.

        Raises:
            SecureHealthError: What is due fails; what runs, runs on.
        """
        state, judgement = self._load(), None
        try:
            if state.phase is Phase.TRIAL:
                state, judgement = self._judge(state, limits)
            if state.phase is Phase.STAGED:
                state = self._switch_in_window(state)
            if state.phase is Phase.STEADY:
                state = self._raise_floor(state)
        finally:
            self._machine.services.watch(_needs_watch(state))
        return judgement

    def fail(self) -> bool:
        """The agent failed: give up the release on trial, or leave a slot that turns out to be damaged; start it anew.

        Returns:
            Whether another release runs now.

        Raises:
            SecureHealthError: The disk or the TPM fails.
        """
        state = self._load()
        if state.phase is Phase.TRIAL and state.tries_left < TRIES:
            self._give_up(state)
            changed = True
        else:
            # A trial whose first start is yet to come has not failed: that was the release before it, as it ended.
            changed = state.phase is not Phase.TRIAL and self._leave_if_damaged(state)
        self._machine.services.restart_agent()
        return changed

    def rollback(self, version: str | None = None) -> Phase:
        """Go back to the release before, or give up the one on trial.

        Args:
            version: Which one that must be; None for whichever it is.

        Raises:
            SecureHealthError: There is none that may run.
        """
        state = self._load()
        if state.phase is Phase.STAGED:
            raise OperatorError(
                "update.nothing_to_roll_back",
                "There is no older release on this box: the place for it holds a newer one that waits for its turn.",
                next_step="Leave it waiting with `seh-agent update pin`, or let it take over.",
            )
        older = self._usable(state.good if state.phase is Phase.TRIAL else state.good.other, state.floor)
        if version not in {None, str(older.version)}:
            raise _wrong_release(f"the other slot holds {older.version}")
        if state.phase is Phase.TRIAL:
            state = self._give_up(state)
        else:
            left = self._release(state.good).version
            if older.version >= left:
                # Whoever may ask could have a release run untried, also one that failed its trial.
                raise _wrong_release(f"the other slot holds {older.version}, which is not older than the one that runs")
            state = self._save(state.after(Event.ROLLBACK, failed=str(left)))
        self._machine.services.restart_agent()
        return state.phase

    def drop(self, version: str) -> Phase:
        """Let go of a release that waits for its turn: its maker offers it no more.

        Args:
            version: Which one; another one waits on.

        Raises:
            HardwareError: The disk or the TPM fails.
        """
        state = self._load()
        if state.phase is Phase.STAGED and version == str(self._release(state.good.other).version):
            state = self._save(state.after(Event.DROP, window=None))
        return state.phase

    def status(self) -> dict[str, object]:
        """What there is, without changing anything."""
        state = self._machine.store.peek()
        reading = self._machine.counters.read() if self._machine.counters else None
        return {
            "tpm": "absent" if self._machine.counters is None else "unused" if reading is None else "in use",
            "floor": max(state.floor if state else 0, reading.floor if reading else 0),
            "phase": state.phase.value if state else "unknown",
            "active": state.active.value if state else None,
            "good": state.good.value if state else None,
            "current": self._slots.current,
            "tries_left": state.tries_left if state and state.phase is Phase.TRIAL else None,
            "window": state.window if state else None,
            "failed": state.failed if state else None,
            "slots": {name.value: self._describe(name) for name in SlotName},
        }

    def _load(self) -> State:
        memory = self._machine.store.load(self._epoch_on_disk)
        return memory.state or self._rebuild(memory.floor, memory.generation)

    def _save(self, state: State) -> State:
        return self._machine.store.save(state)

    def _counted(self, state: State) -> State:
        if state.phase is not Phase.TRIAL:
            return state
        if not state.tries_left:
            return self._give_up(state)
        return self._save(state.after(Event.TRY, tries_left=state.tries_left - 1))

    def _begin(self, payload: Path, record: bytes, release: Release, memory: Memory) -> State:
        _check_floor(release, memory.floor)
        if self._slots.record(SlotName.A) != record:
            with opened_regular(payload / IMAGE_FILE) as image:
                self._slots.write(SlotName.A, image, release, record)
        floor = max(memory.floor, release.epoch)
        self._save(State(memory.generation, floor, SlotName.A))
        return self._load()  # which raises the counter to the floor

    def _begin_anew(self, payload: Path, nothing: NothingRunsError) -> tuple[State, Release]:
        try:
            record, release = self._read_record(payload)
            self._slots.path(SlotName.A, STORED_RECORD_FILE).unlink(missing_ok=True)
            return self._begin(payload, record, release, self._machine.store.load(lambda _: release.epoch)), release
        except (OSError, SecureHealthError) as error:
            raise nothing from error

    def _rebuild(self, floor: int, generation: int) -> State:
        """A state was lost, or an old one put back: the newer release that may run must show itself once more."""
        found: dict[SlotName, Release] = {}
        for name in SlotName:
            with suppress(SecureHealthError):
                found[name] = self._usable(name, floor)
        if not found:
            raise _nothing_runs("there is none, or it is damaged or too old")
        floor = max(floor, min(release.epoch for release in found.values()))
        good = min(found, key=lambda name: found[name].version)
        if len({release.version for release in found.values()}) == 1:
            return self._save(State(generation, floor, good))
        return self._save(State(generation, floor, good, Phase.TRIAL, tries_left=TRIES))

    def _epoch_on_disk(self, state: State | None) -> int:
        epochs = []
        for name in SlotName if state is None else (state.good,):
            with suppress(SecureHealthError):
                epochs.append(self._release(name).epoch)
        return min(epochs, default=0)

    def _read_record(self, directory: Path) -> tuple[bytes, Release]:
        record = read_regular(directory / RECORD_FILE, MAX_RECORD_BYTES)
        return record, verify_release(record, self._machine.keys)

    def _release(self, name: SlotName) -> Release:
        record = self._slots.record(name)
        if record is None:
            raise OperatorError(
                "update.empty_slot",
                f"Slot {name.value} holds no release.",
                next_step="An update fills it.",
            )
        return verify_release(record, self._machine.keys)

    def _usable(self, name: SlotName, floor: int) -> Release:
        """What a slot holds, if it may run: signed, not below the floor, with the root hash that systemd will take."""
        release = self._release(name)
        _check_floor(release, floor)
        self._slots.check(name, release)
        return release

    def _runnable(self, state: State) -> tuple[State, Release]:
        try:
            return state, self._usable(state.active, state.floor)
        except SecureHealthError as error:
            why = error.sentence
        try:
            release = self._usable(state.active.other, state.floor)
        except SecureHealthError as error:
            raise _nothing_runs(why) from error
        event = Event.FAIL if state.phase is Phase.TRIAL else Event.REPLACE
        return self._save(state.after(event, tries_left=0)), release

    def _stage(self, state: State, source: Path, record: bytes, release: Release, window: str | None) -> State:
        _check_floor(release, state.floor)
        if state.phase is Phase.TRIAL:
            raise OperatorError(
                "update.in_trial",
                "Another release is on trial.",
                next_step="Wait until it is committed or given up; `seh-slot status` shows it.",
            )
        if release.version <= self._release(state.good).version:
            raise _wrong_release("it is not newer than the one that runs")
        if self._slots.record(state.good.other) == record:
            with suppress(SecureHealthError):
                self._slots.verify(state.good.other, release)
                staged = (
                    replace(state, window=window)
                    if state.phase is Phase.STAGED
                    else state.after(Event.STAGE, window=window)
                )
                return self._save(staged)
        if state.phase is Phase.STAGED:
            state = self._save(state.after(Event.DROP, window=None))
        with opened_regular(source / IMAGE_FILE) as image:
            self._slots.write(state.good.other, image, release, record)
        return self._save(state.after(Event.STAGE, window=window))

    def _switch_in_window(self, state: State) -> State:
        if state.window and not parse_window(state.window).holds(self._machine.local_time()):
            self._machine.services.watch(True)
            return state
        return self._switch(state)

    def _switch(self, state: State) -> State:
        self._usable(state.good.other, state.floor)
        health = self._health(str(self._release(state.good).version))
        needs = () if health is None else tuple(name for name in sorted(health.checks) if health.checks[name])
        state = self._save(state.after(Event.SWITCH, tries_left=TRIES, needs=needs, window=None))
        self._machine.volatile.end_watch()
        self._machine.services.restart_agent()
        return state

    def _judge(self, state: State, limits: Limits) -> tuple[State, Judgement]:
        version, now_s = str(self._release(state.active).version), self._machine.now_s()
        watch = self._machine.volatile.begin_watch(now_s, state.active, version)
        judgement = judge(self._health(version), watch, now_s=now_s, needs=state.needs, limits=limits)
        self._machine.volatile.keep_watch(judgement.watch)
        if judgement.verdict is Verdict.COMMIT:
            state = self._save(state.after(Event.COMMIT, tries_left=0, failed=None))
        elif judgement.verdict is Verdict.FAIL:
            state = self._give_up(state, again=judgement.again)
            self._machine.services.restart_agent()
        return state, judgement

    def _raise_floor(self, state: State) -> State:
        """Raise the floor once both slots meet it; one that holds an older epoch gets the committed release first."""
        release = self._usable(state.good, state.floor)
        if release.epoch <= state.floor:
            return state
        try:
            met = self._usable(state.good.other, release.epoch)
        except SecureHealthError:
            met = None
        if met is None:
            record = self._slots.record(state.good)
            if record is None:
                raise SoftwareError("update.empty_slot", "The good slot is empty.", next_step="Report this.")
            with opened_regular(self._slots.path(state.good, IMAGE_FILE)) as image:
                self._slots.write(state.good.other, image, release, record)
        self._save(replace(state, floor=release.epoch))
        return self._load()  # which raises the counter, as after a power cut

    def _give_up(self, state: State, *, again: bool = False) -> State:
        version = None
        with suppress(SecureHealthError):
            version = str(self._release(state.active).version)
        return self._save(state.after(Event.FAIL, tries_left=0, failed=state.failed if again else version))

    def _leave_if_damaged(self, state: State) -> bool:
        try:
            self._slots.verify(state.good, self._usable(state.good, state.floor))
        except SecureHealthError:
            other = state.good.other
            self._slots.verify(other, self._usable(other, state.floor))
            self._save(state.after(Event.REPLACE, window=None))
            return True
        return False

    def _measure(self, release: Release) -> None:
        if self._machine.counters is None or self._machine.volatile.measured == release.root_hash:
            return
        # Measured twice after a power cut in between is seen by whoever reads the PCR; measured never would not be.
        self._machine.counters.measure(bytes.fromhex(release.root_hash))
        self._machine.volatile.note_measured(release.root_hash)

    def _health(self, version: str) -> Health | None:
        try:
            health = parse_health(read_regular(self._machine.health, MAX_HEALTH_BYTES))
        except (OSError, ValueError, OperatorError):
            return None
        return health if health.version == version else None

    def _describe(self, name: SlotName) -> dict[str, object] | None:
        try:
            release = self._release(name)
        except SecureHealthError:
            return None
        return {"version": str(release.version), "epoch": release.epoch, "root_hash": release.root_hash}


def _nothing_runs(why: str) -> NothingRunsError:
    return NothingRunsError(
        "update.nothing_runs",
        f"Neither slot holds a release that may run here, nor does the package: {why}",
        next_step="Install a package of the newest release.",
    )


def _needs_watch(state: State) -> bool:
    return state.phase is not Phase.STEADY


def _check_floor(release: Release, floor: int) -> None:
    if release.epoch < floor:
        raise OperatorError(
            "update.below_floor",
            f"Release {release.version} has the security epoch {release.epoch}; {floor} is the lowest that may run.",
            next_step="Take a newer release.",
            epoch=release.epoch,
            floor=floor,
        )


def _wrong_release(what: str) -> OperatorError:
    return OperatorError(
        "update.wrong_release",
        f"This release is not installed: {what}.",
        next_step="To go back to the release before, ask for `seh-agent update rollback`.",
    )
