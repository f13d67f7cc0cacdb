"""Builds what the guests' tests need, once: `python -m tests.guest`, which `make system` runs."""

from __future__ import annotations

import sys

from tests.guest.appliance import load_installed
from tests.guest.image import load_image
from tests.guest.package import load_releases
from tests.guest.rig import booted
from tests.guest.tree import load_machine


def build() -> None:
    """Everything that lies in `build/guest/`; what is there already stays."""
    tell = sys.stderr.write
    tell("1 of 4: a Debian machine, booted\n")
    machine = load_machine()
    booted(machine)
    tell("2 of 4: the package, a newer release and a broken one\n")
    releases = load_releases()
    tell("3 of 4: the package installed on the machine\n")
    load_installed(machine, releases)
    tell("4 of 4: the appliance's image\n")
    load_image()


if __name__ == "__main__":
    build()
