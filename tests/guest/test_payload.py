"""The payload, built from nothing twice, in two places, is the same; it loads what it holds (build.sh checks that)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
SMALL = ("--extras", "tpm")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_payload_built_again_elsewhere_is_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"  # as it is now, whatever is written meanwhile
    for directory in ("agent", "packaging"):
        shutil.copytree(SOURCE / directory, source / directory)
    for file in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copyfile(SOURCE / file, source / file)
    for shared in (".venv", "build"):
        (source / shared).symlink_to(SOURCE / shared)
    payload = source / "packaging" / "payload"
    for command in (
        [payload / "build.sh", *SMALL, tmp_path / "payload", "1.4.0"],
        [payload / "reproduce.sh", *SMALL, tmp_path / "payload" / "app.raw", "1.4.0"],
    ):
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]
    assert result.stdout.startswith("The same ")
