"""The trust repository as a box uses it on good days."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import SecureHealthError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, KeyKind, key_id
from agent.trust.records import EvidenceTerms, StewardFile, public_pem
from agent.trust.repository import TrustRepository
from agent.trust.snapshot import Environment
from tests.simulators.repository import DAY, URL, PlayedRepository, consortium, new_signer, public_key
from tests.simulators.trust_scene import DAY_S, A, B, Scene, new_key, trust_scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with trust_scene(tmp_path / "trust") as made:
        yield made


def failing(code: str) -> pytest.RaisesExc[SecureHealthError]:
    return pytest.raises(SecureHealthError, check=lambda error: error.code == code)


def test_snapshot_tells_what_was_signed(scene: Scene) -> None:
    snapshot, site = scene.box.current(), scene.box.current().sites[A]
    assert snapshot.root_digest == scene.repository.root_digest == scene.box.root_digest
    assert snapshot.environment is Environment.PRODUCTION
    assert (snapshot.root_version, snapshot.timestamp_version) == (1, scene.repository.timestamp.version)
    assert snapshot.consortium.id == "consortium-a"
    assert snapshot.issued_s == int(scene.clock.now().timestamp())
    assert snapshot.expires_s == snapshot.issued_s + DAY_S
    assert site.keys == (public_key(scene.site.signers[0]),)
    assert [node.root.key_id for node in site.nodes] == [key_id(scene.key)]
    assert snapshot.node(key_id(scene.key), site=A) == site.nodes[0] == snapshot.speaker(A)


def test_stewards(scene: Scene) -> None:
    steward = StewardFile(
        site=A, steward="dr-b", rp_id="hospital-a.example", credential_id="ab", public_key=public_pem(new_key())
    )
    scene.site.put(scene.site.paths.steward("dr-b"), steward.encode())
    scene.publish_site()
    assert scene.box.refresh().sites[A].stewards == (steward,)


def test_other_files_of_a_site_are_left_to_others(scene: Scene) -> None:
    scene.site.put("sites/hospital-a/did.json", b"{}")
    scene.publish_site()
    assert set(scene.box.refresh().sites) == {A, B}
    assert scene.box.download("sites/hospital-a/did.json") == b"{}"


def test_site_that_has_signed_nothing_yet(scene: Scene) -> None:
    scene.repository.add_site("hospital-c")
    scene.repository.publish()
    assert scene.box.refresh().set_aside == {"hospital-c": "hospital-c has signed nothing yet."}


def test_suspended_site_is_gone(scene: Scene) -> None:
    assert scene.repository.sites.delegations is not None
    assert scene.repository.sites.delegations.roles is not None
    del scene.repository.sites.delegations.roles[scene.site.paths.role]
    scene.repository.sign_sites()
    scene.repository.publish()
    snapshot = scene.box.refresh()
    assert set(snapshot.sites) == {B}
    assert not snapshot.set_aside


def test_only_what_is_new_is_fetched(scene: Scene) -> None:
    scene.restarted()
    scene.repository.requests.clear()
    assert scene.box.refresh() == scene.box.current()
    assert scene.repository.requests == ["2.root.json", "timestamp.json"]
    node = scene.site.add_node(new_key())
    scene.publish_site()
    scene.repository.requests.clear()
    scene.box.refresh()
    record = scene.site.role.targets[scene.site.paths.node(node.node)].get_prefixed_paths()[0]
    snapshot = f"{scene.repository.snapshot.version}.snapshot.json"
    assert scene.repository.requests == ["2.root.json", "timestamp.json", snapshot, "2.site-hospital-a.json", record]


def test_nothing_is_written_when_nothing_is_new(scene: Scene) -> None:
    kept = scene.directory / "trusted.cbor"
    before = kept.stat()
    scene.box.refresh()
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_start_without_network(scene: Scene) -> None:
    snapshot = scene.box.current()
    scene.repository.files.clear()
    assert scene.restarted() == snapshot
    scene.clock.move(DAY_S)
    assert not scene.restarted().is_current(scene.box.now_s())


def test_clock_that_stands_at_1970_is_no_present(scene: Scene) -> None:
    scene.clock.set_wall(-scene.clock.now().timestamp())
    assert scene.restarted().issued_s == scene.box.now_s()
    assert scene.box.refresh().is_current(scene.box.now_s())


def test_before_the_first_refresh(scene: Scene, tmp_path: Path) -> None:
    with scene.repository.client(tmp_path / "new") as box:
        for ask in (box.current, box.load, lambda: box.accept_site_keys(A, ()), lambda: box.download("x")):
            with failing("trust.nothing_yet"):
                ask()


def test_directory_that_was_never_pinned(scene: Scene, tmp_path: Path) -> None:
    with failing("trust.not_pinned"):
        TrustRepository(tmp_path, URL, scene.repository, scene.clock)


@pytest.mark.parametrize("content", [b"", b"\xa0", b"\xff" * 100])
def test_damaged_state_heals_by_itself(scene: Scene, content: bytes) -> None:
    snapshot = scene.box.current()
    (scene.directory / "trusted.cbor").write_bytes(content)
    with failing("trust.bad_state"):
        scene.restarted()
    assert scene.box.refresh() == snapshot
    assert scene.restarted() == snapshot


def test_lost_pins_are_not_taken_for_a_new_box(scene: Scene) -> None:
    (scene.directory / "pins.json").write_bytes(b"{")
    with failing("trust.bad_pins"):
        scene.box.refresh()


def test_unwritable_directory(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with failing("trust.not_stored"):
        scene.repository.client(tmp_path / "file" / "trust")


def test_download_of_a_study(scene: Scene) -> None:
    repository = scene.repository
    for path, data in {
        "studies/stroke/study.json": b"study",
        "studies/stroke/model.onnx": b"model" * 1000,
        "studies/../study.json": b"no study",
        "releases/1/app": b"no study either",
    }.items():
        repository.put(repository.studies, path, data)
    repository.sign_role("studies", repository.studies)
    repository.publish()
    assert scene.box.refresh().studies == ("stroke",)
    assert scene.box.download("studies/stroke/model.onnx") == b"model" * 1000
    with failing("trust.no_such_file"):
        scene.box.download("releases/1/app")
    served = repository.studies.targets["studies/stroke/study.json"].get_prefixed_paths()[0]
    repository.files[served] = b"stuDy"
    with failing("trust.altered_file"):
        scene.box.download("studies/stroke/study.json")


def test_expired_studies_are_none(scene: Scene) -> None:
    repository = scene.repository
    repository.put(repository.studies, "studies/stroke/study.json", b"study")
    repository.sign_role("studies", repository.studies)
    repository.publish()
    assert scene.box.refresh().studies == ("stroke",)
    scene.clock.move(364 * DAY_S)
    for role in ("targets", "sites"):
        repository.sign_role(role, getattr(repository, role))
    repository.publish()
    assert scene.box.refresh().studies == ("stroke",)
    scene.clock.move(2 * DAY_S)
    repository.publish()
    assert scene.box.refresh().studies == ()


def test_site_changes_its_keys(scene: Scene) -> None:
    successors = [new_signer(), new_signer()]
    scene.site.move_to(*successors, threshold=2)
    scene.repository.publish()
    site = scene.box.refresh().sites[A]
    assert {key_id(key) for key in site.keys} == {key_id(public_key(signer)) for signer in successors}
    assert site.threshold == 2
    scene.publish_site()
    assert scene.box.refresh().sites[A].version == site.version + 1


def test_site_announces_new_keys_before_they_are_delegated(scene: Scene) -> None:
    successor = new_signer()
    scene.site.announce(successor)
    scene.publish_site()
    assert scene.box.refresh().sites[A].keys == (public_key(scene.site.signers[0]),)
    scene.repository.delegate_site(A, successor)
    scene.publish_site(successor)
    assert scene.box.refresh().sites[A].keys == (public_key(successor),)


def test_site_that_lost_its_keys_is_accepted_anew_by_a_person_here(scene: Scene) -> None:
    scene.site.signers = [new_signer()]
    scene.repository.delegate_site(A, *scene.site.signers)
    scene.publish_site()
    named = key_id(public_key(scene.site.signers[0]))
    assert named in scene.set_aside()
    for wrong in ([], ["ab" * 32], [named, "ab" * 32]):
        with failing("trust.other_site_keys"):
            scene.box.accept_site_keys(A, wrong)
    with failing("trust.other_site_keys"):
        scene.box.accept_site_keys(SiteID("hospital-c"), [named])
    assert scene.set_aside()
    scene.box.accept_site_keys(A, [named])
    scene.restarted()
    assert set(scene.box.refresh().sites) == {A, B}
    assert set(scene.restarted().sites) == {A, B}


def test_consortium_that_delegates_to_no_hospitals_names_no_keys(scene: Scene) -> None:
    assert scene.repository.targets.delegations is not None
    assert scene.repository.targets.delegations.roles is not None
    del scene.repository.targets.delegations.roles["sites"]
    scene.repository.sign_targets()
    scene.repository.publish()
    assert not scene.box.refresh().sites
    with failing("trust.other_site_keys"):
        scene.box.accept_site_keys(A, [key_id(public_key(scene.site.signers[0]))])


def test_clock_that_was_ahead_costs_no_hospital(scene: Scene) -> None:
    scene.clock.move(91 * DAY_S)
    scene.box.load()
    assert scene.box.current().set_aside.keys() == {A, B}
    scene.clock.move(-91 * DAY_S)
    assert set(scene.restarted().sites) == {A, B}


@pytest.mark.parametrize(("environment", "counts"), [("production", False), ("test", True)])
def test_simulators_count_in_a_test_environment_only(tmp_path: Path, environment: str, *, counts: bool) -> None:
    with trust_scene(tmp_path / "trust", environment=environment) as scene:
        record = consortium().model_copy(
            update={
                "evidence": EvidenceTerms(minimum="none", kinds=(KeyKind.TPM, KeyKind.SOFTWARE)),
                "makers": {"test": "a simulator's", "hardware": "a maker's"},
            }
        )
        scene.repository.put(scene.repository.targets, "consortium.json", record.encode())
        scene.repository.sign_targets()
        software, swtpm = new_key(), new_key()
        scene.site.add_node(software, kind=KeyKind.SOFTWARE, evidence="none")
        scene.site.add_node(swtpm, evidence="test")
        scene.publish_site()
        snapshot = scene.box.refresh()
        known = snapshot.view(A).records
        assert [key_id(key) in known for key in (software, swtpm, scene.key)] == [counts, counts, True]
        assert (EvidenceClass.TEST in snapshot.maker_certificates()) is counts
        assert snapshot.maker_certificates()[EvidenceClass.HARDWARE] == "a maker's"


def test_software_key_speaks_for_nobody_where_evidence_is_wanted(tmp_path: Path) -> None:
    with trust_scene(tmp_path / "trust", environment="test") as scene:
        evidence = EvidenceTerms(minimum="test", kinds=(KeyKind.TPM, KeyKind.SOFTWARE))
        record = consortium().model_copy(update={"evidence": evidence})
        scene.repository.put(scene.repository.targets, "consortium.json", record.encode())
        scene.repository.sign_targets()
        earlier = scene.clock.now() - DAY
        scene.site.add_node(new_key(), kind=KeyKind.SOFTWARE, evidence="hardware", enrolled=earlier)
        scene.publish_site()
        speaker = scene.box.refresh().speaker(A)
        assert speaker is not None
        assert speaker.root.key_id == key_id(scene.key)


def test_bare_consortium(tmp_path: Path) -> None:
    with trust_scene(tmp_path / "trust") as scene:
        empty = PlayedRepository.found(scene.clock)
        with empty.client(tmp_path / "empty") as box:
            snapshot = box.refresh()
    assert not snapshot.sites
    assert not snapshot.view(A).records


def test_hospital_with_many_boxes_has_one_speaker(scene: Scene) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(3)]
    for key in keys:
        scene.clock.move(1)
        scene.site.add_node(key)
    scene.publish_site()
    scene.box.refresh()
    for key in [scene.key, *keys]:
        speaker = scene.box.current().speaker(A)
        assert speaker is not None
        assert speaker.root.key_id == key_id(key)
        scene.site.revoke(key)
        scene.publish_site()
        scene.box.refresh()
    assert scene.box.current().speaker(A) is None
