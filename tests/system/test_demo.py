"""The demonstration as a person runs it: to its end, stopped half-way, and with a part that dies."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest

from agent.trust.model import parse_model
from tests.demo.keys import KINDS
from tests.handbook.pictures import take_picture

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0

pytestmark = pytest.mark.slow


def command(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.demo", "--output", str(output), *arguments]


@contextmanager
def running(output: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demonstration whose output can be followed."""
    process = subprocess.Popen(
        command(output, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines up to the first that contains `text`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} was never said:\n{''.join(lines)}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def finished(output: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What a demonstration that ends well says, and its summary."""
    done = subprocess.run(
        command(output, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((output / "summary.json").read_text(encoding="utf-8"))


def test_four_hospitals_train_one_model_and_the_report_tells_of_it(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    _, summary = finished(tmp_path, "--rounds", "3", "--hospitals", "4")

    assert (summary["hospitals"], summary["rounds"], summary["secure"]) == (4, 3, True)
    assert set(summary["key_kinds"].values()) == {"tpm"}
    assert 0 < summary["seconds"] < time.monotonic() - begin_s
    assert [entry["number"] for entry in summary["log"]] == [1, 2, 3, 4]
    assert summary["log"][-1]["loss"] < summary["log"][0]["loss"]
    # The published FedAvg on this data; an untrained model has an AUC of one half.
    assert summary["overall"]["federated"]["accuracy"] >= 0.748
    assert summary["overall"]["federated"]["auc"] > 0.84
    assert [entry["cohort"] for entry in summary["log"]] == [4, 4, 4, 4]
    # What the hospitals counted at the end, and what onnxruntime says about the file, are the same model.
    assert summary["log"][-1]["loss"] == pytest.approx(summary["overall"]["federated"]["log_loss"], abs=1e-4)
    assert summary["log"][-1]["accuracy"] == pytest.approx(summary["overall"]["federated"]["accuracy"], abs=1e-6)

    result = json.loads((tmp_path / "consortium" / "coordinator" / "result.json").read_text(encoding="utf-8"))
    assert set(result["moments"]) == {"age", "trestbps", "chol", "thalach", "oldpeak"}
    assert result["model_digest"] == summary["model_sha256"]

    # Every hospital's log was exported and verified, and tells of every masked update: sums of fields, three rounds of
    # training, the evaluation.
    assert set(summary["audit_logs"]) == set(summary["key_kinds"])
    for record in summary["audit_logs"].values():
        assert (record["verified"], record["receipts"]) == (True, 5)
        assert 0 < record["cosigned"] <= record["entries"]
        assert Path(record["path"]).read_bytes().count(b"\n") == record["entries"] + 1

    model = Path(summary["model"]).read_bytes()
    assert hashlib.sha256(model).hexdigest() == summary["model_sha256"]
    assert np.abs(parse_model(model).parameters).max() > 0.05
    (chances,) = onnxruntime.InferenceSession(model).run(None, {"x": np.zeros((2, 13), dtype=np.float32)})
    assert chances.shape == (2, 1)

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for word in ("Cleveland", "Long Beach", summary["model_sha256"], "4 audit logs verified", "simulated here"):
        assert word in page
    picture = tmp_path / "report.png"
    take_picture(tmp_path / "report.html", picture, width=800, height=1200)
    assert picture.stat().st_size > 30_000


def test_hospitals_with_four_kinds_of_key_train_one_model_and_a_person_touches_one(tmp_path: Path) -> None:
    said, summary = finished(tmp_path, "--rounds", "3", "--key", ",".join(KINDS))
    assert tuple(summary["key_kinds"].values()) == tuple(KINDS)
    assert [entry["cohort"] for entry in summary["log"]] == [4, 4, 4, 4]
    assert summary["log"][-1]["loss"] < summary["log"][0]["loss"]
    # When the key was made, when it proved itself to registrar and hospital, and when it vouched for the agent.
    assert said.count("Zurich and Basel: the technician touches the security key") == 4
    assert all(centre["enrolled_s"] > 0 for centre in summary["centres"])
    lines = [line.split("] ", 1)[1] for line in said.splitlines() if "Zurich and Basel" in line]
    assert lines.index("Zurich and Basel: waits for a touch") < lines.index("Zurich and Basel: joined")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "keys: 1 TPM, 1 smartcard, 1 security key, 1 software" in page


def test_noise_gives_every_hospital_privacy_and_withholds_scores(tmp_path: Path) -> None:
    said, summary = finished(tmp_path, "--rounds", "3", "--noise", "1.5", "--key", "software")
    result = json.loads((tmp_path / "consortium" / "coordinator" / "result.json").read_text(encoding="utf-8"))
    spent = summary["privacy"]
    accounted = {name: spent[name] for name in ("epsilon", "delta", "rounds")}
    assert result["privacy"] == accounted | {"unit": "hospital"}
    assert 0 < spent["epsilon"] < 100
    assert (spent["rounds"], spent["noise_multiplier"]) == (3, 1.5)
    assert result["moments"] == {}
    assert {entry["loss"] for entry in summary["log"]} == {None}
    assert "round 3/3: scores withheld" in said
    assert math.isfinite(summary["overall"]["federated"]["log_loss"])
    assert f"epsilon {spent['epsilon']:.3g}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_promise_that_so_little_noise_cannot_keep_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--rounds", "500", "--noise", "0.2", "--key", "software"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "500 rounds would cost epsilon" in done.stdout
    assert not (tmp_path / "summary.json").exists()


def test_an_interrupted_demonstration_leaves_nothing_running_and_no_results(tmp_path: Path) -> None:
    with running(tmp_path, "--rounds", "500", "--key", ",".join(KINDS)) as process:
        read_until(process, "round 2/500")
        started = family(process)
        names = Counter(member.name() for member in started)
        assert (names["swtpm"], names["pcscd"]) == (1, 1)
        assert (
            len(started) >= 13
        )  # beside them a SuperLink, a coordinator, four agents, their workers, the readers' room
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "nothing is left running" in read_until(process, "Stopped")[-1]
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "summary.json").exists()


def test_boxes_hold_their_own_records_only_and_a_dead_agent_is_named(tmp_path: Path) -> None:
    with running(tmp_path, "--rounds", "500", "--key", "software") as process:
        read_until(process, "round 2/500")
        for name, own in (("cleveland", "processed.cleveland.data"), ("long-beach", "processed.va.data")):
            assert {path.name for path in (tmp_path / "consortium" / name).rglob("*.data")} == {own}
        victim = next(
            member for member in family(process) if f"{tmp_path}/consortium/budapest" in " ".join(member.cmdline())
        )
        os.kill(victim.pid, signal.SIGKILL)
        said = "".join(read_until(process, "agent of Budapest failed"))
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(60) == 1
    assert "agent.log" in rest
    assert "ended by itself" in said + rest


def test_without_software_tpms_one_line_says_so_and_a_plain_run_is_marked(tmp_path: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        command(tmp_path, "--rounds", "1", "--hospitals", "2", "--plain"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=os.environ | {"PATH": scripts},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith("Using software keys, because swtpm")
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["key_kinds"] == {"cleveland": "software", "budapest": "software"}
    assert summary["secure"] is False
    assert "own update, in the clear" in (tmp_path / "report.html").read_text(encoding="utf-8")
