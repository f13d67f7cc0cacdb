"""Before the page cache lets go of a library, and after, the library is the same."""

from __future__ import annotations

from pathlib import Path

from tests.bench.cold import drop_libraries


def test_libraries_are_dropped_from_memory_and_from_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "package.so").mkdir()
    library, gone = tmp_path / "package.so" / "library.so.1", tmp_path / "gone.so"
    library.write_bytes(b"just written")
    gone.symlink_to("nowhere")
    drop_libraries(tmp_path)
    assert library.read_bytes() == b"just written"
