"""Trainer children: resumed when killed, ended when cancelled or orphaned, errors without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gristmill.core.artifact import load_verified
from gristmill.core.errors import GristmillError
from gristmill.core.rows import write_parquet
from gristmill.core.run import Trained, TrainJob
from gristmill.stages.train.attempt import Progress
from gristmill.stages.train.folder import RunFolder
from gristmill.stages.train.start import Cancelled, call, spawn, train
from gristmill.store.jobs import Halted
from gristmill.testing.toy import ToyTrainer, toy_base, toy_plugins

ROWS = [{"text": f"word{i} and more", "label": "ab"[i % 2]} for i in range(8)]


@pytest.fixture(autouse=True)
def _plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_plugins(tmp_path_factory.mktemp("plugins")):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A fresh run folder."""
    return RunFolder(tmp_path / "run")


def job_of(folder: RunFolder, max_seconds: float = 0.0, **hyper: Any) -> TrainJob:
    """A job on eight rows, one of them repeated as the test part."""
    folder.create()
    for part, rows in (("train", ROWS), ("test", ROWS[:1])):
        write_parquet(rows, folder.path / f"{part}.parquet")
    return TrainJob(
        run="run_1",
        fence=0,
        task="toy",
        trainer="toy",
        base="base",
        base_path=str(toy_base(folder.path / "base")),
        parts={part: str(folder.path / f"{part}.parquet") for part in ("train", "test")},
        hyper=ToyTrainer().check(hyper),
        seed=1,
        device="cpu",
        max_seconds=max_seconds,
        work_dir=str(folder.work),
        artifact_dir=str(folder.artifact),
    )


def run(folder: RunFolder, job: TrainJob, **options: Any) -> tuple[Trained, list[Progress]]:
    """Train to the end; returns what was left and the progress seen."""
    fences = count(folder.read_fence() + 1)
    seen: list[Progress] = []
    trained = train(folder, job, next_fence=lambda: next(fences), on_progress=seen.append, **options)
    return trained, seen


def steps_done(folder: RunFolder) -> list[tuple[int, int]]:
    """(fence, step) of each step a trainer began."""
    log = folder.work / "steps.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def wait_for(condition: Any, timeout_s: float = 20.0) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_leaves_artefact_replay_and_outputs(folder: RunFolder) -> None:
    """The parent would have nothing to evaluate, or torch would have to live in the server."""
    trained, seen = run(folder, job_of(folder))
    assert trained.steps == 8
    assert trained.stopped_reason is None
    assert trained.environment["python"]
    assert load_verified(folder.artifact).engine == "toy"
    assert len(folder.read_replay()) == 8
    assert folder.read_replay()[0].output["label"] == "a"
    assert folder.read_outputs("baseline") == [{"label": "a", "probs": {"a": 1.0}}]
    assert folder.read_outputs("base") == [{"label": "none", "probs": {"none": 1.0}}]
    assert [p.stage for p in seen if p.done == p.total] == ["estimate", "baseline", "train", "export"]


def test_a_killed_child_resumes_from_its_checkpoint(folder: RunFolder) -> None:
    """`kill -9` of a trainer would lose the run or train everything twice."""
    trained, _ = run(folder, job_of(folder, kill_at=5))
    assert trained.steps == 8
    done = steps_done(folder)
    assert [step for fence, step in done if fence == 1] == [0, 1, 2, 3, 4, 5]
    assert [step for fence, step in done if fence == 2] == [5, 6, 7]


def test_a_child_that_is_always_killed_gives_up(folder: RunFolder) -> None:
    """A run that the kernel kills for want of memory would be started for ever."""
    with pytest.raises(GristmillError, match=r"killed 3 times \(signal 9\)"):
        run(folder, job_of(folder, kill_at=2, kill_always=True))
    assert {fence for fence, _ in steps_done(folder)} == {1, 2, 3}


