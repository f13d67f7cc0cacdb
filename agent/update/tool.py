"""The slot tool's command line, `seh-slot`, which runs on Debian's own Python, before and outside any payload.

Exit status: 0 done; 1 refused, or the disk, the TPM or a program failed; 2 wrong usage; 3 nothing to be done (yet).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.update.floor import TPMCounters
from agent.update.handover import MAX_HANDOVER_BYTES, READY_FILE, Handover, parse_handover
from agent.update.installer import Installer, Machine
from agent.update.release import parse_release_keys
from agent.update.slots import Slots, read_regular
from agent.update.store import STATE_FILE, StateStore
from agent.update.trial import Limits, Verdict
from agent.update.volatile import Volatile

SLOTS: Final = Path("var/lib/secur-e-health-slots")
INCOMING: Final = Path("var/lib/secur-e-health-update/incoming")
PAYLOAD: Final = Path("usr/share/secur-e-health/payload")
KEYS: Final = Path("usr/share/secur-e-health/release-keys.json")
HEALTH: Final = Path("run/secur-e-health/agent/health.json")
VOLATILE: Final = Path("run/secur-e-health/slots")
TPM_DEVICE: Final = Path("/dev/tpmrm0")
KEY_FILE: Final = "key"
LOCK_FILE: Final = "lock"
AGENT_UNIT: Final = "seh-agent.service"
TIMER_UNIT: Final = "seh-confirm.timer"
DONE, REFUSED, NOTHING = 0, 1, 3
_MAX_KEYS_BYTES: Final = 256 << 10


class Systemd:
    """The service manager, where one runs."""

    def restart_agent(self) -> None:
        """Start the agent anew, also where it had been given up."""
        self._ask("reset-failed", AGENT_UNIT)
        self._ask("restart", AGENT_UNIT)

    def watch(self, on: bool) -> None:
        """Have `confirm` run every few seconds, or no more."""
        self._ask("start" if on else "stop", TIMER_UNIT)

    def _ask(self, verb: str, unit: str) -> None:
        # It may be the one that waits for us: what was asked is done when we have ended.
        if Path("/run/systemd/system").exists():
            subprocess.run(("systemctl", "--no-block", "--quiet", verb, unit), check=False, timeout=30)


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything lies.

    Args:
        root: Of the file system, as an image is assembled in a directory.
    """

    root: Path

    def machine(self) -> Machine:
        """What the workflows work with; makes the directories and the tool's secret where they are missing.

        Raises:
            OperatorError: The list of who may sign is damaged.
            OSError: It is missing, or the disk does not take what is new.
        """
        slots, volatile = self.root / SLOTS, self.root / VOLATILE
        for directory in (slots, volatile):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        secret = _load_secret(slots / KEY_FILE)
        counters = TPMCounters(secret) if self._has_tpm() else None
        return Machine(
            slots=Slots(slots),
            store=StateStore(slots / STATE_FILE, secret, counters),
            keys=parse_release_keys(read_regular(self.root / KEYS, _MAX_KEYS_BYTES)),
            counters=counters,
            volatile=Volatile(volatile),
            health=self.root / HEALTH,
            services=Systemd(),
            now_s=lambda: int(time.clock_gettime(time.CLOCK_BOOTTIME)),
            local_time=lambda: datetime.now().astimezone(),
        )

    def _has_tpm(self) -> bool:
        # Not the TPM of the machine on which another one's image is assembled.
        if self.root == Path("/") and TPM_DEVICE.exists():
            os.environ.setdefault("TPM2TOOLS_TCTI", f"device:{TPM_DEVICE}")
        return "TPM2TOOLS_TCTI" in os.environ


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see the module's text for its exit status."""
    options = _parser().parse_args(arguments)
    place = Place(options.root)
    try:
        with _failures_told(), _locked(place.root / SLOTS):
            machine = place.machine()
            try:
                status: int = options.command(Installer(machine), place, options)
            finally:
                with suppress(SecureHealthError):
                    machine.volatile.publish(Installer(machine).status())
    except SecureHealthError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    return status


def _init(installer: Installer, place: Place, _options: argparse.Namespace) -> int:
    return DONE if installer.init(place.root / PAYLOAD) else NOTHING


