"""What the updater, which may do nothing else, asks of the slot tool: the file `incoming/ready`. Standard library only.

incoming/<version>/app.raw        the whole image
incoming/<version>/release.json   its release record
incoming/ready                    written last: what is to be done

What lies there is untrusted: the slot tool verifies the record and the image again, and holds them against its floor.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agent.core.files import store_atomically
from agent.statements.release import VERSION_PATTERN
from agent.update.window import Window, parse_window

READY_FILE: Final = "ready"
IMAGE_FILE: Final = "app.raw"
RECORD_FILE: Final = "release.json"
MAX_HANDOVER_BYTES: Final = 4096

Action = Literal["install", "rollback", "drop"]


@dataclass(frozen=True, slots=True)
class Handover:
    """One request.

    Args:
        action: `install` what lies in `incoming/<version>/`, `rollback` to the other slot, which holds `version`, or
            `drop` the release that waits there for its turn.
        version: X.Y.Z.
        window: When to change over; None for at once.
    """

    action: Action
    version: str
    window: Window | None = None

    def encode(self) -> bytes:
        """JSON; the inverse of `parse_handover`."""
        window = None if self.window is None else str(self.window)
        return json.dumps({"action": self.action, "version": self.version, "window": window}).encode() + b"\n"


def parse_handover(data: bytes) -> Handover:
    """Parse what `Handover.encode` gave.

    Raises:
        ValueError: It is something else.
    """
    if len(data) > MAX_HANDOVER_BYTES:
        raise ValueError("it is larger than a request may be")
    match _parse(data):
        case {
            "action": ("install" | "rollback" | "drop") as action,
            "version": str(version),
            "window": None | str() as window,
        }:
            if re.fullmatch(VERSION_PATTERN, version) is None:
                raise ValueError("it names no version")
            return Handover(action, version, None if window is None else parse_window(window))
        case _:
            raise ValueError("it is no request")


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is no request") from error


def leave_handover(incoming: Path, handover: Handover) -> None:
    """Ask the slot tool; it is started by the file.

    Args:
        incoming: The directory; what an installation needs lies there already, on the disk.
        handover: What is to be done.

    Raises:
        OSError: The disk does not take it.
    """
    store_atomically(incoming / READY_FILE, handover.encode())
