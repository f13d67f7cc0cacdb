"""Somebody holds the registrar's host: its online key, its disk and its network. The second organisation holds on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.core.errors import HardwareError, PeerProtocolError
from agent.core.files import store_atomically
from agent.trust.delegations import ISSUED_FIELD, SITES, STUDIES
from agent.trust.records import SitePaths
from provisioning.authority import cosigner as cosigner_module
from provisioning.authority.cosigner import Cosignature
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.repository import Proposal, RepositoryState
from provisioning.authority.roles import new_role, new_snapshot, new_timestamp, next_version, sign
from tests.simulators.authority import FoundedConsortium, new_node, new_signer
from tests.simulators.clock import SetClock

A = "hospital-a"
ROLE = SitePaths(A).role


class BrokenHost:
    """The registrar's host in other hands: it proposes what it likes, signed with the key that lies there."""

    def __init__(self, consortium: FoundedConsortium) -> None:
        self.consortium = consortium
        self.state = consortium.publisher.load()

    @property
    def now(self) -> datetime:
        return self.consortium.clock.now()

    def propose(
        self,
        roles: dict[str, bytes] | None = None,
        *,
        listed: dict[str, bytes] | None = None,
        roots: tuple[bytes, ...] = (),
        snapshot: Callable[[Snapshot], None] = lambda _: None,
        timestamp: Callable[[Timestamp], None] = lambda _: None,
        state: RepositoryState | None = None,
    ) -> Proposal:
        """The next publication, changed as the attacker likes."""
        state, roles = state or self.state, roles or {}
        shown = {**state.roles, **roles} if listed is None else listed
        new = new_snapshot(shown, version=state.snapshot_version + 1, now=self.now)
        snapshot(new.signed)
        stamp = new_timestamp(new.signed.version, version=state.timestamp_version + 1, now=self.now)
        timestamp(stamp.signed)
        return self.signed(Proposal(roots, roles, new.to_bytes(), stamp.to_bytes()))

    def signed(self, proposal: Proposal) -> Proposal:
        """With the key of the host."""
        return self.consortium.online[0].sign(proposal)

    def ask(self, proposal: Proposal) -> Cosignature:
        """Send it to the cosigner."""
        assert self.consortium.cosigner is not None
        return self.consortium.cosigner.cosign(proposal)

    def role(self, name: str, edit: Callable[[Targets], object], *signers: Signer) -> bytes:
        """The next version of a role as somebody else signs it."""
        metadata = next_version(self.state.roles[name], role=name, now=self.now)
        edit(metadata.signed)
        return sign(metadata, signers).to_bytes()


@pytest.fixture
def consortium(tmp_path: Path) -> FoundedConsortium:
    founded = FoundedConsortium.found(tmp_path / "authority", organisations=2, cosigner="127.0.0.1:9444")
    founded.add_site(A)
    founded.enrol(A)
    return founded


@pytest.fixture
def host(consortium: FoundedConsortium) -> BrokenHost:
    return BrokenHost(consortium)


def refused(host: BrokenHost, proposal: Proposal, why: str) -> None:
    """It is, and the cosigner goes on serving the honest."""
    with pytest.raises(PeerProtocolError, match=why):
        host.ask(proposal)
    host.consortium.publisher.refresh_online()


def test_honest_changes_are_cosigned(consortium: FoundedConsortium, tmp_path: Path) -> None:
    node = consortium.enrol(A)
    read = consortium.read(tmp_path / "box")
    assert node.node in {known.node for site in read.sites.values() for known in site.nodes}


def test_one_organisation_alone_convinces_no_box(host: BrokenHost, tmp_path: Path) -> None:
    consortium = host.consortium
    with consortium.box(tmp_path / "box") as box:
        box.refresh()
        proposal = host.propose()
        consortium.publisher.files.store(proposal)
        with pytest.raises(PeerProtocolError) as caught:
            box.refresh()
    assert caught.value.code == "trust.not_signed"


def test_revocation_is_taken_back(host: BrokenHost) -> None:
    """Rollback of a hospital's role, beneath newer online metadata."""
    consortium = host.consortium
    old = host.state.roles[ROLE]
    (node,) = consortium.desk(A).nodes
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "lost"))
    host.state = consortium.publisher.load()
    refused(host, host.propose({ROLE: old}), "does not follow")


def test_older_version_is_listed_without_showing_it(host: BrokenHost) -> None:
    old = host.state.roles[ROLE]
    host.consortium.enrol(A)
    host.state = host.consortium.publisher.load()
    refused(host, host.propose(listed={**host.state.roles, ROLE: old}), "other versions")


