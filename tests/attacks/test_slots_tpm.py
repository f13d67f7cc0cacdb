"""The floor in a TPM: who cannot derive the tool's authorisation can take its counters away, but change nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tpm2_pytss.constants import ESYS_TR

from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import init_key
from agent.identity.tpm_counter import TPMCounter
from agent.identity.tpm_device import TPMDevice
from agent.identity.tpm_evidence import QUOTED_REGISTERS, read_registers
from agent.update.floor import (
    BASE_INDEX,
    FLOOR_INDEX,
    GENERATION_INDEX,
    PAYLOAD_REGISTER,
    Reading,
    TPMCounters,
)
from tests.simulators.releases import Publisher
from tests.simulators.slots import SECRET, SlotBox
from tests.simulators.swtpm import Swtpm, shared_maker

STRANGER = SECRET[::-1]


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Swtpm]:
    with shared_maker().make() as made:
        monkeypatch.setenv("TPM2TOOLS_TCTI", made.tcti)
        yield made


def tool(*arguments: str, stdin: bytes = b"") -> int:
    return subprocess.run(arguments, input=stdin, capture_output=True, check=False).returncode


def test_the_floor_is_the_counter_above_its_base(tpm: Swtpm) -> None:
    counters = TPMCounters(SECRET)
    assert counters.read() is None
    first = counters.define(3)
    counters.raise_floor()
    counters.raise_generation()
    assert counters.read() == Reading(4, first.generation + 1)
    tpm.stop()
    tpm.start()
    assert counters.read() == Reading(4, first.generation + 1)


def test_counters_made_anew_jump_and_the_floor_does_not(tpm: Swtpm) -> None:
    counters = TPMCounters(SECRET)
    counters.define(3)
    for _ in range(5):
        counters.raise_generation()
    assert counters.define(3).floor == 3
    found = counters.read()
    assert found is not None
    assert found.floor == 3


@pytest.mark.parametrize("index", [FLOOR_INDEX, GENERATION_INDEX])
def test_nobody_else_raises_a_counter(tpm: Swtpm, index: int) -> None:
    counters = TPMCounters(SECRET)
    before = counters.define(3)
    for auth in (("-C", hex(index)), ("-C", hex(index), "-P", "guess"), ("-C", "o")):
        assert tool("tpm2_nvincrement", hex(index), *auth) != 0
    with pytest.raises(HardwareError):
        TPMCounters(STRANGER).raise_floor()
    assert counters.read() == before


def test_not_even_the_tool_writes_the_base_again(tpm: Swtpm) -> None:
    counters = TPMCounters(SECRET)
    before = counters.define(3)
    auth = counters._auth(BASE_INDEX)
    assert tool("tpm2_nvwrite", hex(BASE_INDEX), "-C", hex(BASE_INDEX), "-P", auth.decode(), "-i", os.devnull) != 0
    assert tool("tpm2_nvwrite", hex(BASE_INDEX), "-C", "o", "-i", os.devnull) != 0
    assert counters.read() == before


@pytest.mark.parametrize("index", [FLOOR_INDEX, BASE_INDEX, GENERATION_INDEX])
def test_a_counter_that_somebody_removed_is_missed(tpm: Swtpm, index: int) -> None:
    counters = TPMCounters(SECRET)
    counters.define(3)
    assert tool("tpm2_nvundefine", hex(index), "-C", "o") == 0
    assert counters.read() is None


def test_counters_that_somebody_put_in_their_place_do_not_count(tpm: Swtpm) -> None:
    ours, theirs = TPMCounters(SECRET), TPMCounters(STRANGER)
    ours.define(3)
    theirs.define(0)
    assert ours.read() is None
    assert ours.found_floor() == 0
    theirs.define(900)
    assert ours.found_floor() == 900


def test_a_tpm_that_is_silent_is_no_tpm_without_counters(tpm: Swtpm) -> None:
    counters = TPMCounters(SECRET)
    counters.define(3)
    tpm.stop()
    with pytest.raises(HardwareError) as caught:
        counters.read()
    assert caught.value.code == "update.tpm_failed"


def test_the_agent_s_own_counter_and_keys_are_left_alone(tpm: Swtpm) -> None:
    key = init_key(tpm.uri)
    own = TPMCounter(TPMDevice(tpm.tcti))
    value = own.define()
    TPMCounters(SECRET).define(3)
    assert own.read() == value
    assert init_key(tpm.uri).public_key() == key.public_key()


def test_what_runs_is_in_a_register_that_is_quoted(tpm: Swtpm) -> None:
    before = TPMDevice(tpm.tcti).run(read_registers)[PAYLOAD_REGISTER]
    TPMCounters(SECRET).measure(bytes(range(32)))
    after = TPMDevice(tpm.tcti).run(read_registers)[PAYLOAD_REGISTER]
    assert after == hashlib.sha256(before + bytes(range(32))).digest()
    assert PAYLOAD_REGISTER in QUOTED_REGISTERS


def clear(tpm: Swtpm) -> None:
    TPMDevice(tpm.tcti).run(lambda esapi: esapi.clear(ESYS_TR.LOCKOUT))


@pytest.fixture
def box(tpm: Swtpm, tmp_path: Path) -> SlotBox:
    box = SlotBox(tmp_path / "root", Publisher(), counters=TPMCounters(SECRET))
    box.ship("1.4.0", epoch=3)
    box.installer.init(box.payload)
    return box


def test_a_whole_update_against_a_real_tpm(box: SlotBox) -> None:
    counters = TPMCounters(SECRET)
    box.install("1.5.0", epoch=4)
    box.commit("1.5.0")
    reading = counters.read()
    assert reading is not None
    assert (box.running(), reading.floor) == ("1.5.0", 4)
    assert box.installer.status()["tpm"] == "in use"


def test_a_disk_put_back_whole_is_held_against_the_tpm(box: SlotBox, tmp_path: Path) -> None:
    old = {path: path.read_bytes() for path in box.slots.rglob("*") if path.is_file() and not path.is_symlink()}
    box.install("1.5.0", epoch=4)
    box.commit("1.5.0")
    for path, data in old.items():
        path.write_bytes(data)
    (box.slots / "b/meta.json").unlink()
    box.ship("1.4.0", epoch=3)
    with pytest.raises(OperatorError) as caught:
        box.activate()
    assert caught.value.code == "update.nothing_runs"


def test_a_tpm_clear_costs_the_keys_and_not_the_floor(box: SlotBox, tpm: Swtpm) -> None:
    clear(tpm)
    box.activate()
    reading = TPMCounters(SECRET).read()
    assert reading is not None
    assert (box.running(), reading.floor) == ("1.4.0", 3)
