"""`seh-provision release`, as the maker of the software meets it, up to a box that takes what it offers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.statements.release import Version
from agent.trust.fetcher import BoundedFetcher
from agent.update.box import Box
from agent.update.channel import Audience, Running
from agent.update.delta import Base
from agent.update.release import parse_release_keys, verify_release
from agent.update.repository import ReleaseRepository
from agent.update.updater import UpdateFolder, Updater
from provisioning.releases.image import measure_image
from tests.simulators.maker import COMMIT, Hands
from tests.simulators.release_repository import new_image, served_files
from tests.simulators.stick import find_tool

OLD, NEW = new_image(1), new_image(2)


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    made = Hands(tmp_path)
    said = made.do("init", "--environment", "test")
    assert "release-root.json" in said
    return made


def test_a_release_reaches_a_box_by_its_delta(hands: Hands, tmp_path: Path) -> None:
    hands.release("1.3.0", OLD)
    hands.release("1.4.0", NEW, "--from", "1.3.0", "--epoch", "2")
    hands.do("promote", "1.4.0", "--percentage", "100")
    keys = parse_release_keys((hands.directory / "release-keys.json").read_bytes())
    base = tmp_path / "current.raw"
    base.write_bytes(OLD)
    box = Box(Running(Version.parse("1.3.0"), 0), Base(base, len(OLD)), Audience(), keys)
    root = (hands.directory / "release-root.json").read_bytes()
    folder = UpdateFolder(tmp_path / "box")
    clock = SystemClock()
    with served_files(hands.directory / "repository") as server:
        fetcher = BoundedFetcher(clock)
        repository = ReleaseRepository(folder.trust, server.url, root, fetcher, clock)
        updater = Updater(folder, repository, box, clock, wait=lambda _: None, progress=lambda *_: None)
        assert updater.run("stable", None, automatic=True) == Version.parse("1.4.0")
        fetcher.close()
        assert [span for path, span in server.asked if path.endswith("app.raw")] == []
        assert len([span for path, span in server.asked if path.endswith("from-1.3.0.zst")]) == 1
    place = folder.incoming.path / "1.4.0"
    assert (place / "app.raw").read_bytes() == NEW
    assert verify_release((place / "release.json").read_bytes(), keys).epoch == 2


def test_each_signer_signs_alone_and_the_threshold_publishes(hands: Hands) -> None:
    hands.do("build", "1.0.0", hands.image(OLD), "--commit", COMMIT)
    record = hands.directory / "drafts" / "1.0.0" / "release.json"
    with pytest.raises(OperatorError, match="0 of those"):
        hands.do("publish", "1.0.0")
    assert "1 more must sign" in hands.do("sign", record, "--key", hands.key("releases-1"), answer="y\n")
    with pytest.raises(OperatorError) as twice:
        hands.do("sign", record, "--yes", "--key", hands.key("releases-1"))
    assert twice.value.code == "release.no_key_of_it"
    with pytest.raises(OperatorError) as stranger:
        hands.do("sign", record, "--yes", "--key", hands.key("channels-1"))
    assert stranger.value.code == "release.no_key_of_it"
    assert "Release 1.0.0 is built: 1 of 2 signatures" in hands.do("status")
    assert "It is complete" in hands.do("sign", record, "--yes", "--key", hands.key("releases-2"))
    away = hands.directory / "keys" / "releases-2.pem"
    elsewhere = away.rename(hands.home / "stick.pem")
    assert "needs 1 more signature" in hands.do("publish", "1.0.0")
    assert "waits for 1 signature" in hands.do("status")
    (pending,) = (hands.directory / "pending").iterdir()
    assert "Published." in hands.do("sign", pending, "--yes", "--key", f"file:{elsewhere}")
    assert "is published already" in hands.do("publish", "1.0.0")
    assert not record.exists()
    assert "1.0.0" in hands.do("status").split("CHANNEL")[0]


def test_a_sentence_that_is_declined_signs_nothing(hands: Hands) -> None:
    hands.do("build", "1.0.0", hands.image(OLD), "--commit", COMMIT)
    record = hands.directory / "drafts" / "1.0.0" / "release.json"
    before = record.read_bytes()
    hands.do("sign", record, answer="n\n")
    assert record.read_bytes() == before


def test_status_shows_what_is_offered_to_whom(hands: Hands) -> None:
    hands.release("1.3.0", OLD)
    hands.do("promote", "1.3.0", "--percentage", "20", "--site", "hospital-a", "--site", "hospital-b")
    line = next(line for line in hands.do("status").splitlines() if line.startswith("stable"))
    assert line.split() == ["stable", "1.3.0", "20", "%", "hospital-a,", "hospital-b"]
    hands.do("promote", "1.3.0", "--percentage", "60")
    assert "60 %" in hands.do("status")
    hands.do("halt", "1.3.0")
    assert "halted" in hands.do("status")
    assert "Timestamp" in hands.do("refresh")
    for role in ("root", "targets", "releases", "channels"):
        assert f"{role} is renewed." in hands.do("renew", role)
    with pytest.raises(OperatorError, match="no role 'sites'"):
        hands.do("renew", "sites")


def test_what_cannot_be_released_is_refused(hands: Hands) -> None:
    hands.release("1.3.0", OLD, "--epoch", "3")
    refusals = {
        ("build", "1.2.0", hands.image(NEW), "--commit", COMMIT): "release.not_newer",
        ("build", "1.4.0", hands.image(NEW), "--commit", COMMIT, "--epoch", "2"): "release.lower_epoch",
        ("build", "1.4.0", hands.image(NEW[:-1]), "--commit", COMMIT): "release.bad_image",
        ("build", "1.4.0", hands.image(NEW), "--commit", COMMIT, "--from", "1.1.0"): "release.not_published",
        ("promote", "1.4.0"): "release.not_published",
        ("halt", "1.3.0"): "release.not_offered",
    }
    for line, code in refusals.items():
        with pytest.raises(OperatorError) as refused:
            hands.do(*line)
        assert refused.value.code == code


def test_an_image_that_was_changed_after_signing_is_not_published(hands: Hands) -> None:
    hands.do("build", "1.0.0", hands.image(OLD), "--commit", COMMIT)
    draft = hands.directory / "drafts" / "1.0.0"
    hands.do("sign", draft / "release.json", "--yes")
    (draft / "app.raw").write_bytes(NEW)
    with pytest.raises(OperatorError) as refused:
        hands.do("publish", "1.0.0")
    assert refused.value.code == "release.changed_image"


def test_building_twice_gives_the_same_and_never_another(hands: Hands) -> None:
    hands.do("build", "1.0.0", hands.image(OLD), "--commit", COMMIT)
    record = hands.directory / "drafts" / "1.0.0" / "release.json"
    hands.do("sign", record, "--yes")
    before = record.read_bytes()
    hands.do("build", "1.0.0", hands.image(OLD), "--commit", COMMIT)
    assert record.read_bytes() == before
    with pytest.raises(OperatorError) as refused:
        hands.do("build", "1.0.0", hands.image(NEW), "--commit", COMMIT)
    assert refused.value.code == "release.built_otherwise"


def test_founding_goes_on_where_it_stopped(hands: Hands) -> None:
    root = (hands.directory / "release-root.json").read_bytes()
    (hands.directory / "release-keys.json").unlink()
    assert "Made: what the package ships." in hands.do("init", "--environment", "test")
    shutil.rmtree(hands.directory / "repository")
    assert "Made: the release repository." in hands.do("init", "--environment", "test")
    assert (hands.directory / "release-root.json").read_bytes() == root
    with pytest.raises(OperatorError) as refused:
        hands.do("init", "--environment", "test", "--threshold", "1")
    assert refused.value.code == "release.other_plan"


def test_production_keys_do_not_lie_open_nor_sign_alone(tmp_path: Path) -> None:
    hands = Hands(tmp_path)
    assert "releases: signed by 2 of file:keys/releases-1.pem" in hands.do("init", "--dry-run")
    assert not hands.directory.exists()
    with pytest.raises(OperatorError) as alone:
        hands.do("init", "--threshold", "1")
    assert alone.value.code == "release.bad_plan"
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("short\n")
    with pytest.raises(OperatorError) as short:
        hands.do("init", "--passphrase-file", passphrase)
    assert short.value.code == "release.bad_passphrase"


def test_the_verity_root_is_what_veritysetup_makes(tmp_path: Path) -> None:
    for blocks in (1, 2, 128, 129):
        image = tmp_path / "app.raw"
        image.write_bytes(new_image(1, blocks))
        measured = measure_image(image)
        command = (find_tool("veritysetup"), "format", str(image), str(tmp_path / "tree"), "--salt", measured.salt)
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert f"Root hash:      \t{measured.root_hash}\n" in said


def test_a_directory_takes_a_release_for_a_stick(hands: Hands) -> None:
    hands.release("1.3.0", OLD)
    place = hands.home / "stick"
    place.mkdir()
    hands.do("stick", place, "1.3.0")
    assert (place / "app.raw").read_bytes() == OLD
    keys = parse_release_keys((hands.directory / "release-keys.json").read_bytes())
    assert verify_release((place / "release.json").read_bytes(), keys).version == Version.parse("1.3.0")
    with pytest.raises(OperatorError) as refused:
        hands.do("stick", hands.home / "nothing", "1.3.0")
    assert refused.value.code == "release.no_stick"