def test_hospital_is_hidden(host: BrokenHost) -> None:
    listed = {name: data for name, data in host.state.roles.items() if name != ROLE}
    refused(host, host.propose(listed=listed), "hides")


def test_timestamp_that_counts_for_a_year(host: BrokenHost) -> None:
    def freeze(timestamp: Timestamp) -> None:
        timestamp.expires += timedelta(days=365)

    refused(host, host.propose(timestamp=freeze), "lifetime")


def test_snapshot_that_counts_for_a_year(host: BrokenHost) -> None:
    def freeze(snapshot: Snapshot) -> None:
        snapshot.expires += timedelta(days=365)

    refused(host, host.propose(snapshot=freeze), "lifetime")


@pytest.mark.parametrize("days", [-2, 2])
def test_timestamp_from_another_time(host: BrokenHost, days: int) -> None:
    """Signed ahead, it would outlive the registrar's being found out; signed behind, it would rewind boxes' time."""

    def shift(timestamp: Timestamp) -> None:
        issued = datetime.fromisoformat(timestamp.unrecognized_fields[ISSUED_FIELD]) + timedelta(days=days)
        timestamp.unrecognized_fields[ISSUED_FIELD] = issued.isoformat()
        timestamp.expires += timedelta(days=days)

    refused(host, host.propose(timestamp=shift), "another time")


def test_timestamp_that_does_not_say_when(host: BrokenHost) -> None:
    refused(host, host.propose(timestamp=lambda stamp: stamp.unrecognized_fields.clear()), "when it was signed")


def test_two_states_under_one_version(host: BrokenHost) -> None:
    """One hospital would be shown one state and its neighbour the other."""
    with_node = host.consortium.desk(A).endorse(new_node(A))
    host.ask(host.propose({ROLE: with_node.metadata}))
    with pytest.raises(PeerProtocolError, match="does not follow"):
        host.ask(host.propose())


def test_box_is_invented(host: BrokenHost) -> None:
    """The registrar's host adds a box to a hospital whose key it has not."""
    node = new_node(A)

    def invent(role: Targets) -> None:
        path = SitePaths(A).node(node.node)
        role.targets[path] = TargetFile.from_data(path, node.encode(), ["sha256"])

    refused(host, host.propose({ROLE: host.role(ROLE, invent, new_signer())}), "lacks signatures")


def test_hospital_is_invented(host: BrokenHost) -> None:
    stranger = new_signer()

    def invent(sites: Targets) -> None:
        paths = SitePaths("hospital-x")
        assert isinstance(sites.delegations, Delegations)
        assert sites.delegations.roles is not None
        sites.delegations.roles[paths.role] = DelegatedRole(
            paths.role, [], 1, terminating=True, paths=list(paths.patterns)
        )
        sites.add_key(stranger.public_key, paths.role)

    own = host.consortium.role_signers(SITES)[:1]  # one of two: half a quorum
    refused(host, host.propose({SITES: host.role(SITES, invent, *own)}), "lacks signatures")


def test_hospital_that_nobody_delegates_to(host: BrokenHost) -> None:
    role = sign(new_role("site-x", now=host.now), [new_signer()]).to_bytes()
    refused(host, host.propose({"site-x": role}), "nobody delegates")


def test_studies_speak_for_a_hospital(host: BrokenHost) -> None:
    """Even a full quorum of another role lists no file of a hospital."""
    path = SitePaths(A).revocations

    def speak(role: Targets) -> None:
        role.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])

    own = host.consortium.role_signers(STUDIES)
    refused(host, host.propose({STUDIES: host.role(STUDIES, speak, *own)}), "only that hospital")


def test_root_without_its_quorum(host: BrokenHost) -> None:
    metadata = Metadata[Root].from_bytes(host.state.roots[-1])
    metadata.signatures.clear()
    metadata.signed.version += 1
    stranger = new_signer()
    for role in ("timestamp", "snapshot"):
        metadata.signed.add_key(stranger.public_key, role)
        metadata.signed.roles[role].threshold = 1
    signers = [*host.consortium.role_signers(Root.type)[:1], stranger]
    refused(host, host.propose(roots=(sign(metadata, signers).to_bytes(),)), "lacks signatures")


@pytest.mark.parametrize("ahead", [2, 1 << 40])
def test_versions_run_ahead(host: BrokenHost, ahead: int) -> None:
    """So far ahead that no honest version could ever follow."""

    def run_snapshot(snapshot: Snapshot) -> None:
        snapshot.version += ahead

    def run_timestamp(timestamp: Timestamp) -> None:
        timestamp.version += ahead

    refused(host, host.propose(timestamp=run_timestamp), "does not follow")
    host.state = host.consortium.publisher.load()
    refused(host, host.propose(snapshot=run_snapshot), "does not follow")


