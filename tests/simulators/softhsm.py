"""Tokens of SoftHSM: PKCS#11 without hardware, each in a directory of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
TOKEN = "hospital"
PIN, SO_PIN = "246813", "87654321"


class SoftHSM:
    """One slot that a token can be in.

    Args:
        directory: Holds configuration and tokens.
    """

    def __init__(self, directory: Path) -> None:
        if not MODULE.exists():
            raise RuntimeError("Debian's softhsm2 is needed: run packaging/setup.sh")
        self._tokens = directory / "tokens"
        self._aside = directory / "aside"
        configuration = directory / "softhsm2.conf"
        configuration.write_text(f"directories.tokendir = {self._tokens}\nlog.level = ERROR\n")
        # The module reads it whenever it starts; tests in one process take turns.
        os.environ["SOFTHSM2_CONF"] = str(configuration)
        self._make()

    @property
    def uri(self) -> str:
        """As `open_key` and `init_key` take it; a person gives the PIN."""
        return f"pkcs11:token={TOKEN}?module-path={MODULE}"

    def pull_out(self) -> None:
        """Take the token away."""
        self._tokens.rename(self._aside)
        self._tokens.mkdir()

    def put_back(self) -> None:
        """Give it back."""
        self._tokens.rmdir()
        self._aside.rename(self._tokens)

    def swap(self) -> None:
        """Put another, empty token of the same name in its place."""
        self.pull_out()
        self._make()

    def _make(self) -> None:
        self._tokens.mkdir(exist_ok=True)
        pins = ["--pin", PIN, "--so-pin", SO_PIN]
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", TOKEN, *pins], check=True, capture_output=True
        )
