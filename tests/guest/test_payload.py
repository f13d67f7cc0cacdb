"""The payload, built from nothing twice, in two places, is the same; it loads what it holds (build.sh checks that)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PAYLOAD = Path(__file__).resolve().parents[2] / "packaging" / "payload"
SMALL = ("--extras", "tpm")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_payload_built_again_elsewhere_is_the_same(tmp_path: Path) -> None:
    for command in (
        [PAYLOAD / "build.sh", *SMALL, tmp_path / "payload", "1.4.0"],
        [PAYLOAD / "reproduce.sh", *SMALL, tmp_path / "payload" / "app.raw", "1.4.0"],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]
    assert result.stdout.startswith("The same ")
