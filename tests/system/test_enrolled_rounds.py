"""Secure studies of boxes that were enrolled by sticks, and what revoking one of them does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.simulators.enrolled_consortium import EnrolledConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until

pytestmark = pytest.mark.slow

QUANTISATION = 2e-3


def test_boxes_that_came_bare_end_a_study_at_the_weighted_mean(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with EnrolledConsortium.grow(superlink, tmp_path) as consortium:
        consortium.launch()
        consortium.wait_for("finished")
        np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
        assert [record["cohort"] for record in consortium.result["history"]] == [list(consortium.sites)] * 3


def test_a_revoked_box_is_refused_by_every_peer_in_the_next_round(superlink: RunningSuperLink, tmp_path: Path) -> None:
    # While a round is trained, every box asks the repository at least once.
    with EnrolledConsortium.grow(
        superlink, tmp_path, refresh_s=0.5, training_s=3.0, rounds=50, round_deadline_s=30
    ) as consortium:
        consortium.launch()
        consortium.wait_for_work("a", "masked-input 2")
        consortium.revoke("d")
        gone = consortium.box("d").site
        for letter in "abc":
            box = consortium.box(letter)
            wait_until(
                lambda box=box: any(gone in str(event) for event in box.events("message_refused")),  # type: ignore[misc]
                limit_s=60,
                what=f"{box.site} refuses {gone}",
            )
        revoked = consortium.box("d")
        wait_until(
            lambda: revoked.status is not None and "has revoked this box's key" in revoked.status.notice,
            limit_s=20,
            what="the box says that it was revoked",
        )
        # Without the box the whole cohort is not there, and nothing less is ever summed.
        consortium.wait_for("paused", limit_s=120)
        rounds = len(consortium.events("round"))
        assert rounds < 50
        assert all(record["cohort"] == list(consortium.sites) for record in consortium.events("round"))


def test_a_spare_box_takes_over_once_the_first_is_revoked(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with EnrolledConsortium.grow(
        superlink, tmp_path, refresh_s=0.5, training_s=2.0, rounds=3, round_deadline_s=30
    ) as consortium:
        spare = consortium.add_spare("d", tmp_path / "spare")
        wait_until(
            lambda: spare.status is not None and "spare" in spare.status.notice, limit_s=20, what="it says what it is"
        )
        consortium.launch()
        consortium.wait_for("round", count=1)
        assert not spare.events("masked_input_sent")
        consortium.revoke("d")
        consortium.wait_for("paused", limit_s=120)
        consortium.wait_until_coordinator_is_gone()
        consortium.launch()
        consortium.wait_for("finished", limit_s=120)
        assert spare.events("masked_input_sent")
        np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
