"""The parent's side of training: start the child, follow it, start it again when it was killed.

Invariant: each start gets a new, higher fence before the child exists, so of two children only the newest can
write; a child that was killed is tried again from its checkpoint, one that failed is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from gristmill.core.errors import GristmillError, from_body
from gristmill.core.run import Trained, TrainJob
from gristmill.stages.train.attempt import Progress
from gristmill.stages.train.folder import RunFolder, write_atomic
from gristmill.store.jobs import Halted

MAX_ATTEMPTS = 3
_POLL_S = 0.1
_CANCEL_GRACE_S = 30.0
_log = structlog.get_logger()


class Cancelled(Exception):
    """The run was cancelled and its child has ended."""


def train(
    folder: RunFolder,
    job: TrainJob,
    *,
    next_fence: Callable[[], int],
    on_progress: Callable[[Progress], None],
    is_halting: Callable[[], bool] = lambda: False,
    max_attempts: int = MAX_ATTEMPTS,
) -> Trained:
    """Run a training job to its end in child processes.

    Args:
        folder: the run's folder.
        job: what to do; its fence is set here.
        next_fence: allocates a fence, durably.
        on_progress: called with each line the child reports.
        is_halting: whether the server is closing.
        max_attempts: how many children may be killed.

    Raises:
        GristmillError: the child's own error, or that it was killed `max_attempts` times.
        Cancelled: a `cancel` file appeared. Halted: `is_halting` became true; the child is gone.
    """
    folder.create()
    for attempt in range(1, max_attempts + 1):
        done = folder.read_trained()  # an earlier server may have died after its child was done
        if done is None:
            if folder.cancel.exists():
                raise Cancelled
            fence = next_fence()
            write_atomic(folder.fence, str(fence).encode())
            write_atomic(folder.job, msgspec.json.encode(msgspec.structs.replace(job, fence=fence)))
            folder.error.unlink(missing_ok=True)
            child = spawn(["run", str(folder.path)], errors=folder.error, log=folder.log)
            code = _follow(child, folder, fence, on_progress, is_halting)
            done = folder.read_trained() if code == 0 else None
        if done is not None:
            if done.stopped_reason == "cancelled":
                raise Cancelled
            return done
        _raise_unless_killed(folder.error, folder.log, code)
        _log.warning("trainer_killed", run=job.run, fence=fence, signal=-code, attempt=attempt)
    raise GristmillError(
        f"The trainer was killed {max_attempts} times (signal {-code}).",
        hint="Most often memory is short: lower the batch size, or free memory and start the run again.",
    )


def call(arguments: Sequence[str], folder: Path, is_halting: Callable[[], bool] = lambda: False) -> None:
    """Run another verb of the child (`prepare`, `adopt`, `estimate`) to its end; `folder` keeps its log.

    Raises:
        GristmillError: the child's own error, or that it was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors, log = folder / f"{arguments[0]}-error.json", folder / f"{arguments[0]}.log"
    errors.unlink(missing_ok=True)
    child = spawn(arguments, errors=errors, log=log)
    try:
        while (code := child.poll()) is None:
            if is_halting():
                raise Halted
            time.sleep(_POLL_S)
    finally:
        _end(child)
    if code != 0:
        _raise_unless_killed(errors, log, code)
        raise GristmillError(f"The {arguments[0]} child was killed (signal {-code}).", hint=f"See {log}.")


def spawn(arguments: Sequence[str], *, errors: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a child that dies with this thread's process; its output goes to `log`."""
    command = [sys.executable, "-P", "-m", "gristmill.stages.train.child"]
    command += ["--parent", str(os.getpid()), "--errors", str(errors)]
    command += ["--path", os.pathsep.join(entry for entry in sys.path if entry), *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _follow(
    child: subprocess.Popen[bytes],
    folder: RunFolder,
    fence: int,
    on_progress: Callable[[Progress], None],
    is_halting: Callable[[], bool],
) -> int:
    """Pass progress on until the child ends; returns its exit code, negative for a signal."""
    position = 0
    cancelled_at: float | None = None
    try:
        while True:
            code = child.poll()
            position = _read_progress(folder.progress, position, fence, on_progress)
            if code is not None:
                return code
            if is_halting():
                raise Halted
            if cancelled_at is None and folder.cancel.exists():
                cancelled_at = time.monotonic()
            if cancelled_at is not None and time.monotonic() - cancelled_at > _CANCEL_GRACE_S:
                raise Cancelled
            time.sleep(_POLL_S)
    finally:
        _end(child)


def _read_progress(path: Path, position: int, fence: int, on_progress: Callable[[Progress], None]) -> int:
    """Report whole lines after `position`; returns the position after the last of them."""
    if not path.exists():
        return position
    with path.open("rb") as handle:
        handle.seek(position)
        for line in handle:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            try:
                progress = msgspec.json.decode(line, type=Progress)
            except msgspec.DecodeError:  # half a line of a killed attempt, joined to its successor's first
                continue
            if progress.fence == fence:
                on_progress(progress)
    return position


def _raise_unless_killed(errors: Path, log: Path, code: int) -> None:
    if errors.exists():
        document = msgspec.json.decode(errors.read_bytes(), type=dict[str, str | None])
        hint = document.pop("hint") or f"Details are in {log}."
        error = from_body({"error": document})
        error.hint = hint
        raise error
    if code >= 0:
        raise GristmillError(f"The trainer ended with exit code {code}.", hint=f"Details are in {log}.")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
