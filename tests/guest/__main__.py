"""Builds what the guests' tests need, once: `python -m tests.guest`, which `make system` runs."""

from __future__ import annotations

from tests.guest.rig import booted
from tests.guest.tree import load_machine

if __name__ == "__main__":
    booted(load_machine())
