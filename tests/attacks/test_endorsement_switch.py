"""A registrar that tells a hospital's tool one thing of a box before it is asked, and another afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.authority.endorsing import Verdict, Waiting
from tests.simulators.endorsement import EndorsingScene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[EndorsingScene]:
    scene = EndorsingScene(tmp_path)
    yield scene
    scene.close()


def test_the_registrar_names_a_stranger_s_token_once_the_hospital_s_own_let_its_box_begin(
    scene: EndorsingScene,
) -> None:
    known = scene.token()  # its id is no secret to the registrar
    rogue = scene.box(scene.token(kept=False))
    scene.registrar.add(rogue, token=known.id.hex())
    scene.tool.look()
    scene.registrar.answer(rogue, scene.asker_key, token=rogue.token.id.hex())
    scene.tool.look()
    assert scene.nodes() == []


def test_the_registrar_swaps_the_token_of_a_box_that_a_person_recognised(scene: EndorsingScene) -> None:
    scene.decide = lambda _: Verdict.ENDORSE
    box, other = scene.box(scene.token(kept=False)), scene.token(kept=False)
    scene.registrar.add(box)
    scene.tool.look()
    scene.decide = lambda _: Verdict.LATER
    scene.registrar.answer(box, scene.asker_key, token=other.id.hex())
    scene.tool.look()
    assert scene.nodes() == []


def test_the_registrar_swaps_the_link_key_of_a_box_that_a_person_recognised(scene: EndorsingScene) -> None:
    shown: list[str] = []

    def recognise(waiting: Waiting) -> Verdict:
        shown.append(waiting.words)
        return Verdict.ENDORSE if shown[0] == waiting.words else Verdict.REFUSE

    scene.decide = recognise
    box, rogue = scene.box(scene.token(kept=False)), scene.box(scene.token(kept=False))
    scene.registrar.add(rogue)
    link = scene.registrar.waiting["one"]["public_key"]
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key, link_key=link)
    scene.tool.look()
    assert scene.nodes() == []
    assert shown[0] not in shown[1:]  # a box with another link key has other words
