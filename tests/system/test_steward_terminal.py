"""A steward with a security key, from the hospital's desk to a running box's terminal: nothing in between is played."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app as agent_app
from agent.core.ids import SiteID
from agent.service.running_box import RunningBox
from agent.trust.records import StewardFile, parse_record
from agent.trust.roster import Roster, encode_roster
from provisioning.cli.main import app as provision_app
from tests.simulators.authenticator import Authenticator
from tests.simulators.governed import PURPOSE, govern
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.hospital import RunningHospital
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink

PIN = "246813"


def output(app: object, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))  # type: ignore[arg-type]
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def authenticator(monkeypatch: pytest.MonkeyPatch) -> Authenticator:
    monkeypatch.setattr("typer.prompt", lambda *_, **__: PIN)
    monkeypatch.setattr("agent.cli.key._check_terminal", lambda _: None)
    found = Authenticator()
    found.set_pin(PIN)
    return found


def new_steward(place: Path, site: str) -> StewardFile:
    out = place / "dr-a.json"
    output(provision_app, "steward", "new", "dr-a", "--site", site, "--person", "Dr A", "--out", str(out))
    return parse_record(StewardFile, out.read_bytes())


@pytest.mark.slow
def test_a_study_is_read_approved_and_withdrawn_at_the_terminal_of_a_running_box(
    superlink: RunningSuperLink, tmp_path: Path, authenticator: Authenticator
) -> None:
    with SecureConsortium.found(superlink, tmp_path, use=PURPOSE) as consortium, plugged_in(HIDKey(authenticator)):
        box: RunningHospital = consortium.box("a")
        site = box.site
        record = new_steward(tmp_path, site)
        roster = Roster(consortium.roster.sites, consortium.roster.coordinator, {SiteID(site): (record,)})
        (box.directory / "roster.json").write_bytes(encode_roster(roster))
        (box.directory / "local.csv").write_text("age,ill\n50,1\n")
        govern(box.directory)
        box.start()
        box.wait_for_link()
        study, options = consortium.assignment.study.id, ("--config", str(box.directory / "agent.toml"))
        asked = RunningBox(box.directory / "state")
        assert "waits for a steward" in output(agent_app, "study", "list", *options)
        told = output(agent_app, "study", "show", study, *options)
        assert "NOT BOUNDED" in told
        assert "[approved]" in told
        assert "Approved. Approval 1" in output(agent_app, "study", "approve", study, "--yes", *options)
        assert asked.study(study).line.state == "approved"
        assert "Approval 1 of" in output(agent_app, "study", "withdraw", study, *options)
        assert asked.study(study).line.state == "withdrawn"
        output(agent_app, "study", "refuse", study, *options)
        assert asked.study(study).line.state == "refused"
        kinds = [leaf.kind for leaf in asked.audit().leaves]
        assert kinds[:3] == ["approval-refused", "approval-withdrawn", "approval-given"]
