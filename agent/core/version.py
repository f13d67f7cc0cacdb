"""Which release this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def software_version() -> str:
    """The installed package's version, e.g. `1.4.0`; `0` where the code runs without being installed."""
    try:
        return version("secur-e-health")
    except PackageNotFoundError:
        return "0"
