"""The training worker as the agent uses it: a real process, from its start to every end that it can have."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agent.core.errors import OperatorError
from agent.data.quality import DeclinedError
from agent.training.client import TrainingWorker
from agent.training.process import WorkerFailedError
from agent.trust.metrics import Moments, cohort_metrics, moments_from_sums
from agent.trust.study import SecureAggregationTerms
from tests.unit.data.tables import requirement, table
from tests.unit.training.graphs import laden, logistic, wide
from tests.unit.training.studies import WIDTH, Case, plan_of, write_case

ENDLESS = plan_of(steps=1_000_000)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


@pytest.fixture
def worker(case: Case) -> Iterator[TrainingWorker]:
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        yield worker


def _gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _until(holds: Callable[[], bool], *, timeout_s: float = 10.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.02)
    return holds()


def test_rounds_teach_the_model_and_the_worker_stays_warm(worker: TrainingWorker) -> None:
    assert (worker.report.train_rows, worker.report.held_out_rows) == (79, 41)
    assert worker.initial_parameters.tolist() == [0.0] * (WIDTH + 1)
    assert worker.wait_ready() in {"cpu", "cuda"}
    parameters = worker.initial_parameters
    losses = []
    for number in range(1, 4):
        result = worker.train(parameters, round_number=number)
        losses.append(cohort_metrics(result.metrics, bins=100).loss)
        assert result.weight == result.metrics["trained"] == 79
        parameters = parameters + result.update
    last = worker.evaluate(parameters)
    assert last.update.shape == (0,)
    assert last.metrics["evaluated"] == 41
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert worker.alive


def test_moments_come_first_where_the_federation_standardises(tmp_path: Path) -> None:
    case = write_case(tmp_path, data=requirement(standardise="federated"))
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        sums = worker.moments()
        moments = moments_from_sums(case.study, sums.metrics)
        with pytest.raises(OperatorError) as caught:
            worker.train(worker.initial_parameters, round_number=1)
        assert caught.value.code == "training.no_moments"
        first = worker.train(worker.initial_parameters, round_number=1, moments=moments)
        other = worker.train(worker.initial_parameters, round_number=1, moments={**moments, "age": Moments(0.0, 1.0)})
    local = write_case(tmp_path)
    with TrainingWorker.start(local.study, local.model, local.dataset) as worker:
        alone = worker.train(worker.initial_parameters, round_number=1)
    # One hospital is its own federation, to within the steps in which sums are counted.
    assert first.update == pytest.approx(alone.update, abs=1e-4)
    assert other.update != pytest.approx(alone.update, abs=1e-2)


def test_a_large_cohort_counts_up_to_the_cap(tmp_path: Path) -> None:
    case = write_case(tmp_path, terms=SecureAggregationTerms(weight_cap=50))
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        result = worker.train(worker.initial_parameters, round_number=1)
    assert result.weight == result.metrics["trained"] == 50


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        (table(rows=5), "data.does_not_fit", "Only 5 rows of 5 can be used"),
        (b"", "data.does_not_fit", "no rows"),
        (table(header="age,age,group,smoker,outcome"), "data.unreadable", "same name"),
        (None, "data.no_source", "No such file"),
    ],
)
def test_a_data_set_that_does_not_fit_is_declined_before_a_round(
    rows: bytes | None, code: str, words: str, tmp_path: Path
) -> None:
    case = write_case(tmp_path, rows=rows)
    if rows is None:
        case.dataset.source.unlink()
    with pytest.raises(DeclinedError, match=words) as caught:
        TrainingWorker.start(case.study, case.model, case.dataset)
    assert caught.value.code == code


def test_a_model_exchanged_on_the_disk_is_refused(case: Case) -> None:
    case.model.write_bytes(logistic(WIDTH, ending="Identity"))
    with pytest.raises(OperatorError) as caught:
        TrainingWorker.start(case.study, case.model, case.dataset)
    assert caught.value.code == "model.wrong_digest"
    case.model.unlink()
    with pytest.raises(OperatorError) as caught:
        TrainingWorker.start(case.study, case.model, case.dataset)
    assert caught.value.code == "model.no_file"


def test_a_model_that_does_not_suit_the_fields_fails_before_data_are_used(tmp_path: Path) -> None:
    case = write_case(tmp_path, model=logistic(WIDTH + 1))
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        with pytest.raises(OperatorError, match="5 values a row") as caught:
            worker.wait_ready()
        assert caught.value.code == "model.wrong_width"
        assert not isinstance(caught.value, DeclinedError)
        with pytest.raises(WorkerFailedError):
            worker.train(worker.initial_parameters, round_number=1)


def test_failing_in_training_leaves_the_worker_alive(tmp_path: Path) -> None:
    plan = plan_of(loss="mean-squared-error", learning_rate=10, steps=400)
    case = write_case(tmp_path, model=logistic(WIDTH, ending="Identity"), plan=plan)
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        with pytest.raises(DeclinedError) as caught:
            worker.train(worker.initial_parameters, round_number=1)
        assert caught.value.code == "training.diverged"
        assert worker.evaluate(worker.initial_parameters).metrics["evaluated"] == 41


def test_running_out_of_memory_is_declined_and_survived(tmp_path: Path) -> None:
    case = write_case(tmp_path, rows=table(rows=300), model=wide(14_000_001, width=WIDTH), plan=plan_of(batch_size=200))
    with TrainingWorker.start(case.study, case.model, case.dataset, memory_bytes=2000 << 20) as worker:
        worker.wait_ready()
        with pytest.raises(DeclinedError) as caught:
            worker.train(worker.initial_parameters, round_number=1)
        assert caught.value.code == "training.out_of_memory"
        assert worker.alive


def test_it_outlives_the_thread_that_started_it(case: Case) -> None:
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(TrainingWorker.start, case.study, case.model, case.dataset).result()
    with worker:
        time.sleep(0.3)
        assert worker.evaluate(worker.initial_parameters).metrics["evaluated"] == 41


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in mid-training"])
def test_it_ends_with_its_parent(busy: bool, tmp_path: Path) -> None:
    code = f"""
    import sys
    from pathlib import Path
    from agent.training.client import TrainingWorker
    from tests.unit.training.studies import plan_of, write_case
    case = write_case(Path({str(tmp_path)!r}), plan=plan_of(steps=1_000_000))
    worker = TrainingWorker.start(case.study, case.model, case.dataset)
    worker.wait_ready()
    print(worker._process._link.process.pid, flush=True)
    worker.train(worker.initial_parameters, round_number=1) if {busy} else sys.stdin.read()
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert not _gone(pid)
        parent.kill()
    assert _until(lambda: _gone(pid), timeout_s=5)


def test_the_client_loads_neither_torch_nor_a_data_library() -> None:
    code = """
    import sys
    import agent.training.client
    loaded = {"torch", "onnx", "onnxruntime", "pandas", "pyarrow", "sklearn", "pyseccomp"} & set(sys.modules)
    assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_study_opens_before_torch_is_loaded_and_a_million_parameters_cost_little(tmp_path: Path) -> None:
    case = write_case(tmp_path, model=laden(1_000_000, width=WIDTH), plan=plan_of(steps=1))
    started_s = time.monotonic()
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        opened_s = time.monotonic() - started_s
        worker.wait_ready()
        ready_s = time.monotonic() - started_s
        assert opened_s < ready_s / 1.3
        times_s = []
        for number in range(1, 9):
            started_s = time.monotonic()
            result = worker.train(worker.initial_parameters, round_number=number)
            times_s.append(time.monotonic() - started_s)
        assert result.update.shape == (1_000_000,)
    print(f"opened {opened_s:.2f} s, ready {ready_s:.2f} s, call {min(times_s) * 1e3:.1f} ms")  # noqa: T201
    assert min(times_s) < 0.1
