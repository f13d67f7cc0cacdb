"""The page of errors is made from the code, completely and in words."""

import re
from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from tests.handbook.errors import ROOT, Failure, find_failures, page

SAMPLE = """
_AGAIN = "Put it " + "back."

class WornError(HardwareError):
    def __init__(self, count):
        super().__init__("disk.worn", f"The disk is worn: {count} errors.", next_step="Replace it.")

def load(path):
    raise OperatorError("file.missing", f"{path.name} is" " missing.", next_step=_AGAIN, size=3)

def other(text):
    log("not.an_error", text)
"""


@pytest.fixture(scope="module")
def failures() -> list[Failure]:
    return list(find_failures(ROOT))


def test_codes_sentences_and_steps_are_read_from_the_calls(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "sample.py").write_text(SAMPLE, encoding="utf-8")
    worn, missing = sorted(find_failures(tmp_path))
    assert (worn.code, worn.fault, worn.sentence) == ("disk.worn", "hardware", "The disk is worn: <count> errors.")
    assert (missing.code, missing.fault) == ("file.missing", "operator")
    assert (missing.sentence, missing.next_step) == ("<name> is missing.", "Put it back.")


def test_an_error_s_anchor_is_on_the_page() -> None:
    error = OperatorError("core.bad_identifier", "x", next_step="y")
    path, _, anchor = error.anchor.partition("#")
    assert f'<a id="{anchor}">' in (ROOT / path).read_text(encoding="utf-8")


def test_every_failure_has_a_sentence_and_a_next_step(failures: list[Failure]) -> None:
    poor = {item.code for item in failures if item.sentence in {"", "<...>"} or item.next_step in {"", "<...>"}}
    assert not poor


def test_the_page_is_up_to_date(failures: list[Failure]) -> None:
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == page(failures), "run `make docs`"


def test_every_code_is_a_heading_once(failures: list[Failure]) -> None:
    codes = re.findall(r"^### `(.+)`$", page(failures), flags=re.MULTILINE)
    assert len(codes) == len(set(codes)) == len({item.code for item in failures})
