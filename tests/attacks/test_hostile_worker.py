"""A worker that was taken over answers with whatever it likes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.core.errors import SoftwareError
from agent.core.wire import Refusal
from agent.data.quality import DeclinedError
from agent.training import link
from agent.training.client import RoundResult, TrainingWorker, check_dataset
from agent.training.process import WorkerFailedError
from agent.trust.metrics import training_layout
from tests.unit.training.studies import Case, write_case

PRELUDE = """
import json, math, mmap, os, socket, struct, sys, time
channel = socket.socket(fileno=int(sys.argv[1]))
def receive():
    size = struct.unpack(">I", channel.recv(4, socket.MSG_WAITALL))[0]
    return json.loads(channel.recv(size, socket.MSG_WAITALL))
def send(message):
    raw(json.dumps(message).encode())
def raw(data):
    channel.sendall(struct.pack(">I", len(data)) + data)
_, (data, *others), _, _ = socket.recv_fds(channel, 1, 3)
model, vector = others or (-1, -1)
memory = mmap.mmap(vector, 0) if vector >= 0 else None
report = {"dataset": "ward-3", "rows": 120, "train_rows": 79, "held_out_rows": 41}
receive()
"""
HONEST_START = 'send({"report": report, "layers": []})\nsend({"ready": "cpu"})\nreceive()\n'
Impostor = Callable[[str], None]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch) -> Impostor:
    """Makes every worker run the given program instead."""

    def pose(code: str) -> None:
        def spawn() -> link.ChildLink:
            ours, theirs = socket.socketpair()
            with theirs:
                descriptor = theirs.fileno()
                command = [sys.executable, "-c", PRELUDE + code, str(descriptor)]
                return link.ChildLink(ours, subprocess.Popen(command, pass_fds=[descriptor]))

        monkeypatch.setattr(link, "_spawn", spawn)

    return pose


def _train(case: Case, *, call_timeout_s: float = 20.0, start_timeout_s: float = 20.0) -> RoundResult:
    with TrainingWorker.start(
        case.study, case.model, case.dataset, start_timeout_s=start_timeout_s, call_timeout_s=call_timeout_s
    ) as worker:
        return worker.train(worker.initial_parameters, round_number=1)


def _values(case: Case, *, last: str = "0.0", length: int = 0) -> str:
    count = len(training_layout(case.study).words) + length
    return f'send({{"values": [1.0] * {count - 1} + [{last}]}})'


def test_the_honest_exchange_is_accepted(case: Case, impostor: Impostor) -> None:
    impostor(HONEST_START + _values(case) + "\nreceive()")
    result = _train(case)
    assert result.weight == 79
    assert result.metrics["trained"] == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        'send({"values": []})',
        'send({"values": None})',
        'send({"values": {"trained": 1}})',
        "send({})",
        'raw(b"")',
        'raw(b"[1, 2]")',
        'raw(b"not json")',
        'raw(b"[" * 200_000)',
        "raw(bytes(100))",
        "raw(b'{\"values\": [NaN]}')",
        'channel.sendall(struct.pack(">I", 0xFFFFFFFF) + bytes(1000)); receive()',
        'send({"error": "boo"})',
        'send({"error": {"code": "../../etc", "sentence": "", "step": "", "declined": True}})',
        'send({"error": {"code": "a.b", "sentence": "x" * 100_000, "step": "", "declined": True}})',
        'send({"error": {"code": "a.b", "sentence": "", "step": "", "declined": "yes"}})',
    ],
)
def test_garbage_ends_it(answer: str, case: Case, impostor: Impostor) -> None:
    impostor(HONEST_START + answer)
    with pytest.raises(WorkerFailedError) as caught:
        _train(case)
    assert caught.value.code == "training.worker_garbage"
    assert caught.value.refusal is Refusal.DECLINED


@pytest.mark.parametrize(
    ("last", "length"),
    [("0.0", 1), ("0.0", -1), ("-1.0", 0), ("1e300", 0), ("'1'", 0), ("True", 0), ("None", 0), ("[1.0]", 0)],
)
def test_metric_words_have_a_fixed_number_and_are_counts(
    last: str, length: int, case: Case, impostor: Impostor
) -> None:
    impostor(HONEST_START + _values(case, last=last, length=length) + "\nreceive()")
    with pytest.raises(WorkerFailedError, match="metric words"):
        _train(case)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_an_update_that_is_not_finite_is_never_used(value: str, case: Case, impostor: Impostor) -> None:
    impostor(HONEST_START + f"memory[0:4] = struct.pack('<f', float('{value}'))\n" + _values(case) + "\nreceive()")
    with pytest.raises(WorkerFailedError, match="not finite"):
        _train(case)


def test_an_update_does_not_change_after_it_was_checked(case: Case, impostor: Impostor) -> None:
    go_on = "\nwhile True:\n    memory[0:24] = struct.pack('<6f', *[math.nan] * 6)"
    impostor(HONEST_START + "memory[0:24] = bytes(24)\n" + _values(case) + "\ntime.sleep(1)" + go_on)
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        result = worker.train(worker.initial_parameters, round_number=1)
        deadline_s = time.monotonic() + 20
        while np.isfinite(worker._process.vector).all() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert np.isnan(worker._process.vector).all()
        assert result.update.tolist() == [0.0] * 6


@pytest.mark.parametrize(
    "attempt",
    [
        "os.ftruncate(vector, 0)",  # the agent would crash at its next read
        "os.ftruncate(vector, 1 << 40)",
        "os.write(model, b'x')",
        "os.write(data, b'x')",
        "os.ftruncate(data, 0)",
    ],
)
def test_descriptors_are_read_only_and_shared_memory_keeps_its_size(
    attempt: str, case: Case, impostor: Impostor
) -> None:
    rows = case.dataset.source.read_bytes()
    tell = 'send({"report": report, "layers": []})\nreceive()'
    impostor(f"try:\n    {attempt}\nexcept OSError as error:\n    report['dataset'] = 'refused'\n{tell}")
    with TrainingWorker.start(case.study, case.model, case.dataset) as worker:
        assert worker.report.dataset == "refused"
    assert case.dataset.source.read_bytes() == rows


@pytest.mark.parametrize(
    "answer",
    [
        'send({"report": {"dataset": "ward-3", "rows": -1}})',
        'send({"report": {"dataset": "x" * 1000}})',
        'send({"report": {"dataset": "ward-3", "findings": [{"kind": "new", "sentence": ""}]}})',
        'send({"report": None})',
        'send({"ready": "cpu"})',
    ],
)
def test_a_report_is_checked(answer: str, case: Case, impostor: Impostor) -> None:
    impostor(answer + "\nreceive()")
    for ask in (lambda: _train(case), lambda: check_dataset(case.study, case.dataset)):
        with pytest.raises(WorkerFailedError, match="report"):
            ask()


def test_silence_has_our_limit_not_its_own(case: Case, impostor: Impostor) -> None:
    impostor(HONEST_START + "time.sleep(600)")
    with pytest.raises(WorkerFailedError, match=r"within 0\.5 s") as caught:
        _train(case, call_timeout_s=0.5)
    assert caught.value.code == "training.worker_silent"


def test_a_byte_now_and_then_is_silence_too(case: Case, impostor: Impostor) -> None:
    impostor(HONEST_START + "while True:\n    channel.sendall(bytes(1)); time.sleep(0.2)")
    with pytest.raises(WorkerFailedError) as caught:
        _train(case, call_timeout_s=0.5)
    assert caught.value.code == "training.worker_silent"


def test_silence_at_the_start(case: Case, impostor: Impostor) -> None:
    impostor("time.sleep(600)")
    with pytest.raises(WorkerFailedError) as caught:
        _train(case, start_timeout_s=0.5)
    assert caught.value.code == "training.worker_silent"


@pytest.mark.parametrize(
    ("code", "words"),
    [("os._exit(3)", "exit status 3"), ("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), 9)", "SIGKILL")],
)
@pytest.mark.parametrize("start", ["", HONEST_START], ids=["at the start", "in a call"])
def test_a_crash_is_told_by_its_ending(code: str, words: str, start: str, case: Case, impostor: Impostor) -> None:
    impostor(start + code)
    with pytest.raises(WorkerFailedError, match=words) as caught:
        _train(case)
    assert caught.value.code == "training.worker_died"


def test_a_worker_that_could_not_be_shut_in_is_our_fault_not_the_datas(case: Case, impostor: Impostor) -> None:
    impostor('send({"not_isolated": "no filter"})')
    with pytest.raises(SoftwareError, match="no filter") as caught:
        _train(case)
    assert caught.value.code == "training.not_isolated"
    assert not isinstance(caught.value, DeclinedError)
