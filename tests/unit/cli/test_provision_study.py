"""`seh-provision study`, as a researcher and the holders of keys meet it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.wire import Refusal
from agent.trust.delegations import STUDIES
from agent.trust.records import public_pem
from agent.trust.study import parse_study
from provisioning.authority.ceremony import load_pending
from provisioning.cli.main import app
from provisioning.coordinator import progress
from provisioning.coordinator.directory import CoordinatorDirectory, TrustPlace
from provisioning.coordinator.progress import Happening, ProgressLog
from provisioning.registrar.publish import PublishedReader
from provisioning.studies import launching
from provisioning.studies.standing import find_publication, run_directory
from tests.simulators.authority import FoundedConsortium
from tests.simulators.played_study import SITES, linear_model, prepare_directory
from tests.unit.coordinator.test_secure import Federation

TOLD = {
    "--id": "stroke-2026",
    "--title": "Outcome after stroke",
    "--purpose": "To learn which patients need more help.",
    "--requester": "A university",
    "--schema": "played",
    "--label": "ill",
}


def call(*arguments: str | Path, typed: str = "") -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def code_of(*arguments: str | Path, typed: str = "") -> str:
    with pytest.raises(SecureHealthError) as caught:
        call(*arguments, typed=typed)
    return caught.value.code


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(linear_model(2))
    return tmp_path / "model.onnx"


def new(model: Path, *options: str | Path, without: str = "", typed: str = "") -> str:
    """Write a study beside the model; one of what is told may be left out."""
    told = [part for option in TOLD.items() if option[0] != without for part in option]
    sites = [part for site in SITES for part in ("--site", site)]
    return call("study", "new", model, "--out", model.parent / "study.json", *told, *sites, *options, typed=typed)


FIELDS = ("--field", "age=number:0:120:years", "--field", "sex=flag")


def test_new_writes_a_study_that_validates_and_says_what_comes_next(model: Path) -> None:
    said = new(model, *FIELDS, "--duo", "DUO:0000037", "--rounds", "5", "--expires", "2031-05-01")
    study = parse_study((model.parent / "study.json").read_bytes())
    assert (study.id, study.rounds, f"{study.expires:%Y-%m-%d}") == ("stroke-2026", 5, "2031-05-01")
    assert (study.model.parameters, study.data.width) == (2, 2)
    assert "seh-provision study validate" in said
    explained = call("study", "validate", model.parent / "study.json", "--model", model)
    assert "biomedical research" in explained
    assert "What hospitals usually refuse" in explained


def test_new_reads_the_fields_from_a_table_and_takes_the_outcome_out(model: Path) -> None:
    (model.parent / "table.csv").write_text("age,sex,ill\n50,1,0\n70,0,1\n")
    new(model, "--fields", model.parent / "table.csv", "--field", "age=number:0:120")
    features = parse_study((model.parent / "study.json").read_bytes()).data.features
    assert [(spec.name, spec.maximum) for spec in features] == [("age", 120.0), ("sex", None)]


def test_new_names_an_outcome_that_the_table_does_not_have(model: Path) -> None:
    (model.parent / "table.csv").write_text("age,sex,sick\n50,1,0\n70,0,1\n")
    with pytest.raises(OperatorError) as caught:
        new(model, "--fields", model.parent / "table.csv")
    assert caught.value.code == "study.no_such_field"
    assert "age, sex, sick" in caught.value.sentence


def test_new_asks_for_what_no_option_says(model: Path) -> None:
    (model.parent / "header.csv").write_text("age,sex,ill\n")
    said = new(
        model,
        "--fields",
        model.parent / "header.csv",
        without="--title",
        typed="number:0:120:years\nflag\nAsked for\n",
    )
    assert "Kind of age" in said
    assert parse_study((model.parent / "study.json").read_bytes()).title == "Asked for"


def test_new_names_the_option_where_nobody_answers_and_touches_no_file_that_is_there(model: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        new(model, *FIELDS, without="--purpose")
    assert (caught.value.code, caught.value.next_step) == ("study.not_told", "Give it with --purpose.")
    assert not (model.parent / "study.json").exists()
    new(model, *FIELDS)
    with pytest.raises(OperatorError) as caught:
        new(model, *FIELDS)
    assert caught.value.code == "study.file_exists"


def test_new_refuses_fields_that_the_model_does_not_take(model: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        new(model, "--field", "age=number:0:120", "--field", "stage=I|II|III")
    assert caught.value.code == "study.wrong_width"
    assert "age 1, stage 2" in caught.value.sentence


class Holders:
    """A consortium whose two keys for studies lie in two places."""

    def __init__(self, place: Path, model: Path) -> None:
        self.consortium = FoundedConsortium.found(place / "authority", SystemClock())
        for site in SITES:
            self.consortium.add_site(site)
        self.directory = self.consortium.layout.path
        self.away = place / "away.pem"
        (self.directory / "keys" / "studies-2.pem").rename(self.away)
        new(model, *FIELDS)
        self.files = (model.parent / "study.json", model)

    @property
    def pending(self) -> Path:
        (path,) = self.consortium.layout.pending.glob(f"{STUDIES}-*.cbor")
        return path

    def standing(self) -> str:
        return find_publication(self.consortium.layout, "stroke-2026").sentence()


@pytest.fixture
def holders(tmp_path: Path, model: Path) -> Holders:
    return Holders(tmp_path, model)


def test_holders_sign_one_after_another_and_nothing_is_published_before(holders: Holders) -> None:
    assert "Not published" in holders.standing()
    said = call("study", "sign", *holders.files, "-d", holders.directory, "--yes")
    assert "1 more must sign" in said
    assert "Asked of 4 hospitals" in said
    assert "Waits for 1 more" in holders.standing()
    assert "Not launched" not in call("study", "status", "stroke-2025", "-d", holders.directory)
    assert "Not published yet" in call("study", "publish", holders.pending, "-d", holders.directory)
    assert "Waits for 1 more" in call("study", "status", "stroke-2026", "-d", holders.directory)

    said = call("study", "sign", holders.pending, "--key", f"file:{holders.away}", typed="y\n")
    assert "Published beside it: no other study." in said
    assert load_pending(holders.pending).is_complete
    assert "Signed by enough" in holders.standing()

    assert "is published" in call("study", "publish", *holders.files, "-d", holders.directory)
    assert holders.standing().startswith("Published")
    assert "is withdrawn" in call(
        "study", "withdraw", "stroke-2026", "-d", holders.directory, "--key", f"file:{holders.away}"
    )
    assert "Not published" in holders.standing()


def test_whoever_reads_and_does_not_agree_has_signed_nothing(holders: Holders) -> None:
    call("study", "sign", *holders.files, "-d", holders.directory, typed="n\n")
    assert not list(holders.consortium.layout.pending.glob("*"))


def test_key_that_may_not_sign_and_file_that_waits_for_nothing(holders: Holders) -> None:
    call("study", "sign", *holders.files, "-d", holders.directory, "--yes")
    wrong = f"file:{holders.directory / 'keys' / 'sites-1.pem'}"
    assert code_of("study", "sign", holders.pending, "--key", wrong, "--yes") == "study.no_key_of_it"
    assert code_of("study", "sign", holders.files[0], "--yes") == "study.no_model"
    assert code_of("study", "launch", "stroke-2026", "-d", holders.directory) == "study.not_published"
    assert code_of("study", "launch", "stroke-2026") == "study.not_named"


def test_unknown_hospital(holders: Holders, model: Path) -> None:
    asked = json.loads(holders.files[0].read_bytes())
    holders.files[0].write_text(json.dumps(asked | {"sites": [*SITES, "hospital-x"]}))
    assert code_of("study", "sign", *holders.files, "-d", holders.directory, "--yes") == "study.unknown_site"


def test_run_of_an_earlier_study_of_that_id_is_not_taken_for_this_one(holders: Holders, tmp_path: Path) -> None:
    call("study", "publish", *holders.files, "-d", holders.directory, "--key", f"file:{holders.away}")
    earlier = run_directory(holders.consortium.layout, "stroke-2026").path
    prepare_directory(earlier)
    assert code_of("study", "launch", "stroke-2026", "-d", holders.directory) == "study.another_run"


def test_launch_prepares_the_coordinator_under_the_consortium_s_key_and_says_that_nobody_answers(
    holders: Holders,
) -> None:
    call("study", "publish", *holders.files, "-d", holders.directory, "--key", f"file:{holders.away}")
    assert code_of("study", "launch", "stroke-2026", "-d", holders.directory) == "coordinator.superlink_unreachable"
    call("study", "withdraw", "stroke-2026", "-d", holders.directory, "--key", f"file:{holders.away}")
    told = call("study", "status", "stroke-2026", "-d", holders.directory, "--watch")
    assert "Withdrawn." in told
    assert "Not launched" not in told
    place = run_directory(holders.consortium.layout, "stroke-2026")
    protection = place.load().protection
    assert protection is not None
    named = PublishedReader(holders.consortium.publisher.files, SystemClock()).current().snapshot.consortium
    assert public_pem(protection.key.public_key()) == named.coordinator
    assert isinstance(protection.trust, TrustPlace)
    assert protection.trust.url == f"https://{named.registrar.address}/repository/"
    assert code_of("study", "launch", "--there", "/srv/run", "-d", holders.directory).endswith("unreachable")
    assert code_of("study", "launch", "--there", "/srv/run") == "study.no_superlink"


@pytest.mark.parametrize(("how", "status"), [("completed", 0), ("failed: It has ended.", 1)])
def test_launch_from_elsewhere_waits_for_the_end_in_the_superlink_s_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, status: int
) -> None:
    words: list[str | None] = [None, how]
    monkeypatch.setattr(launching, "launch_run", lambda connection, path: 7 if path == Path("/srv/run") else 0)
    monkeypatch.setattr(launching, "has_ended", lambda connection, run_id: words.pop(0))
    monkeypatch.setattr(launching, "OVER_INTERVAL_S", 0.0)
    where = ["--address", "link.example.org:9092", "--root-certificate", str(tmp_path / "root.pem")]
    result = CliRunner().invoke(app, ["study", "launch", "--there", "/srv/run", *where])
    assert (result.exit_code, result.output.splitlines()[-1]) == (status, f"It ended: {how}")
    assert "Run 7 is started" in result.output


WHERE = ("--address", "link.example.org:9092", "--root-certificate", "root.pem")


def follow(monkeypatch: pytest.MonkeyPatch, run: CoordinatorDirectory, events: Callable[[Path], None]) -> Result:
    """Launch at a SuperLink of which only the run's progress is seen."""

    def start(connection: object, path: Path) -> int:
        events(run.progress)
        return 7

    monkeypatch.setattr(launching, "launch_run", start)
    monkeypatch.setattr(launching, "has_ended", lambda connection, run_id: "failed: no such directory")
    monkeypatch.setattr(progress, "OVER_INTERVAL_S", 0.0)
    return CliRunner().invoke(app, ["study", "launch", "--run", str(run.path), *WHERE])


