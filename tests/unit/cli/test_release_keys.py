"""`seh-provision release rotate`: keys of the maker's roles are replaced, and boxes that know the old ones follow."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import Metadata, Root, Targets, Timestamp

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, SecureHealthError
from agent.statements.release import Version
from agent.statements.release_keys import ReleaseKeys, parse_release_keys
from agent.trust.fetcher import BoundedFetcher
from agent.trust.snapshot import Environment
from agent.update.box import Box
from agent.update.channel import Audience, Running
from agent.update.handover import Handover, parse_handover
from agent.update.keys import follow_keys
from agent.update.release import verify_release
from agent.update.repository import ReleaseRepository
from agent.update.updater import UpdateFolder, Updater
from provisioning.authority.signers import create_file_key
from provisioning.releases.maker import read_only_maker
from provisioning.releases.rotation import next_keys
from tests.simulators.maker import COMMIT, Hands
from tests.simulators.release_repository import new_image, served_files

OLD, NEW = new_image(1), new_image(2)


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    """A maker with two published releases, of which the newer one is offered."""
    made = Hands(tmp_path)
    made.do("init", "--environment", "test")
    made.release("1.3.0", OLD)
    made.release("1.4.0", NEW)
    made.do("promote", "1.4.0")
    return made


@pytest.fixture
def new_key(tmp_path: Path) -> Callable[[str], str]:
    """Makes a key of somebody else's."""

    def make(name: str) -> str:
        path = tmp_path / "elsewhere" / f"{name}.pem"
        create_file_key(path, None)
        return f"file:{path}"

    return make


def ids(hands: Hands, role: str) -> list[str]:
    rows = [line.split() for line in hands.do("status").splitlines()]
    return [row[-1] for row in rows if row and row[0] == role and len(row[-1]) == 64]


def shipped(hands: Hands) -> tuple[bytes, ReleaseKeys]:
    """What the package would hold now."""
    root = (hands.directory / "release-root.json").read_bytes()
    return root, parse_release_keys((hands.directory / "release-keys.json").read_bytes())


class Follower:
    """A box, with python-tuf's own client, that was shipped some root and list."""

    def __init__(self, hands: Hands, place: Path) -> None:
        self.hands = hands
        self.folder = UpdateFolder(place)
        self.root, self.keys = shipped(hands)

    def run(self) -> Version | None:
        clock = SystemClock()
        box = Box(Running(Version.parse("1.0.0"), 0), None, Audience(), self.keys)
        with served_files(self.hands.directory / "repository") as server:
            fetcher = BoundedFetcher(clock)
            repository = ReleaseRepository(self.folder.trust, server.url, self.root, fetcher, clock)
            updater = Updater(self.folder, repository, box, clock, wait=lambda _: None, progress=lambda *_: None)
            try:
                return updater.run("stable", None, automatic=True)
            finally:
                fetcher.close()

    @property
    def asked(self) -> Handover:
        return parse_handover((self.folder.incoming.path / "ready").read_bytes())

    @property
    def trusted(self) -> Root:
        return Metadata[Root].from_bytes((self.folder.trust / "tuf" / "root.json").read_bytes()).signed


def test_a_box_with_the_first_root_follows_to_the_last(
    hands: Hands, new_key: Callable[[str], str], tmp_path: Path
) -> None:
    box = Follower(hands, tmp_path / "box")
    for number, name in enumerate(("a", "b", "c")):
        said = hands.do("rotate", "root", "--drop", ids(hands, "root")[0][:12], "--new-key", new_key(name))
        assert "root is signed by 2 of 2 keys" in said
        assert len(list((hands.directory / "repository").glob("*.root.json"))) == 2 + number
    assert box.run() == Version.parse("1.4.0")
    assert box.trusted.version == 4
    assert set(box.trusted.roles[Root.type].keyids) == set(box.trusted.roles[Targets.type].keyids)
    assert Metadata[Root].from_bytes(shipped(hands)[0]).signed.version == 4
    # A newer package, over what the box remembers.
    box.root, box.keys = shipped(hands)
    assert box.run() is None
    assert box.trusted.version == 4
    assert Follower(hands, tmp_path / "new").run() == Version.parse("1.4.0")


