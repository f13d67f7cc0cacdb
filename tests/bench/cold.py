"""Libraries in memory as a box has them."""

from __future__ import annotations

import os
from pathlib import Path


def drop_libraries(directory: Path) -> None:
    """Have the page cache let go of the shared libraries below a directory, as far as no process has them mapped.

    What was just installed lies in it in large folios, and one touched page makes a whole folio resident: that was 14
    of an agent's 126 MB. A box reads its libraries from its image, in small ones, and so does a machine that was
    started since.
    """
    for path in directory.rglob("*.so*"):
        if path.is_file():
            with path.open("rb") as library:
                os.fsync(library.fileno())  # what is not on the disk yet stays
                os.posix_fadvise(library.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