def test_launch_tells_why_a_run_paused_and_only_of_this_run(
    monkeypatch: pytest.MonkeyPatch, run: CoordinatorDirectory
) -> None:
    log = ProgressLog(run.progress, SystemClock())
    log.note(Happening.LOST, site="hospital-a", why="told in an earlier run")

    def events(_: Path) -> None:
        log.note(Happening.STARTED, round=2)
        log.note(Happening.PAUSED, code="x.y", sentence="No sum.", next_step="Resume.")

    result = follow(monkeypatch, run, events)
    assert result.exit_code == 1
    assert "Begins with round 2 of 3.\nPaused: No sum. Resume." in result.output
    assert "earlier run" not in result.output


def test_launch_of_a_run_that_ended_without_a_word_passes_on_the_superlink_s(
    monkeypatch: pytest.MonkeyPatch, run: CoordinatorDirectory
) -> None:
    error = follow(monkeypatch, run, lambda _: None).exception
    assert isinstance(error, OperatorError)
    assert (error.code, "no such directory" in error.sentence) == ("study.run_ended", True)


def test_whoever_stops_following_does_not_stop_the_study(
    monkeypatch: pytest.MonkeyPatch, run: CoordinatorDirectory
) -> None:
    def interrupted(*_: object, **__: object) -> Iterable[Mapping[str, object]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "follow_events", interrupted)
    result = follow(monkeypatch, run, lambda _: None)
    assert result.exit_code == 0
    assert "the study goes on" in result.output


