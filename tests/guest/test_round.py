"""The installed box in its federation: a study arrives, its steward approves, it trains and sends masked words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import BaseModel
from typing_extensions import override

from agent.core.ids import SiteID
from agent.service.running_box import RunningBox
from provisioning.coordinator.directory import CoordinatorDirectory
from provisioning.coordinator.fab import has_ended, launch_run, stop_run
from provisioning.coordinator.progress import read_events
from tests.guest.appliance import STATE, Appliance
from tests.guest.conftest import NEIGHBOURS, SITE
from tests.guest.rig import Guest
from tests.simulators.governed import PURPOSE, Deciding, write_policy
from tests.simulators.hospital import RunningHospital
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.played_study import study_files
from tests.simulators.secure_consortium import quick_settings
from tests.simulators.superlink import RunningSuperLink, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS = 2
ROUND_LIMIT_S = 900.0
FEATURES = ("age", "resting_pressure", "cholesterol", "heart_rate")
CATALOG = """[datasets.local]
schema = "played"
source = "/srv/secur-e-health/heart.csv"
"""
_CALL = (
    "import base64, socket, sys; line = socket.socket(socket.AF_UNIX); "
    f"line.connect('{STATE}/control.sock'); line.sendall(base64.b64decode(sys.argv[1]) + b'\\n'); "
    "print(line.makefile().readline())"
)
ViewT = TypeVar("ViewT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class BoxInGuest(RunningBox):
    """The running agent in a guest, asked by root at its control socket.

    Args:
        guest: Where.
    """

    guest: Guest

    @override
    def _ask(self, view: type[ViewT], request: str, **fields: str | int | None) -> ViewT:
        line = json.dumps({"request": request} | {name: value for name, value in fields.items() if value is not None})
        answer = json.loads(self.guest.run(f'python3 -c "{_CALL}" {base64.b64encode(line.encode()).decode()}'))
        assert "failure" not in answer, answer
        return view.model_validate(answer["result"])


def rows_of_patients() -> bytes:
    """A table that any linear model can learn from."""
    lines = [f"{40 + n % 30},{110 + n % 50},{180 + n % 90},{100 + n % 80},{n % 3 // 2}" for n in range(120)]
    return "\n".join([",".join((*FEATURES, "ill")), *lines, ""]).encode()


@pytest.fixture
def neighbours(consortium: PlayedConsortium, tmp_path: Path) -> Iterator[None]:
    """Two hospitals whose boxes run on this machine, and play their training."""
    with ExitStack() as stack:
        boxes = []
        for site in NEIGHBOURS:
            preset = consortium.repository.root_digest
            box = stack.enter_context(RunningHospital.bare(tmp_path / site, site=site, preset=preset, refresh_s=1.0))
            box.step = 0.25
            box.start()
            boxes.append(box)
        for box in boxes:
            box.wait_for_link("waiting for enrolment", limit_s=120)
            box.insert_stick(consortium.token_for(SiteID(box.site)))
            box.wait_for_link("online", limit_s=120)
        yield


def test_a_box_trains_in_secure_rounds_once_its_steward_approved(
    enrolled: Appliance,
    consortium: PlayedConsortium,
    superlink: RunningSuperLink,
    neighbours: None,
    tmp_path: Path,
) -> None:
    guest, steward = enrolled.guest, Deciding(SITE)
    consortium.employ(steward.key.record)
    write_policy(tmp_path / "policy.toml")
    guest.write("/etc/secur-e-health/policy.toml", (tmp_path / "policy.toml").read_bytes())
    guest.write("/etc/secur-e-health/catalog.toml", CATALOG.encode())
    guest.write("/srv/secur-e-health/heart.csv", rows_of_patients())
    guest.run("systemctl restart seh-agent.service", limit_s=ROUND_LIMIT_S)
    data = {
        "schema_name": "played",
        "features": [{"name": name, "kind": "number", "minimum": 0, "maximum": 400} for name in FEATURES],
        "label": {"field": "ill"},
    }
    study, model = study_files(
        (SITE, *NEIGHBOURS),
        parameters=len(FEATURES),
        rounds=ROUNDS,
        round_deadline_s=ROUND_LIMIT_S,
        data=data,
        use=PURPOSE,
    )
    key = consortium.coordinator.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    settings = quick_settings(registrar=consortium.address, open_deadline_s=ROUND_LIMIT_S)
    directory = CoordinatorDirectory(tmp_path / "coordinator")
    assignment = directory.prepare(study, model, settings, root=consortium.root, key=key)
    consortium.publish_study(assignment.study.id, study, model)
    guest.wait_for(f"test -e {STATE}/studies/{assignment.study.id}/study.json", limit_s=ROUND_LIMIT_S)

    box = BoxInGuest(Path(STATE), guest)
    steward.approve(box, assignment.study.id)
    run_id = launch_run(superlink.connection, directory.path)
    try:
        wait_until(
            lambda: any(event["event"] in {"finished", "paused"} for event in told(directory)),
            limit_s=3 * ROUND_LIMIT_S,
            what="the study ends",
        )
    except RuntimeError as error:
        raise AssertionError(f"{error}\n{told(directory)[-5:]}\n{enrolled.journal()}") from error
    finally:
        if not has_ended(superlink.connection, run_id):
            stop_run(superlink.connection, run_id)
    events = told(directory)
    assert events[-1]["event"] == "finished", (events[-3:], enrolled.journal())
    cohorts = [event["cohort"] for event in events if event["event"] == "round"]
    assert cohorts == [sorted((SITE, *NEIGHBOURS))] * (ROUNDS + 1)  # the last one evaluates
    # The worker that trained was the service manager's, a process without network; every round has its receipt.
    guest.run("journalctl -b -u 'seh-worker@*' | grep -q Started")
    sent = box.audit(search="update-sent").leaves
    assert len(sent) == ROUNDS + 1


def told(directory: CoordinatorDirectory) -> list[dict[str, object]]:
    """What the coordinator said so far."""
    return list(read_events(directory.progress)[0]) if directory.progress.exists() else []
