"""One machine for all tests, each from the snapshot that it needs; one guest at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.kit import install_reader
from tests.guest.rig import BOOTED, Guest
from tests.guest.tree import Machine, load_machine

WITH_READER = "reader"


@pytest.fixture(scope="session")
def machine() -> Machine:
    return load_machine()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a name short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="seh-g-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def reader_guest(machine: Machine) -> Iterator[Guest]:
    """A guest, switched off, whose snapshot `WITH_READER` reads sticks."""
    directory = Path(tempfile.mkdtemp(prefix="seh-g-"))
    with Guest.unpack(machine, directory) as guest:
        guest.start(BOOTED)
        install_reader(guest)
        guest.save(WITH_READER)
        guest.close()
        yield guest
    shutil.rmtree(directory)


@pytest.fixture
def box(reader_guest: Guest) -> Iterator[Guest]:
    """A running guest that reads sticks, fresh for each test."""
    with reader_guest as guest:
        guest.start(WITH_READER)
        yield guest
