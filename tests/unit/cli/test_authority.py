"""The authority's commands, as its operator meets them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Timestamp
from typer.testing import CliRunner

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.identity.key import init_key
from agent.statements.roots import KeyKind, public_key_bytes
from agent.trust.records import parse_public_pem, public_pem
from agent.trust.snapshot import Environment, TrustSnapshot
from provisioning.authority.appraisal import Subject
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles
from provisioning.authority.roles import sign
from provisioning.authority.signers import create_file_key, elliptic_key, load_file_key, open_signer
from provisioning.authority.site import LocalSource
from provisioning.cli.main import app
from provisioning.registrar.challenge import Enrolment, State
from provisioning.registrar.run import database_url
from provisioning.registrar.settings import load_settings
from provisioning.registrar.store import Store
from provisioning.tokens.token import TokenEntry
from tests.contract.rigs import piv_rig, pkcs11_rig, tpm_rig
from tests.simulators.authority import PASSPHRASES, FoundedConsortium, new_signer, no_secrets
from tests.simulators.played_study import study_files
from tests.simulators.softhsm import PIN
from tests.simulators.superlink import free_port

A = "hospital-a"


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever sits at the authority's terminal.

    Args:
        home: With passphrase files.
    """

    home: Path

    @property
    def directory(self) -> Path:
        return self.home / "authority"

    def call(self, *arguments: str | Path, typed: str = "") -> str:
        """Run a command; fails as it does."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    def found(self, *options: str | Path, environment: str = "test", typed: str = "") -> str:
        """Found a consortium."""
        fixed = ["--id", "consortium-a", "--name", "Consortium A", "--registrar", "127.0.0.1:8443"]
        fixed += ["--superlink", "127.0.0.1:9092", "--environment", environment]
        return self.call("consortium", "init", "-d", self.directory, *fixed, *options, typed=typed)

    def read(self) -> TrustSnapshot:
        """What a new box reads."""
        return FoundedConsortium.reopen(self.directory).read(self.home / "box")

    def passphrase_file(self, number: int = 0) -> Path:
        path = self.home / f"passphrase-{number}"
        path.write_text(f"{PASSPHRASES[number]}\n")
        return path


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_dry_run_says_what_would_be_made_and_makes_nothing(operator: Operator) -> None:
    said = operator.found("--dry-run", environment="production")
    assert "root, signed by 2 of: file:keys/root-1.pem, file:keys/root-2.pem" in said
    assert not operator.directory.exists()


def test_founded_with_one_command_and_again_changes_nothing(operator: Operator) -> None:
    said = operator.found()
    assert "Root digest" in said
    assert "founded already" in operator.found()
    assert operator.read().environment is Environment.TEST


def test_another_consortium_in_the_same_directory(operator: Operator) -> None:
    operator.found()
    with pytest.raises(OperatorError, match="another minimum_evidence"):
        operator.found("--evidence", "virtual")


def test_production_keys_are_encrypted_and_only_their_owners(operator: Operator) -> None:
    operator.found("--passphrase-file", operator.passphrase_file(), environment="production")
    keys = [*operator.directory.rglob("keys/*.pem"), operator.directory / "tls" / "authority.key"]
    assert len(keys) > 10
    for path in keys:
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert path.stat().st_mode & 0o777 == 0o600
        load_file_key(path, lambda _: PASSPHRASES[0])
        with pytest.raises(OperatorError, match="passphrase"):
            load_file_key(path, lambda _: "wrong")
    for path in operator.directory.rglob("server.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert operator.directory.joinpath("keys").stat().st_mode & 0o777 == 0o700


def test_passphrase_is_asked_for_twice_and_no_short_one_is_taken(operator: Operator) -> None:
    with pytest.raises(OperatorError, match="15 characters"):
        operator.found(environment="production", typed="short\nshort\n")
    assert not operator.directory.exists()
    operator.found(environment="production", typed=f"{PASSPHRASES[0]}\n{PASSPHRASES[0]}\n")


def test_resumed_with_another_passphrase(operator: Operator) -> None:
    """Half the keys under one passphrase and half under another would lock everybody out."""
    operator.found("--passphrase-file", operator.passphrase_file(), environment="production")
    (operator.directory / "keys" / "releases-2.pem").unlink()
    with pytest.raises(OperatorError, match="passphrase"):
        operator.found("--passphrase-file", operator.passphrase_file(1), environment="production")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--threshold", "1"), "one key alone"),
        (("--threshold", "3"), "3 keys must sign"),
        (("--organisations", "2"), "name the cosigner"),
        (("--evidence", "none"), "test consortium only"),
        (("--registrar", "nowhere"), "registrar"),
    ],
)
def test_plans_that_would_be_unsafe(operator: Operator, options: tuple[str, ...], why: str) -> None:
    with pytest.raises(OperatorError, match=why):
        operator.found(*options, environment="production")
    assert not operator.directory.exists()


def test_hospital_is_added_listed_suspended_and_added_again(operator: Operator) -> None:
    operator.found()
    (operator.home / "a.pem").write_text(public_pem(elliptic_key(new_signer().public_key)))
    assert "belongs to the consortium" in operator.call(
        "site", "add", A, "-d", operator.directory, "--public-key", operator.home / "a.pem"
    )
    assert operator.read().set_aside.keys() == {A}
    assert f"{A}: has signed nothing yet" in operator.call("site", "list", "-d", operator.directory)
    with pytest.raises(OperatorError, match="already"):
        operator.call("site", "add", A, "-d", operator.directory, "--public-key", operator.home / "a.pem")
    assert "suspended" in operator.call("site", "suspend", A, "-d", operator.directory)
    assert not operator.read().set_aside
    with pytest.raises(OperatorError, match="knows no hospital"):
        operator.call("site", "suspend", A, "-d", operator.directory)
    operator.call("site", "add", A, "-d", operator.directory, "--public-key", operator.home / "a.pem")
    assert operator.read().set_aside.keys() == {A}


def test_hospital_needs_exactly_one_key(operator: Operator) -> None:
    operator.found()
    with pytest.raises(OperatorError, match="exactly one"):
        operator.call("site", "add", A, "-d", operator.directory)


def test_study_is_published_and_withdrawn(operator: Operator) -> None:
    consortium = FoundedConsortium.found(operator.directory)
    study, model = study_files()
    (operator.home / "study.json").write_bytes(study)
    (operator.home / "model.onnx").write_bytes(model)
    asked = json.loads(study)
    files = ("-d", operator.directory)
    with pytest.raises(OperatorError, match="does not know"):
        operator.call("study", "publish", operator.home / "study.json", operator.home / "model.onnx", *files)
    for site in asked["sites"]:
        consortium.add_site(site)
    operator.call("study", "publish", operator.home / "study.json", operator.home / "model.onnx", *files)
    with consortium.box(operator.home / "box") as box:
        assert box.refresh().studies == (asked["id"],)
        assert box.download(f"studies/{asked['id']}/study.json") == study
        assert box.download(f"studies/{asked['id']}/model.onnx") == model
        operator.call("study", "withdraw", asked["id"], *files)
        assert box.refresh().studies == ()


def test_offline_keys_in_two_places(operator: Operator) -> None:
    """Each holder signs where they are; the change waits in a file that holds no secret."""
    operator.found()
    away = operator.home / "safe" / "sites-2.pem"
    away.parent.mkdir()
    (operator.directory / "keys" / "sites-2.pem").rename(away)
    (operator.home / "a.pem").write_text(public_pem(elliptic_key(new_signer().public_key)))
    add = ("site", "add", A, "-d", operator.directory, "--public-key", operator.home / "a.pem")
    assert "needs 1 more signature" in operator.call(*add)
    assert not operator.read().set_aside
    (pending,) = AuthorityLayout(operator.directory).pending.iterdir()
    with pytest.raises(OperatorError, match="waits for signatures"):
        operator.call(*add)
    assert str(pending) in operator.call("consortium", "status", "-d", operator.directory)
    stranger = operator.home / "stranger.pem"
    init_key(f"software:{stranger}")
    with pytest.raises(OperatorError):
        operator.call("consortium", "sign", pending, "--yes", "--key", f"file:{stranger}")
    said = operator.call("consortium", "sign", pending, "--key", f"file:{away}", typed="y\n")
    assert f"site-{A}" in said
    assert "complete" in said
    assert "Published" in operator.call("consortium", "sign", pending, "--yes", "-d", operator.directory)
    assert operator.read().set_aside.keys() == {A}
    assert not pending.exists()


def test_status_names_hospitals_boxes_and_what_runs_out(operator: Operator) -> None:
    consortium = FoundedConsortium.found(operator.directory)
    consortium.add_site(A)
    node = consortium.enrol(A)
    consortium.publish(consortium.desk(A).revoke(node.root.key_id, "lost"))
    said = operator.call("consortium", "status", "-d", operator.directory)
    assert "timestamp: counts until" in said
    assert f"{A}: 1 box(es)" in said
    assert f"{node.node}  software, none  REVOKED" in said


def test_status_says_what_registrar_and_superlink_know_of_a_box(operator: Operator) -> None:
    consortium = FoundedConsortium.found(operator.directory, superlink=f"127.0.0.1:{free_port()}")
    consortium.add_site(A)
    boxes = {state: consortium.enrol(A) for state in (State.ENDORSED, State.ENROLLED)}
    store = Store.open(database_url(load_settings(operator.directory / "registrar.toml")), SystemClock())
    try:
        for number, (state, node) in enumerate(boxes.items()):
            subject = Subject(KeyKind.SOFTWARE, public_key_bytes(parse_public_pem(node.public_key)), b"", b"")
            token = TokenEntry(
                id=f"{number:016x}", site=A, secret_digest="11" * 32, expires_s=2_000_000_000, issuer="22" * 32
            )
            store.add_token(token)
            opened = Enrolment(str(number), token.id, SiteID(A), subject, b"link", bytes(32), 1_700_000_000)
            store.create(replace(opened, state=state, superlink_node="7" if state is State.ENROLLED else ""))
    finally:
        store.close()
    said = operator.call("consortium", "status", "-d", operator.directory).splitlines()
    lines = {state: next(line for line in said if node.node in line) for state, node in boxes.items()}
    assert "registrar: endorsed" in lines[State.ENDORSED]
    assert "cannot be reached" in lines[State.ENROLLED]


def test_status_makes_no_database(operator: Operator) -> None:
    operator.found()
    operator.call("consortium", "status", "-d", operator.directory)
    assert not list(operator.directory.rglob("*.db"))


def test_roles_are_renewed(operator: Operator) -> None:
    operator.found()
    for role in ("root", "targets", "sites", "studies", "releases"):
        operator.call("consortium", "renew", role, "-d", operator.directory)
    assert operator.read().root_version == 2
    with pytest.raises(OperatorError, match="no role"):
        operator.call("consortium", "renew", "snapshot", "-d", operator.directory)


def test_online_roles_are_refreshed(operator: Operator) -> None:
    operator.found()
    operator.call("repository", "refresh", "-d", operator.directory)
    assert operator.read().timestamp_version == 2


def test_root_moves_to_hardware(operator: Operator, tmp_path: Path) -> None:
    """A smartcard with a PIN, an HSM and a TPM take the places of two key files; a box follows."""
    operator.found()
    consortium = FoundedConsortium.reopen(operator.directory)
    with (
        consortium.box(operator.home / "box") as box,
        piv_rig(tmp_path, slot_name="9c") as card,
        tpm_rig(tmp_path) as tpm,
        pkcs11_rig(tmp_path, with_pin_file=True) as hsm,
    ):
        box.refresh()
        for rig in (card, tpm, hsm):
            init_key(rig.uri, person=rig.person)
        new = [option for rig in (card, tpm, hsm) for option in ("--new-key", rig.uri)]
        typed = f"{PIN}\n" * 4
        said = operator.call("root", "rotate", "-d", operator.directory, *new, "--threshold", "3", typed=typed)
        assert "version 2" in said
        assert box.refresh().root_version == 2
        # From here on, the files sign nothing of the root.
        tpm.pull_out()
        assert "needs 1 more" in operator.call("consortium", "renew", "root", "-d", operator.directory, typed=typed)
        assert box.refresh().root_version == 2
        tpm.put_back()
        (pending,) = AuthorityLayout(operator.directory).pending.iterdir()
        operator.call("consortium", "sign", pending, "--yes", "-d", operator.directory, typed=typed)
        assert box.refresh().root_version == 3


def test_founded_on_hardware(operator: Operator, tmp_path: Path) -> None:
    with piv_rig(tmp_path, slot_name="9c") as card, tpm_rig(tmp_path) as tpm:
        for rig in (card, tpm):
            init_key(rig.uri, person=rig.person)
        operator.found("--root-key", card.uri, "--root-key", tpm.uri, typed=f"{PIN}\n" * 4)
    assert not list(operator.directory.rglob("root-*.pem"))
    assert operator.read().root_version == 1


def test_keys_that_the_root_cannot_have(operator: Operator) -> None:
    operator.found()
    key = f"file:{operator.directory}/keys/root-1.pem"
    with pytest.raises(OperatorError, match="as many distinct keys"):
        operator.call("root", "rotate", "-d", operator.directory, "--new-key", key)
    with pytest.raises(OperatorError, match="no kind of key"):
        operator.call("root", "rotate", "-d", operator.directory, "--new-key", "fido2:x", "--new-key", key)


def test_online_key_is_replaced_after_a_break_in(operator: Operator) -> None:
    """Who stole it ran versions ahead, so that nothing honest could follow; boxes follow the new key all the same."""
    operator.found()
    consortium = FoundedConsortium.reopen(operator.directory)
    repository = operator.directory / "repository"
    honest = (repository / "timestamp.json").read_bytes()
    with consortium.box(operator.home / "box") as box:
        box.refresh()
        stolen = Metadata[Timestamp].from_bytes(honest)
        stolen.signatures.clear()
        stolen.signed.version = 1 << 40
        thief = open_signer(f"file:{operator.directory}/keys/online.pem", no_secrets)
        (repository / "timestamp.json").write_bytes(sign(stolen, [thief]).to_bytes())
        assert box.refresh().timestamp_version == 1 << 40
        (repository / "timestamp.json").write_bytes(honest)
        with pytest.raises(PeerProtocolError):
            box.refresh()
        new = operator.home / "new-online.pem"
        create_file_key(new, None)
        said = operator.call("root", "rotate", "-d", operator.directory, "--online-key", f"file:{new}")
        assert "Restart the registrar" in said
        assert (box.refresh().root_version, box.current().timestamp_version) == (2, 2)
        operator.call("repository", "refresh", "-d", operator.directory)
        assert box.refresh().timestamp_version == 3
        (repository / "timestamp.json").write_bytes(sign(stolen, [thief]).to_bytes())
        with pytest.raises(PeerProtocolError):
            box.refresh()


def test_keys_of_two_organisations_have_two_passphrases(operator: Operator) -> None:
    two = ("--organisations", "2", "--cosigner", "127.0.0.1:9444")
    one_file = ("--passphrase-file", operator.passphrase_file())
    with pytest.raises(OperatorError, match="Each organisation"):
        operator.found(*two, *one_file, environment="production")
    operator.found(*two, *one_file, "--passphrase-file", operator.passphrase_file(1), environment="production")
    for number, folder in enumerate(("keys", "organisation-2/keys")):
        key = operator.directory / folder / f"sites-{number + 1}.pem"
        load_file_key(key, lambda _, number=number: PASSPHRASES[number])  # type: ignore[misc]
        with pytest.raises(OperatorError, match="passphrase"):
            load_file_key(key, lambda _, number=number: PASSPHRASES[1 - number])  # type: ignore[misc]


def test_hospital_makes_its_key_and_shows_its_public_half(operator: Operator) -> None:
    operator.found()
    key, passphrase = operator.home / "hospital.pem", operator.passphrase_file()
    pem = operator.call("key", "new", key, "--passphrase-file", passphrase)
    with pytest.raises(OperatorError, match="cannot be made"):
        operator.call("key", "new", key, "--passphrase-file", passphrase)
    assert pem in operator.call("key", "show", f"file:{key}", "--passphrase-file", passphrase)
    (operator.home / "hospital.pub").write_text(pem)
    operator.call("site", "add", A, "-d", operator.directory, "--public-key", operator.home / "hospital.pub")
    (listed,) = LocalSource(RepositoryFiles(operator.directory / "repository")).keys(SiteID(A))
    assert public_pem(elliptic_key(listed)) == pem


def test_a_witness_is_named_in_the_consortiums_record(operator: Operator, tmp_path: Path) -> None:
    operator.found()
    first = operator.directory / "repository" / "1.root.json"
    address = operator.read().consortium.registrar.address
    passphrase, own = tmp_path / "passphrase", tmp_path / "witness"
    passphrase.write_text("a passphrase of a witness", encoding="utf-8")
    said: list[str | Path] = [
        "--root",
        first,
        "--registrar",
        address,
        "--directory",
        own,
        "--passphrase-file",
        passphrase,
    ]
    named_well, reached_well = ("--name", "witness.example/1"), ("--address", "witness.example:9443")
    for wrong in (("--name", "witness example", *reached_well), (*named_well, "--address", "witness.example")):
        with pytest.raises(OperatorError, match="cannot be made like this"):
            operator.call("witness", "init", *said, *wrong)
    operator.call("witness", "init", *said, *named_well, *reached_well)  # what went wrong left nothing behind
    record = own / "witness.json"
    with pytest.raises(OperatorError, match="no audit log of the box"):
        operator.call("witness", "forget", "--config", own / "witness.toml", "--site", A, "--node", "nobody")
    with pytest.raises(OperatorError, match="is no witness's record"):
        operator.call("consortium", "witness", first, "-d", operator.directory)
    operator.call("consortium", "witness", record, "-d", operator.directory)
    assert "witness.example/1 at witness.example:9443" in operator.call(
        "consortium", "status", "-d", operator.directory
    )
    (named,) = operator.read().consortium.witnesses
    assert named.encode() == record.read_bytes()
    record.write_text(record.read_text(encoding="utf-8").replace("witness.example:9443", address), encoding="utf-8")
    with pytest.raises(OperatorError, match="cannot witness"):
        operator.call("consortium", "witness", record, "-d", operator.directory)
    with pytest.raises(OperatorError, match="it names witness"):
        operator.call("consortium", "witness", "--dismiss", "witness.example/2", "-d", operator.directory)
    operator.call("consortium", "witness", "--dismiss", "witness.example/1", "-d", operator.directory)
    assert operator.read().consortium.witnesses == ()
