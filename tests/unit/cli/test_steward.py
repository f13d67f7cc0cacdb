"""A steward's key from the desk where it is made to the study that it approves, as people at both terminals meet it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from typer.testing import CliRunner

from agent.cli.main import app as agent_app
from agent.core.box_view import ApprovalView, ChallengeView, FindingView, StewardView, StudyLine, StudyView
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.governance.approval import parse_approval, parse_proof
from agent.governance.book import Matter
from agent.trust.records import StewardFile, parse_record
from provisioning.cli.main import app as provision_app
from tests.simulators.authenticator import Authenticator
from tests.simulators.card import VirtualCard
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.pcscd import card_inserted
from tests.simulators.piv_card import PIVApplet
from tests.simulators.steward import SITE, Desk

PIN = "246813"
MATTER = Matter("heart-risk", "5d" * 32, "cleveland", "da" * 32, 2.0)


@dataclass
class PlayedBox:
    """An agent's answers, over a real book of approvals."""

    desk: Desk
    rules: tuple[FindingView, ...] = ()
    digest: str = MATTER.dataset_digest
    title: str = "Heart\x1b[2J risk"

    def studies(self) -> tuple[StudyLine, ...]:
        return (self._line,)

    def study(self, study: str) -> StudyView:
        assert study == MATTER.study
        return StudyView(
            line=self._line,
            purpose="Learn\nmore\x07",
            sites=("hospital-a", "hospital-b", "hospital-c"),
            site_count=5,
            minimum_sites=3,
            rounds=20,
            fields=("age", "chol"),
            field_count=2,
            label="num",
            minimum_rows=30,
            epsilon=MATTER.epsilon,
            delta=1e-5,
            unit="hospital",
            dropout="continue",
            accept_differencing=True,
            dataset_digest=self.digest,
            findings=self.rules,
            approvals=tuple(self._given()),
        )

    def stewards(self) -> tuple[StewardView, ...]:
        return tuple(_view(record) for record in self.desk.records.found)

    def begin_approval(self, study: str, steward: str) -> ChallengeView:
        asked = self.desk.ask(MATTER)
        view = next(view for view in self.stewards() if view.steward == steward)
        return ChallengeView(challenge=asked.digest.hex(), payload=asked.payload().decode(), steward=view)

    def complete_approval(self, approval: str) -> ApprovalView:
        self.desk.book.accept(parse_approval(approval.encode()))
        return next(iter(self._given()))

    def refuse_study(self, study: str, steward: str) -> None:
        self.desk.book.refuse(MATTER, steward)

    def begin_withdrawal(self, sequence: int, steward: str) -> ChallengeView:
        asked = self.desk.book.begin_withdrawal(sequence)
        view = next(view for view in self.stewards() if view.steward == steward)
        return ChallengeView(challenge=asked.digest.hex(), payload=asked.payload().decode(), steward=view)

    def complete_withdrawal(self, sequence: int, proof: str) -> None:
        self.desk.book.withdraw(sequence, parse_proof(proof.encode()))

    @property
    def _line(self) -> StudyLine:
        return StudyLine(
            study=MATTER.study,
            study_digest=MATTER.study_digest,
            title=self.title,
            requester="A hospital",
            state="waiting",
            dataset=MATTER.dataset,
            expires_s=1_900_000_000,
        )

    def _given(self) -> Iterator[ApprovalView]:
        for entry in reversed(self.desk.book.given()):
            leaf = entry.leaf
            yield ApprovalView(
                sequence=leaf.sequence,
                steward=leaf.steward,
                dataset=leaf.dataset,
                epsilon=leaf.epsilon,
                given_s=leaf.at_s,
                not_after_s=leaf.not_after_s,
                standing=entry.stands,
            )


@dataclass
class Terminal:
    """Whoever sits at the hospital's desk, and then at the box."""

    home: Path
    box: PlayedBox
    typed: list[str] = field(default_factory=lambda: [PIN] * 9)
    prompts: list[str] = field(default_factory=list)

    def agent(self, *arguments: str) -> str:
        return _output(agent_app, "study", *arguments)

    def new(self, name: str, *options: str) -> StewardFile:
        """Make a record at the desk; the hospital signs it."""
        out = self.home / f"{name}.json"
        options = ("--site", SITE, "--person", f"Dr {name}", "--out", str(out), *options)
        told = _output(provision_app, "steward", "new", name, *options)
        assert f"steward add {out}" in told
        record = parse_record(StewardFile, out.read_bytes())
        self.box.desk.records.found.append(record)
        return record


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal(tmp_path, PlayedBox(Desk(tmp_path / "approvals")))

    def prompt(text: str, **_: object) -> str:
        found.prompts.append(text)
        if not found.typed:
            raise click.Abort
        return found.typed.pop(0)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr("agent.cli.study._box", lambda _: found.box)
    monkeypatch.setattr("agent.cli.key._check_terminal", lambda _: None)
    return found


