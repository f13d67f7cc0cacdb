"""The console's own process before a real agent in a consortium: a study approved in the browser, run, and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from agent.core.config import ConsoleSection
from agent.core.ids import SiteID
from agent.service.running_box import RunningBox
from agent.trust.records import StewardFile, parse_record
from agent.trust.roster import Roster, encode_roster
from tests.simulators.console import browser, give_key
from tests.simulators.console_visit import Visit
from tests.simulators.governed import PURPOSE, Deciding, govern
from tests.simulators.hospital import RunningHospital
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until
from tests.simulators.worker_door import FENCED, ROOT

pytestmark = pytest.mark.slow
UNIT = ROOT / "packaging/systemd/seh-console.service"
LIMIT_S = 30
MOST_MEMORY_BYTES = 160 << 20


@contextmanager
def console(box: RunningHospital) -> Iterator[tuple[str, psutil.Process]]:
    """The console of a box, behind its unit's fences; its address, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = box.directory / "agent.toml"
    config.write_text(f'{config.read_text(encoding="utf-8")}\n[console]\naddress = "{address}"\n', encoding="utf-8")
    fenced = [sys.executable, "-P", str(FENCED), str(UNIT), sys.executable, "-P", "-s", "-m", "agent.cli", "console"]
    origin = ConsoleSection(address=address).origin
    with subprocess.Popen([*fenced, "--config", str(config)], env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        try:
            wait_until(lambda: answers(origin), limit_s=LIMIT_S, what="the console answers")
            yield origin, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(LIMIT_S)
    assert status in {0, -signal.SIGTERM}


def answers(origin: str) -> bool:
    """Whether a console is there."""
    try:
        return httpx.get(f"{origin}/static/console.css", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_study_is_approved_in_the_browser_run_by_the_agents_and_withdrawn_in_mid_run(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with SecureConsortium.found(superlink, tmp_path, use=PURPOSE, rounds=20, round_deadline_s=8.0) as consortium:
        box, study = consortium.box("b"), consortium.assignment.study.id
        others = [Deciding(site) for site in consortium.sites if site != box.site]
        for each in consortium.boxes.values():
            (each.directory / "local.csv").write_text("age,ill\n50,1\n")
            govern(each.directory)
        employ(consortium, [steward.key.record for steward in others])
        with console(box) as (origin, process), browser(tmp_path / "profile") as driver:
            give_key(driver)
            visit = Visit(driver, origin)
            visit.open("/")
            visit.wait_for("No agent runs on this box")
            box.start()
            box.wait_for_link()
            visit.make_key("steward-b", "The hospital's data steward")
            record = parse_record(StewardFile, offered(box))
            box.stop()
            employ(consortium, [*(steward.key.record for steward in others), record])
            consortium.start(training_s=1.0)

            visit.open(f"/studies/{study}")
            visit.wait_for("Nothing bounds what the results reveal")
            visit.press("Approve with your key")
            visit.press("Sign and approve")
            visit.wait_for("Approved by steward-b")
            for steward in others:
                steward.approve(RunningBox(consortium.boxes[steward.site].directory / "state"), study)
            consortium.launch()
            visit.open("/rounds")
            # Whichever the page happens to be drawn in, after the first.
            visit.wait_for_any(r"Round (?!1 )\d+ of 20 is (under way|over)")

            visit.sign(study, "Withdraw with your key", "Sign and withdraw")
            visit.wait_for("Earlier approvals")
            wait_until(
                lambda: box.events("message_refused") != [], limit_s=LIMIT_S, what="its next answer is a refusal"
            )
            sent = len(box.events("masked_input_sent"))
            visit.open("/record?search=message-refused")
            visit.wait_for("Message refused")
            exported = httpx.get(f"{origin}/record/export", trust_env=False)
            assert exported.content.count(b"update-sent") >= 1
            for path in ("/", "/studies", "/budget", "/health", "/keys"):
                visit.open(path)
                assert "That did not work" not in visit.text
            consortium.wait_for("paused", limit_s=60)
            assert len(box.events("masked_input_sent")) == sent
            memory = process.memory_info().rss
            print(f"the console holds {memory / 1e6:.1f} MB")  # noqa: T201
            assert memory < MOST_MEMORY_BYTES


def offered(box: RunningHospital) -> bytes:
    """The new key's record, as it waits at the box."""
    (path,) = (box.directory / "state" / "stewards").glob("*.json")
    return path.read_bytes()


def employ(consortium: SecureConsortium, records: list[StewardFile]) -> None:
    """The hospitals put keys on record; boxes that run see it when they start again."""
    listed = {SiteID(record.site): (record,) for record in records}
    roster = Roster(consortium.roster.sites, consortium.roster.coordinator, listed)
    for box in consortium.boxes.values():
        (box.directory / "roster.json").write_bytes(encode_roster(roster))
