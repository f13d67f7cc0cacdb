"""The updater's units on a systemd: what they may do is enough for an update over the network, and for one by stick.

A container knows no dm-verity: the release that they run from is this tree, and what they need of its libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.statements.release import Version
from provisioning.releases.maker import read_only_maker
from tests.simulators.container import Container
from tests.simulators.maker import Hands
from tests.simulators.release_repository import new_image
from tests.simulators.stick import find_tool, make_stick

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OLD, NEW = "0.1.0", "0.2.0"
OLD_IMAGE, NEW_IMAGE = new_image(1, 256), new_image(2, 256)
LIBRARIES = (
    *("tuf", "securesystemslib", "httpcore", "h11", "certifi", "urllib3", "pydantic", "pydantic_core", "rfc8785"),
    *("typing_extensions", "annotated_types", "typing_inspection", "structlog", "typer", "click", "cbor2"),
    *("cryptography", "cffi", "mnemonic", "rich", "shellingham", "Pygments", "markdown-it-py", "mdurl"),
)
WAIT = """
import socket, time
for attempt in range(200):
    with socket.socket() as one:
        if one.connect_ex(("127.0.0.1", 8000)) == 0:
            raise SystemExit
    time.sleep(0.1)
raise SystemExit("nobody serves")
"""
HOME = "/var/lib/secur-e-health-update"
CONFIGURATION = """
[node]
state_directory = "/var/lib/secur-e-health"
[key]
uri = "tpm:device:/dev/tpmrm0"
[data]
catalog = "/etc/secur-e-health/catalog.toml"
[update]
url = "http://127.0.0.1:8000/"
"""
HERE = """[Service]
RootImage=
RootVerity=
RootHash=
BindReadOnlyPaths=/mnt
Environment=PYTHONPATH=/mnt/site:/mnt/source
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the container sees: a maker's repository, a slot, a stick, and the software."""
    place = tmp_path_factory.mktemp("shared")
    hands = Hands(tmp_path_factory.mktemp("maker"))
    hands.do("init", "--environment", "test")
    hands.release(OLD, OLD_IMAGE)
    hands.release(NEW, NEW_IMAGE, "--from", OLD)
    hands.do("promote", NEW, "--site", "hospital-a")
    maker = read_only_maker(hands.directory, str, SystemClock())
    shutil.copytree(hands.directory / "repository", place / "repository")
    for name in ("release-root.json", "release-keys.json"):
        shutil.copy(hands.directory / name, place)
    slot = place / "slots" / "a"
    slot.mkdir(parents=True)
    (slot / "app.raw").write_bytes(OLD_IMAGE + bytes(4096))
    shutil.copy(maker.record(Version.parse(OLD)), slot / "meta.json")
    files = {"release.json": maker.record(Version.parse(NEW)).read_bytes(), "app.raw": NEW_IMAGE}
    make_stick(place / "stick.img", files, label="SEH-UPDATE")
    (place / "wait.py").write_text(WAIT)
    place.chmod(0o755)
    _copy_software(place)
    return place


def _copy_software(place: Path) -> None:
    shutil.copytree(ROOT / "agent", place / "source" / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "packaging", place / "packaging")
    shutil.copy(find_tool("zstd"), place)
    for library in LIBRARIES:
        for file in importlib.metadata.files(library) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                target = place / "site" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


@pytest.fixture
def box(shared: Path) -> Iterator[Container]:
    """A box with the updater's units, a slot and an enrolment."""
    with Container(shared) as machine:
        machine.do("cp -r /mnt/packaging/systemd/seh-update* /etc/systemd/system && cp /mnt/zstd /usr/bin")
        for folder in ("sysusers.d", "tmpfiles.d"):
            machine.do(f"cp /mnt/packaging/{folder}/*.conf /usr/lib/{folder}")
        machine.do(
            "systemd-sysusers && systemd-tmpfiles --create --prefix=/etc --prefix=/var/lib --prefix=/run/secur-e-health"
        )
        machine.do("mkdir -p /usr/share/secur-e-health && cp /mnt/release-*.json /usr/share/secur-e-health")
        machine.do("cp -r /mnt/slots/a /var/lib/secur-e-health-slots && ln -s a /var/lib/secur-e-health-slots/current")
        state = "/var/lib/secur-e-health"
        machine.do(f"install -d -m 700 -o secur-e-health -g secur-e-health {state} {state}/enrolment")
        record = json.dumps({"site": "hospital-a", "key_id": "0" * 64})
        _write(machine, f"{state}/enrolment/record.json", record, mode="644", group="secur-e-health")
        _write(machine, "/etc/secur-e-health/agent.toml", CONFIGURATION, mode="640", group="secur-e-health")
        for unit in ("seh-update.service", "seh-update-stick@.service"):
            machine.do(f"mkdir /etc/systemd/system/{unit}.d")
            _write(machine, f"/etc/systemd/system/{unit}.d/here.conf", HERE)
        # No udev, so no device to be bound to.
        stick = "/etc/systemd/system/seh-update-stick@.service"
        machine.do(f"sed -i '/^BindsTo=/d; s/^After=dev-%i.device/After=/' {stick}")
        machine.do("systemctl daemon-reload")
        yield machine


def _write(machine: Container, path: str, text: str, *, mode: str = "644", group: str = "root") -> None:
    machine.do(f"cat > {path} <<'END'\n{text}\nEND\nchmod {mode} {path} && chgrp {group} {path}")


def _taken(box: Container) -> str:
    """What was handed over, once it is whole and the updater's own."""
    digest = box.do(f"sha256sum {HOME}/incoming/{NEW}/app.raw").split()[0]
    assert digest == hashlib.sha256(NEW_IMAGE).hexdigest()
    owners = box.do(f"find {HOME} -printf '%u\\n' | sort -u").split()
    assert owners == ["secur-e-health-update"]
    return str(json.loads(box.do(f"cat {HOME}/incoming/ready"))["version"])


def test_over_the_network(box: Container) -> None:
    serve = "systemd-run --quiet --unit=maker --working-directory=/mnt/repository"
    box.do(f"{serve} python3 -m http.server 8000 --bind 127.0.0.1")
    box.do("python3 /mnt/wait.py")
    status, _ = box.run("systemctl start seh-update.service")
    log = box.do("journalctl -u seh-update.service -o cat --no-pager")
    assert status == 0, log
    assert _taken(box) == NEW, log
    asked = box.do("journalctl -u maker.service -o cat --no-pager")
    assert f"from-{OLD}.zst" in asked
    assert "app.raw" not in asked


def test_by_stick(box: Container) -> None:
    box.do("cp /mnt/stick.img /dev/stick && chmod 600 /dev/stick")
    status, _ = box.run("systemctl start seh-update-stick@stick.service")
    assert status == 0, box.do("journalctl -u seh-update-stick@stick.service -o cat --no-pager")
    assert _taken(box) == NEW
