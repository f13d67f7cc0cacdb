"""One version, from the package."""

from __future__ import annotations

import importlib.metadata

import pytest

from agent.core.version import software_version


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    software_version.cache_clear()


def test_the_version_is_the_packages() -> None:
    assert software_version() == importlib.metadata.version("secur-e-health")


def test_a_checkout_that_is_not_installed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("agent.core.version.version", missing)
    assert software_version() == "0"
    software_version.cache_clear()
