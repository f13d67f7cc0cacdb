"""`python -m tests.handbook.pictures`: photograph the last report for the README, in headless Chromium."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.handbook.errors import ROOT

REPORT = ROOT / "build" / "demo" / "report.html"
PICTURE = ROOT / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1120, 1440
"""In pixels: down to the end of the table of hospitals."""


def take_picture(page: Path, picture: Path, *, width: int, height: int) -> None:
    """Render the top of `page` into `picture`.

    Args:
        page: A HTML file.
        picture: The PNG file to write.
        width, height: Of the window, in pixels; Chromium makes none narrower than 500.

    Raises:
        subprocess.CalledProcessError: Chromium fails.
    """
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=60)


def main() -> int:
    """Take the README's picture."""
    if not REPORT.exists():
        sys.stderr.write("There is no report yet: run `make demo` first.\n")
        return 1
    take_picture(REPORT, PICTURE, width=WIDTH, height=HEIGHT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
