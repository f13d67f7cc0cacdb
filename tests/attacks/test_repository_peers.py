"""What others may try when a box takes from the trust repository who speaks for whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import PeerProtocolError
from agent.statements.envelope import Proof, encode_proof
from agent.statements.kinds import SessionCertificate
from agent.statements.roots import EvidenceClass, KeyKind, key_id, public_key_bytes
from agent.trust.counters import CounterStore
from agent.trust.peers import REFRESH_PAUSE_S, RepositoryPeers, node_name
from agent.trust.pins import TIMESTAMP_AGE_S
from tests.simulators.trust_scene import DAY_S, A, B, Scene, trust_scene


@dataclass(slots=True)
class PlayedBox:
    """A box of hospital A that vouches for its session keys."""

    scene: Scene
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    session: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def key_id(self) -> str:
        return key_id(self.key.public_key())

    def enrol(self, **changes: object) -> None:
        """Have hospital A endorse it."""
        self.scene.site.add_node(self.key.public_key(), **changes)
        self.scene.publish_site()

    def certificate(self, **changes: object) -> bytes:
        now_s = int(self.scene.clock.now().timestamp())
        fields: dict[str, object] = {
            "consortium": self.scene.repository.root_digest,
            "site": A,
            "node": node_name(self.key_id),
            "root_key": self.key_id,
            "session_key": public_key_bytes(self.session.public_key()).hex(),
            "issued_s": now_s,
            "expires_s": now_s + 3600,
            "timestamp_version": self.scene.repository.timestamp.version,
        }
        statement = SessionCertificate.model_validate(fields | changes)
        proof = Proof(statement.payload_type(), statement.payload(), self.key_id, b"")
        signature = self.key.sign(proof.signed_bytes(), ec.ECDSA(hashes.SHA256()))
        return encode_proof(replace(proof, signature=signature))


@dataclass(slots=True)
class Company:
    """A box's peers, one of which is `box`."""

    scene: Scene
    peers: RepositoryPeers
    box: PlayedBox

    def refused(self, certificate: bytes, site: str = A) -> object:
        """The code of why a certificate does not count."""
        with pytest.raises(PeerProtocolError) as failure:
            self.peers.verify_certificate(site, certificate)
        assert failure.value.details["peer"] == site
        return failure.value.details["cause"]

    def timestamps_asked_for(self) -> int:
        return self.scene.repository.requests.count("timestamp.json")


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    with trust_scene(tmp_path / "trust") as scene:
        box = PlayedBox(scene)
        scene.site.role.targets.clear()
        box.enrol()
        scene.box.refresh()
        yield Company(scene, RepositoryPeers(scene.box, CounterStore(tmp_path / "counters.json")), box)


def test_honest_box(company: Company) -> None:
    key = company.peers.verify_certificate(A, company.box.certificate())
    assert key == company.box.session.public_key()


def test_box_speaks_for_another_hospital(company: Company) -> None:
    assert company.refused(company.box.certificate(), site=B) == "statements.not_accepted"
    assert company.refused(company.box.certificate(site=B), site=B) == "statements.not_accepted"


def test_revoked_box_speaks_until_the_next_snapshot_only(company: Company) -> None:
    certificate = company.box.certificate()
    company.scene.site.revoke(company.box.key.public_key())
    company.scene.publish_site()
    company.peers.verify_certificate(A, certificate)
    company.scene.box.refresh()
    assert company.refused(certificate) == "statements.not_accepted"


def test_box_that_was_just_enrolled_is_looked_up_once(company: Company) -> None:
    company.scene.site.revoke(company.box.key.public_key())
    successor = PlayedBox(company.scene)
    successor.enrol()
    before = company.timestamps_asked_for()
    company.peers.verify_certificate(A, successor.certificate())
    assert company.refused(company.box.certificate()) == "statements.not_accepted"
    assert company.timestamps_asked_for() == before + 1


def test_hospital_that_was_just_taken_in_is_looked_up_once(company: Company) -> None:
    site = company.scene.repository.add_site("hospital-c")
    box = PlayedBox(company.scene)
    site.add_node(box.key.public_key())
    site.sign()
    company.scene.repository.publish()
    before = company.timestamps_asked_for()
    company.peers.verify_certificate("hospital-c", box.certificate(site="hospital-c"))
    assert company.timestamps_asked_for() == before + 1


