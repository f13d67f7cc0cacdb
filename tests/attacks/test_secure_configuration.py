"""Attacks through what surrounds the protocol: moments as a zoom, a second box for a site's second vote."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.federation.plain import parse_moments
from agent.identity.key import init_key
from agent.statements.roots import EvidenceClass
from agent.trust.counters import CounterStore
from agent.trust.peers import PinnedPeers
from agent.trust.roster import Roster, roster_node
from tests.simulators.played_study import played_study


@pytest.mark.parametrize("pair", [[1e30, 10.0], [-50.0, 10.0], [60.0, 1e-9], [60.0, 1e9], [float("nan"), 10.0]])
def test_moments_that_zoom_on_chosen_rows(pair: list[float]) -> None:
    study = played_study(
        data={
            "schema_name": "played",
            "features": [{"name": "age", "kind": "number", "minimum": 0, "maximum": 120}],
            "label": {"field": "ill"},
            "standardise": "federated",
        }
    )
    assert parse_moments(study, {"age": [60.0, 15.0]}) is not None
    with pytest.raises(PeerProtocolError, match="bounds"):
        parse_moments(study, {"age": pair})


def test_a_site_with_two_boxes_votes_twice(tmp_path: Path) -> None:
    keys = [init_key(f"software:{tmp_path / name}") for name in ("first.key", "second.key")]
    site = SiteID("hospital-a")
    nodes = tuple(roster_node(site, key.kind, EvidenceClass.NONE, key.public_key()) for key in keys)
    roster = Roster({site: nodes}, ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(OperatorError, match="several nodes of hospital-a"):
        PinnedPeers(roster, SystemClock(), CounterStore(tmp_path / "counters.json"))
