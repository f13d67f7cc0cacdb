"""What the doctor finds on the box itself: TPM, key, session, disk, memory, GPU, data sets, the agent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI

from agent.core.errors import Fault
from agent.enrolment.record import other_key
from agent.identity.key import Presence, PresenceState, init_key
from agent.service.doctor import datasets, disk, gpu, key, memory, policy, tpm, unit
from agent.service.doctor.examination import examine
from agent.service.doctor.finding import Finding, Outcome
from agent.service.state import AgentStatus
from tests.simulators.governed import write_policy
from tests.simulators.swtpm import shared_maker
from tests.unit.data.tables import table
from tests.unit.enrolment.test_record import RECORD
from tests.unit.service.doctor.conftest import Place

ROOT = Path(__file__).parents[4]
CATALOG = """
[datasets.ward-3]
schema = "hypertension"
source = "ward-3.csv"
"""


def told(finding: Finding) -> tuple[Outcome, str]:
    return finding.outcome, finding.code


def test_a_tpm_that_answers_is_named_by_its_maker(place: Place) -> None:
    with shared_maker().make() as chip:
        finding = examine(place.box(key=chip.uri), tpm.check)
    assert finding.outcome is Outcome.OK
    assert "IBM" in finding.sentence  # as swtpm says


def test_a_tpm_that_went_away(place: Place) -> None:
    with shared_maker().make() as chip:
        box = place.box(key=chip.uri)
        chip.stop()
        finding = examine(box, tpm.check)
        chip.start()
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "identity.tpm_gone"), Fault.HARDWARE)


def test_a_tpm_that_has_locked_itself(place: Place) -> None:
    with shared_maker().make() as chip:
        lock_out(chip.tcti)
        finding = examine(place.box(key=chip.uri), tpm.check)
    assert told(finding) == (Outcome.FAIL, "doctor.tpm_locked")


def lock_out(tcti: str) -> None:
    """Let the TPM bear no failed authorisation at all."""
    with ESAPI(tcti) as esapi:
        esapi.dictionary_attack_parameters(0, 1000, 1000)


def test_a_machine_without_a_tpm_and_a_tpm_that_is_forbidden(place: Place, tmp_path: Path) -> None:
    finding = examine(place.box(key=f"tpm:device:{tmp_path}/tpmrm0"), tpm.check)
    assert told(finding) == (Outcome.FAIL, "doctor.tpm_missing")
    assert examine(place.box(), tpm.check).outcome is Outcome.NOT_APPLICABLE


def test_a_tpm_that_this_user_may_not_use(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tpmrm0").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = examine(place.box(key=f"tpm:device:{tmp_path}/tpmrm0"), tpm.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.tpm_forbidden"), Fault.OPERATOR)


def test_a_key_that_proves_one_that_is_missing_and_one_that_was_exchanged(place: Place) -> None:
    box = place.box()
    missing = examine(box, key.check)
    assert (missing.outcome, missing.fault) == (Outcome.FAIL, Fault.HARDWARE)
    init_key(box.config.key.uri)
    assert examine(box, key.check).outcome is Outcome.OK
    other = examine(place.box(record=RECORD), key.check)
    assert other.outcome is Outcome.FAIL
    assert other.code == other_key(RECORD).code


def test_a_key_that_is_out_is_no_failure_while_it_vouches(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made = init_key(place.box().config.key.uri)
    monkeypatch.setattr(type(made), "presence", lambda _: Presence(PresenceState.ABSENT, "a reader", "Put it in."))
    assert told(examine(place.box(), key.check)) == (Outcome.FAIL, "doctor.key_away")
    vouched = place.box(status=AgentStatus("online", session="valid"))
    assert told(examine(vouched, key.check)) == (Outcome.WARN, "doctor.key_away")


@pytest.mark.parametrize(
    ("session", "outcome", "code"),
    [
        ("", Outcome.NOT_APPLICABLE, ""),
        ("valid", Outcome.OK, ""),
        ("due", Outcome.WARN, "doctor.session_due"),
        ("needs-person", Outcome.FAIL, "doctor.session_due"),
    ],
)
def test_what_the_key_vouches_for(session: str, outcome: Outcome, code: str, place: Place) -> None:
    status = AgentStatus("online", session=session, session_sentence="S.", session_next_step="N.")
    assert told(examine(place.box(status=status), key.check_session)) == (outcome, code)


def test_a_disk_with_room_with_little_and_with_none(place: Place) -> None:
    box, huge = place.box(), 1 << 60
    assert examine(box, disk.check).outcome is not Outcome.NOT_APPLICABLE
    assert examine(box, lambda box: disk.check(box, least_bytes=0, wanted_bytes=0)).outcome is Outcome.OK
    little = examine(box, lambda box: disk.check(box, least_bytes=0, wanted_bytes=huge))
    assert told(little) == (Outcome.WARN, "doctor.disk_full")
    full = examine(box, lambda box: disk.check(box, least_bytes=huge, wanted_bytes=huge))
    assert told(full) == (Outcome.FAIL, "doctor.disk_full")


def test_a_disk_that_became_read_only_and_one_that_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    box = place.box()
    box.config.node.state_directory.rmdir()
    assert told(examine(box, disk.check)) == (Outcome.FAIL, "doctor.no_state_directory")
    real = os.statvfs("/proc/self/ns")

    class ReadOnly:
        f_flag = real.f_flag | os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly())
    assert told(examine(box, disk.check)) == (Outcome.FAIL, "doctor.disk_read_only")


@pytest.mark.parametrize(
    ("total_kb", "free_kb", "outcome", "code"),
    [
        (4_000_000, 3_000_000, Outcome.OK, ""),
        (2_000_000, 1_000_000, Outcome.WARN, "doctor.little_memory"),
        (8_000_000, 200_000, Outcome.FAIL, "doctor.memory_used_up"),
    ],
)
def test_memory(total_kb: int, free_kb: int, outcome: Outcome, code: str, place: Place, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       {total_kb} kB\nMemFree:  1 kB\nMemAvailable:   {free_kb} kB\n")
    assert told(examine(place.box(), lambda box: memory.check(box, meminfo=meminfo))) == (outcome, code)
    assert examine(place.box(), memory.check).code != "doctor.check_broke"


def machine(root: Path, *files: str) -> Path:
    """A machine's files that speak of a GPU."""
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    return root


