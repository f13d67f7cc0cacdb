"""The maker of the software at a terminal: releases built, signed and published by the commands that it would type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from provisioning.cli.main import app

COMMIT = "0123456789" * 4


@dataclass(slots=True)
class Hands:
    """The maker's hands at a terminal.

    Args:
        home: Holds the maker's directory and what goes into it.
    """

    home: Path

    @property
    def directory(self) -> Path:
        return self.home / "maker"

    def do(self, *arguments: str | Path, answer: str = "") -> str:
        """A command in the maker's directory."""
        line = ["release", *map(str, arguments), "--directory", str(self.directory)]
        result = CliRunner().invoke(app, line, input=answer)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    def key(self, name: str) -> str:
        return f"file:{self.directory / 'keys' / f'{name}.pem'}"

    def image(self, data: bytes) -> Path:
        path = self.home / f"{len(data)}-{data[:4].hex()}-{hash(data)}.raw"
        path.write_bytes(data)
        return path

    def release(self, version: str, data: bytes, *options: str) -> None:
        """All the way into the repository."""
        self.do("build", version, self.image(data), "--commit", COMMIT, *options)
        record = self.directory / "drafts" / version / "release.json"
        self.do("sign", record, "--yes")
        self.do("publish", version)
