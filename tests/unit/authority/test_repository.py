"""What is published, read with python-tuf's own client and with a box's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import UpdaterConfig

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.trust.delegations import RELEASES, SITES, STUDIES
from agent.trust.records import CONSORTIUM_TARGET, ConsortiumRecord, SitePaths, parse_record
from provisioning.authority.ceremony import replace_site_keys, unchanged
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import Proposal, RepositoryFiles, parse_proposal
from provisioning.authority.roles import LIFETIME, SITE_LIFETIME, RoleKeys
from provisioning.authority.signers import elliptic_key, listed_key
from provisioning.authority.site import LocalSource
from tests.simulators.authority import FoundedConsortium, new_signer, served
from tests.simulators.clock import SetClock

A, B = "hospital-a", "hospital-b"


@pytest.fixture
def consortium(tmp_path: Path) -> FoundedConsortium:
    founded = FoundedConsortium.found(tmp_path / "authority")
    for site in (A, B):
        founded.add_site(site)
        founded.enrol(site)
    return founded


def test_python_tuf_s_own_client_finds_every_file(consortium: FoundedConsortium, tmp_path: Path) -> None:
    """Through the delegations, at the hash-prefixed places of consistent snapshots."""
    files = RepositoryFiles(consortium.layout.repository)
    roles = files.load().roles
    listed = {
        path: target
        for data in roles.values()
        for path, target in Metadata[Targets].from_bytes(data).signed.targets.items()
    }
    assert {CONSORTIUM_TARGET, f"sites/{A}/did.json", f"sites/{B}/did.json"} <= listed.keys()
    assert len(listed) == 9
    with served(consortium.layout.repository) as url:
        client = consortium.stock_client(tmp_path / "stock", url)
        assert isinstance(client.config, UpdaterConfig)
        for path, target in listed.items():
            info = client.get_targetinfo(path)
            assert info is not None
            place = client.download_target(info, str(tmp_path / "file"))
            assert Path(place).read_bytes() == files.target(path, target.hashes["sha256"])
        assert client.get_targetinfo(f"sites/{A}/nodes/nobody/node.json") is None
        assert client.get_targetinfo("studies/none/study.json") is None


def test_each_role_counts_for_as_long_as_it_should(consortium: FoundedConsortium) -> None:
    state, now = consortium.publisher.load(), consortium.clock.now()
    expires = {name: Metadata[Targets].from_bytes(data).signed.expires for name, data in state.roles.items()}
    expires |= {
        "root": Metadata[Root].from_bytes(state.roots[-1]).signed.expires,
        "snapshot": Metadata[Snapshot].from_bytes(state.snapshot).signed.expires,
        "timestamp": Metadata[Timestamp].from_bytes(state.timestamp).signed.expires,
    }
    days = {name: round((when - now) / timedelta(days=1)) for name, when in expires.items()}
    assert days == {
        **{name: life.days for name, life in LIFETIME.items()},
        f"site-{A}": SITE_LIFETIME.days,
        f"site-{B}": SITE_LIFETIME.days,
    }
    assert days == {
        "root": 730,
        "targets": 365,
        "sites": 365,
        "studies": 365,
        "releases": 365,
        "snapshot": 7,
        "timestamp": 1,
        f"site-{A}": 90,
        f"site-{B}": 90,
    }


def test_two_organisations_hold_the_online_roles_together(tmp_path: Path) -> None:
    FoundedConsortium.found(tmp_path, organisations=2, cosigner="127.0.0.1:9444")
    root = Metadata[Root].from_bytes((tmp_path / "repository" / "1.root.json").read_bytes()).signed
    assert {name: (role.threshold, len(role.keyids)) for name, role in root.roles.items()} == dict.fromkeys(
        ("root", "targets", "snapshot", "timestamp"), (2, 2)
    )
    own = {path.name for path in (tmp_path / "keys").iterdir()}
    away = {path.name for path in (tmp_path / "organisation-2" / "keys").iterdir()}
    assert {"root-1.pem", "sites-1.pem", "online.pem"} <= own
    assert away == {f"{role}-2.pem" for role in ("root", "targets", SITES, STUDIES, RELEASES)} | {"online.pem"}
    assert not own & (away - {"online.pem"})


def test_every_version_is_kept(consortium: FoundedConsortium) -> None:
    consortium.ceremony.rotate_root({})
    names = {path.name for path in consortium.layout.repository.iterdir()}
    assert {"1.root.json", "2.root.json", "1.site-hospital-a.json", "1.snapshot.json", "2.snapshot.json"} <= names
    assert "timestamp.json" in names


def test_box_follows_roots_that_it_missed(consortium: FoundedConsortium, tmp_path: Path) -> None:
    """Each version by the quorum before it and by its own; the first keys are long gone."""
    first = consortium.role_signers("root")
    with consortium.box(tmp_path / "box") as box:
        box.refresh()
        before = first
        for _ in range(3):
            after = [new_signer(), new_signer(), new_signer()]
            keys = RoleKeys(tuple(listed_key(elliptic_key(signer.public_key)) for signer in after), 2)
            pending = consortium.ceremony.rotate_root({"root": keys})
            place = consortium.ceremony.pending_file(pending)
            if not pending.is_complete:
                pending = pending.signed_by([*before[:2], *after[:2]])
                consortium.ceremony.complete(pending)
            assert not place.exists()
            before = list(after)
        assert box.refresh().root_version == 4


def test_snapshot_is_renewed_only_when_it_runs_out(consortium: FoundedConsortium) -> None:
    version = consortium.publisher.load().snapshot_version
    assert consortium.publisher.refresh_online().snapshot_version == version
    assert isinstance(consortium.clock, SetClock)
    for _ in range(6):
        consortium.clock.move(timedelta(hours=20).total_seconds())
        state = consortium.publisher.refresh_online()
    assert state.snapshot_version == version + 1


def test_role_is_renewed_before_it_runs_out(consortium: FoundedConsortium, tmp_path: Path) -> None:
    assert isinstance(consortium.clock, SetClock)
    consortium.clock.move(timedelta(days=300).total_seconds())
    for role in ("targets", "sites", "studies", "releases"):
        consortium.ceremony.change(role, unchanged)
    for site in (A, B):
        consortium.publish(consortium.desk(site).renew())
    consortium.ceremony.rotate_root({})
    snapshot = consortium.read(tmp_path / "box")
    assert snapshot.sites.keys() == {A, B}
    assert snapshot.expires_s > consortium.clock.now().timestamp()


def test_the_same_again_changes_nothing(consortium: FoundedConsortium) -> None:
    staged = consortium.desk(A).renew()
    consortium.publish(staged)
    before = consortium.publisher.load()
    consortium.publish(staged)
    assert consortium.publisher.load() == before


def test_online_key_that_the_root_does_not_name(consortium: FoundedConsortium, tmp_path: Path) -> None:
    before = consortium.publisher.load()
    stranger = Publisher(consortium.layout, [LocalOnlineSigner(new_signer())], consortium.clock)
    with pytest.raises(PeerProtocolError, match="lacks signatures"):
        stranger.refresh_online()
    assert consortium.publisher.load() == before
    consortium.publisher.refresh_online()
    assert consortium.read(tmp_path / "box").timestamp_version == before.timestamp_version + 2


def test_consortium_s_record_says_where_and_by_whom(consortium: FoundedConsortium) -> None:
    source = LocalSource(consortium.publisher.files)
    targets = source.role("targets")
    assert targets is not None
    record = parse_record(
        ConsortiumRecord, source.target(Metadata[Targets].from_bytes(targets).signed.targets[CONSORTIUM_TARGET])
    )
    assert record.registrar.address == "127.0.0.1:8443"
    authority = (consortium.layout.tls / "authority.pem").read_text()
    assert record.registrar.root_certificates == record.superlink.root_certificates == authority
    assert record.registrar_key != record.coordinator


def test_desk_refuses_keys_that_are_not_the_hospital_s(consortium: FoundedConsortium) -> None:
    with pytest.raises(OperatorError, match="keys that the consortium knows"):
        consortium.desk(A, new_signer()).renew()
    with pytest.raises(OperatorError, match="knows no hospital"):
        consortium.desk("hospital-x", new_signer()).renew()
    node = consortium.desk(B).nodes[0]
    with pytest.raises(OperatorError, match="signs its own"):
        consortium.desk(A).endorse(node)


def test_revoked_key_never_comes_back(consortium: FoundedConsortium) -> None:
    (node,) = consortium.desk(A).nodes
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "lost"))
    with pytest.raises(OperatorError, match="cannot come back"):
        consortium.desk(A).endorse(node)
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "lost again"))
    assert [entry.reason for entry in consortium.desk(A).revocations] == ["lost"]


def test_hospital_with_two_keys_needs_both(consortium: FoundedConsortium, tmp_path: Path) -> None:
    first, second = new_signer(), new_signer()
    consortium.add_site("hospital-c", first, second)
    with pytest.raises(OperatorError, match="2 of the keys"):
        consortium.desk("hospital-c", first).renew()
    consortium.enrol("hospital-c")
    assert consortium.read(tmp_path / "box").sites[SiteID("hospital-c")].threshold == 2


def test_hospital_moves_to_its_next_key(consortium: FoundedConsortium, tmp_path: Path) -> None:
    """The old key names it, then the consortium follows; a box that knew the old one goes along."""
    new = new_signer()
    keys = RoleKeys((new.public_key,), 1)
    with consortium.box(tmp_path / "box") as box:
        box.refresh()
        with pytest.raises(PeerProtocolError, match="lacks signatures"):
            consortium.ceremony.change(SITES, replace_site_keys(SiteID(A), keys))
        consortium.publish(consortium.desk(A).move_to([new]))
        assert box.refresh().sites.keys() == {A, B}
        consortium.ceremony.change(SITES, replace_site_keys(SiteID(A), keys))
        assert box.refresh().sites.keys() == {A, B}
        with pytest.raises(OperatorError, match="keys that the consortium knows"):
            consortium.desk(A).renew()
        consortium.sites[A] = [new]
        consortium.publish(consortium.desk(A).renew())
        node = consortium.enrol(A)
        assert node.node in {known.node for known in box.refresh().sites[SiteID(A)].nodes}


def test_altered_file_on_the_authority_s_own_disk_is_noticed(consortium: FoundedConsortium) -> None:
    files = RepositoryFiles(consortium.layout.repository)
    role = Metadata[Targets].from_bytes(files.load().roles[SitePaths(A).role]).signed
    path = SitePaths(A).node(consortium.desk(A).nodes[0].node)
    digest = role.targets[path].hashes["sha256"]
    place = next(consortium.layout.repository.rglob(f"{digest}.node.json"))
    place.write_bytes(place.read_bytes() + b" ")
    with pytest.raises(OperatorError, match="altered"):
        files.target(path, digest)


@pytest.mark.parametrize("data", [b"", b"\xa0", b"\xf6", b"nonsense", b"\x81" * 64])
def test_what_is_no_proposal(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"format|CBOR"):
        parse_proposal(data)


def test_proposal_survives_writing_and_reading() -> None:
    proposal = Proposal((b"root",), {"sites": b"sites"}, b"snapshot", b"timestamp")
    assert parse_proposal(proposal.encode()) == proposal
