"""A researcher who has a model and a table's header gets a verified result, by commands alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.core.clock import SystemClock
from agent.trust.model import parse_model
from provisioning.authority.layout import AuthorityLayout
from provisioning.studies.standing import published_files
from tests.simulators.authority import FoundedConsortium
from tests.simulators.played_study import linear_model
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink
from tests.unit.cli.test_provision_study import call

pytestmark = pytest.mark.slow

ROUNDS = 2
QUANTISATION = 1e-2
"""Weights are counted relative to the study's cap, which `new` leaves at 1000 records."""
TOLD = ("--id", "first-study", "--title", "A first study", "--purpose", "To learn.", "--requester", "A university")


def write_and_publish(home: Path, sites: tuple[str, ...]) -> tuple[bytes, bytes]:
    """From `new` to `publish`; gives what a hospital's box then fetches."""
    authority = FoundedConsortium.found(home / "authority", SystemClock())
    for site in sites:
        authority.add_site(site)
    (home / "model.onnx").write_bytes(linear_model(3))
    (home / "header.csv").write_text("age,sex,chol,ill\n")
    fields = ("--fields", home / "header.csv", "--field", "age=number:0:120:years", "--field", "sex=flag")
    data = ("--schema", "played", *fields, "--field", "chol=number:0:600:mg/dl", "--label", "ill")
    named = [part for site in sites for part in ("--site", site)]
    study, model, directory = home / "study.json", home / "model.onnx", home / "authority"
    options = ("--out", study, "--rounds", str(ROUNDS), "--evidence", "none")
    call("study", "new", model, *TOLD, *named, *data, *options)
    assert f"{ROUNDS} rounds" in call("study", "validate", study, "--model", model)
    assert "Signed by enough" in call("study", "sign", study, model, "-d", directory, "--yes")
    assert "is published" in call("study", "publish", study, model, "-d", directory)
    return published_files(AuthorityLayout(directory), "first-study")


def test_from_new_to_a_verified_result(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with SecureConsortium.found(
        superlink, tmp_path, write=lambda sites: write_and_publish(tmp_path, sites)
    ) as consortium:
        run, study = consortium.directory.path, tmp_path / "study.json"
        consortium.start()
        where = ("--address", superlink.address, "--root-certificate", superlink.root_certificate)
        said = call("study", "launch", "--run", run, *where)
        assert f"Round {ROUNDS} of {ROUNDS}: 4 hospitals" in said
        assert said.rstrip().splitlines()[-1].startswith("Finished")
        assert "Published" in call("study", "status", "first-study", "-d", tmp_path / "authority", "--run", run)

        pem = consortium.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "public.pem").write_bytes(pem)
        out = tmp_path / "result.zip"
        call("study", "result", "--run", run, "--out", out)
        checked = ("--coordinator", tmp_path / "public.pem", "--study", study, "--extract", tmp_path / "result")
        said = call("study", "result", "verify", out, *checked)
        assert f"4 hospitals counted in {ROUNDS} rounds" in said
        assert "| 0 | age | number in years, minus " in (tmp_path / "result" / "model-card.md").read_text()
        trained = parse_model((tmp_path / "result" / "model.onnx").read_bytes()).parameters
        np.testing.assert_allclose(trained, 1.0 + ROUNDS * consortium.mean, atol=QUANTISATION)