@pytest.fixture
def authenticator() -> Iterator[Authenticator]:
    found = Authenticator()
    found.set_pin(PIN)
    with plugged_in(HIDKey(found)):
        yield found


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(SecureHealthError) as caught:
        work()
    return caught.value.code


def test_security_key_from_the_desk_to_approval_and_withdrawal(
    terminal: Terminal, authenticator: Authenticator
) -> None:
    record = terminal.new("dr-a")
    assert (record.rp_id, record.person, record.kind) == ("localhost", "Dr dr-a", "webauthn")
    told = terminal.agent("approve", "heart-risk", "--yes")
    assert "Approved. Approval 1: by dr-a" in told
    assert len(terminal.box.desk.book.standing(MATTER.study_digest, MATTER.dataset)) == 1
    assert "Approval 1 of heart-risk is withdrawn." in terminal.agent("withdraw", "heart-risk")
    assert not terminal.box.desk.book.standing(MATTER.study_digest, MATTER.dataset)
    assert code_of(lambda: terminal.agent("withdraw", "heart-risk")) == "cli.none_to_withdraw"
    kept = [path.read_bytes() for path in terminal.home.rglob("*") if path.is_file()]
    assert kept
    assert not any(PIN.encode() in data for data in kept)


def test_smartcard_from_the_desk_to_approval_and_withdrawal(terminal: Terminal) -> None:
    applet = PIVApplet(4711)
    applet.add_key(0x9C, pin_policy=3)
    terminal.typed = ["123456"] * 4
    with card_inserted(VirtualCard(applet)) as slot:
        uri = f"piv:{slot.reader}?slot=9c"
        record = terminal.new("dr-c", "--card", uri)
        assert (record.kind, record.rp_id) == ("piv", None)
        assert "Approved" in terminal.agent("approve", "heart-risk", "--yes", "--key", uri)
        assert terminal.agent("withdraw", "heart-risk", "--approval", "1", "--key", uri)
    assert not terminal.box.desk.book.standing(MATTER.study_digest, MATTER.dataset)


def test_a_card_that_signs_without_a_pin_is_no_stewards(terminal: Terminal) -> None:
    for uri in ("piv:", "piv:?slot=9e", "piv:1234", "file:key.pem", "software:key.pem", "tpm:"):
        assert code_of(lambda uri=uri: terminal.new("dr-c", "--card", uri)) == "steward.not_a_card"  # type: ignore[misc]


def test_another_card_is_told_apart_before_its_pin_is_asked(terminal: Terminal) -> None:
    ours, other = PIVApplet(4711), PIVApplet(4712)
    for applet in (ours, other):
        applet.add_key(0x9C, pin_policy=3)
    with card_inserted(VirtualCard(ours)) as slot:
        uri = f"piv:{slot.reader}?slot=9c"
        terminal.new("dr-c", "--card", uri)
        slot.remove()
        slot.insert(VirtualCard(other))
        asked = len(terminal.prompts)
        assert code_of(lambda: terminal.agent("approve", "heart-risk", "--yes", "--key", uri)) == "cli.another_card"
        assert len(terminal.prompts) == asked


def test_another_security_key_is_told_apart_before_its_pin_is_asked(
    terminal: Terminal, authenticator: Authenticator
) -> None:
    terminal.new("dr-a")
    asked = len(terminal.prompts)
    with plugged_in(HIDKey(Authenticator())), pytest.raises(HardwareError, match="not the one that the hospital has"):
        terminal.agent("approve", "heart-risk", "--yes")
    assert len(terminal.prompts) == asked


def test_a_card_named_for_a_steward_with_a_security_key_is_not_passed_over(
    terminal: Terminal, authenticator: Authenticator
) -> None:
    terminal.new("dr-a")
    count = authenticator.count
    assert code_of(lambda: terminal.agent("approve", "heart-risk", "--yes", "--key", "piv:")) == "cli.no_card"
    assert authenticator.count == count


def test_what_is_approved_is_shown_first_and_asked_for(terminal: Terminal, authenticator: Authenticator) -> None:
    terminal.new("dr-a")
    count = authenticator.count
    with pytest.raises(click.Abort):  # the runner's terminal says nothing, which is no yes
        _output(agent_app, "study", "approve", "heart-risk", standalone=False)
    assert authenticator.count == count
    assert not terminal.box.desk.book.given()