def test_hospital_signs_for_ten_years(host: BrokenHost) -> None:
    def stretch(role: Targets) -> None:
        role.expires += timedelta(days=3650)

    role = host.role(ROLE, stretch, *host.consortium.sites[A])
    refused(host, host.propose({ROLE: role}), "may for 90 days")


def test_snapshot_lists_what_nobody_has_seen(host: BrokenHost) -> None:
    def conjure(snapshot: Snapshot) -> None:
        snapshot.meta["site-x.json"] = MetaFile(1, 10, {"sha256": "00" * 32})

    refused(host, host.propose(snapshot=conjure), "nobody has seen")


def test_timestamp_names_another_snapshot(host: BrokenHost) -> None:
    """Mix and match: fresh time over an old state."""

    def mix(timestamp: Timestamp) -> None:
        timestamp.snapshot_meta.version -= 1

    refused(host, host.propose(timestamp=mix), "another snapshot")


def test_snapshot_lists_a_hospital_without_its_hash(host: BrokenHost) -> None:
    """Any other file of that version would do."""

    def strip(snapshot: Snapshot) -> None:
        snapshot.meta[f"{ROLE}.json"].hashes = None

    refused(host, host.propose({ROLE: host.consortium.desk(A).renew().metadata}, snapshot=strip), "without length")


def test_targets_without_their_quorum(host: BrokenHost) -> None:
    own = host.consortium.role_signers(Targets.type)[:1]
    data = host.role(Targets.type, lambda _: None, *own)
    refused(host, host.propose({Targets.type: data}), "lacks signatures")


def test_delegation_to_keys_that_signed_nothing(host: BrokenHost) -> None:
    """A role whose keys change under it is signed anew at once, or every box would refuse all that follows."""
    stranger = new_signer()

    def swap(name: str) -> Callable[[Targets], None]:
        def edit(role: Targets) -> None:
            for keyid in list(role.get_delegated_role(name).keyids):
                role.revoke_key(keyid, name)
            role.add_key(stranger.public_key, name)
            role.get_delegated_role(name).threshold = 1

        return edit

    for delegator, name in ((Targets.type, STUDIES), (SITES, ROLE)):
        data = host.role(delegator, swap(name), *host.consortium.role_signers(delegator))
        refused(host, host.propose({delegator: data}), "lacks signatures")
        host.state = host.consortium.publisher.load()


def test_time_runs_backwards(host: BrokenHost) -> None:
    """By less than clocks may lie apart; each step for itself would pass."""
    assert isinstance(host.consortium.clock, SetClock)
    host.consortium.clock.move(-60)
    with pytest.raises(PeerProtocolError, match="before the one before"):
        host.ask(host.propose())


def test_stranger_asks(host: BrokenHost) -> None:
    """Whoever reaches the cosigner's port without an online key gets nothing signed."""
    proposal = host.propose()
    bare = [Metadata[Any].from_bytes(data) for data in (proposal.snapshot, proposal.timestamp)]
    for metadata in bare:
        metadata.signatures.clear()
    unsigned = replace(proposal, snapshot=bare[0].to_bytes(), timestamp=bare[1].to_bytes())
    refused(host, unsigned, "no other organisation")
    host.state = host.consortium.publisher.load()
    refused(host, LocalOnlineSigner(new_signer()).sign(replace(unsigned)), "no other organisation|does not follow")


def test_same_question_gets_the_same_answer_and_no_other(host: BrokenHost) -> None:
    proposal = host.propose()
    first, again = host.ask(proposal), host.ask(proposal)
    assert first.timestamp.keyid == again.timestamp.keyid
    host.consortium.cosigner = host.consortium.start_cosigner()
    assert host.ask(proposal).timestamp.keyid == first.timestamp.keyid
    assert isinstance(host.consortium.clock, SetClock)
    host.consortium.clock.move(1)
    with pytest.raises(PeerProtocolError, match="does not follow"):
        host.ask(host.propose())


def test_power_fails_before_it_remembers(host: BrokenHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is signed that is not remembered."""
    proposal = host.propose()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cosigner_module, "store_atomically", full)
    with pytest.raises(HardwareError):
        host.ask(proposal)
    monkeypatch.setattr(cosigner_module, "store_atomically", store_atomically)
    host.consortium.cosigner = host.consortium.start_cosigner()
    host.ask(host.propose())


def test_clock_of_the_host_is_not_the_cosigners(host: BrokenHost) -> None:
    ahead = SetClock(host.now + timedelta(days=3))
    host.consortium.cosigner = host.consortium.start_cosigner(ahead)
    with pytest.raises(PeerProtocolError, match="another time"):
        host.ask(host.propose())