def test_revoked_box_that_knows_of_its_revocation(company: Company) -> None:
    """Whoever shows that it has seen a newer state is judged by that state."""
    company.scene.site.revoke(company.box.key.public_key())
    company.scene.publish_site()
    assert company.refused(company.box.certificate()) == "statements.not_accepted"


def test_garbage_for_a_certificate(company: Company) -> None:
    before = company.timestamps_asked_for()
    for certificate in (b"", b"{}", company.box.certificate()[:-1]):
        assert company.refused(certificate) == "statements.malformed"
    assert company.timestamps_asked_for() == before


def test_box_that_boasts_of_a_future_state(company: Company) -> None:
    """It cannot make us ask the repository all day."""
    boast = company.box.certificate(timestamp_version=1 << 50)
    before = company.timestamps_asked_for()
    for minimum in [EvidenceClass.VIRTUAL, EvidenceClass.HARDWARE, EvidenceClass.NONE]:
        company.peers = company.peers.demanding(minimum)
        assert company.refused(boast) == "statements.view_behind"
    assert company.timestamps_asked_for() == before + 1
    company.scene.clock.move(REFRESH_PAUSE_S)
    assert company.refused(boast) == "statements.view_behind"
    assert company.timestamps_asked_for() == before + 2


def test_box_that_lives_in_the_past(company: Company) -> None:
    old = company.scene.repository.timestamp.version
    for _ in range(2 * TIMESTAMP_AGE_S // 3600 + 2):
        company.scene.clock.move(1800)
        company.scene.repository.publish()
        company.scene.box.refresh()
    snapshot = company.scene.box.current()
    assert old < snapshot.oldest_timestamp < snapshot.timestamp_version
    assert company.refused(company.box.certificate(timestamp_version=old)) == "statements.not_accepted"
    company.peers.verify_certificate(A, company.box.certificate(timestamp_version=snapshot.oldest_timestamp))
    assert company.scene.restarted().oldest_timestamp == snapshot.oldest_timestamp


def test_freeze_hides_a_revocation_for_no_longer_than_a_day(company: Company) -> None:
    company.scene.site.revoke(company.box.key.public_key())
    company.scene.site.sign()
    company.scene.clock.move(DAY_S)
    assert company.refused(company.box.certificate()) == "trust.expired"


def test_expired_site(company: Company) -> None:
    company.scene.clock.move(90 * DAY_S - 60)
    company.scene.repository.publish()
    company.scene.box.refresh()
    company.peers.verify_certificate(A, company.box.certificate())
    company.scene.clock.move(61)
    assert company.refused(company.box.certificate()) == "trust.expired"
    company.scene.box.refresh()
    assert company.refused(company.box.certificate()) == "trust.site_left_out"


def test_second_box_of_a_hospital_speaks_only_once_the_first_is_revoked(company: Company) -> None:
    """Two boxes of one hospital could agree to a round and give it up."""
    company.scene.clock.move(1)
    spare = PlayedBox(company.scene)
    spare.enrol()
    company.scene.box.refresh()
    company.peers.verify_certificate(A, company.box.certificate())
    assert company.refused(spare.certificate()) == "trust.spare_box"
    company.scene.site.revoke(company.box.key.public_key())
    company.scene.publish_site()
    company.scene.box.refresh()
    company.peers.verify_certificate(A, spare.certificate())


@pytest.mark.parametrize(
    "changes",
    [{"kind": KeyKind.SOFTWARE, "evidence": "none"}, {"evidence": "test"}, {"evidence": "none"}, {"kind": "pkcs11"}],
)
def test_key_that_the_consortium_does_not_admit(company: Company, changes: dict[str, object]) -> None:
    company.scene.site.role.targets.clear()
    weak = PlayedBox(company.scene)
    weak.enrol(**changes)
    company.scene.box.refresh()
    assert company.refused(weak.certificate()) in {"statements.not_accepted", "statements.weak_evidence"}
    assert company.scene.box.current().node(weak.key_id, site=A) is None


def test_box_below_a_studys_evidence_does_not_keep_a_better_one_from_speaking(company: Company) -> None:
    company.scene.site.role.targets.clear()
    weak, good = PlayedBox(company.scene), PlayedBox(company.scene)
    weak.enrol(evidence="virtual")
    company.scene.clock.move(1)
    good.enrol()
    company.scene.box.refresh()
    company.peers.verify_certificate(A, weak.certificate())
    company.peers = company.peers.demanding(EvidenceClass.HARDWARE)
    assert company.refused(weak.certificate()) == "statements.weak_evidence"
    company.peers.verify_certificate(A, good.certificate())
