"""Attacks with keys of the maker's that count no more, and with lists of who may sign that are not the maker's."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core.errors import SecureHealthError
from agent.statements.release_keys import MAX_STEPS, parse_release_keys
from agent.update.handover import Handover
from agent.update.keys import MAX_CHAIN_BYTES, follow_keys
from agent.update.state import Phase, derive
from agent.update.window import parse_window
from tests.simulators.power import PowerCutError, struck
from tests.simulators.releases import Publisher, key_lists, signed_list
from tests.simulators.slots import QUICK, SECRET, PlayedCounters, SlotBox

FIRST = Publisher()
SECOND = FIRST.successor(0)
"""Key 0 stays; 1 and 2 are revoked."""
THIRD = SECOND.successor(0)
REVOKED = (1, 2)
LATER = parse_window("02:00-02:01")
KEYS = Handover("keys", "1.4.0")


@pytest.fixture
def box(tmp_path: Path) -> SlotBox:
    """Runs 1.4.0, which revoked keys signed among others; 1.3.0 ran before it."""
    box = SlotBox(tmp_path / "root", FIRST, counters=PlayedCounters())
    box.ship("1.3.0")
    box.installer.init(box.payload)
    box.install("1.4.0")
    box.commit("1.4.0")
    box.services.restarts = 0
    return box


def follow(box: SlotBox, chain: bytes) -> None:
    (box.incoming / "keys.json").write_bytes(chain)
    box.installer.install(box.incoming, KEYS)


def deliver(box: SlotBox, version: str, publisher: Publisher, signers: tuple[int, ...] = (0, 1)) -> None:
    release = box.deliver(version)
    (box.incoming / version / "release.json").write_bytes(publisher.record(release, signers))


def refused(box: SlotBox, handover: Handover = KEYS, chain: bytes | None = None) -> str:
    """The code; the list that counted counts, and what ran runs on."""
    before, state = box.installer.keys, box.state_file.read_bytes()
    if chain is not None:
        (box.incoming / "keys.json").write_bytes(chain)
    with pytest.raises(SecureHealthError) as caught:
        box.installer.install(box.incoming, handover)
    assert (box.installer.keys, box.state_file.read_bytes()) == (before, state)
    box.activate()
    assert current(box) == "1.4.0"
    return caught.value.code


def current(box: SlotBox) -> str:
    slots = box.installer.status()["slots"]
    assert isinstance(slots, dict)
    return str(slots[(box.slots / "current").readlink().name]["version"])


# Releases.


def test_a_release_signed_by_revoked_keys(box: SlotBox) -> None:
    follow(box, key_lists(FIRST, SECOND))
    deliver(box, "1.5.0", FIRST, REVOKED)
    assert refused(box, Handover("install", "1.5.0")) == "update.unsigned_release"


def test_a_release_that_comes_with_the_list_that_revokes_its_signers(box: SlotBox) -> None:
    (box.incoming / "keys.json").write_bytes(key_lists(FIRST, SECOND))
    deliver(box, "1.5.0", FIRST, REVOKED)
    with pytest.raises(SecureHealthError, match="0 of those"):
        box.installer.install(box.incoming, Handover("install", "1.5.0"))
    assert box.installer.keys == SECOND.keys


def test_a_release_that_waits_for_its_hour_as_its_signers_are_revoked(box: SlotBox) -> None:
    deliver(box, "1.5.0", FIRST, REVOKED)
    box.installer.install(box.incoming, Handover("install", "1.5.0", LATER))
    assert box.installer.status()["phase"] == "staged"
    follow(box, key_lists(FIRST, SECOND))
    assert box.installer.status()["phase"] == "steady"
    box.activate()
    assert (current(box), box.services.restarts) == ("1.4.0", 0)


def test_a_release_on_trial_as_its_signers_are_revoked(box: SlotBox) -> None:
    deliver(box, "1.5.0", FIRST, REVOKED)
    box.installer.install(box.incoming, Handover("install", "1.5.0"))
    box.activate()
    box.services.restarts = 0
    follow(box, key_lists(FIRST, SECOND))
    assert box.services.restarts == 1
    box.activate()
    assert (box.installer.status()["phase"], current(box)) == ("steady", "1.4.0")


def test_a_release_that_those_who_stay_signed_goes_on_waiting(box: SlotBox) -> None:
    second = FIRST.successor(0, 1)
    box.deliver("1.5.0")
    box.installer.install(box.incoming, Handover("install", "1.5.0", LATER))
    follow(box, key_lists(FIRST, second))
    assert box.installer.status()["phase"] == "staged"


def test_what_was_committed_still_starts_and_goes_back_but_is_not_installed_again(box: SlotBox) -> None:
    follow(box, key_lists(FIRST, SECOND))
    for _ in range(2):
        box.reboot()
        box.activate()
        assert current(box) == "1.4.0"
    assert box.installer.rollback() is Phase.STEADY
    box.activate()
    assert current(box) == "1.3.0"
    (box.incoming / "keys.json").unlink()
    deliver(box, "1.4.0", FIRST)
    with pytest.raises(SecureHealthError) as again:
        box.installer.install(box.incoming, Handover("install", "1.4.0"))
    assert again.value.code == "update.unsigned_release"


def test_a_failed_release_of_revoked_signers_is_not_what_a_damaged_slot_leads_to(box: SlotBox) -> None:
    deliver(box, "1.5.0", FIRST, REVOKED)
    box.installer.install(box.incoming, Handover("install", "1.5.0"))
    box.activate()
    box.installer.fail()
    follow(box, key_lists(FIRST, SECOND))
    (box.slots / "b/app.roothash").write_text("0" * 64)
    (box.payload / "release.json").write_bytes(FIRST.record(box.ship("1.6.0"), REVOKED))
    with pytest.raises(SecureHealthError) as nothing:
        box.activate()
    assert nothing.value.code == "update.nothing_runs"


def test_a_box_follows_to_a_release_of_the_new_signers(box: SlotBox) -> None:
    (box.incoming / "keys.json").write_bytes(key_lists(FIRST, SECOND, THIRD))
    deliver(box, "1.5.0", THIRD)
    box.installer.install(box.incoming, Handover("install", "1.5.0"))
    box.commit("1.5.0")
    assert (current(box), box.installer.keys.version) == ("1.5.0", 3)
    box.installer.rollback()
    box.activate()
    assert current(box) == "1.4.0"


def test_a_package_with_a_newer_list_revokes_too_and_what_runs_runs_on(box: SlotBox) -> None:
    box.publisher = THIRD
    box.activate()
    assert current(box) == "1.4.0"
    deliver(box, "1.5.0", FIRST, REVOKED)
    assert refused(box, Handover("install", "1.5.0")) == "update.unsigned_release"
    assert box.installer.keys == THIRD.keys


def test_an_older_package_brings_no_revoked_key_back(box: SlotBox) -> None:
    follow(box, key_lists(FIRST, SECOND))
    deliver(box, "1.5.0", FIRST, REVOKED)
    box.publisher = FIRST
    (box.payload / "release.json").write_bytes(FIRST.record(box.ship("1.6.0"), REVOKED))
    with pytest.raises(SecureHealthError) as old:
        box.installer.init(box.payload)
    assert old.value.code == "update.unsigned_release"


# Lists.


@pytest.mark.parametrize("signers", [(), (0,), (2,)])
def test_a_list_that_too_few_of_the_old_keys_signed(box: SlotBox, signers: tuple[int, ...]) -> None:
    assert refused(box, chain=key_lists(FIRST, SECOND, signers=signers)) == "update.unsigned_keys"


def test_a_list_that_only_its_own_keys_signed(box: SlotBox) -> None:
    chain = json.dumps([signed_list(SECOND.keys.payload(), SECOND.signers)]).encode()
    assert refused(box, chain=chain) == "update.unsigned_keys"


def test_a_list_with_one_signature_twice(box: SlotBox) -> None:
    (step,) = json.loads(key_lists(FIRST, SECOND, signers=(0,)))
    step["signatures"] *= 2
    assert refused(box, chain=json.dumps([step]).encode()) == "update.unsigned_keys"


def test_a_list_signed_by_keys_that_the_one_before_revoked(box: SlotBox) -> None:
    mallory = Publisher(version=3)
    steps = json.loads(key_lists(FIRST, SECOND))
    steps.append(signed_list(mallory.keys.payload(), [FIRST.signers[index] for index in REVOKED]))
    assert refused(box, chain=json.dumps(steps).encode()) == "update.unsigned_keys"


def test_rollback_of_the_list(box: SlotBox) -> None:
    follow(box, key_lists(FIRST, SECOND, THIRD))
    state = box.state_file.read_bytes()
    mallory = Publisher(version=2)
    other = signed_list(mallory.keys.payload(), [FIRST.signers[index] for index in REVOKED])
    for chain in (key_lists(FIRST, SECOND), json.dumps([other]).encode(), b"[]"):
        follow(box, chain)
        assert (box.installer.keys, box.state_file.read_bytes()) == (THIRD.keys, state)


def test_an_old_state_with_an_old_list_is_put_back(box: SlotBox) -> None:
    follow(box, key_lists(FIRST, SECOND))
    old = box.state_file.read_bytes()
    follow(box, key_lists(FIRST, SECOND, THIRD))
    box.state_file.write_bytes(old)
    box.installer.confirm(QUICK)
    # The TPM's generation finds it out; what it says of the list is no older than that state was.
    assert box.installer.keys.version == 2
    follow(box, key_lists(FIRST, SECOND, THIRD))
    assert box.installer.keys == THIRD.keys


def test_a_list_that_skips_a_version(box: SlotBox) -> None:
    third = Publisher(version=3)
    chain = json.dumps([signed_list(third.keys.payload(), FIRST.signers)]).encode()
    assert refused(box, chain=chain) == "update.keys_gap"


def test_lists_out_of_order(box: SlotBox) -> None:
    steps = json.loads(key_lists(FIRST, SECOND, THIRD))
    for order in ((1, 0), (0, 0), (0, 1, 1)):
        chain = json.dumps([steps[index] for index in order]).encode()
        assert refused(box, chain=chain) in {"update.keys_gap", "update.bad_key_list"}


def _with(**changes: object) -> bytes:
    fields = json.loads(SECOND.keys.payload()) | changes
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _key_twice() -> bytes:
    keys = json.loads(SECOND.keys.payload())["keys"]
    return _with(keys={**keys, "0" * 64: next(iter(keys.values()))})


@pytest.mark.parametrize(
    "payload",
    [
        _with(threshold=0),
        _with(threshold=-1),
        _with(threshold=3),
        _with(threshold=True),
        _with(threshold="2"),
        _with(version=0),
        _with(version=2.0),
        _with(version=1 << 40),
        _with(keys={}),
        _with(keys={"a": "b", "c": "d"}),
        _with(more=1),
        _key_twice(),
        json.dumps(json.loads(SECOND.keys.payload()), indent=1).encode(),
        b"{}",
        b"[" * 5000,
    ],
    ids=lambda payload: payload[-24:].decode(),
)
def test_a_list_with_a_threshold_or_keys_that_cannot_be(box: SlotBox, payload: bytes) -> None:
    chain = json.dumps([signed_list(payload, FIRST.signers)]).encode()
    assert refused(box, chain=chain) == "update.bad_key_list"


@pytest.mark.parametrize(
    "chain",
    [b"", b"{}", b"[1]", b"[{}]", b"[" * 9999, json.dumps([{}] * (MAX_STEPS + 1)).encode(), bytes(MAX_CHAIN_BYTES + 1)],
    ids=["empty", "no list", "number", "no envelope", "deep", "long", "large"],
)
def test_what_is_no_list_of_keys(box: SlotBox, chain: bytes) -> None:
    assert refused(box, chain=chain) in {"update.bad_key_list", "update.bad_record", "update.bad_file"}


def test_a_release_record_as_a_list(box: SlotBox) -> None:
    record = json.loads(FIRST.record(box.deliver("1.5.0")))
    assert refused(box, chain=json.dumps([record]).encode()) == "update.bad_record"


def test_a_link_in_place_of_a_list(box: SlotBox, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(key_lists(FIRST, SECOND))
    (box.incoming / "keys.json").symlink_to(tmp_path / "list")
    with pytest.raises(OSError, match="symbolic links"):
        box.installer.install(box.incoming, KEYS)
    assert box.installer.keys == FIRST.keys


def test_a_list_of_an_older_format_is_the_first() -> None:
    assert parse_release_keys(FIRST.keys_file).version == 1
    assert follow_keys(key_lists(FIRST, SECOND), FIRST.keys) == SECOND.keys


def test_a_state_of_an_older_slot_tool(box: SlotBox, downgrade: Callable[[SlotBox], None]) -> None:
    downgrade(box)
    box.activate()
    assert (current(box), box.installer.keys) == ("1.4.0", FIRST.keys)
    follow(box, key_lists(FIRST, SECOND))
    assert box.installer.keys == SECOND.keys


# The power.


def test_a_power_cut_while_the_list_is_stored(box: SlotBox, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.incoming / "keys.json").write_bytes(key_lists(FIRST, SECOND))
    seen, at = set(), 0
    while True:
        before = box.state_file.read_bytes()
        counters = box.tpm.reading
        try:
            with struck(monkeypatch, at):
                box.installer.install(box.incoming, KEYS)
        except PowerCutError:
            assert box.installer.keys in (FIRST.keys, SECOND.keys)
            seen.add(box.installer.keys.version)
            box.reboot()
            box.activate()
            assert (current(box), box.installer.status()["phase"]) == ("1.4.0", "steady")
            box.state_file.write_bytes(before)
            box.tpm.reading = counters
            at += 1
        else:
            break
    assert box.installer.keys == SECOND.keys
    assert seen == {1, 2}
    assert at > 2


@pytest.fixture
def downgrade() -> Callable[[SlotBox], None]:
    """Has a box's state be as a slot tool wrote it that knew no lists."""
    return _without_list


def _without_list(box: SlotBox) -> None:
    fields = json.loads(box.state_file.read_bytes())["state"]
    del fields["keys"], fields["kept"]
    body = json.dumps(fields, sort_keys=True).encode()
    mac = hmac.digest(derive(SECRET, b"state"), body, hashlib.sha256).hex()
    box.state_file.write_text(json.dumps({"state": fields, "mac": mac}))