@pytest.fixture
def run(tmp_path: Path) -> CoordinatorDirectory:
    return prepare_directory(tmp_path / "run")[0]


def status(run: CoordinatorDirectory) -> str:
    return call("study", "status", "--run", run.path)


def test_status_says_who_is_waited_for_and_why(run: CoordinatorDirectory) -> None:
    assert "Not launched yet" in status(run)
    log = ProgressLog(run.progress, SystemClock())
    log.note(Happening.STARTED, round=1)
    log.note(Happening.WAITING, sites=["hospital-b", "hospital-c"])
    log.note(Happening.REFUSED, site="hospital-b", round=0, refusal=Refusal.NOT_PERMITTED.value)
    said = status(run)
    assert "Round 1 of 3 waits for hospitals." in said
    assert f"hospital-b refuses: {Refusal.NOT_PERMITTED.value}. Ask the site's data steward" in said
    assert "Waits for hospital-c." in said
    log.note(Happening.OPENED, site="hospital-b")
    assert "hospital-b" not in status(run)
    for site in SITES:
        log.note(Happening.OPENED, site=site)
    log.note(Happening.LOST, site="hospital-c", why="it went away")
    said = status(run)
    assert "Round 1 of 3 is under way." in said
    assert "hospital-c is gone: it went away." in said
    log.note(Happening.PAUSED, code="x.y", sentence="No sum.", next_step="Resume.")
    said = status(run)
    assert "Paused: No sum. Resume." in said
    assert "hospital-c is gone: it went away." in said


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("ended"), rounds=2)
    federation.run()
    return federation


