"""One machine for all tests, each from the snapshot that it needs; one guest at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.attestation.makers import build_store
from agent.core.clock import SystemClock
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass
from agent.trust.token import STICK_FILE
from tests.guest.appliance import INSTALLED, READY_LIMIT_S, Appliance, load_installed
from tests.guest.kit import install_reader
from tests.guest.package import Releases, load_releases
from tests.guest.rig import BOOTED, Guest
from tests.guest.tree import Machine, load_machine
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.release_repository import PlayedReleases, ServedReleases, served_releases
from tests.simulators.stick import make_stick
from tests.simulators.superlink import RunningSuperLink

WITH_READER, ENROLLED = "reader", "enrolled"
SITE = SiteID("hospital-guest")
NEIGHBOURS = (SiteID("hospital-north"), SiteID("hospital-south"))


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


@pytest.fixture(scope="session")
def releases() -> Releases:
    return load_releases()


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with RunningSuperLink.start(tmp_path_factory.mktemp("superlink")) as running:
        yield running


@pytest.fixture(scope="session")
def maker() -> PlayedReleases:
    """Of the software, with a channel of its own."""
    return PlayedReleases.found_maker(SystemClock())


@pytest.fixture(scope="session")
def release_server(maker: PlayedReleases) -> Iterator[ServedReleases]:
    """The maker's, on this machine."""
    with served_releases(maker) as server:
        yield server


@pytest.fixture(scope="session")
def consortium(
    tmp_path_factory: pytest.TempPathFactory, superlink: RunningSuperLink, installed: Path, machine: Machine
) -> Iterator[PlayedConsortium]:
    """On this machine; it trusts the maker of the guest's TPM."""
    roots = [path.read_bytes() for path in machine.tpm_roots]
    stores = (build_store(EvidenceClass.TEST, roots),)
    place = tmp_path_factory.mktemp("consortium")
    with PlayedConsortium(place, superlink, sites=(SITE, *NEIGHBOURS), stores=stores) as played:
        yield played


@pytest.fixture(scope="session")
def installed(machine: Machine, releases: Releases) -> Path:
    """A stored guest with the package in it, its agent waiting to be enrolled."""
    return load_installed(machine, releases)


@pytest.fixture(scope="session")
def enrolled_guest(
    machine: Machine, installed: Path, consortium: PlayedConsortium, release_server: ServedReleases
) -> Iterator[Guest]:
    """A guest, switched off, whose snapshot `ENROLLED` belongs to the consortium."""
    directory = Path(tempfile.mkdtemp(prefix="seh-g-"))
    addresses = (consortium.address, consortium.superlink_address)
    ports = (*(int(address.rpartition(":")[2]) for address in addresses), release_server.port)
    with Guest.unpack(machine, directory, stored=installed) as guest:
        guest.ports = ports
        guest.start(INSTALLED)
        box = Appliance(guest)
        box.reach(ports)
        box.preset(consortium.repository.root_digest)
        guest.run("systemctl restart seh-agent.service", limit_s=READY_LIMIT_S)
        token = consortium.token_for(SITE).encode()
        stick = guest.plug(make_stick(directory / "stick.img", {STICK_FILE: token}))
        print(f"stick in -> enrolled and online: {box.wait_until_online():.1f} s")  # noqa: T201 - measured
        guest.unplug(stick)
        guest.run("sync")
        guest.save(ENROLLED)
        guest.close()
        yield guest
    shutil.rmtree(directory)


@pytest.fixture
def enrolled(enrolled_guest: Guest) -> Iterator[Appliance]:
    """A running box of the consortium, fresh for each test."""
    with enrolled_guest as guest:
        guest.start(ENROLLED)
        box = Appliance(guest)
        box.wait_until_online()
        yield box
