"""The registrar as a process of its own, with a door in place of a SuperLink: a file of keys that it let in.

    python -m tests.simulators.registrar_process REGISTRAR_TOML DOOR_FILE [MOMENT]

MOMENT is where the process kills itself, once: `published` (before the enrolment is endorsed) or `registered` (before
it is enrolled).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.statements.roots import key_id
from provisioning.registrar.publish import PublishingDesk
from provisioning.registrar.run import open_keys, opened_registrar, serve
from provisioning.registrar.settings import load_settings


def die() -> None:
    """As a power cut ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


class FileDoor:
    """Lets keys in, each once, as Flower does.

    Args:
        path: Ids of keys, one a line.
        after: Called after each.
    """

    def __init__(self, path: Path, after: Callable[[], None]) -> None:
        self._path = path
        self._after = after

    def register_node(self, public_key: ec.EllipticCurvePublicKey, *, name: str | None = None) -> int:
        """As `SuperLinkConnection` does."""
        known = let_in(self._path)
        if key_id(public_key) in known:
            raise OperatorError("superlink.refused", "Public key already in use.", next_step="Nothing.")
        with self._path.open("a", encoding="ascii") as stream:
            stream.write(f"{key_id(public_key)}\n")
        self._after()
        return len(known) + 1


def let_in(path: Path) -> list[str]:
    """Ids of the keys that a door let in."""
    return path.read_text(encoding="ascii").split() if path.exists() else []


def main(config: Path, door: Path, moment: str) -> None:
    """Run it until SIGTERM."""
    if moment == "published":
        PublishingDesk.settle = lambda *_, **__: die()  # type: ignore[assignment,method-assign]
        PublishingDesk.resume = lambda *_: None  # type: ignore[method-assign]
    settings = load_settings(config)
    keys = open_keys(settings, lambda what: what)
    after = die if moment == "registered" else lambda: None
    with opened_registrar(settings, keys, FileDoor(door, after), SystemClock()) as application:
        serve(application, settings, ready=lambda: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "".join(sys.argv[3:]))
