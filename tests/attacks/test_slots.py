"""Attacks on the slots: old releases, forged or altered images, states and links that somebody put in their place."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.update import tool
from agent.update.floor import BASE_INDEX, FLOOR_INDEX, GENERATION_INDEX, TPMCounters
from agent.update.handover import Handover
from agent.update.programs import ProgramError
from agent.update.release import verify_release
from agent.update.state import Phase, SlotName, State, encode_state
from agent.update.window import parse_window
from tests.simulators.releases import Publisher
from tests.simulators.slots import QUICK, SECRET, PlayedCounters, SlotBox, make_release


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def box(tmp_path: Path, publisher: Publisher) -> SlotBox:
    """Runs 1.4.0 with security epoch 3; its TPM says so too."""
    box = SlotBox(tmp_path / "root", publisher, counters=PlayedCounters())
    box.ship("1.4.0", epoch=3)
    box.installer.init(box.payload)
    box.activate()
    return box


def install(box: SlotBox, version: str) -> None:
    box.installer.install(box.incoming, Handover("install", version))


def refused(box: SlotBox, version: str, code: str) -> None:
    """It is not installed, and what ran runs on."""
    before = box.installer.status()
    with pytest.raises(SecureHealthError) as caught:
        install(box, version)
    assert caught.value.code == code
    after = box.installer.status()
    assert (after["phase"], after["good"], box.services.restarts) == (before["phase"], before["good"], 0)
    box.activate()
    assert box.running() == "1.4.0"


def test_rollback_to_an_older_release_through_the_channel(box: SlotBox) -> None:
    box.deliver("1.3.9", epoch=3)
    refused(box, "1.3.9", "update.wrong_release")


def test_the_same_release_again(box: SlotBox) -> None:
    box.deliver("1.4.0", epoch=3)
    refused(box, "1.4.0", "update.wrong_release")


def test_an_updater_that_drops_what_is_not_staged(box: SlotBox) -> None:
    box.deliver("1.5.0", epoch=3)
    box.installer.install(box.incoming, Handover("install", "1.5.0", parse_window("02:00-02:01")))
    staged = box.installer.status()["phase"]
    box.installer.install(box.incoming, Handover("drop", "1.6.0"))
    assert box.installer.status()["phase"] == staged == "staged"
    box.installer.install(box.incoming, Handover("drop", "1.5.0"))
    box.installer.install(box.incoming, Handover("drop", "1.4.0"))
    box.activate()
    assert (box.installer.status()["phase"], box.running()) == ("steady", "1.4.0")


def test_a_newer_version_with_a_lower_epoch(box: SlotBox) -> None:
    box.deliver("1.5.0", epoch=2)
    refused(box, "1.5.0", "update.below_floor")


def test_an_older_release_under_a_newer_name(box: SlotBox) -> None:
    box.deliver("1.3.9", epoch=3)
    (box.incoming / "1.3.9").rename(box.incoming / "1.5.0")
    refused(box, "1.5.0", "update.wrong_release")


def test_an_unsigned_image(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    (box.incoming / "1.5.0/release.json").write_bytes(box.publisher.record(release, signers=()))
    refused(box, "1.5.0", "update.unsigned_release")


def test_one_of_two_signatures(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    (box.incoming / "1.5.0/release.json").write_bytes(box.publisher.record(release, signers=(2,)))
    refused(box, "1.5.0", "update.unsigned_release")


def test_one_signature_twice(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    envelope = json.loads(box.publisher.record(release, signers=(0,)))
    envelope["signatures"] *= 2
    (box.incoming / "1.5.0/release.json").write_text(json.dumps(envelope))
    refused(box, "1.5.0", "update.unsigned_release")


def test_signatures_of_strangers(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    (box.incoming / "1.5.0/release.json").write_bytes(Publisher().record(release))
    refused(box, "1.5.0", "update.unsigned_release")


def test_a_record_of_another_kind(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    kind = "application/vnd.secur-e-health.possession.v1+json"
    (box.incoming / "1.5.0/release.json").write_bytes(box.publisher.record(release, payload_type=kind))
    refused(box, "1.5.0", "update.bad_record")


def test_a_record_of_another_kind_under_the_right_name(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    kind = "application/vnd.secur-e-health.possession.v1+json"
    envelope = json.loads(box.publisher.record(release, payload_type=kind))
    right = json.loads(box.publisher.record(release, signers=()))["payloadType"]
    (box.incoming / "1.5.0/release.json").write_text(json.dumps(envelope | {"payloadType": right}))
    refused(box, "1.5.0", "update.unsigned_release")


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: image[:5000] + bytes([image[5000] ^ 1]) + image[5001:],
        lambda image: image[:-4096],
        lambda image: b"",
    ],
    ids=["one bit", "cut off", "empty"],
)
def test_an_altered_image(box: SlotBox, alter: Callable[[bytes], bytes]) -> None:
    box.deliver("1.5.0", epoch=3)
    image = box.incoming / "1.5.0/app.raw"
    image.write_bytes(alter(image.read_bytes()))
    refused(box, "1.5.0", "update.wrong_image")


def test_a_signed_root_hash_that_is_not_the_image_s(box: SlotBox) -> None:
    release = box.deliver("1.5.0", epoch=3)
    other = dataclasses.replace(release, root_hash="ab" * 32)
    (box.incoming / "1.5.0/release.json").write_bytes(box.publisher.record(other))
    refused(box, "1.5.0", "update.wrong_image")


def test_endless_data_behind_the_image_is_not_read(box: SlotBox) -> None:
    box.deliver("1.5.0", epoch=3)
    with (box.incoming / "1.5.0/app.raw").open("ab") as image:
        image.truncate(1 << 40)
    install(box, "1.5.0")
    box.activate()
    assert box.running() == "1.5.0"


@pytest.mark.parametrize("file", ["app.raw", "release.json"])
@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_something_else_where_a_file_should_be(box: SlotBox, file: str, kind: str) -> None:
    box.deliver("1.5.0", epoch=3)
    path = box.incoming / "1.5.0" / file
    path.rename(box.incoming / "real")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(box.incoming / "real")
    else:
        path.mkdir()
    with pytest.raises((OperatorError, OSError)):
        install(box, "1.5.0")
    box.activate()
    assert box.running() == "1.4.0"


def test_the_root_hash_file_swapped_for_another_release_s(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    (box.slots / "b/app.roothash").write_bytes((box.slots / "a/app.roothash").read_bytes())
    box.activate()
    assert box.running() == "1.4.0"


def test_the_record_swapped_for_another_release_s(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    (box.slots / "b/meta.json").write_bytes((box.slots / "a/meta.json").read_bytes())
    box.activate()
    assert (box.slots / "current").readlink() == Path("a")
    assert box.running() == "1.4.0"


def test_a_good_slot_that_is_damaged_falls_back_to_the_other(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    with (box.slots / "b/app.raw").open("r+b") as image:
        image.write(b"damaged")
    # dm-verity refuses to read that block, so the agent fails, and systemd says so.
    assert box.installer.fail()
    box.activate()
    assert box.running() == "1.4.0"


def test_the_package_s_payload_comes_back_where_both_slots_are_damaged(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    for name in ("a", "b"):
        (box.slots / name / "app.roothash").unlink()
    box.activate()
    assert box.running() == "1.4.0"


def test_a_box_s_first_start_takes_the_package_s_payload(tmp_path: Path, publisher: Publisher) -> None:
    box = SlotBox(tmp_path / "root", publisher, counters=PlayedCounters())
    box.ship("1.4.0", epoch=3)
    box.activate()
    assert (box.running(), box.tpm.floor) == ("1.4.0", 3)


def test_a_damaged_good_slot_never_falls_back_below_the_floor(tmp_path: Path, publisher: Publisher) -> None:
    box = SlotBox(tmp_path / "root", publisher, counters=PlayedCounters())
    box.ship("1.4.0", epoch=3)
    box.installer.init(box.payload)
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    box.tpm.jump_to(4)
    with pytest.raises(OperatorError) as caught:
        box.activate()
    assert caught.value.code == "update.nothing_runs"


def test_a_slot_s_record_signed_by_one_key_only_does_not_run(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    release, _ = make_release("1.5.0", 3)
    (box.slots / "b/meta.json").write_bytes(box.publisher.record(release, signers=(1,)))
    box.activate()
    assert box.running() == "1.4.0"


def test_an_altered_current_link_is_set_right(box: SlotBox) -> None:
    link = box.slots / "current"
    link.unlink()
    link.symlink_to("/tmp")
    box.activate()
    assert box.running() == "1.4.0"


def test_a_current_link_replaced_by_a_file(box: SlotBox) -> None:
    link = box.slots / "current"
    link.unlink()
    link.write_text("a")
    box.activate()
    assert box.running() == "1.4.0"


def test_a_replayed_state_is_found_out_by_the_tpm(box: SlotBox) -> None:
    old = box.state_file.read_bytes()
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    box.state_file.write_bytes(old)
    # It would have the box run 1.4.0: instead, the newer release shows itself once more.
    box.activate()
    assert box.running() == "1.5.0"
    assert box.installer.status()["phase"] == Phase.TRIAL


def test_a_deleted_state_brings_no_older_release(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    box.state_file.unlink()
    box.activate()
    assert box.running() == "1.5.0"


@pytest.mark.parametrize("secret", [bytes(32), SECRET[::-1]])
def test_a_state_with_another_s_mac_does_not_count(box: SlotBox, secret: bytes) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    forged = State(generation=box.tpm.generation, floor=0, good=SlotName.A)
    box.state_file.write_bytes(encode_state(forged, secret))
    box.activate()
    assert (box.running(), box.installer.status()["floor"]) == ("1.5.0", 3)


def test_no_state_lowers_the_floor_that_the_tpm_holds(box: SlotBox) -> None:
    low = State(generation=box.tpm.generation, floor=0, good=SlotName.A)
    box.state_file.write_bytes(encode_state(low, SECRET))
    box.deliver("1.5.0", epoch=2)
    refused(box, "1.5.0", "update.below_floor")


def test_a_counter_ahead_of_every_release_lets_none_run(box: SlotBox) -> None:
    box.tpm.jump_to(9)
    with pytest.raises(OperatorError) as caught:
        box.activate()
    assert caught.value.code == "update.nothing_runs"
    with pytest.raises(OperatorError):
        box.installer.fail()


def test_a_counter_ahead_of_the_good_release_lets_the_other_run(box: SlotBox) -> None:
    box.install("1.5.0", epoch=4)
    box.activate()
    box.installer.rollback()
    box.tpm.jump_to(4)
    box.activate()
    assert box.running() == "1.5.0"


def test_a_package_older_than_the_tpm_s_floor_after_the_disk_was_wiped(tmp_path: Path, publisher: Publisher) -> None:
    box = SlotBox(tmp_path / "root", publisher, counters=PlayedCounters(found=4))
    box.ship("1.4.0", epoch=3)
    with pytest.raises(OperatorError) as caught:
        box.installer.init(box.payload)
    assert caught.value.code == "update.below_floor"


def test_after_a_tpm_clear_the_floor_comes_from_state_and_record(box: SlotBox) -> None:
    box.tpm.reading = None
    box.activate()
    assert box.tpm.floor == 3
    box.deliver("1.5.0", epoch=2)
    refused(box, "1.5.0", "update.below_floor")


def test_after_a_tpm_clear_and_a_lost_state_the_floor_comes_from_the_records(box: SlotBox) -> None:
    box.tpm.reading = None
    box.state_file.unlink()
    box.activate()
    assert (box.running(), box.tpm.floor) == ("1.4.0", 3)


def test_whoever_removes_the_counters_does_not_raise_the_floor(box: SlotBox) -> None:
    box.tpm.reading, box.tpm.found = None, 900
    box.activate()
    assert (box.running(), box.tpm.floor) == ("1.4.0", 3)


def test_the_epoch_rises_only_once_the_other_slot_meets_it(box: SlotBox) -> None:
    box.install("1.5.0", epoch=5)
    box.activate()
    assert box.tpm.floor == 3
    box.commit("1.5.0")
    # The old release was overwritten with the new one first: a damaged slot still has one to fall back to.
    assert len(set(records(box))) == 1
    assert box.tpm.floor == 5
    box.activate()
    with pytest.raises(OperatorError):
        box.installer.rollback("1.4.0")


def records(box: SlotBox) -> list[str]:
    return [(box.slots / name / "meta.json").read_text() for name in ("a", "b")]


def test_what_runs_is_measured_once_before_it_runs(box: SlotBox) -> None:
    first, second = (make_release(version, 3)[0].root_hash for version in ("1.4.0", "1.5.0"))
    box.activate()
    box.install("1.5.0", epoch=3)
    box.activate()
    box.activate()
    assert box.tpm.measured == [first, second]
    box.reboot()
    box.activate()
    assert box.tpm.measured == [first, second, second]


def test_the_updater_cannot_roll_back_to_what_it_does_not_name(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    with pytest.raises(OperatorError) as caught:
        box.installer.install(box.incoming, Handover("rollback", "1.3.0"))
    assert caught.value.code == "update.wrong_release"
    box.installer.install(box.incoming, Handover("rollback", "1.4.0"))
    box.activate()
    assert box.running() == "1.4.0"


def test_the_updater_cannot_roll_back_to_a_release_that_failed_its_trial(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.activate()
    box.installer.fail()
    box.services.restarts = 0
    with pytest.raises(OperatorError) as caught:
        box.installer.install(box.incoming, Handover("rollback", "1.5.0"))
    assert (caught.value.code, box.services.restarts) == ("update.wrong_release", 0)
    box.activate()
    assert box.running() == "1.4.0"


def test_the_updater_cannot_roll_forward_past_the_trial(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    box.installer.install(box.incoming, Handover("rollback", "1.4.0"))
    with pytest.raises(OperatorError, match="not older"):
        box.installer.install(box.incoming, Handover("rollback", "1.5.0"))
    box.install("1.5.0", epoch=3)
    assert box.installer.status()["phase"] == Phase.TRIAL


def test_a_server_that_is_away_during_the_trial_keeps_no_box_from_a_release_for_good(box: SlotBox) -> None:
    box.report("1.4.0")
    for _ in range(2):
        box.install("1.5.0", epoch=3)
        box.activate()
        box.report("1.5.0", superlink=False)
        box.installer.confirm(QUICK)
        box.now_s += QUICK.deadline_s
        box.installer.confirm(QUICK)
        box.activate()
        assert (box.running(), box.installer.status()["failed"]) == ("1.4.0", None)
        box.report("1.4.0")
    box.install("1.5.0", epoch=3)
    box.commit("1.5.0")
    assert box.running() == "1.5.0"


@pytest.mark.parametrize("missing", ["key", "self_test"])
def test_what_is_the_box_s_own_fails_a_release_for_good(box: SlotBox, missing: str) -> None:
    box.report("1.4.0")
    box.install("1.5.0", epoch=3)
    box.activate()
    box.report("1.5.0", **{missing: None})
    box.installer.confirm(QUICK)
    box.now_s += QUICK.deadline_s
    box.installer.confirm(QUICK)
    assert box.installer.status()["failed"] == "1.5.0"


def test_counters_that_somebody_put_there_and_locked_do_not_stop_the_box() -> None:
    def locked(arguments: Sequence[str], *_: object) -> bytes:
        if arguments[0] == "tpm2_getcap":
            return b"".join(b"- 0x%X\n" % index for index in (FLOOR_INDEX, BASE_INDEX, GENERATION_INDEX))
        error = ProgramError("update.program_failed", "The program failed.", next_step="-")
        error.stderr = "ERROR: Esys_NV_Read(0x921) - tpm:warn(2.0): the TPM is in DA lockout mode"
        raise error

    assert TPMCounters(SECRET, locked).read() is None


@pytest.mark.parametrize("failures", [2, 3])
def test_a_tpm_that_is_kept_busy_is_read_again_and_then_refused(failures: int) -> None:
    paused: list[float] = []

    def busy(arguments: Sequence[str], *_: object) -> bytes:
        if len(paused) < failures:
            error = ProgramError("update.program_failed", "The program failed.", next_step="-")
            error.stderr = "ERROR: Unable to run getcap (0x000A000A)"
            raise error
        return b""

    counters = TPMCounters(SECRET, busy, paused.append)
    if failures == 2:
        assert counters.read() is None
    else:
        with pytest.raises(HardwareError):
            counters.read()
    assert len(paused) == 2


def test_a_directory_where_the_updater_s_request_should_be(tmp_path: Path, publisher: Publisher) -> None:
    keys, ready = tmp_path / tool.KEYS, tmp_path / tool.INCOMING / "ready"
    for directory in (keys.parent, ready / "full"):
        directory.mkdir(parents=True)
    keys.write_bytes(publisher.keys_file)
    assert tool.main(["--root", str(tmp_path), "install"]) == tool.REFUSED
    assert tool.main(["--root", str(tmp_path), "install"]) == tool.NOTHING


def test_both_slots_verify_against_their_records(box: SlotBox) -> None:
    box.install("1.5.0", epoch=3)
    found = {str(verify_release(record.encode(), box.publisher.keys).version) for record in records(box)}
    assert found == {"1.4.0", "1.5.0"}
