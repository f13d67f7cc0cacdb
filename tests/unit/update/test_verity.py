"""The trees that tests play are the ones that veritysetup makes, so what they show holds on a box."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.update.programs import ProgramError, run_program
from agent.update.slots import Slots
from agent.update.state import SlotName
from tests.simulators.releases import Publisher
from tests.simulators.slots import make_release
from tests.simulators.verity import play_programs


@pytest.mark.parametrize("blocks", [2, 127, 129])
def test_a_real_tree_has_the_played_root_hash(tmp_path: Path, blocks: int) -> None:
    release, image = make_release("1.4.0", blocks=blocks)
    (tmp_path / "image").write_bytes(image)
    with (tmp_path / "image").open("rb") as source:
        for name, run in ((SlotName.A, run_program), (SlotName.B, play_programs)):
            source.seek(0)
            slots = Slots(tmp_path, run)
            slots.write(name, source.fileno(), release, Publisher().record(release))
            slots.verify(name, release)
    trees = [(tmp_path / name / "app.verity").read_bytes() for name in SlotName]
    assert len(trees[0]) >= len(trees[1]) > 4096
    assert trees[0][4096 : len(trees[1])] == trees[1][4096:]


def test_a_smaller_release_after_a_larger_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    for blocks in (200, 20):
        release, image = make_release("1.4.0", blocks=blocks)
        (tmp_path / "image").write_bytes(image)
        with (tmp_path / "image").open("rb") as source:
            slots.write(SlotName.A, source.fileno(), release, b"{}")
    slots.verify(SlotName.A, release)
    assert (tmp_path / "a/app.raw").read_bytes() == image


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProgramError) as caught:
        run_program(("seh-no-such-program",))
    assert caught.value.code == "update.program_failed"
