"""Attacks on the way from an approved data set to the worker: whoever can write where it lies has another one used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.data import catalog
from agent.data.catalog import Dataset
from agent.data.fingerprint import FileDigests
from agent.data.quality import DeclinedError
from agent.federation.studies import StudyShelf
from agent.training import client, process
from agent.training.client import TrainingWorker
from agent.trust.study import Study
from tests.simulators.clock import SetClock
from tests.simulators.hospital import install_study, study_json
from tests.simulators.permitting import PermittingGate
from tests.simulators.trainer import PlayedWorker
from tests.unit.data.tables import table
from tests.unit.training.studies import Case, write_case

SITE = "hospital-a"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


def exchange(dataset: Dataset) -> None:
    """Put another file in the place of the data set's."""
    other = dataset.source.with_name("other.csv")
    other.write_bytes(table(rows=100))
    other.replace(dataset.source)


def test_the_approved_data_set_is_opened(case: Case) -> None:
    approved = FileDigests().dataset_digest(case.dataset)
    with TrainingWorker.start(case.study, case.model, case.dataset, approved, device="cpu") as worker:
        assert worker.report.rows


def test_data_set_exchanged_between_decision_and_opening(case: Case) -> None:
    approved = FileDigests().dataset_digest(case.dataset)
    exchange(case.dataset)
    with pytest.raises(DeclinedError) as refused:
        TrainingWorker.start(case.study, case.model, case.dataset, approved)
    assert refused.value.code == "data.not_approved"


def test_data_set_put_back_once_the_worker_has_another(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the path finds the approved file; the worker was handed another one in between."""
    approved, kept = FileDigests().dataset_digest(case.dataset), case.dataset.source.with_name("kept.csv")
    shutil.copyfile(case.dataset.source, kept)
    open_source = catalog.open_source

    def exchanged(dataset: Dataset) -> int:
        exchange(dataset)
        descriptor = open_source(dataset)
        kept.replace(dataset.source)
        return descriptor

    monkeypatch.setattr(client, "open_source", exchanged)
    with pytest.raises(DeclinedError) as refused:
        TrainingWorker.start(case.study, case.model, case.dataset, approved)
    assert refused.value.code == "data.not_approved"
    assert FileDigests().dataset_digest(case.dataset) == approved


def test_data_set_written_into_while_the_worker_reads_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    approved, start = FileDigests().dataset_digest(case.dataset), process.start_process

    def written(*task: object) -> object:
        with case.dataset.source.open("ab") as stream:
            stream.write(table(rows=1).splitlines(keepends=True)[-1])
        return start(*task)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "start_process", written)
    with pytest.raises(DeclinedError) as refused:
        TrainingWorker.start(case.study, case.model, case.dataset, approved)
    assert refused.value.code == "data.not_approved"


def test_the_worker_is_told_which_data_set_was_approved(tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
    install_study(tmp_path / "studies", study_json())
    gate, asked = PermittingGate(), list[str]()

    def opened(study: Study, model: Path, dataset: Dataset, approved: str) -> PlayedWorker:
        asked.append(approved)
        return PlayedWorker(study)

    shelf = StudyShelf(
        tmp_path / "studies", tmp_path / "catalog.toml", site=SITE, open_worker=opened, clock=SetClock(), gate=gate
    )
    (name,) = (path.name for path in (tmp_path / "studies").iterdir())
    shelf.run_of(name, on_close=lambda _: None)
    assert asked == [gate.dataset_digest]