def test_a_root_waits_for_its_old_signers(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    away = shutil.move(hands.directory / "keys" / "root-1.pem", tmp_path / "stick.pem")
    old = ids(hands, "root")
    said = hands.do("rotate", "root", "--drop", old[0], "--new-key", new_key("a"))
    assert "Not published yet: root needs 1 more" in said
    with pytest.raises(OperatorError) as waits:
        hands.do("rotate", "channels", "--new-key", new_key("c"))
    assert waits.value.code == "authority.already_pending"
    (pending,) = (hands.directory / "pending").glob("root-*.cbor")
    assert Metadata[Root].from_bytes(shipped(hands)[0]).signed.version == 1
    asked = hands.do("sign", pending, "--key", f"file:{away}", answer="y\n")
    assert "targets, version 2" in asked
    assert "Published." in asked
    assert Metadata[Root].from_bytes(shipped(hands)[0]).signed.version == 2
    assert old[0] not in ids(hands, "root")


def test_the_online_key_is_replaced(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    box = Follower(hands, tmp_path / "box")
    assert box.run() == Version.parse("1.4.0")
    uri = new_key("online")
    assert "online is signed by 1 of 1 keys" in hands.do("rotate", "online", "--new-key", uri)
    (hands.directory / "keys" / "online-1.pem").unlink()
    assert "Timestamp" in hands.do("refresh")
    box.run()
    assert box.trusted.roles[Timestamp.type].keyids == ids(hands, "online")
    Path(uri.removeprefix("file:")).unlink()
    with pytest.raises(OperatorError):
        hands.do("refresh")


def test_channels_get_another_key(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    box = Follower(hands, tmp_path / "box")
    old = ids(hands, "channels")[0]
    hands.do("rotate", "channels", "--drop", old, "--new-key", new_key("channels"))
    (hands.directory / "keys" / "channels-1.pem").unlink()
    hands.do("halt", "1.4.0")
    assert box.run() is None
    assert old not in ids(hands, "channels")


def test_a_revoked_release_key(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    """Its releases are listed no more until those who count sign them; a box of the first list follows."""
    box = Follower(hands, tmp_path / "box")
    first = box.keys
    stale = (hands.directory / "repository").glob("releases/1.4.0/*.release.json")
    record = next(stale).read_bytes()
    assert verify_release(record, first).version == Version.parse("1.4.0")
    said = hands.do("rotate", "releases", "--drop", ids(hands, "releases")[0], "--new-key", new_key("new"))
    for version in ("1.3.0", "1.4.0"):
        assert f"Release {version} is listed no more" in said
        assert f"release publish {version}" in said
    assert "from stable say [update.not_listed]" in said
    _, keys = shipped(hands)
    assert (keys.version, keys.threshold, len(keys.keys)) == (2, 2, 2)
    with pytest.raises(SecureHealthError) as revoked:
        verify_release(record, keys)
    assert revoked.value.code == "update.unsigned_release"
    with pytest.raises(SecureHealthError) as gone:
        box.run()
    assert gone.value.code == "update.not_listed"
    assert box.asked == Handover("keys", "1.0.0")
    chain = (box.folder.incoming.path / "keys.json").read_bytes()
    assert follow_keys(chain, first) == keys
    for version in ("1.3.0", "1.4.0"):
        draft = hands.directory / "drafts" / version / "release.json"
        assert "It is complete" in hands.do("sign", draft, "--yes")
        assert "is published" in hands.do("publish", version)
    assert box.run() == Version.parse("1.4.0")
    assert box.asked.action == "install"
    assert verify_release((box.folder.incoming.path / "1.4.0" / "release.json").read_bytes(), keys).epoch == 0


def test_a_release_that_enough_of_those_who_stay_signed_stays(hands: Hands, new_key: Callable[[str], str]) -> None:
    said = hands.do("rotate", "releases", "--new-key", new_key("third"))
    assert "no more" not in said
    _, keys = shipped(hands)
    assert (keys.version, keys.threshold, len(keys.keys)) == (2, 2, 3)
    hands.do("build", "1.5.0", hands.image(new_image(3)), "--commit", COMMIT)


def test_the_old_signers_sign_the_list_one_by_one(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    away = shutil.move(hands.directory / "keys" / "releases-2.pem", tmp_path / "stick.pem")
    line = ("rotate", "releases", "--drop", ids(hands, "releases")[0], "--new-key", new_key("new"))
    assert "1 more of those who may sign releases now" in hands.do(*line)
    place = hands.directory / "pending" / "release-keys-2.json"
    assert "waits in" in hands.do("status")
    with pytest.raises(OperatorError) as other:
        hands.do("rotate", "releases", "--threshold", "1")
    assert other.value.code == "authority.already_pending"
    assert "list 2: 2 of 2 keys" in hands.do("sign", place, "--key", f"file:{away}", answer="y\n")
    assert shipped(hands)[1].version == 1
    said = hands.do(*line, "--key", f"file:{away}")
    assert "releases is signed by 2 of 2 keys from now on." in said
    assert shipped(hands)[1].version == 2
    assert not place.exists()


def test_a_box_that_was_off_follows_many_lists(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    box = Follower(hands, tmp_path / "box")
    for name in ("a", "b", "c"):
        hands.do("rotate", "releases", "--drop", ids(hands, "releases")[0], "--new-key", new_key(name))
    with pytest.raises(SecureHealthError):
        box.run()
    keys = follow_keys((box.folder.incoming.path / "keys.json").read_bytes(), box.keys)
    assert keys == shipped(hands)[1]
    assert keys.version == 4
    assert set(keys.keys) == set(ids(hands, "releases"))
    # All that was published waits to be signed again; what is built meanwhile is not below it.
    hands.do("build", "1.5.0", hands.image(new_image(3)), "--commit", COMMIT)


def test_what_a_stick_brings_beside_a_release(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    hands.do("rotate", "releases", "--new-key", new_key("third"))
    place = tmp_path / "stick"
    place.mkdir()
    hands.do("stick", place, "1.4.0")
    assert {path.name for path in place.iterdir()} == {"app.raw", "release.json", "keys.json"}
    assert [json.loads(_payload(one))["version"] for one in json.loads((place / "keys.json").read_text())] == [2]


def test_a_rotation_that_was_cut_short_is_begun_again(
    hands: Hands, new_key: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("rotate", "releases", "--drop", ids(hands, "releases")[0], "--new-key", new_key("new"))
    with monkeypatch.context() as patch:
        patch.setattr("provisioning.releases.maker.write_package_files", _cut)
        patch.setattr("provisioning.authority.repository.RepositoryFiles.store", _cut)
        with pytest.raises(OSError, match="cut"):
            hands.do(*line)
    assert "releases is signed by 2 of 2 keys" in hands.do(*line)
    assert shipped(hands)[1].version == 2
    with pytest.raises(SecureHealthError):
        hands.do(*line)


def test_what_cannot_be_rotated_is_refused(hands: Hands, new_key: Callable[[str], str], tmp_path: Path) -> None:
    weak = tmp_path / "weak.pem"
    weak.write_text("nothing")
    refusals = {
        ("sites",): "release.no_such_role",
        ("root",): "release.nothing_to_rotate",
        ("root", "--drop", "0123456789"): "release.no_such_key",
        ("root", "--drop", ids(hands, "root")[0][:7]): "release.no_such_key",
        ("root", "--drop", ids(hands, "root")[0]): "release.bad_rotation",
        ("releases", "--threshold", "3"): "release.bad_rotation",
        ("releases", "--new-public-key", str(weak)): "release.bad_public_key",
    }
    for line, code in refusals.items():
        with pytest.raises(OperatorError) as refused:
            hands.do("rotate", *line)
        assert refused.value.code == code
    assert not list(hands.directory.glob("pending/*"))


def test_a_key_that_boxes_cannot_verify_with_signs_no_releases(hands: Hands, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = tmp_path / "p384.pem"
    pem.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(OperatorError, match="P-256 alone"):
        hands.do("rotate", "releases", "--new-public-key", pem)


@pytest.mark.parametrize("role", ["root", "releases"])
def test_in_production_no_single_key_signs_root_or_releases(hands: Hands, role: str) -> None:
    maker = read_only_maker(hands.directory, lambda _: "", SystemClock())
    with pytest.raises(OperatorError) as single:
        next_keys(maker, role, drop=(), new=(), threshold=1, environment=Environment.PRODUCTION)
    assert single.value.code == "release.bad_rotation"


def _cut(*_: object) -> None:
    raise OSError("cut")


def _payload(envelope: dict[str, str]) -> bytes:
    return base64.b64decode(envelope["payload"])
