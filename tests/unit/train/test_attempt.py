"""Checkpoints, fences, caps and progress of an attempt."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gristmill.core.errors import Conflict
from gristmill.core.run import TrainJob
from gristmill.stages.train.attempt import RunAttempt
from gristmill.stages.train.folder import RunFolder

JOB = TrainJob(
    run="run_1",
    fence=1,
    task="toy",
    trainer="toy",
    base="b",
    base_path="",
    parts={},
    hyper={},
    seed=1,
    device="cpu",
    max_seconds=0.0,
    work_dir="",
    artifact_dir="",
)


class Ticker:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Seconds now."""
        return self.now_s


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder whose newest fence is 1."""
    made = RunFolder(tmp_path / "run")
    made.create()
    made.fence.write_text("1")
    return made


def write(folder: Path) -> None:
    """A checkpoint's content."""
    (folder / "state").write_text("whole")


def test_checkpoint_is_whole_or_absent(folder: RunFolder) -> None:
    """A trainer killed while writing would resume from half a checkpoint."""
    attempt = RunAttempt(folder, JOB, Ticker())
    attempt.save(1, write)

    def broken(path: Path) -> None:
        (path / "state").write_text("ha")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        attempt.save(2, broken)
    found = attempt.latest()
    assert found is not None
    assert found[0] == 1
    assert (found[1] / "state").read_text() == "whole"
    attempt.clear_partials()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-1"]


def test_only_the_last_two_are_kept(folder: RunFolder) -> None:
    """Checkpoints of a long run would fill the disk, or 10 would sort before 9 and the wrong one be kept."""
    attempt = RunAttempt(folder, JOB, Ticker())
    for step in (8, 9, 10):
        attempt.save(step, write)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-10", "step-9"]
    assert attempt.latest() == (10, folder.checkpoints / "step-10")


def test_stale_fence_writes_nothing(folder: RunFolder) -> None:
    """A trainer that a restarted server has replaced would overwrite its successor's work."""
    attempt = RunAttempt(folder, JOB, Ticker())
    folder.fence.write_text("2")
    with pytest.raises(Conflict, match="superseded by attempt 2"):
        attempt.save(1, write)
    with pytest.raises(Conflict):
        attempt.progress("train", 1, 2, {})
    assert attempt.latest() is None
    assert not folder.progress.exists()


def test_fence_is_checked_again_before_the_rename(folder: RunFolder) -> None:
    """A write that took long enough to be superseded meanwhile would still land."""
    attempt = RunAttempt(folder, JOB, Ticker())

    def slow(path: Path) -> None:
        write(path)
        folder.fence.write_text("2")

    with pytest.raises(Conflict):
        attempt.save(1, slow)
    assert attempt.latest() is None


def test_seconds_add_up_over_attempts(folder: RunFolder) -> None:
    """A run that is killed again and again would never reach its cap on minutes or money."""
    ticker = Ticker()
    job = msgspec.structs.replace(JOB, max_seconds=10.0, cap="max_cost")
    first = RunAttempt(folder, job, ticker)
    ticker.now_s += 6
    first.progress("train", 1, 9, {})
    assert first.stopped_reason() is None
    second = RunAttempt(folder, job, ticker)
    assert second.train_s() == pytest.approx(6.0)
    ticker.now_s += 4
    assert second.stopped_reason() == "max_cost"


def test_cancel_comes_before_caps_and_export_is_not_training(folder: RunFolder) -> None:
    """A cancelled run would go on, or its export would be sold as training time."""
    ticker = Ticker()
    attempt = RunAttempt(folder, JOB, ticker)
    assert attempt.stopped_reason() is None
    ticker.now_s += 5
    attempt.progress("export", 0, 1, {})
    ticker.now_s += 2
    assert attempt.train_s() == pytest.approx(5.0)
    assert attempt.export_s() == pytest.approx(2.0)
    folder.cancel.touch()
    assert attempt.stopped_reason() == "cancelled"


def test_progress_is_throttled_but_keeps_its_edges(folder: RunFolder) -> None:
    """A fast trainer would spend its time writing progress, or the last step would never be seen."""
    ticker = Ticker()
    attempt = RunAttempt(folder, JOB, ticker)
    for done in range(1, 101):
        ticker.now_s += 0.001
        attempt.progress("train", done, 100, {})
    lines = [msgspec.json.decode(line) for line in folder.progress.read_bytes().splitlines()]
    assert [line["done"] for line in lines] == [1, 100]