def test_status_shows_every_round_with_its_figures_and_watching_ends_with_the_study(ended: Federation) -> None:
    said = call("study", "status", "--run", ended.directory.path, "--watch")
    table = [line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0] in {"1", "2", "last"}]
    assert [row[:2] for row in table] == [["1", "4"], ["2", "4"], ["last", "4"]]
    assert "Finished" in said


def test_study_that_has_ended_is_not_launched_again(ended: Federation) -> None:
    before = ended.directory.progress.read_bytes()
    assert code_of("study", "launch", "--run", ended.directory.path, *WHERE) == "study.has_ended"
    assert ended.directory.progress.read_bytes() == before


def test_result_is_made_verified_and_taken_apart(ended: Federation, tmp_path: Path) -> None:
    protection = ended.directory.load().protection
    assert protection is not None
    pem = protection.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(pem)
    out = tmp_path / "result.zip"
    assert "signed by the coordinator's key" in call("study", "result", "--run", ended.directory.path, "--out", out)
    options = ("--coordinator", tmp_path / "public.pem", "--study", ended.directory.path / "study.json")
    said = call("study", "result", "verify", out, *options, "--extract", tmp_path / "files")
    assert "4 hospitals counted in 2 rounds" in said
    assert "No noise was added" in said
    assert (tmp_path / "files" / "model.onnx").read_bytes() == ended.directory.trained_model.read_bytes()
    (tmp_path / "public.pem").write_text("none")
    assert code_of("study", "result", "verify", out, *options) == "result.bad_key"
