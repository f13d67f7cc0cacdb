"""The package's life on a machine with a systemd: installed, replaced, refused, removed, purged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.container import Container
from tests.simulators.packages import build_package
from tests.simulators.releases import Publisher

OLD, NEW = "1.9.0", "1.10.0"
SLOT_TOOL = "/usr/lib/secur-e-health/bin/seh-slot"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, publisher = tmp_path_factory.mktemp("packages"), Publisher()
    for version in (OLD, NEW):
        build_package(place, version, publisher)
    return place / "packages"


@pytest.fixture
def container(packages: Path) -> Iterator[Container]:
    with Container(packages) as machine:
        yield machine


def _install(version: str) -> str:
    return f"dpkg --install /mnt/secur-e-health_{version}_amd64.deb"


def _slots(container: Container) -> dict[str, str | None]:
    slots = json.loads(container.do(f"{SLOT_TOOL} status"))["slots"]
    return {name: slot and slot["version"] for name, slot in slots.items()}


def test_one_command_installs_a_box(container: Container) -> None:
    container.do(_install(OLD))
    assert _slots(container) == {"a": OLD, "b": None}
    assert container.do("readlink /var/lib/secur-e-health-slots/current").strip() == "a"
    assert container.do("stat -c '%U:%G %a' /etc/secur-e-health").strip() == "root:secur-e-health 750"
    for unit in ("seh-agent.service", "seh-worker.socket"):
        assert container.do(f"systemctl is-enabled {unit}").strip() == "enabled"
    assert container.do("systemctl is-active seh-worker.socket").strip() == "active"
    status, told = container.run("setpriv --reuid nobody seh-agent status")
    assert (status, told.strip()) == (
        2,
        "This works on the box's agent, which only root may do. Run: sudo seh-agent status",
    )


def test_a_newer_package_tries_its_release_beside_the_one_that_runs(container: Container) -> None:
    container.do(_install(OLD))
    container.do("echo '# ours' >> /etc/secur-e-health/catalog.toml")
    container.do(_install(NEW))
    assert _slots(container) == {"a": OLD, "b": NEW}
    assert json.loads(container.do(f"{SLOT_TOOL} status"))["good"] == "a", (
        "nothing has shown yet that the new one works"
    )
    assert "# ours" in container.do("cat /etc/secur-e-health/catalog.toml")


def test_an_older_package_is_refused_and_leaves_everything_as_it_was(container: Container) -> None:
    container.do(_install(NEW))
    before = container.do("dpkg --verify secur-e-health; find /var/lib/secur-e-health-slots -type f | xargs sha256sum")
    status, told = container.run(_install(OLD))
    assert status == 1
    assert f"this box has release {NEW}; {OLD} is older and was not installed. Nothing was changed." in told
    assert container.do("dpkg-query -W -f '${Version} ${Status}' secur-e-health") == f"{NEW} install ok installed"
    after = container.do("dpkg --verify secur-e-health; find /var/lib/secur-e-health-slots -type f | xargs sha256sum")
    assert after == before


def test_an_update_that_came_by_itself_is_not_replaced_by_an_older_package(container: Container) -> None:
    container.do(_install(NEW))
    container.do("dpkg --remove secur-e-health")  # dpkg forgets the version, the box does not
    status, told = container.run(_install(OLD))
    assert status == 1
    assert f"this box has release {NEW}" in told


def test_removing_the_package_keeps_the_box(container: Container) -> None:
    container.do(_install(OLD))
    container.do("install -d -o secur-e-health /var/lib/secur-e-health && touch /var/lib/secur-e-health/identity")
    container.do("dpkg --remove secur-e-health")
    assert container.run("systemctl is-active seh-worker.socket")[1].strip() == "inactive"
    container.do("test -e /var/lib/secur-e-health/identity -a -e /etc/secur-e-health/agent.toml")
    container.do(_install(OLD))
    assert _slots(container) == {"a": OLD, "b": None}
    assert container.do("systemctl is-active seh-worker.socket").strip() == "active"


def test_purging_it_deletes_the_box_and_says_so(container: Container) -> None:
    container.do(_install(OLD))
    container.do("install -d -o secur-e-health /var/lib/secur-e-health && touch /var/lib/secur-e-health/identity")
    container.do("echo 1 > /srv/secur-e-health/records.csv")
    told = container.do("dpkg --purge secur-e-health")
    assert "deleting this box's identity, its record of rounds, its releases and its configuration" in told
    left = container.do("find / -xdev -path /mnt -prune -o \\( -name '*secur-e-health*' -o -name 'seh-*' \\) -print")
    assert left.split() == ["/srv/secur-e-health"], "the hospital's data are not ours to delete"


def test_a_package_put_into_an_image_waits_for_its_first_boot(container: Container) -> None:
    container.do("mv /run/systemd/system /run/systemd/away")  # as in a directory that becomes an image
    container.do(_install(OLD))
    container.do("test ! -e /var/lib/secur-e-health-slots/state.json")
    container.do("mv /run/systemd/away /run/systemd/system")
    assert container.do("systemctl is-enabled seh-agent.service").strip() == "enabled"
