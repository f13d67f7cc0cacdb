"""`seh-agent enrol`, `re-enrol` and `unenrol` as a technician types them, against a real repository over HTTPS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.makers import build_store
from agent.attestation.policy import approve, encode_approval
from agent.cli import main as cli
from agent.core.clock import SystemClock
from agent.core.config import load_config
from agent.enrolment.record import EnrolmentFolder
from agent.identity.key import init_key
from agent.identity.sealed import current_state
from agent.identity.tpm_device import TPMDevice
from agent.service.safekeeping import load_vault
from agent.service.trust import OpenedRepository
from agent.statements.roots import EvidenceClass
from agent.trust.fingerprint import consortium_words
from agent.trust.records import public_pem
from agent.trust.token import STICK_FILE
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.registrar import SITE, Said
from tests.simulators.repository_server import running_proxy
from tests.simulators.stick import make_stick
from tests.simulators.swtpm import shared_maker


class Technician:
    """Types commands on one box.

    Args:
        directory: The box's.
        key: Its key's URI.
    """

    def __init__(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str = ""
    ) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        directory.mkdir()
        self.configure(key or f"software:{directory / 'node.key'}")

    def configure(self, key: str, more: str = "") -> None:
        """Write the box's configuration."""
        preset = self.directory / "preset.json"
        self.config.write_text(
            f'[node]\nstate_directory = "state"\nenvironment = "demo"\n[key]\nuri = "{key}"\n'
            f'[data]\ncatalog = "c"\n[enrolment]\npreset = "{preset}"\n{more}'
        )

    @property
    def config(self) -> Path:
        """The file."""
        return self.directory / "agent.toml"

    @property
    def folder(self) -> EnrolmentFolder:
        """What the enrolment left."""
        return EnrolmentFolder.of(self.directory / "state")

    def types(self, *arguments: str, status: int = 0) -> str:
        """Run a command; returns all that it said."""
        self._monkeypatch.setattr(sys, "argv", ["seh-agent", *arguments, "--config", str(self.config)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = "".join(self._capsys.readouterr())
        assert caught.value.code == status, said
        return said


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[PlayedConsortium]:
    with PlayedConsortium(tmp_path / "registrar") as played:
        yield played


@pytest.fixture
def technician(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Technician:
    return Technician(tmp_path / "box", monkeypatch, capsys)


@pytest.fixture
def words(consortium: PlayedConsortium) -> str:
    return consortium_words(consortium.repository.root_digest)


def test_a_box_is_enrolled_by_a_stick(
    tmp_path: Path, technician: Technician, consortium: PlayedConsortium, words: str
) -> None:
    stick = make_stick(tmp_path / "stick.img", {STICK_FILE: consortium.token().encode()})
    said = technician.types("enrol", "--usb", str(stick), "--yes-fingerprint", words)
    assert f"Enrolled: {SITE} in The Played Consortium." in said
    assert words in said
    assert "seh-agent run" in said
    record = technician.folder.load_record()
    assert record is not None
    assert record.key_id == init_key(f"software:{technician.directory / 'node.key'}").key_id


def test_enrolling_twice_says_that_it_is_done(technician: Technician, consortium: PlayedConsortium, words: str) -> None:
    technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    said = technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    assert "enrolled already" in said
    assert len(consortium.nodes[SITE]) == 1


def test_a_revoked_box_is_not_told_that_all_is_well(
    technician: Technician, consortium: PlayedConsortium, words: str
) -> None:
    technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    record = technician.folder.load_record()
    assert record is not None
    consortium.revoke(SITE, init_key(f"software:{technician.directory / 'node.key'}").public_key())
    url = f"https://{consortium.address}/repository/"
    trust = technician.folder.trust(record.root_digest)
    with closing(OpenedRepository(trust, url, SystemClock(), proxy=None)) as box:
        box.refresh()  # as the running agent does, which keeps hold of it
        for command in ("enrol", "re-enrol"):
            said = technician.types(command, "--token", consortium.token(), status=2)
            assert "enrolment.revoked_key" in said
            assert "new key" in said
            assert "already" not in said
    technician.configure(f"software:{technician.directory / 'next.key'}")
    technician.types("re-enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    assert technician.folder.load_record() != record


def test_a_scanner_types_the_token(
    technician: Technician, consortium: PlayedConsortium, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "typed").write_text(consortium.token() + "\n")
    with (tmp_path / "typed").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        technician.types("enrol", "--token", "-", "--yes-fingerprint", words)
    assert technician.folder.load_record() is not None


def test_other_words_enrol_nobody(technician: Technician, consortium: PlayedConsortium, words: str) -> None:
    other = " ".join(reversed(words.split()))
    said = technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", other, status=2)
    assert "enrolment.not_confirmed" in said
    assert technician.folder.load_record() is None


def test_without_a_terminal_somebody_must_give_the_words(technician: Technician, consortium: PlayedConsortium) -> None:
    said = technician.types("enrol", "--token", consortium.token(), status=2)
    assert "cli.nobody_to_confirm" in said
    assert "--yes-fingerprint" in said


def test_the_preset_consortium_asks_nobody(technician: Technician, consortium: PlayedConsortium) -> None:
    digest = consortium.repository.root_digest
    (technician.directory / "preset.json").write_text(f'{{"root_digest": "{digest}"}}')
    technician.types("enrol", "--token", consortium.token())
    assert technician.folder.load_record() is not None


def test_a_preset_that_cannot_be_read_is_said(technician: Technician, consortium: PlayedConsortium) -> None:
    (technician.directory / "preset.json").write_text("{}")
    assert "config.bad_preset" in technician.types("enrol", "--token", consortium.token(), status=2)


def test_without_a_token_an_enrolment_goes_on(technician: Technician, consortium: PlayedConsortium, words: str) -> None:
    assert "cli.no_token" in technician.types("enrol", status=2)
    consortium.before = lambda asked: Said(404) if asked.method == "POST" else None
    technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words, status=3)
    consortium.before = lambda _: None
    assert f"Enrolled: {SITE}" in technician.types("enrol")


def test_one_place_for_the_token(technician: Technician) -> None:
    said = technician.types("enrol", "--token", "SEH1:", "--usb", "/dev/sdb1", status=2)
    assert "cli.several_tokens" in said


def test_a_pinned_box_is_not_enrolled(technician: Technician, consortium: PlayedConsortium) -> None:
    technician.config.write_text(
        technician.config.read_text().replace("[node]", f'[node]\nsite = "{SITE}"')
        + '[superlink]\naddress = "127.0.0.1:9"\nroot_certificates = "r"\n[studies]\ndirectory = "s"\n'
    )
    assert "config.pinned" in technician.types("enrol", "--token", consortium.token(), status=2)


def test_all_goes_through_the_hospitals_proxy(technician: Technician, consortium: PlayedConsortium, words: str) -> None:
    with running_proxy() as proxy:
        network = f'[network]\nproxy = "http://localhost:{proxy.port}"\n'
        technician.configure(f"software:{technician.directory / 'node.key'}", network)
        technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    assert technician.folder.load_record() is not None
    assert set(proxy.asked) == {f"CONNECT {consortium.address} HTTP/1.1"}


def test_a_new_mainboard_is_enrolled_in_the_old_ones_place(
    tmp_path: Path,
    consortium: PlayedConsortium,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    approver = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "approver.pem").write_text(public_pem(approver.public_key()))
    (tmp_path / "approvals").mkdir()
    sealed = f'[vault]\napprover = "{tmp_path / "approver.pem"}"\napprovals = "{tmp_path / "approvals"}"\n'
    technician = Technician(tmp_path / "box", monkeypatch, capsys)
    with shared_maker().make("a") as old, shared_maker().make("b") as new:
        consortium.stores = (build_store(EvidenceClass.TEST, [path.read_bytes() for path in old.ca_certificates]),)
        state = current_state(TPMDevice(old.tcti), (0, 7))
        approval = approve(state, lambda data: approver.sign(data, ec.ECDSA(hashes.SHA256())))
        (tmp_path / "approvals" / "release.cbor").write_bytes(encode_approval(approval))
        technician.configure(old.uri, sealed)
        technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
        load_vault(load_config(technician.config))  # as the agent does at its first start
        first = technician.folder.load_record()
        technician.configure(new.uri, sealed)
        assert "re-enrol" in technician.types("enrol", "--token", consortium.token(), status=2)
        said = technician.types("re-enrol", "--token", consortium.token(), "--yes-fingerprint", words)
        load_vault(load_config(technician.config))
    second = technician.folder.load_record()
    assert first is not None
    assert second is not None
    assert second.node != first.node
    assert f"seh-provision node revoke {first.node}" in said
    assert len(list((technician.directory / "state").glob("replaced-*/vault"))) == 1


def test_there_is_nothing_to_replace_on_a_box_that_belongs_nowhere(technician: Technician) -> None:
    assert "enrolment.nothing_to_replace" in technician.types("re-enrol", "--token", "SEH1:", status=2)


def test_a_box_leaves_when_told_so_twice(
    tmp_path: Path, technician: Technician, consortium: PlayedConsortium, words: str
) -> None:
    technician.types("enrol", "--token", consortium.token(), "--yes-fingerprint", words)
    record = technician.folder.load_record()
    assert record is not None
    assert "cli.not_confirmed" in technician.types("unenrol", status=2)
    assert technician.folder.load_record() is not None
    assert f"seh-provision node revoke {record.node}" in technician.types("unenrol", "--yes")
    assert technician.folder.load_record() is None
    with PlayedConsortium(tmp_path / "next") as successor:
        next_words = consortium_words(successor.repository.root_digest)
        technician.types("enrol", "--token", successor.token(), "--yes-fingerprint", next_words)
        moved = technician.folder.load_record()
    assert moved is not None
    assert moved.root_digest == successor.repository.root_digest


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((SITE, "00"), "cli.bad_key_id"),
        ((SITE, "ab" * 32, "AB" * 32), "cli.bad_key_id"),
        (("Hospital A", "ab" * 32), "core.bad_identifier"),
        ((SITE, "ab" * 32), "service.not_running"),
    ],
)
def test_what_is_typed_wrongly_is_told_apart_from_an_agent_that_does_not_run(
    technician: Technician, arguments: tuple[str, ...], code: str
) -> None:
    assert f" {code} (" in technician.types("accept-keys", *arguments, status=2)
