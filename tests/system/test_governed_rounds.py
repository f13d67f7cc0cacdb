"""Studies at a real SuperLink under permits, approvals and logs: what runs, what stops, and what stands written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.audit.bundle import verify_bundle
from agent.audit.leaves import MessageRefused, UpdateSent
from agent.core.ids import SiteID
from agent.service.running_box import RunningBox
from agent.trust.roster import Roster, encode_roster
from tests.simulators.governed import PURPOSE, Deciding, govern
from tests.simulators.hospital import RunningHospital
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until

pytestmark = pytest.mark.slow

QUANTISATION = 2e-3


@contextmanager
def governed(
    superlink: RunningSuperLink, place: Path, **changes: Any
) -> Iterator[tuple[SecureConsortium, dict[str, Deciding]]]:
    """A consortium whose boxes govern studies, and each hospital's steward; nothing runs."""
    with SecureConsortium.found(superlink, place, use=PURPOSE, **changes) as consortium:
        stewards = {site: Deciding(site) for site in consortium.sites}
        listed = {SiteID(site): (steward.key.record,) for site, steward in stewards.items()}
        roster = Roster(consortium.roster.sites, consortium.roster.coordinator, listed)
        for box in consortium.boxes.values():
            (box.directory / "roster.json").write_bytes(encode_roster(roster))
            (box.directory / "local.csv").write_text("age,ill\n50,1\n")
            govern(box.directory)
        yield consortium, stewards


def ask(box: RunningHospital) -> RunningBox:
    return RunningBox(box.directory / "state")


def approve_all(consortium: SecureConsortium, stewards: dict[str, Deciding]) -> None:
    for site, box in consortium.boxes.items():
        stewards[site].approve(ask(box), consortium.assignment.study.id)


def leaves_of(box: RunningHospital) -> list[dict[str, Any]]:
    found, start = [], None
    while True:
        view = ask(box).audit(start)
        found += [leaf.content | {"kind": leaf.kind, "index": leaf.index} for leaf in view.leaves]
        if view.following is None:
            return found
        start = view.following


def export_of(box: RunningHospital) -> bytes:
    piece = ask(box).export(0, 0)
    data = piece.text.encode()
    while len(data) < piece.total:
        data += ask(box).export(piece.size, len(data)).text.encode()
    return data


def test_a_study_runs_once_every_steward_approved_and_not_before(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with governed(superlink, tmp_path) as (consortium, stewards):
        consortium.start()
        study = consortium.assignment.study.id
        consortium.launch()
        first = consortium.box("a")
        wait_until(lambda: first.events("message_refused") != [], limit_s=60, what="it is refused")
        line = ask(first).study(study).line
        assert (line.state, line.rule) == ("waiting", "approved")
        assert not any(box.events("masked_input_sent") for box in consortium.boxes.values())
        approve_all(consortium, stewards)  # the coordinator asks again while it waits for all
        consortium.wait_for("finished")
        np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
        for box in consortium.boxes.values():
            log = verify_bundle(export_of(box))
            sent = [leaf for leaf in log.leaves if isinstance(leaf, UpdateSent)]
            assert [leaf.round for leaf in sent] == [1, 2, 3, 4]
            assert all(leaf.cohort == consortium.sites for leaf in sent)
            refused = [leaf for leaf in log.leaves if isinstance(leaf, MessageRefused)]
            assert [(leaf.study, leaf.rule) for leaf in refused] == [(study, "approved")]
        (row,) = [view for view in ask(first).budget() if view.unit == "hospital"]
        assert row.releases == 4
