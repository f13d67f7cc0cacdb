"""Another user of the same machine, who reads whatever its owner did not close."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.authority.layout import AuthorityLayout
from provisioning.cli.ceremony import use_online_key
from provisioning.tokens.usb import write_stick
from tests.simulators.authority import FoundedConsortium
from tests.simulators.tokens import TOKEN, token_text


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_to_others(directory: Path) -> set[str]:
    """Files that others could read, as far as their folders let them."""
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o077
    }


@pytest.mark.usefixtures("umask")
def test_reads_the_authority_s_directory(tmp_path: Path) -> None:
    consortium = FoundedConsortium.found(tmp_path / "authority")
    use_online_key(AuthorityLayout(consortium.layout.path), "file:keys/online.pem")
    found = open_to_others(consortium.layout.path)
    private = {path for path in found if not path.startswith("repository/")}
    secret = {path for path in private if "keys/" in path or path.endswith((".key", ".db", "registrar.toml"))}
    assert secret == set()


@pytest.mark.usefixtures("umask")
def test_made_the_file_before_the_token_came_into_it(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    image.write_bytes(b"old")
    image.chmod(0o666)
    with image.open("rb") as before:
        write_stick(image, token_text(TOKEN), serial=1, erase=True, confirm=lambda _: True)
        assert before.read() == b"old"
    assert image.stat().st_mode & 0o077 == 0
