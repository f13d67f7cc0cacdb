from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small models compute faster on one thread, and so does everything beside them."""
    torch.set_num_threads(1)
