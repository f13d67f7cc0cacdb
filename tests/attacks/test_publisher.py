"""A hospital, or whoever holds its key, sends what it should not: nothing of it reaches the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import Signer
from tuf.api.metadata import Delegations, TargetFile, Targets

from agent.core.errors import PeerProtocolError
from agent.core.ids import SiteID
from agent.trust.delegations import SITES, STUDIES
from agent.trust.records import CONSORTIUM_TARGET, RevocationsFile, SitePaths
from provisioning.authority.ceremony import list_files, suspend_site
from provisioning.authority.repository import Change
from provisioning.authority.roles import next_version, sign
from tests.simulators.authority import FoundedConsortium, new_node, new_signer

A, B = "hospital-a", "hospital-b"
PATHS, OTHERS = SitePaths(A), SitePaths(B)


class HostileSite:
    """Hospital A, which signs whatever it likes."""

    def __init__(self, consortium: FoundedConsortium) -> None:
        self.consortium = consortium
        self.before = self._files()
        self.state = consortium.publisher.load()

    def signed(self, edit: Callable[[Targets], object], *signers: Signer) -> bytes:
        """The next version of its role."""
        metadata = next_version(self.state.roles[PATHS.role], role=PATHS.role, now=self.consortium.clock.now())
        edit(metadata.signed)
        return sign(metadata, signers or self.consortium.sites[A]).to_bytes()

    def refused(self, metadata: bytes, targets: Mapping[str, bytes], why: str) -> None:
        """It is, and nothing on the disk changed."""
        with pytest.raises(PeerProtocolError, match=why):
            self.consortium.publisher.publish_site(SiteID(A), metadata, targets)
        assert self._files() == self.before
        assert self.consortium.publisher.load() == self.state

    def lists(self, path: str, data: bytes, why: str, *, sent: Mapping[str, bytes] | None = None) -> None:
        """It lists one more file."""
        metadata = self.signed(list_files({path: data}))
        self.refused(metadata, {path: data} if sent is None else sent, why)

    def _files(self) -> dict[Path, bytes]:
        home = self.consortium.layout.path
        return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.fixture
def hospital(tmp_path: Path) -> HostileSite:
    consortium = FoundedConsortium.found(tmp_path / "authority")
    for site in (A, B):
        consortium.add_site(site)
        consortium.enrol(site)
    return HostileSite(consortium)


def unedited(_: Targets) -> None:
    """As it was."""


def test_speaks_for_another_hospital(hospital: HostileSite) -> None:
    hospital.lists(OTHERS.revocations, RevocationsFile(site=B).encode(), "only that hospital itself")


def test_signs_with_a_stranger_s_key(hospital: HostileSite) -> None:
    hospital.refused(hospital.signed(unedited, new_signer()), {}, "lacks signatures")


def test_signs_in_another_hospital_s_place(hospital: HostileSite) -> None:
    data = hospital.signed(unedited)
    with pytest.raises(PeerProtocolError):
        hospital.consortium.publisher.publish_site(SiteID(B), data, {})


def test_skips_a_version(hospital: HostileSite) -> None:
    def skip(role: Targets) -> None:
        role.version += 1

    hospital.refused(hospital.signed(skip), {}, "does not follow")


def test_goes_back_a_version(hospital: HostileSite) -> None:
    old = hospital.state.roles[PATHS.role]
    hospital.consortium.publish(hospital.consortium.desk(A).renew())
    again = HostileSite(hospital.consortium)
    again.refused(old, {}, "does not follow")


def test_signs_another_content_under_a_published_version(hospital: HostileSite) -> None:
    def same(role: Targets) -> None:
        role.version -= 1

    hospital.refused(hospital.signed(same), {}, "does not follow")


def test_lists_what_it_does_not_send(hospital: HostileSite) -> None:
    hospital.lists(PATHS.revocations, b"{}", "did not come with it", sent={})


def test_sends_what_it_does_not_list(hospital: HostileSite) -> None:
    hospital.refused(hospital.signed(unedited), {"sites/hospital-a/more.json": b"{}"}, "nobody lists")


def test_sends_another_file_than_it_lists(hospital: HostileSite) -> None:
    data = RevocationsFile(site=A).encode()
    hospital.lists(PATHS.revocations, data, "not the one that was signed", sent={PATHS.revocations: data + b" "})


@pytest.mark.parametrize(
    "path",
    [
        f"sites/{A}/../../../keys/root-1.pem",
        f"sites/{A}/./x",
        f"sites/{A}//x",
        f"sites/{A}/nodes/..",
        f"sites/{A}/a\\b",
        f"sites/{A}/a\0b",
        f"sites/{A}/",
    ],
)
def test_climbs_out_of_its_folder(hospital: HostileSite, path: str) -> None:
    hospital.lists(path, b"{}", "is no path")


def test_lists_without_sha256(hospital: HostileSite) -> None:
    def weaken(role: Targets) -> None:
        path = f"sites/{A}/x.json"
        role.targets[path] = TargetFile.from_data(path, b"{}", ["md5"])

    hospital.refused(hospital.signed(weaken), {f"sites/{A}/x.json": b"{}"}, "SHA-256")


def test_sends_a_file_that_is_too_large(hospital: HostileSite) -> None:
    hospital.lists(f"sites/{A}/x.bin", bytes((1 << 20) + 1), "larger than")


def test_record_names_another_hospital(hospital: HostileSite) -> None:
    node = new_node(B)
    hospital.lists(PATHS.node(node.node), node.encode(), "names another hospital")


def test_record_names_another_box_than_its_place(hospital: HostileSite) -> None:
    hospital.lists(PATHS.node("another"), new_node(A).encode(), "names another")


def test_two_records_of_one_key(hospital: HostileSite) -> None:
    (node,) = hospital.consortium.desk(A).nodes
    twin = node.model_copy(update={"node": "twin"})
    hospital.lists(PATHS.node("twin"), twin.encode(), "one key")


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"format": "secur-e-health/node/9"}'])
def test_record_that_is_none(hospital: HostileSite, data: bytes) -> None:
    hospital.lists(PATHS.node("x"), data, "cannot be used")


def test_delegates_to_somebody_else(hospital: HostileSite) -> None:
    def delegate(role: Targets) -> None:
        role.delegations = Delegations({}, {})

    hospital.refused(hospital.signed(delegate), {}, "delegates to further roles")


def test_signs_for_ten_years(hospital: HostileSite) -> None:
    def stretch(role: Targets) -> None:
        role.expires += timedelta(days=3650)

    hospital.refused(hospital.signed(stretch), {}, "may for 90 days")


def test_signs_what_has_expired(hospital: HostileSite) -> None:
    def expire(role: Targets) -> None:
        role.expires -= timedelta(days=91)

    hospital.refused(hospital.signed(expire), {}, "may for 90 days")


@pytest.mark.parametrize("data", [b"", b"{}", b"nonsense", b'{"signed": {"_type": "root"}, "signatures": []}'])
def test_sends_nonsense_for_metadata(hospital: HostileSite, data: bytes) -> None:
    hospital.refused(data, {}, "cannot be used")


def test_sends_other_metadata_in_its_place(hospital: HostileSite) -> None:
    """The consortium's own, well signed, is no hospital's."""
    for data in (hospital.state.roots[0], hospital.state.snapshot, hospital.state.timestamp):
        hospital.refused(data, {}, "of kind|lacks signatures|does not follow|cannot be used")


def test_was_suspended(hospital: HostileSite) -> None:
    consortium = hospital.consortium
    staged = consortium.desk(A).renew()
    consortium.ceremony.change(SITES, suspend_site(SiteID(A)))
    now = HostileSite(consortium)
    now.refused(staged.metadata, staged.targets, "nobody delegates")


def test_quorum_of_studies_speaks_for_a_hospital(hospital: HostileSite) -> None:
    """Not even the consortium's own offline keys put a box on a hospital's record."""
    node = new_node(A)
    files = {PATHS.node(node.node): node.encode()}
    with pytest.raises(PeerProtocolError, match="only that hospital itself"):
        hospital.consortium.ceremony.change(STUDIES, list_files(files), targets=files)
    with pytest.raises(PeerProtocolError, match="only that hospital itself"):
        hospital.consortium.ceremony.change("targets", list_files(files), targets=files)
    assert hospital.consortium.publisher.load() == hospital.state


def test_consortium_without_its_record(hospital: HostileSite) -> None:
    def drop(role: Targets) -> None:
        del role.targets[CONSORTIUM_TARGET]

    with pytest.raises(PeerProtocolError, match="missing"):
        hospital.consortium.ceremony.change("targets", drop)


def test_change_without_the_quorum_is_not_published(hospital: HostileSite) -> None:
    consortium = hospital.consortium
    role = next_version(hospital.state.roles[SITES], role=SITES, now=consortium.clock.now())
    data = sign(role, consortium.role_signers(SITES)[:1]).to_bytes()
    with pytest.raises(PeerProtocolError, match="lacks signatures"):
        consortium.publisher.publish(Change(roles={SITES: data}))
    assert consortium.publisher.load() == hospital.state