def test_a_machine_without_a_gpu(place: Place, tmp_path: Path) -> None:
    assert examine(place.box(), lambda box: gpu.check(box, root=tmp_path)).outcome is Outcome.NOT_APPLICABLE
    wanted = place.box('[training]\ndevice = "cuda"\n')
    assert told(examine(wanted, lambda box: gpu.check(box, root=tmp_path))) == (Outcome.FAIL, "doctor.no_gpu")
    assert examine(place.box('[training]\ndevice = "cpu"\n'), gpu.check).outcome is Outcome.NOT_APPLICABLE


def test_a_gpu_without_its_driver_and_without_its_devices(place: Place, tmp_path: Path) -> None:
    bare = machine(tmp_path / "bare")
    assert told(examine(place.box(), lambda box: gpu.check(box, root=bare))) == (Outcome.WARN, "doctor.gpu_unusable")
    wanted = place.box('[training]\ndevice = "cuda"\n')
    assert examine(wanted, lambda box: gpu.check(box, root=bare)).outcome is Outcome.FAIL
    half = machine(tmp_path / "half", "proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvidia0")
    assert "/dev/nvidia-uvm" in examine(place.box(), lambda box: gpu.check(box, root=half)).sentence


def test_a_gpu_that_can_be_used(place: Place, tmp_path: Path) -> None:
    nodes = ("dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm")
    root = machine(tmp_path / "whole", "proc/driver/nvidia/version", *nodes)
    finding = examine(place.box(), lambda box: gpu.check(box, root=root))
    assert finding.outcome is Outcome.OK
    assert "535.183.01" in finding.sentence