def test_a_study_that_changed_while_it_was_read_is_not_signed(terminal: Terminal, authenticator: Authenticator) -> None:
    terminal.new("dr-a")
    terminal.box.digest = "ee" * 32
    count = authenticator.count
    assert code_of(lambda: terminal.agent("approve", "heart-risk", "--yes")) == "cli.not_as_shown"
    assert authenticator.count == count


def test_show_says_all_in_plain_words_and_nothing_that_a_terminal_obeys(terminal: Terminal) -> None:
    terminal.box.rules = (FindingView(rule="minimum_rows", passed=False, sentence="Too few rows."),)
    told = terminal.agent("show", "heart-risk")
    words = " ".join(told.split())
    for expected in (
        "age, chol",
        "hospital-c and 2 more; never fewer than 3 in a sum",
        "epsilon 2, delta 1e-05, over the whole study, for this hospital",
        "to approve is to ACCEPT that",
        "Too few rows. [minimum_rows]",
        "one steward must approve",
        MATTER.study_digest,
    ):
        assert expected in words
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", told)


def test_list_says_how_each_stands(terminal: Terminal) -> None:
    told = terminal.agent("list")
    assert "waits for a steward" in told
    assert "\x1b" not in told


def test_refuse_is_noted(terminal: Terminal, authenticator: Authenticator) -> None:
    terminal.new("dr-a")
    assert "dr-a refuses heart-risk" in terminal.agent("refuse", "heart-risk")
    assert b"approval-refused" in terminal.box.desk.audit.kept[-1]


def test_which_steward_is_asked_where_several_could_be_meant(terminal: Terminal, authenticator: Authenticator) -> None:
    assert code_of(lambda: terminal.agent("approve", "heart-risk")) == "cli.which_steward"
    terminal.new("dr-a")
    terminal.new("dr-b")
    with pytest.raises(OperatorError, match="dr-a, dr-b"):
        terminal.agent("approve", "heart-risk")
    assert "by dr-b" in terminal.agent("approve", "heart-risk", "--steward", "dr-b", "--yes")
    assert code_of(lambda: terminal.agent("refuse", "heart-risk", "--steward", "dr-x")) == "cli.which_steward"


def test_failures_at_the_desk_are_told_in_plain_words(terminal: Terminal, authenticator: Authenticator) -> None:
    terminal.typed = ["000000"]
    assert code_of(lambda: terminal.new("dr-a")) == "steward.wrong_pin"
    terminal.typed = [PIN] * 5
    with plugged_in():
        assert code_of(lambda: terminal.new("dr-a")) == "steward.no_security_key"
    with plugged_in(HIDKey(authenticator), HIDKey(Authenticator())):
        assert code_of(lambda: terminal.new("dr-a")) == "steward.several_security_keys"
    with plugged_in(HIDKey(Authenticator())):
        assert code_of(lambda: terminal.new("dr-a")) == "steward.key_unfit"  # it has no PIN
    authenticator.touched = lambda: False
    assert code_of(lambda: terminal.new("dr-a")) == "steward.no_security_key"
    authenticator.touched = lambda: True
    assert code_of(lambda: terminal.new("dr-a", "--console", "node.secur-e-health")) == "steward.bad_file"
    terminal.new("dr-a")
    assert code_of(lambda: terminal.new("dr-a")) == "steward.not_written"  # never over another


def test_a_file_that_is_no_record_is_not_called_a_published_one(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    options = ["--site", SITE, "--key", "file:no.pem", "--state", str(tmp_path), "--registrar", "127.0.0.1:1"]
    with pytest.raises(OperatorError) as caught:
        _output(provision_app, "steward", "add", str(tmp_path / "record.json"), *options, "--root", "1.root.json")
    assert caught.value.code == "steward.bad_file"
    assert "repository" not in caught.value.sentence


def _view(record: StewardFile) -> StewardView:
    return StewardView(
        steward=record.steward,
        kind=record.kind,
        key_id=record.key_id,
        rp_id=record.rp_id or "",
        credential_id=record.credential_id or "",
        public_key=record.public_key,
    )


def _output(app: object, *arguments: str, standalone: bool = True) -> str:
    result = CliRunner().invoke(app, list(arguments), standalone_mode=standalone)  # type: ignore[arg-type]
    if result.exception is not None:
        raise result.exception
    return result.output
