"""A worker is the same to the agent whether it is its child or the service manager's."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.core.errors import OperatorError
from agent.data.quality import DeclinedError
from agent.data.tabular import load_table
from agent.training.client import TrainingWorker, check_dataset
from agent.training.link import ChildLink
from agent.training.process import WorkerFailedError
from agent.training.trainer import Trainer
from agent.trust.model import parse_model
from tests.simulators.worker_door import WorkerDoor
from tests.unit.data.tables import table
from tests.unit.training.graphs import logistic
from tests.unit.training.studies import WIDTH, Case, plan_of, write_case

pytestmark = pytest.mark.slow
ENDLESS = plan_of(steps=1_000_000)
END_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers come from.

    Args:
        door: The service manager's; None where they are children.
    """

    door: WorkerDoor | None

    @property
    def address(self) -> Path | None:
        """As the configuration names it."""
        return None if self.door is None else self.door.address

    def start(self, case: Case, *, call_timeout_s: float = 60.0) -> TrainingWorker:
        """A worker for a case."""
        return TrainingWorker.start(
            case.study, case.model, case.dataset, call_timeout_s=call_timeout_s, address=self.address
        )

    def pid(self, worker: TrainingWorker) -> int:
        """Its process; of the service manager's, the newest."""
        if self.door is not None:
            return self.door.processes[-1].pid
        link = worker._process._link
        assert isinstance(link, ChildLink)
        return link.process.pid


@pytest.fixture(params=["child", "service"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "child":
        yield Place(None)
        return
    with WorkerDoor(tmp_path / "worker.sock") as door:
        yield Place(door)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


def ended(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has waited for yet has ended too."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        watch = os.pidfd_open(pid)
        try:
            return bool(select.select([watch], [], [], END_LIMIT_S)[0])
        finally:
            os.close(watch)
    return True


def test_it_trains_what_its_parts_train_here_and_stays_warm(place: Place, case: Case) -> None:
    model = parse_model(case.model.read_bytes())
    loaded, _ = load_table(case.dataset.source.read_bytes(), case.dataset, case.study.data)
    assert loaded is not None
    trainer = Trainer(model, case.study.plan)
    batch = trainer.batch(loaded.parts()[0].inputs, loaded.parts()[0].labels)
    with place.start(case) as worker:
        pid = place.pid(worker)
        for number in (1, 2):
            result = worker.train(model.parameters, round_number=number)
            assert result.update.tobytes() == trainer.train(model.parameters, batch, round_number=number).tobytes()
        assert worker.evaluate(model.parameters).metrics["evaluated"] == 41
        assert "seccomp" in worker.layers
        assert worker.alive
        assert place.pid(worker) == pid
    assert ended(pid)
    assert not worker.alive


def test_each_study_has_a_process_of_its_own(place: Place, case: Case) -> None:
    with place.start(case) as one:
        first = place.pid(one)
        with place.start(case) as other:
            assert place.pid(other) != first
        assert one.evaluate(one.initial_parameters).metrics["evaluated"] == 41


def test_a_data_set_is_checked_without_a_model(place: Place, case: Case) -> None:
    report = check_dataset(case.study, case.dataset, address=place.address)
    assert (report.train_rows, report.held_out_rows) == (79, 41)


def test_what_does_not_fit_is_declined_and_a_wrong_model_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DeclinedError) as declined:
        place.start(write_case(tmp_path, rows=table(rows=5)))
    assert declined.value.code == "data.does_not_fit"
    case = write_case(tmp_path)
    case.model.write_bytes(logistic(WIDTH, ending="Identity"))
    with pytest.raises(OperatorError) as refused:
        place.start(case)
    assert refused.value.code == "model.wrong_digest"


def test_one_killed_in_mid_training_is_noticed_and_a_new_one_serves(place: Place, case: Case, tmp_path: Path) -> None:
    (tmp_path / "endless").mkdir()
    with place.start(write_case(tmp_path / "endless", plan=ENDLESS)) as worker:
        worker.wait_ready()
        threading.Timer(0.3, os.kill, (place.pid(worker), signal.SIGKILL)).start()
        with pytest.raises(WorkerFailedError) as caught:
            worker.train(worker.initial_parameters, round_number=1)
        assert caught.value.code == "training.worker_died"
        assert not worker.alive
    with place.start(case) as again:
        assert again.train(again.initial_parameters, round_number=1).weight == 79


def test_one_that_hangs_costs_our_time_limit_and_ends(place: Place, case: Case) -> None:
    with place.start(case, call_timeout_s=0.3) as worker:
        worker.wait_ready()
        pid = place.pid(worker)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerFailedError) as caught:
            worker.evaluate(worker.initial_parameters)
        assert caught.value.code == "training.worker_silent"
    with suppress(ProcessLookupError):  # a child was killed
        os.kill(pid, signal.SIGCONT)
    assert ended(pid)


def test_closing_from_another_thread_ends_a_call_and_the_process(place: Place, tmp_path: Path) -> None:
    worker = place.start(write_case(tmp_path, plan=ENDLESS))
    worker.wait_ready()
    pid = place.pid(worker)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(worker.train, worker.initial_parameters, round_number=1)
        while psutil.Process(pid).status() != psutil.STATUS_RUNNING:
            time.sleep(0.01)
        worker.close()
        with pytest.raises(WorkerFailedError):
            call.result(timeout=5)
    assert ended(pid)
    worker.close()


def test_a_vector_of_another_length_never_reaches_it(place: Place, case: Case) -> None:
    with place.start(case) as worker:
        with pytest.raises(OperatorError) as caught:
            worker.train(np.zeros(7, np.float32), round_number=1)
        assert caught.value.code == "training.wrong_vector"
        assert worker.evaluate(worker.initial_parameters).metrics["evaluated"] == 41
