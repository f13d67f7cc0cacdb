"""`seh-agent update`, as a technician meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.config import load_config
from agent.core.errors import OperatorError
from agent.trust.channels import UPDATE_LABEL
from agent.update.handover import Handover, parse_handover
from agent.update.stick import read_stick
from tests.simulators.clock import SetClock
from tests.simulators.release_repository import (
    PlayedReleases,
    release_of,
    served,
    served_releases,
    signed_record,
)
from tests.simulators.stick import make_stick
from tests.simulators.update_scene import NEW, NEW_IMAGE, OLD, OLD_IMAGE, WINDOW


@dataclass(slots=True)
class Technician:
    """A technician at a box whose files lie in a directory."""

    home: Path
    maker: PlayedReleases

    def says(self, *arguments: str) -> str:
        line = ["update", *arguments, "--config", str(self.home / "agent.toml")]
        result = CliRunner().invoke(app, line)
        if result.exception is not None:
            raise result.exception
        return result.output

    @property
    def handed_over(self) -> Handover:
        return parse_handover((self.home / "update" / "incoming" / "ready").read_bytes())

    def slots_say(self, **said: object) -> None:
        (self.home / "status.json").write_text(json.dumps(said))


@pytest.fixture
def technician(tmp_path: Path) -> Iterator[Technician]:
    maker = PlayedReleases.found_maker(SetClock(datetime.now(UTC)))
    maker.add_release(NEW, NEW_IMAGE, base=(OLD, OLD_IMAGE))
    maker.offer("stable", (NEW, 100))
    slot = tmp_path / "slots" / "a"
    slot.mkdir(parents=True)
    (tmp_path / "slots" / "current").symlink_to("a")
    (slot / "app.raw").write_bytes(OLD_IMAGE + bytes(8192))
    (slot / "meta.json").write_bytes(signed_record(release_of(OLD, OLD_IMAGE), maker.signers["releases"][:2]))
    keys = {signer.public_key.keyid: signer.public_key.keyval["public"] for signer in maker.signers["releases"]}
    (tmp_path / "release-keys.json").write_text(json.dumps({"threshold": 2, "keys": keys}))
    (tmp_path / "release-root.json").write_bytes(maker.files["1.root.json"])
    record = tmp_path / "state" / "enrolment" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"site": "hospital-a", "key_id": "0" * 64, "node": "n"}))
    with served_releases(maker) as server:
        (tmp_path / "agent.toml").write_text(
            f"""
            [node]
            state_directory = "state"
            [key]
            uri = "tpm:device:/dev/tpmrm0"
            [data]
            catalog = "catalog.toml"
            [update]
            url = "{server.url}"
            directory = "update"
            slots = "slots"
            slots_status = "."
            enrolment = "nothing"
            root_file = "release-root.json"
            keys_file = "release-keys.json"
            """
        )
        made = Technician(tmp_path, maker)
        made.slots_say(
            floor=1, phase="steady", active="a", slots={"a": {"version": OLD, "epoch": 1, "root_hash": ""}, "b": None}
        )
        yield made


def test_from_looking_to_a_release_that_waits(technician: Technician) -> None:
    assert "never" in technician.says("status")
    said = technician.says("check")
    assert f"This box should take {NEW}." in said
    assert "100 %" in said
    assert f"Release {NEW} was handed over." in technician.says("run")
    assert technician.handed_over == Handover("install", NEW, WINDOW)
    assert (technician.home / "update" / "incoming" / NEW / "app.raw").read_bytes() == NEW_IMAGE
    said = technician.says("status")
    assert f"install {NEW}" in said
    assert f"a: {OLD}, b: empty, steady" in said
    assert technician.says("run") == "Nothing to take.\n"


def test_a_release_is_taken_now(technician: Technician) -> None:
    assert "changes over now" in technician.says("apply", NEW, "--now")
    assert technician.handed_over.window is None


def test_a_hospital_that_is_not_named_gets_nothing(technician: Technician) -> None:
    technician.maker.offer("stable", (NEW, 100), sites=("hospital-b",))
    assert "This box has what it should." in technician.says("apply")


def test_the_release_before_is_asked_for(technician: Technician) -> None:
    with pytest.raises(OperatorError) as nothing:
        technician.says("rollback")
    assert nothing.value.code == "update.no_other_release"
    technician.slots_say(
        phase="steady", active="a", slots={"a": {"version": OLD, "epoch": 1}, "b": {"version": "1.2.0", "epoch": 1}}
    )
    technician.says("rollback")
    assert technician.handed_over == Handover("rollback", "1.2.0")


def test_a_pin_is_set_shown_and_taken_away(technician: Technician) -> None:
    technician.says("pin", "1.3.9")
    assert "none newer than 1.3.9" in technician.says("status")
    assert "This box has what it should." in technician.says("apply")
    technician.says("pin", "--none")
    assert "newer than" not in technician.says("status")
    with pytest.raises(OperatorError, match="one release, or none"):
        technician.says("pin")


def test_status_says_what_went_wrong(technician: Technician) -> None:
    technician.maker.files["timestamp.json"] = b"{}"
    with pytest.raises(Exception, match="release repository cannot be used"):
        technician.says("check")
    technician.slots_say(failed=NEW)
    said = technician.says("status")
    assert "[trust.bad_repository]" in said
    assert f"Release {NEW} was tried, and given up" in said


def test_a_box_without_a_repository_takes_sticks(technician: Technician) -> None:
    config = technician.home / "agent.toml"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "url" not in line))
    assert "sticks" in technician.says("run")
    with pytest.raises(OperatorError) as refused:
        technician.says("check")
    assert refused.value.code == "update.no_repository"
    record = signed_record(release_of(NEW, NEW_IMAGE), technician.maker.signers["releases"][:2])
    stick = make_stick(
        technician.home / "stick.img", {"release.json": record, "app.raw": NEW_IMAGE}, label=UPDATE_LABEL
    )
    with stick.open("rb") as stream:
        assert str(read_stick(stream.fileno(), load_config(config)).version) == NEW
    assert technician.handed_over == Handover("install", NEW, WINDOW)


def test_the_way_out_is_the_hospital_s_proxy(technician: Technician) -> None:
    config, far = technician.home / "agent.toml", "http://releases.invalid/releases/"
    files = technician.maker.files
    with served(lambda path: files.get(path.removeprefix(far))) as proxy:
        lines = [f'url = "{far}"' if "url" in line else line for line in config.read_text().splitlines()]
        config.write_text("\n".join((*lines, "[network]", f'proxy = "http://127.0.0.1:{proxy.port}"')))
        assert f"Release {NEW} was handed over." in technician.says("run")
        assert all(path.startswith(far) for path, _ in proxy.asked)


def test_a_package_without_its_keys_is_said_to_be_damaged(technician: Technician) -> None:
    (technician.home / "release-keys.json").unlink()
    with pytest.raises(OperatorError) as refused:
        technician.says("check")
    assert refused.value.code == "update.no_package_file"