def test_an_error_is_told_without_traceback_or_data(folder: RunFolder) -> None:
    """A user would see a traceback, or the text of somebody's data."""
    with pytest.raises(GristmillError) as caught:
        run(folder, job_of(folder, fail_at=3))
    assert caught.value.message == "The trainer failed with ZeroDivisionError."
    assert "secret" not in str(caught.value.body())
    assert "Traceback" in folder.log.read_text()
    assert {fence for fence, _ in steps_done(folder)} == {1}


def test_an_unknown_trainer_keeps_its_code(folder: RunFolder) -> None:
    """A missing plug-in or package would be reported as an internal error, without its hint."""
    job = msgspec.structs.replace(job_of(folder), trainer="tay")
    with pytest.raises(GristmillError) as caught:
        run(folder, job)
    assert caught.value.code == "not_found"
    assert caught.value.hint == "Did you mean 'toy'?"


def test_the_cap_on_seconds_stops_at_a_checkpoint(folder: RunFolder) -> None:
    """A run would spend more than its caps allow."""
    trained, _ = run(folder, job_of(folder, max_seconds=0.3, step_s=0.1, epochs=50))
    assert trained.stopped_reason == "max_minutes"
    assert 0 < trained.steps < 400
    assert load_verified(folder.artifact)


def test_cancel_ends_the_child(folder: RunFolder) -> None:
    """A cancelled run would go on spending."""
    job = job_of(folder, step_s=0.05, epochs=100)
    threading.Timer(1.5, folder.cancel.touch).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        run(folder, job)
    assert time.monotonic() - started < 20


def test_halting_ends_the_child_and_leaves_it_resumable(folder: RunFolder) -> None:
    """Closing the server would hang until training is done, or lose what was trained."""
    job = job_of(folder, step_s=0.05)
    with pytest.raises(Halted):
        run(folder, job, is_halting=lambda: len(steps_done(folder)) > 3)
    before = len(steps_done(folder))
    trained, _ = run(folder, job)
    assert trained.steps == 8
    assert len(steps_done(folder)) - before <= 6


def test_a_done_child_is_not_started_again(folder: RunFolder) -> None:
    """A server that died between the child's end and its own note of it would train twice."""
    run(folder, job_of(folder))
    before = steps_done(folder)
    run(folder, job_of(folder))
    assert steps_done(folder) == before


def test_a_child_with_an_old_fence_is_refused(folder: RunFolder) -> None:
    """A child that started late, after its successor, would write over it."""
    job = msgspec.structs.replace(job_of(folder), fence=1)
    folder.job.write_bytes(msgspec.json.encode(job))
    folder.fence.write_text("2")
    child = spawn(["run", str(folder.path)], errors=folder.error, log=folder.log)
    assert child.wait(timeout=30) == 1
    assert msgspec.json.decode(folder.error.read_bytes())["code"] == "conflict"
    assert not folder.trained.exists()


def test_a_child_dies_with_its_parent(folder: RunFolder, tmp_path: Path) -> None:
    """After `kill -9` of the server its trainer would go on, beside the one the next server starts."""
    job = job_of(folder, step_s=0.05, epochs=500)
    folder.job.write_bytes(msgspec.json.encode(msgspec.structs.replace(job, fence=1)))
    folder.fence.write_text("1")
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from gristmill.stages.train.start import spawn\n"
        f"folder = Path({str(folder.path)!r})\n"
        "child = spawn(['run', str(folder)], errors=folder / 'error.json', log=folder / 'child.log')\n"
        "(folder / 'pid').write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_for(lambda: steps_done(folder))
    pid = int((folder.path / "pid").read_text())
    assert is_alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(pid), 5)


def test_other_verbs_tell_their_errors(tmp_path: Path) -> None:
    """A model that cannot be adopted would fail without a reason."""
    with pytest.raises(GristmillError, match="FileNotFoundError"):
        call(["adopt", "toy", "toy", "x", str(tmp_path / "none"), str(tmp_path)], tmp_path / "log")