def _install(installer: Installer, place: Place, _options: argparse.Namespace) -> int:
    incoming = place.root / INCOMING
    volatile = Volatile(place.root / VOLATILE)
    handover = None
    try:
        with _failures_told():
            handover = _take_handover(incoming / READY_FILE)
            if handover is None:
                return NOTHING
            phase = installer.install(incoming, handover)
    except SecureHealthError as error:
        volatile.answer(_answer(handover, error.code, str(error)))
        raise
    finally:
        # Whatever became of it: the same request would end the same way.
        _take_away(incoming / READY_FILE)
    volatile.answer(_answer(handover, None, f"The update is now {phase.value}."))
    return DONE


def _switch(installer: Installer, _place: Place, _options: argparse.Namespace) -> int:
    installer.switch()
    return DONE


def _activate(installer: Installer, place: Place, _options: argparse.Namespace) -> int:
    release = installer.activate(place.root / PAYLOAD)
    sys.stdout.write(f"Release {release.version}, security epoch {release.epoch}, root hash {release.root_hash}\n")
    return DONE


def _confirm(installer: Installer, _place: Place, options: argparse.Namespace) -> int:
    judgement = installer.confirm(Limits(options.ready_s, options.well_s, options.deadline_s))
    if judgement is None or judgement.verdict is Verdict.WAIT:
        return NOTHING
    sys.stdout.write(f"The release on trial: {judgement.verdict.value}, as {judgement.reason}\n")
    return DONE


def _fail(installer: Installer, _place: Place, _options: argparse.Namespace) -> int:
    return DONE if installer.fail() else NOTHING


def _rollback(installer: Installer, _place: Place, options: argparse.Namespace) -> int:
    installer.rollback(options.version)
    return DONE


def _status(installer: Installer, _place: Place, _options: argparse.Namespace) -> int:
    sys.stdout.write(json.dumps(installer.status(), indent=1) + "\n")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seh-slot", description="Installs and tries the releases of this box.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="directory in which a box's image is assembled")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(
        name: str, run: Callable[[Installer, Place, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        return command

    add("init", _init, "make the slots, and put the package's payload into one, if it is newer than what runs")
    add("install", _install, "do what the updater asks in incoming/ready")
    add("switch", _switch, "have the staged release take over now, on trial")
    add("activate", _activate, "choose, verify and measure the release that runs; before every start of the agent")
    confirm = add("confirm", _confirm, "judge the release on trial, or switch to a staged one in its window")
    limits = Limits()
    for option, default, text in (
        ("--ready-s", limits.ready_s, "within which the agent must be ready"),
        ("--well-s", limits.well_s, "how long it must be well without a break"),
        ("--deadline-s", limits.deadline_s, "within which that must be so"),
    ):
        confirm.add_argument(option, type=int, default=default, metavar="SECONDS", help=f"{text} ({default})")
    add("fail", _fail, "the agent failed: give up the release on trial, or leave a damaged slot")
    rollback = add("rollback", _rollback, "go back to the release before")
    rollback.add_argument("--version", help="which one it must be")
    add("status", _status, "show what there is, as JSON")
    return parser


def _take_handover(path: Path) -> Handover | None:
    try:
        return parse_handover(read_regular(path, MAX_HANDOVER_BYTES))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OperatorError(
            "update.bad_request",
            f"What the updater asks for is not understood: {error}.",
            next_step="Ask again; if it repeats, updater and slot tool are of releases that do not fit.",
        ) from error


def _take_away(path: Path) -> None:
    # A directory in its place would ask again and again, until systemd starts nothing for it any more.
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        path.rename(path.with_name(f"refused-{secrets.token_hex(4)}"))


def _answer(handover: Handover | None, code: str | None, sentence: str) -> dict[str, object]:
    return {
        "action": handover.action if handover else None,
        "version": handover.version if handover else None,
        "code": code,
        "sentence": sentence,
    }


def _load_secret(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        secret = read_regular(path, 64)
        if len(secret) == 32:
            return secret
    store_atomically(path, secrets.token_bytes(32), mode=0o600)
    return path.read_bytes()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One command at a time; the others wait."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Nobody else can open it, so nobody else can hold it.
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HardwareError(
            "update.disk_failed",
            f"A file of the releases cannot be read or written: {error}.",
            next_step="Free space on the disk, or have it looked at. What runs, runs on.",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
