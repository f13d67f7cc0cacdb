"""Findings about a file, as somebody reads them who never saw a schema."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.core.config import Address
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid


class Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    site: IdentifierText
    rows: int = 1
    code: Annotated[str, Field(pattern="^[0-9]$")] = "1"
    server: Address = "[::1]:443"

    @field_validator("rows")
    @classmethod
    def _some(cls, rows: int) -> int:
        if rows == 0:
            raise ValueError("at least one row is needed")
        return rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "site: it is missing"),
        ('{"site": "Hospital A"}', "site: use 1 to 63 lower-case letters"),
        ('{"site": "a", "rooster": 1}', "rooster: there is no such section or field"),
        ('{"site": "a", "rows": 0}', "rows: at least one row is needed"),
        ('{"site": "a", "code": "x"}', "code: it does not have the form"),
        ('{"site": "a", "server": "example.org"}', "server: write host:port"),
        ("{site}", "sample: it is no JSON"),
        ('{"rows": "many", "code": "x"}', "site: it is missing (and 2 more)"),
    ],
)
def test_each_fault_is_said_in_plain_words(text: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate_json(text)
    assert explain_invalid(caught.value, whole="sample").startswith(said)


def test_a_strangers_name_for_a_field_does_not_reach_a_terminal_as_it_is() -> None:
    name = "\\u001b[2J" + "x" * 200
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate_json('{"site": "a", "' + name + '": 1}')
    said = explain_invalid(caught.value, whole="sample")
    assert (said.isprintable(), said.startswith("?[2Jxxx"), len(said) < 200) == (True, True, True)
