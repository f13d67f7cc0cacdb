"""The repository's files, as they are served."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from provisioning.registrar.files import WHOLE_BYTES, file_routes


class Client:
    """Asks the application without a network between."""

    def __init__(self, directory: Path) -> None:
        self._app = FastAPI()
        self._app.include_router(file_routes(directory))

    def get(self, path: str) -> httpx.Response:
        """One answer."""
        return asyncio.run(self._get(path))

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="https://registrar") as client:
            return await client.get(path)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    (tmp_path / "repository" / "sites").mkdir(parents=True)
    return Client(tmp_path / "repository")


def test_files_small_and_large_are_served_whole(client: Client, tmp_path: Path) -> None:
    for size in (0, 1, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * WHOLE_BYTES + 7):
        data = os.urandom(size)
        (tmp_path / "repository" / "sites" / "model.onnx").write_bytes(data)
        response = client.get("/repository/sites/model.onnx")
        assert response.content == data
        assert response.headers["content-length"] == str(size)


@pytest.mark.parametrize(
    "path", ["", "sites", "sites/", "nothing.json", ".hidden", "link", "pipe", "%2e%2e/secret", "a//b"]
)
def test_nothing_else_is(client: Client, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "repository" / ".hidden").write_text("secret")
    (tmp_path / "repository" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "repository" / "pipe")
    with pytest.raises(OperatorError, match="nothing there"):
        client.get(f"/repository/{path}")


def test_a_file_that_is_replaced_while_it_is_read_is_one_or_the_other(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "repository" / "timestamp.json"
    contents = [b"a" * 100, b"b" * 3000]
    store_atomically(path, contents[0])
    ending = threading.Event()

    def replace() -> None:
        while not ending.is_set():
            for data in contents:
                store_atomically(path, data)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        answers = [client.get("/repository/timestamp.json").content for _ in range(300)]
    finally:
        ending.set()
        thread.join()
    assert set(answers) == set(contents)
