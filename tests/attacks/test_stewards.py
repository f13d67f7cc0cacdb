"""Who may decide at a hospital: only keys that its own role put on record, and no box's, no revoked, no stranger's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import OperatorError
from agent.governance.stewards import RepositoryStewards, RosterStewards
from agent.statements.roots import EvidenceClass, KeyKind, key_id
from agent.trust.records import SitePaths, StewardFile, public_pem
from agent.trust.roster import Roster, encode_roster, parse_roster, roster_node
from tests.simulators.authority import FoundedConsortium
from tests.simulators.repository import DAY, PlayedSite
from tests.simulators.steward import CardSteward, PasskeySteward, Steward
from tests.simulators.trust_scene import A, B, Scene, trust_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as found:
        yield found


def put(site: PlayedSite, *stewards: Steward) -> None:
    for steward in stewards:
        site.put(site.paths.steward(steward.name), steward.record.encode())


def deciding(scene: Scene) -> set[str]:
    scene.box.refresh()
    return set(RepositoryStewards(scene.box, A).stewards())


def test_what_the_hospital_signed_counts(scene: Scene) -> None:
    put(scene.site, PasskeySteward("dr-a"), CardSteward("dr-c"))
    scene.publish_site()
    assert deciding(scene) == {"dr-a", "dr-c"}


def test_steward_whom_the_hospital_revoked(scene: Scene) -> None:
    steward = PasskeySteward("dr-a")
    put(scene.site, steward, CardSteward("dr-c"))
    scene.site.revoke(steward.key.public_key())
    scene.publish_site()
    assert deciding(scene) == {"dr-c"}


def test_steward_of_the_neighbour(scene: Scene) -> None:
    put(scene.other, PasskeySteward("dr-b", site=B))
    scene.other.sign()
    scene.repository.publish()
    assert deciding(scene) == set()


def test_steward_whom_the_neighbour_puts_on_our_record(scene: Scene) -> None:
    steward = PasskeySteward("dr-x")
    scene.other.put(SitePaths(A).steward("dr-x"), steward.record.encode())
    scene.other.sign()
    scene.repository.publish()
    assert scene.refused() == "trust.foreign_file"
    assert not RepositoryStewards(scene.box, A).stewards()


def test_steward_record_in_another_ones_place(scene: Scene) -> None:
    scene.site.put(scene.site.paths.steward("dr-a"), PasskeySteward("dr-x").record.encode())
    scene.publish_site()
    assert "another hospital, box or person" in scene.set_aside()
    assert not RepositoryStewards(scene.box, A).stewards()


def test_boxs_own_key_and_its_link_key_decide_nothing(scene: Scene) -> None:
    link = ec.generate_private_key(ec.SECP256R1())
    box = ec.generate_private_key(ec.SECP256R1())
    scene.site.add_node(box.public_key(), link_key=public_pem(link.public_key()))
    put(scene.site, CardSteward("dr-box", key=box), CardSteward("dr-link", key=link), CardSteward("dr-c"))
    scene.publish_site()
    assert deciding(scene) == {"dr-c"}


def test_stewards_of_a_hospital_whose_role_has_expired(scene: Scene) -> None:
    put(scene.site, PasskeySteward("dr-a"))
    scene.publish_site()
    assert deciding(scene) == {"dr-a"}
    scene.clock.move(100 * DAY.total_seconds())
    scene.other.sign()
    scene.repository.publish()
    assert deciding(scene) == set()


def test_repository_kept_from_a_running_box_keeps_no_steward_for_ever(scene: Scene) -> None:
    """What would take the steward off the record never arrives; what is known here runs out by itself."""
    put(scene.site, PasskeySteward("dr-a"))
    scene.publish_site()
    assert deciding(scene) == {"dr-a"}
    scene.clock.move(100 * DAY.total_seconds())
    assert not RepositoryStewards(scene.box, A).stewards()


def test_pinned_roster_keeps_its_stewards_and_takes_no_strangers() -> None:
    stewards = (PasskeySteward("dr-a", person="Dr A").record, CardSteward("dr-c").record)
    box = ec.generate_private_key(ec.SECP256R1())
    node = roster_node(A, KeyKind.PIV, EvidenceClass.NONE, box.public_key())
    roster = Roster({A: (node,)}, box.public_key(), {A: stewards})
    again = parse_roster(encode_roster(roster))
    assert dict(again.stewards) == {A: stewards}
    assert set(RosterStewards(again, A).stewards()) == {"dr-a", "dr-c"}
    for wrong in ((stewards[0], stewards[0]), (PasskeySteward("dr-b", site=B).record,)):
        with pytest.raises(OperatorError, match="stands in it twice, or belongs to another site"):
            parse_roster(encode_roster(Roster({A: (node,)}, None, {A: wrong})))


def test_a_record_of_before_smartcards_is_still_read() -> None:
    record = PasskeySteward("dr-a").record
    old = record.encode()
    assert b"person" not in old
    assert b"certificate" not in old
    assert StewardFile.model_validate_json(old) == record


def test_hospitals_own_desk_signs_no_key_that_could_not_count(tmp_path: Path) -> None:
    founded = FoundedConsortium.found(tmp_path / "authority")
    founded.add_site(A)
    node_key = ec.generate_private_key(ec.SECP256R1())
    pem = public_pem(node_key.public_key())
    founded.enrol(A, public_key=pem, link_key=pem)
    steward = CardSteward("dr-c")
    founded.publish(founded.desk(A).add_steward(steward.record))
    desk = founded.desk(A)
    assert desk.stewards == (steward.record,)
    with pytest.raises(OperatorError, match="on record as dr-c already"):
        desk.add_steward(CardSteward("dr-d", key=steward.key).record)
    with pytest.raises(OperatorError, match="is a box's"):
        desk.add_steward(CardSteward("dr-d", key=node_key).record)
    with pytest.raises(OperatorError, match="signs its own"):
        desk.add_steward(PasskeySteward("dr-b", site=B).record)
    founded.publish(desk.revoke(key_id(steward.key.public_key()), "lost"))
    with pytest.raises(OperatorError, match="cannot come back"):
        founded.desk(A).add_steward(steward.record)
