"""Where the console listens, and by which name it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.config import ConsoleSection, parse_config
from agent.core.errors import OperatorError

BOX = """
[node]
state_directory = "state"
[key]
uri = "tpm:"
[data]
catalog = "catalog.toml"
[console]
"""
TLS = 'certificate = "console.pem"\nprivate_key = "console.key"\n'


def console(lines: str) -> ConsoleSection:
    return parse_config((BOX + lines).encode(), directory=Path("/etc")).console


@pytest.mark.parametrize(
    ("lines", "origin"),
    [
        ("", "http://localhost:8470"),
        ('address = "127.0.0.1:80"', "http://localhost"),
        (f'address = "0.0.0.0:443"\nname = "box.example"\n{TLS}', "https://box.example"),
        (f'address = "[::]:8470"\nname = "box.example"\n{TLS}', "https://box.example:8470"),
    ],
)
def test_the_origin_is_what_browsers_will_state(lines: str, origin: str) -> None:
    assert console(lines).origin == origin


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_loopback_needs_no_certificate(host: str) -> None:
    assert console(f'address = "{host}:8470"').on_loopback


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('address = "0.0.0.0:8470"', "beyond loopback"),
        ('address = "0.0.0.0:8470"\nname = "box.example"', "beyond loopback"),
        (f'address = "192.0.2.1:8470"\n{TLS}', "beyond loopback"),
        ('certificate = "console.pem"', "go together"),
        (f'address = "192.0.2.1:8470"\nname = "192.0.2.1"\n{TLS}', "names alone"),
        ('name = "box.example/path"', "form"),
    ],
)
def test_what_could_not_be_safe_is_refused(lines: str, sentence: str) -> None:
    with pytest.raises(OperatorError, match=sentence):
        console(lines)
