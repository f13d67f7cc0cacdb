"""A box that somebody would take out of its consortium: only a steward of its own hospital lets it go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.errors import SecureHealthError
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.governance.book import COUNTERS_FILE_NAME
from agent.trust.records import StewardFile, public_pem
from agent.trust.snapshot import Environment
from tests.simulators.authenticator import Authenticator, Credential
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.steward import PasskeySteward
from tests.simulators.trust_scene import A, B, Scene, trust_scene

PIN = "246813"
CONFIG = """
[node]
state_directory = "state"
[key]
uri = "tpm:swtpm"
[data]
catalog = "catalog.toml"
"""


@dataclass
class Box:
    """An enrolled box of a production consortium, and a steward's security key."""

    place: Path
    scene: Scene
    folder: EnrolmentFolder
    authenticator: Authenticator
    steward: PasskeySteward

    def publish(self, *records: StewardFile) -> None:
        """The hospital signs these stewards; the box sees it, then its agent ends."""
        for record in records:
            self.scene.site.put(self.scene.site.paths.steward(record.steward), record.encode())
        self.scene.publish_site()
        self.scene.box.refresh()
        self.scene.box.close()

    def leave(self, *options: str) -> str:
        result = CliRunner().invoke(app, ["unenrol", "--yes", "--config", str(self.place / "agent.toml"), *options])
        if result.exception is not None:
            raise result.exception
        return result.output

    def refused(self, *options: str) -> str:
        with pytest.raises(SecureHealthError) as caught:
            self.leave(*options)
        assert self.folder.load_record() is not None
        return caught.value.code


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setattr("typer.prompt", lambda *_, **__: PIN)
    monkeypatch.setattr("agent.cli.key._check_terminal", lambda _: None)
    (tmp_path / "agent.toml").write_text(CONFIG)
    folder = EnrolmentFolder.of(tmp_path / "state")
    authenticator, steward = Authenticator(), PasskeySteward("dr-a")
    authenticator.set_pin(PIN)
    name = bytes.fromhex(steward.record.credential_id or "")
    authenticator.credentials[name] = Credential(name, "localhost", {"id": b"a"}, steward.key, resident=False)
    (folder.path / "trust").mkdir(parents=True)
    with trust_scene(folder.path / "trust" / "found") as scene, plugged_in(HIDKey(authenticator)):
        place = folder.trust(scene.box.root_digest)
        place.symlink_to(scene.directory)
        folder.store_record(
            EnrolmentRecord(
                site=A,
                node="ab" * 8,
                key_id="ab" * 32,
                root_digest=scene.box.root_digest,
                environment=Environment.PRODUCTION,
                consortium="played",
                name="The Played Consortium",
                registrar="registrar.example.org:8443",
                enrolled=datetime(2026, 3, 1, 12, tzinfo=UTC),
            )
        )
        yield Box(tmp_path, scene, folder, authenticator, steward)


def test_a_steward_lets_it_go_and_nothing_of_the_consortium_stays(box: Box) -> None:
    box.publish(box.steward.record)
    told = box.leave()
    assert "may leave The Played Consortium" in told
    assert "This box has left" in told
    assert box.folder.load_record() is None
    assert (box.place / "state" / "approvals" / COUNTERS_FILE_NAME).is_file()


def test_without_any_steward_on_record_it_stays(box: Box) -> None:
    box.publish()
    assert box.refused() == "cli.which_steward"


def test_steward_whom_the_hospital_revoked_lets_nothing_go(box: Box) -> None:
    box.scene.site.revoke(box.steward.key.public_key())
    box.publish(box.steward.record)
    assert box.refused() == "cli.which_steward"


def test_steward_of_the_neighbour_lets_nothing_go(box: Box) -> None:
    neighbour = box.steward.record.model_copy(update={"site": B})
    box.scene.other.put(box.scene.other.paths.steward("dr-a"), neighbour.encode())
    box.scene.other.sign()
    box.publish()
    assert box.refused() == "cli.which_steward"


def test_strangers_key_lets_nothing_go(box: Box) -> None:
    box.publish(box.steward.record)
    stranger = Authenticator()
    stranger.set_pin(PIN)
    with plugged_in(HIDKey(stranger)):
        assert box.refused() == "identity.not_the_stewards_key"


def test_another_key_under_the_same_name_lets_nothing_go(box: Box) -> None:
    other = PasskeySteward("dr-a")
    box.publish(box.steward.record.model_copy(update={"public_key": public_pem(other.key.public_key())}))
    assert box.refused() == "identity.not_the_stewards_key"


def test_copied_key_lets_nothing_go(box: Box) -> None:
    box.publish(box.steward.record)
    counters = box.place / "state" / "approvals" / COUNTERS_FILE_NAME
    counters.parent.mkdir()
    counters.write_text(
        f'{{"format":"secur-e-health/steward-counters/1","counters":{{"{box.steward.record.key_id}":1000}}}}'
    )
    assert box.refused() == "approval.cloned_key"


def test_it_stays_while_its_agent_runs(box: Box) -> None:
    box.scene.site.put(box.scene.site.paths.steward("dr-a"), box.steward.record.encode())
    box.scene.publish_site()
    box.scene.box.refresh()
    assert box.refused() == "trust.in_use"