def test_data_sets(place: Place, tmp_path: Path) -> None:
    box = place.box()
    assert told(examine(box, datasets.check)) == (Outcome.FAIL, "catalog.unreadable")
    (tmp_path / "catalog.toml").write_text("")
    assert told(examine(box, datasets.check)) == (Outcome.WARN, "doctor.no_datasets")
    (tmp_path / "catalog.toml").write_text(CATALOG)
    assert told(examine(box, datasets.check)) == (Outcome.FAIL, "data.no_source")
    (tmp_path / "ward-3.csv").write_bytes(table())
    finding = examine(box, datasets.check)
    assert finding.outcome is Outcome.OK
    assert "ward-3" in finding.sentence


def test_the_sites_policy(place: Place, tmp_path: Path) -> None:
    assert examine(place.box(), policy.check).outcome is Outcome.NOT_APPLICABLE
    box = place.box('[governance]\npolicy = "policy.toml"\n')
    assert told(examine(box, policy.check)) == (Outcome.WARN, "policy.unreadable")
    (tmp_path / "policy.toml").write_text("[policy]\n")
    assert "no data set" in examine(box, policy.check).sentence
    write_policy(tmp_path / "policy.toml", dataset="ward-3")
    finding = examine(box, policy.check)
    assert (finding.outcome, "ward-3" in finding.sentence) == (Outcome.OK, True)


def test_an_agent_that_does_not_run_waits_or_is_well(place: Place) -> None:
    assert told(examine(place.box(), unit.check)) == (Outcome.FAIL, "service.not_running")
    waiting = AgentStatus("waiting", trouble="identity.absent", sentence="S.", next_step="N.")
    assert told(examine(place.box(status=waiting), unit.check)) == (Outcome.WARN, "doctor.agent_waits")
    assert examine(place.box(status=AgentStatus("online")), unit.check).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("ActiveState=failed NRestarts=5 Result=exit-code", "doctor.unit_failed"),
        ("ActiveState=inactive NRestarts=0 Result=success", "service.not_running"),
        ("", "service.not_running"),
    ],
)
def test_what_the_service_manager_says_of_an_agent_that_does_not_run(state: str, code: str, place: Place) -> None:
    finding = examine(place.box(), lambda box: unit.check(box, environment={"SEH_UNIT_STATE": state}))
    assert told(finding) == (Outcome.FAIL, code)
    assert ("5 times" in finding.sentence) == (code == "doctor.unit_failed")


def test_the_packaged_command_passes_on_what_the_service_manager_says() -> None:
    script = (ROOT / "packaging/deb/seh-agent").read_text(encoding="utf-8")
    assert f'--setenv={unit.UNIT_STATE}="$(systemctl show' in script


@pytest.mark.parametrize("checks", [{"agent": True, "self_test": False}, {"agent": False, "self_test": None}])
def test_an_agent_that_says_it_is_not_well(checks: dict[str, bool | None], place: Place, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    report = {"version": "1.2.3", "checks": checks, "sentence": "The worker died"}
    (tmp_path / "run/health.json").write_text(json.dumps(report))
    finding = examine(place.box(status=AgentStatus("online")), unit.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.agent_unwell"), Fault.SOFTWARE)
    (tmp_path / "run/health.json").write_text("{")
    assert examine(place.box(status=AgentStatus("online")), unit.check).outcome is Outcome.OK


def test_a_check_that_breaks_is_our_fault_and_does_not_stop_the_others(place: Place) -> None:
    def broken(_: object) -> Finding:
        raise ZeroDivisionError

    finding = examine(place.box(), broken)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.check_broke"), Fault.SOFTWARE)
