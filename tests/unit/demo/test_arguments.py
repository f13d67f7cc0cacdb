"""What the command line admits, and what it says of the rest."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.demo import keys
from tests.demo.__main__ import parse_arguments, usable_kinds
from tests.demo.keys import KINDS, Kind


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_by_default_keys_are_in_tpms_and_there_is_no_noise() -> None:
    asked = parse_arguments([])
    assert (asked.key, asked.noise, asked.plain) == (("tpm",), None, False)


def test_keys_can_be_mixed() -> None:
    assert parse_arguments(["--key", "tpm,piv,fido2,software"]).key == tuple(KINDS)


@pytest.mark.parametrize("text", ["floppy", "tpm,", "", "tpm,floppy", "tpm piv"])
def test_an_unknown_kind_is_refused_with_the_known_ones(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is none of tpm, piv, fido2, software" in refusal(capsys, "--key", text)


def test_more_cards_than_readers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--data", "stroke", "--key", "piv,fido2")
    assert "20 hospitals would need a card reader, and there are 16" in said
    assert parse_arguments(["--data", "stroke", "--key", "piv", "--hospitals", "16"]).hospitals == 16
    assert parse_arguments(["--data", "stroke", "--key", "piv,tpm"]).key == ("piv", "tpm")


def test_noise_is_a_number_of_a_sensible_size_and_goes_with_masks(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(["--noise", "1.5"]).noise == 1.5
    for number in ("0", "-1", "nan", "inf", "1e9"):
        assert "--noise: 0.1 to 100" in refusal(capsys, "--noise", number)
    assert "leave --plain out" in refusal(capsys, "--noise", "1", "--plain")


def test_kinds_that_cannot_be_had_become_software_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> str:
        return "pcscd is not installed"

    kinds = {"piv": Kind("", why, in_reader=True), "fido2": Kind("", why, in_reader=True)}
    monkeypatch.setattr("tests.demo.__main__.KINDS", dict(keys.KINDS) | kinds)
    out = io.StringIO()
    usable = usable_kinds(("software", "piv", "fido2"), Console(file=out, width=200))
    assert usable == ("software", "software", "software")
    assert out.getvalue() == "Using software keys, because pcscd is not installed; hardware protects none of them.\n"
