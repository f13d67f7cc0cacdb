from __future__ import annotations

from pathlib import Path

from agent.core.ids import SiteID
from tests.simulators.authority import FoundedConsortium


def test_a_box_reads_what_was_founded(tmp_path: Path) -> None:
    consortium = FoundedConsortium.found(tmp_path / "authority")
    snapshot = consortium.read(tmp_path / "box")
    assert snapshot.consortium.name == "Consortium A"
    assert snapshot.sites == {}
    desk = consortium.add_site("hospital-a")
    assert consortium.read(tmp_path / "box").set_aside == {"hospital-a": "hospital-a has signed nothing yet."}
    node = consortium.enrol("hospital-a")
    read = consortium.read(tmp_path / "box")
    assert [known.node for known in read.sites[SiteID("hospital-a")].nodes] == [node.node]
    assert desk.needs_renewal
