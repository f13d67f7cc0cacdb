"""The units of a hospital's box: exposed as little as they can be, without a fault, and naming what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.core.config import parse_config
from agent.training.link import _environment
from tests.simulators.stick import find_tool
from tests.simulators.worker_door import FENCED

ROOT = Path(__file__).parents[3]
PACKAGING = ROOT / "packaging"
UNITS = PACKAGING / "systemd"
AGENT, WORKER, RESOLV = "seh-agent.service", "seh-worker@0.service", "seh-resolv.service"
SCREEN = "seh-screen.service"
MOST_EXPOSED = {AGENT: 10, WORKER: 5, RESOLV: 10, SCREEN: 6}
"""Tenths; systemd's scale ends at 100."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the host's units, ours, and the programs that they start."""
    root = tmp_path_factory.mktemp("root")
    place = root / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", place, symlinks=True)
    shutil.copytree(UNITS, place, dirs_exist_ok=True)
    for unit in UNITS.glob("*.service"):
        for program in re.findall(r"^Exec\w+=[-+!]*/(\S+)", unit.read_text(encoding="utf-8"), re.MULTILINE):
            (root / program).parent.mkdir(parents=True, exist_ok=True)
            (root / program).touch(mode=0o755)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((find_tool("systemd-analyze"), *arguments), check=False, capture_output=True, text=True)


def settings(unit: str, name: str) -> list[str]:
    text = (UNITS / unit.replace("@0.", "@.")).read_text(encoding="utf-8")
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def words(unit: str, name: str) -> set[str]:
    return {word.removeprefix("-") for value in settings(unit, name) for word in value.split()}


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_no_more_exposed_than_said(unit: str, installed: Path) -> None:
    done = analyze("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED[unit]}", unit)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", [AGENT, WORKER, "seh-worker.socket", RESOLV, "seh-resolv.path", SCREEN])
def test_systemd_finds_no_fault(unit: str, installed: Path) -> None:
    done = analyze("verify", f"--root={installed}", "--man=no", unit)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "seh-" in line]) == (0, [])


@pytest.mark.parametrize("unit", [AGENT, WORKER, SCREEN])
def test_runs_from_the_verified_image_of_the_current_slot(unit: str) -> None:
    slot = "/var/lib/secur-e-health-slots/current/app"
    assert settings(unit, "RootImage") == [f"{slot}.raw"]
    assert settings(unit, "RootVerity") == [f"{slot}.verity"]
    assert settings(unit, "RootHash") == [f"{slot}.roothash"]


def test_the_agent_starts_only_after_its_slot_was_judged() -> None:
    assert "seh-activate.service" in words(AGENT, "Requires") & words(AGENT, "After")
    assert settings(AGENT, "OnFailure") == ["seh-rollback.service"]


def test_a_broken_release_is_given_up_within_half_a_minute_of_starts() -> None:
    (burst,), (interval,) = settings(AGENT, "StartLimitBurst"), settings(AGENT, "StartLimitIntervalSec")
    (pause,) = settings(AGENT, "RestartSec")
    assert int(burst) * (int(pause) + 2) <= 20, "a start takes up to two seconds"
    assert int(burst) * (int(pause) + 2) < int(interval)


def test_a_release_that_hangs_is_given_up_as_one_that_breaks() -> None:
    (burst,), (interval,) = settings(AGENT, "StartLimitBurst"), settings(AGENT, "StartLimitIntervalSec")
    names = ("TimeoutStartSec", "WatchdogSec", "TimeoutStopSec", "RestartSec")
    cycle_s = sum(int(settings(AGENT, name)[0]) for name in names)
    assert int(burst) * cycle_s < int(interval)


def test_the_worker_gets_what_a_child_of_the_agent_gets() -> None:
    given = dict(value.split("=", 1) for value in settings(WORKER, "Environment"))
    expected = _environment()
    del expected["PYTHONPATH"]  # the payload has its packages where its Python looks for them
    assert given == expected | {"LD_LIBRARY_PATH": "/run/gpu"}
    assert settings(WORKER, "PrivateNetwork") == ["yes"]
    assert settings(WORKER, "RestrictAddressFamilies") == ["none"]
    assert not any(name.startswith("/dev/tpm") for name in words(WORKER, "BindPaths") | words(WORKER, "DeviceAllow"))


def test_only_the_agent_s_group_may_have_a_worker_started() -> None:
    assert settings("seh-worker.socket", "SocketMode") == ["0660"]
    assert settings("seh-worker.socket", "SocketGroup") == settings(AGENT, "Group")
    assert settings("seh-worker.socket", "Accept") == ["yes"]


def test_nothing_the_agent_can_write_can_be_run() -> None:
    written = {f"/var/lib/{name}" for name in words(AGENT, "StateDirectory")} | words(AGENT, "BindPaths")
    barred = words(AGENT, "NoExecPaths")
    assert all(any(Path(path).is_relative_to(bar) for bar in barred) for path in written - {"/dev/tpmrm0"})


def test_users_and_directories_are_made_before_they_are_named() -> None:
    users = (PACKAGING / "sysusers.d/secur-e-health-agent.conf").read_text(encoding="utf-8")
    for name in words(AGENT, "User") | words(AGENT, "Group"):
        assert re.search(rf"^u {name} ", users, re.MULTILINE)
    for name in words(AGENT, "SupplementaryGroups"):
        assert re.search(rf"^g {name} ", users, re.MULTILINE)
    made = "".join(path.read_text(encoding="utf-8") for path in (PACKAGING / "tmpfiles.d").iterdir())
    for value in settings(AGENT, "BindReadOnlyPaths") + settings(AGENT, "BindPaths"):
        for path in (word.partition(":")[0] for word in value.split()):
            if path.startswith("/run/secur-e-health"):
                assert re.search(rf"^[df] {path} ", made, re.MULTILINE), path


def test_systemd_makes_the_users_and_directories(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("sysusers", "tmpfiles"):
        files = sorted(str(path) for path in (PACKAGING / f"{name}.d").glob("secur-e-health-*.conf"))
        option = () if name == "sysusers" else ("--create", "--prefix=/srv", "--prefix=/run")
        tool = shutil.which(f"systemd-{name}")
        assert tool is not None
        done = subprocess.run(
            (tool, f"--root={tmp_path}", *option, *files), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    members = (tmp_path / "etc/group").read_text(encoding="utf-8")
    assert re.search(r"^tss:.*:secur-e-health$", members, re.MULTILINE)
    assert (tmp_path / "srv/secur-e-health").is_dir()


@pytest.mark.parametrize(
    ("unit", "attempt", "outcome"),
    [
        (WORKER, "socket.socket(socket.AF_INET)", "EAFNOSUPPORT"),
        (WORKER, "socket.socket(socket.AF_UNIX)", "EAFNOSUPPORT"),
        (WORKER, "os.chown('/dev/null', 0, 0)", "EPERM"),
        (AGENT, "socket.socket(socket.AF_INET)", "done"),
        (AGENT, "socket.socket(socket.AF_PACKET)", "EAFNOSUPPORT"),
        (AGENT, "os.nice(-1)", "EPERM"),
        (AGENT, "mmap.mmap(-1, 4096, prot=7)", "EACCES"),
        (WORKER, "mmap.mmap(-1, 4096, prot=7)", "done"),
    ],
)
def test_the_kernel_refuses_what_the_unit_forbids(unit: str, attempt: str, outcome: str) -> None:
    code = f"""
    import errno, mmap, os, socket
    try:
        {attempt}
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
    """
    path = str(UNITS / unit.replace("@0.", "@."))
    command = [sys.executable, "-P", str(FENCED), path, sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == outcome


@pytest.mark.parametrize("address", ["10.1.2.3", "93.184.216.34", "192.168.1.1", "127.0.0.1", "2001:db8::1", "fe80::1"])
def test_every_host_s_address_can_be_reached(address: str) -> None:
    assert _allowed(address)


@pytest.mark.parametrize("address", ["224.0.0.251", "255.255.255.255", "ff02::fb"])
def test_no_group_s_address_can_be_reached(address: str) -> None:
    assert not _allowed(address)


def _allowed(address: str) -> bool:
    found = ip_address(address)
    return any(found in ip_network(item) for item in words(AGENT, "IPAddressAllow"))


def test_the_unit_s_worker_socket_can_stand_in_a_configuration() -> None:
    (door,) = settings("seh-worker.socket", "ListenStream")
    config = f"""
    [node]
    state_directory = "/var/lib/secur-e-health"
    [key]
    uri = "tpm:device:/dev/tpmrm0"
    [data]
    catalog = "catalog.toml"
    [training]
    worker = "{door}"
    """
    assert parse_config(config.encode(), directory=Path("/")).training.worker == Path(door)


def test_the_screen_takes_the_console_s_place_hears_nobody_and_sees_no_secret() -> None:
    assert settings(SCREEN, "TTYPath") == ["/dev/tty1"]
    assert settings(SCREEN, "StandardInput") == ["null"]
    assert settings(SCREEN, "Conflicts") == ["getty@tty1.service"]
    state = "/var/lib/secur-e-health"
    hidden = {f"{state}/{name}" for name in ("vault", "enrolment", "rounds", "control.sock")}
    assert hidden <= words(SCREEN, "InaccessiblePaths")
    assert state in words(SCREEN, "BindReadOnlyPaths")
    assert settings(SCREEN, "RestrictAddressFamilies") == ["none"]
    assert "[Install]" not in (UNITS / SCREEN).read_text()  # only the appliance's first console is its own


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS.glob("*.service") if "\nRootImage=" in unit.read_text()])
def test_a_verified_image_can_be_opened_where_udev_runs(unit: str) -> None:
    # Opening it waits for udev by a semaphore, which another IPC namespace hides from udev: the start never ends.
    assert "PrivateIPC" not in (UNITS / unit).read_text()


def test_an_export_into_a_folder_that_the_command_does_not_see_is_told_the_way_out() -> None:
    command = ["sh", str(PACKAGING / "deb/seh-agent"), "audit", "export"]
    told = subprocess.run([*command, "record.jsonl"], capture_output=True, text=True, check=False)
    assert (told.returncode, "seh-agent audit export - >" in told.stderr) == (2, True)
    for option in ("-", "--help"):  # these get as far as the box, which is not here
        other = subprocess.run([*command, option], capture_output=True, text=True, check=False)
        assert "audit export - >" not in other.stderr
