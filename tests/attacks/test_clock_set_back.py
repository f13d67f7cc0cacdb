"""The box's clock is set back, by hand or by a false time server: nothing that expired comes to life again by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.config import parse_config
from agent.core.errors import OperatorError
from agent.data.catalog import load_catalog
from agent.governance.admission import Candidate
from agent.service.affiliation import Affiliation, Company
from agent.service.governing import open_governance
from agent.trust.study import parse_study, study_digest
from tests.simulators.clock import SetClock
from tests.simulators.governed import PURPOSE, write_policy
from tests.simulators.hospital import MODEL, study_json
from tests.simulators.steward import Records

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONFIG = b"""
[node]
state_directory = "state"
environment = "demo"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[governance]
policy = "policy.toml"
"""


@pytest.mark.parametrize("back", [timedelta(0), timedelta(days=30)], ids=["right", "set back"])
def test_expired_study_after_the_clock_was_set_back(tmp_path: Path, back: timedelta) -> None:
    (tmp_path / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
    (tmp_path / "local.csv").write_text("age,ill\n50,1\n")
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / "state").mkdir()
    write_policy(tmp_path / "policy.toml")
    data = study_json(
        ("hospital-a", "hospital-b", "hospital-c"), use=PURPOSE, expires=(NOW - timedelta(hours=1)).isoformat()
    )
    company = Company(
        digest="ab" * 32,
        node="node-1",
        peers=cast("Any", None),
        coordinator=ec.generate_private_key(ec.SECP256R1()).public_key(),
        timestamp_version=lambda: 0,
        stewards=Records(),
        consortium=lambda: None,
        now_s=lambda: int(NOW.timestamp()),
    )
    affiliation = Affiliation("hospital-a", "superlink:1", tmp_path, tmp_path, company, allows_plain=False)
    vault = SimpleNamespace(key_for=lambda purpose: bytes(32))
    nobody = cast("Any", SimpleNamespace())
    config = parse_config(CONFIG, directory=tmp_path)
    with open_governance(
        config, affiliation, nobody, nobody, cast("Any", vault), SetClock(NOW - back), lambda *_: None
    ) as governance:
        assert governance is not None
        dataset = load_catalog(tmp_path / "catalog.toml").dataset("local")
        with pytest.raises(OperatorError) as refused:
            governance.gate.admit(Candidate(parse_study(data), study_digest(data), tmp_path / "model.onnx", dataset))
    assert refused.value.code == "permit.not_expired"
