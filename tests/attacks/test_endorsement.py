"""What a registrar, a thief of tokens or a box may try so that a hospital's key signs for a box that is not its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.errors import PeerProtocolError
from provisioning.authority.endorsing import Verdict, Waiting
from provisioning.cli.endorse import keep_looking
from tests.simulators.endorsement import EndorsingScene, PlayedBox

SITE_ROLE = "site-hospital-a.json"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[EndorsingScene]:
    scene = EndorsingScene(tmp_path)
    yield scene
    scene.close()


def refusal_of(scene: EndorsingScene) -> str:
    return scene.registrar.refusals["one"]["sentence"]


def test_a_box_with_the_hospital_s_own_token_is_endorsed_without_a_person(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    assert scene.tool.look() == 1
    assert scene.nodes() == [box.key.key_id]
    assert scene.registrar.published == ["one"]


def test_a_rogue_registrar_invents_a_node_for_a_token_it_knows(scene: EndorsingScene) -> None:
    token = scene.token()
    # All that the registrar knows of the token is its id, and what is derived for itself.
    invented = scene.box(replace(token, secret=bytes(16)))
    scene.registrar.add(invented)
    scene.tool.look()
    scene.registrar.answer(invented, scene.asker_key)
    scene.tool.look()
    assert "does not hold the enrolment token" in refusal_of(scene)
    assert scene.nodes() == []


def test_the_registrar_puts_its_own_key_in_the_box_s_place_in_mid_talk(scene: EndorsingScene) -> None:
    token = scene.token()
    box, rogue = scene.box(token), scene.box(replace(token, secret=bytes(16)))
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    shown = dict(scene.registrar.waiting["one"])
    scene.registrar.add(rogue)
    scene.registrar.waiting["one"] |= {name: shown[name] for name in ("state", "nonce", "evidence", "proof")}
    scene.tool.look()  # another box than the one that was asked: it is asked for itself
    assert scene.nodes() == []
    scene.registrar.answer(rogue, scene.asker_key, proof=shown["proof"])
    scene.tool.look()
    assert "does not hold the enrolment token" in refusal_of(scene)
    assert scene.nodes() == []


def test_the_registrar_puts_its_own_link_key_beside_the_box_s_evidence(scene: EndorsingScene) -> None:
    box, rogue = scene.box(scene.token()), scene.box(scene.token())
    scene.registrar.add(rogue)
    link = scene.registrar.waiting["one"]["public_key"]
    scene.registrar.add(box, link_key=link)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.tool.look()
    assert "does not hold the enrolment token" in refusal_of(scene)
    assert scene.nodes() == []


def test_a_token_that_one_box_used_is_used_by_another(scene: EndorsingScene) -> None:
    token = scene.token()
    first, second = scene.box(token), scene.box(token)
    scene.registrar.add(first)
    scene.tool.look()
    scene.registrar.answer(first, scene.asker_key)
    scene.tool.look()
    scene.restart_tool()
    scene.registrar.add(second)
    scene.tool.look()
    assert "used by another box" in refusal_of(scene)
    assert scene.nodes() == [first.key.key_id]


def test_two_boxes_with_one_token_at_the_same_time_are_one_node(scene: EndorsingScene) -> None:
    token = scene.token()
    first, second = scene.box(token), scene.box(token)
    scene.registrar.add(first)
    scene.registrar.add(second, name="two")
    scene.tool.look()
    scene.registrar.answer(first, scene.asker_key)
    scene.registrar.answer(second, scene.asker_key, name="two")
    scene.tool.look()
    assert scene.nodes() == [first.key.key_id]
    assert "used by another box" in scene.registrar.refusals["two"]["sentence"]


def test_an_expired_token(scene: EndorsingScene) -> None:
    box = scene.box(scene.token(lasts_s=60))
    scene.clock.move(61)
    scene.registrar.add(box)
    scene.tool.look()
    assert "expired" in refusal_of(scene)


def test_a_token_for_one_box_from_another_box(scene: EndorsingScene) -> None:
    token = replace(scene.token(kept=False), ek_digest=bytes(32))
    from agent.trust.token import site_secret  # noqa: PLC0415 - beside its only use
    from provisioning.tokens.state import KeptToken, SiteTokenFiles  # noqa: PLC0415

    SiteTokenFiles(scene.directory / "tokens").add(KeptToken.of(token, site_secret(token)))
    scene.registrar.add(scene.box(token))
    scene.tool.look()
    assert "made for another box" in refusal_of(scene)


def test_evidence_from_an_asking_before_this_one_is_replayed(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    old = dict(scene.registrar.waiting["one"])
    scene.restart_tool()  # asks anew
    scene.tool.look()
    scene.registrar.waiting["one"] = old | {"nonce": scene.registrar.asked["one"]["nonce"]}
    scene.tool.look()
    assert "does not hold the enrolment token" in refusal_of(scene)
    assert scene.nodes() == []


def test_a_box_without_the_hospital_s_own_token_waits_for_a_person(scene: EndorsingScene) -> None:
    box = scene.box(scene.token(kept=False))
    scene.registrar.add(box)
    scene.tool.look()
    assert scene.registrar.asked == {}
    shown: list[str] = []

    def recognise(waiting: Waiting) -> Verdict:
        shown.append(waiting.words)
        return Verdict.ENDORSE

    scene.decide = recognise
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.tool.look()
    assert scene.nodes() == [box.key.key_id]
    assert len(shown) == 1
    assert len(shown[0].split()) == 8


def test_a_box_whose_words_differ_is_refused(scene: EndorsingScene) -> None:
    scene.decide = lambda _: Verdict.REFUSE
    scene.registrar.add(scene.box(scene.token(kept=False)))
    scene.tool.look()
    assert "did not recognise" in refusal_of(scene)


def test_a_software_key_poses_as_hardware_in_production(tmp_path: Path) -> None:
    scene = EndorsingScene(tmp_path, environment="production")
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.tool.look()
    assert "not admitted" in refusal_of(scene)
    assert scene.nodes() == []
    scene.close()


def test_a_revoked_key_comes_back_with_a_new_token(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.tool.look()
    scene.revoke(box)
    again = PlayedBox(box.key, scene.token())
    scene.registrar.add(again)
    scene.tool.look()
    scene.registrar.answer(again, scene.asker_key)
    scene.tool.look()
    assert "cannot come back" in refusal_of(scene)
    assert "agent.toml" in scene.registrar.refusals["one"]["next_step"]


def test_boxes_that_come_together_are_endorsed_with_one_signature(scene: EndorsingScene) -> None:
    boxes = {name: scene.box(scene.token()) for name in ("one", "two", "three")}
    for name, box in boxes.items():
        scene.registrar.add(box, name=name)
    scene.tool.look()
    for name, box in boxes.items():
        scene.registrar.answer(box, scene.asker_key, name=name)
    before = scene.repository.snapshot.meta[SITE_ROLE].version
    scene.tool.look()
    assert sorted(scene.nodes()) == sorted(box.key.key_id for box in boxes.values())
    assert scene.repository.snapshot.meta[SITE_ROLE].version == before + 1


def test_what_another_of_the_hospitals_tools_published_meanwhile_costs_one_more_try(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.registrar.conflicts = 1
    scene.tool.look()
    assert scene.nodes() == [box.key.key_id]
    assert scene.registrar.conflicts == 0


def test_a_registrar_that_takes_no_record_ends_no_tool_and_refuses_no_box(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.registrar.conflicts = 2
    assert scene.tool.look() == 1
    assert scene.registrar.refusals == {}
    scene.tool.look()
    assert scene.nodes() == [box.key.key_id]


def test_a_repository_that_does_not_hold_is_no_box_s_fault(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.repository.interfere = lambda path: b"{}" if path == "timestamp.json" else None
    with pytest.raises(PeerProtocolError):
        scene.tool.look()
    assert scene.registrar.refusals == {}
    scene.repository.interfere = lambda _: None
    scene.tool.look()
    assert scene.nodes() == [box.key.key_id]


def test_the_hospital_signs_anew_before_its_records_run_out(scene: EndorsingScene) -> None:
    box = scene.box(scene.token())
    scene.registrar.add(box)
    scene.tool.look()
    scene.registrar.answer(box, scene.asker_key)
    scene.tool.look()
    scene.clock.move(45 * 86_400)
    for name in ("sites", "studies"):
        scene.repository.sign_role(name, getattr(scene.repository, name))
    scene.repository.publish()
    before = scene.registrar.repository.snapshot.meta[SITE_ROLE].version
    scene.tool.prepare()
    assert scene.registrar.repository.snapshot.meta[SITE_ROLE].version == before + 1
    assert scene.nodes() == [box.key.key_id]


def test_a_tool_that_runs_for_months_signs_anew_by_itself(scene: EndorsingScene) -> None:
    pauses: list[float] = []

    def pass_time(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) > 1:
            raise KeyboardInterrupt
        scene.clock.move(45 * 86_400)
        for name in ("sites", "studies"):
            scene.repository.sign_role(name, getattr(scene.repository, name))
        scene.repository.publish()

    before = scene.registrar.repository.snapshot.meta[SITE_ROLE].version
    with pytest.raises(KeyboardInterrupt):
        keep_looking(scene.tool, scene.clock, watch=True, pause=pass_time)
    assert scene.registrar.repository.snapshot.meta[SITE_ROLE].version == before + 1
