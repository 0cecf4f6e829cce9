"""The trainer child, `python -m gristmill.stages.train.child run FOLDER`: the only place that trains.

Invariant: it holds the run folder's lock while it lives, ends with its parent, and leaves either
`trained.json` or `error.json`; torch and scikit-learn are imported here and never in the server.
Other verbs, for the same reason: `prepare` a base model, `adopt` a foreign one, `estimate` a run.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import importlib.metadata
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from gristmill.core.clock import Clock, SystemClock
from gristmill.core.dataset import Row
from gristmill.core.errors import Conflict, GristmillError
from gristmill.core.run import Trained, TrainJob
from gristmill.ports import trainer as port
from gristmill.ports.discovery import find, load
from gristmill.stages.train.attempt import Progress, RunAttempt, append_progress
from gristmill.stages.train.folder import Replay, RunFolder, write_atomic, write_lines
from gristmill.stages.train.orphan import die_with_parent

_LOCK_WAIT_S = 10.0
_OPENMP_SPINS = "1000"
"""Spins of an OpenMP thread before it sleeps: the default spins for milliseconds, which costs several times
a run on a busy machine; this costs a few per cent on an idle one. Source: libgomp manual."""
_LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxruntime", "xllamacpp", "numpy", "scikit-learn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0 or 1 and a failure is told in the error file."""
    arguments = _parser().parse_args(argv)
    die_with_parent(arguments.parent)
    os.putenv("GOMP_SPINCOUNT", _OPENMP_SPINS)  # read by OpenMP when torch loads it
    sys.path += [entry for entry in arguments.path.split(os.pathsep) if entry not in sys.path]
    try:
        arguments.verb(arguments)
    except GristmillError as error:
        traceback.print_exc()
        _tell(arguments.errors, error)
    except Exception as error:  # noqa: BLE001 - the surface of this process: the log keeps the traceback
        traceback.print_exc()
        _tell(arguments.errors, _translated(error))
    else:
        return 0
    return 1


def run_job(folder: RunFolder, clock: Clock) -> None:
    """Train the job in `folder`, resuming from its newest checkpoint, and leave `trained.json`.

    Raises:
        Conflict: another attempt holds the folder or has superseded this one.
    """
    job = folder.read_job()
    with _locked(folder, clock):
        attempt = RunAttempt(folder, job, clock.monotonic_s)
        attempt.check_fence()
        attempt.clear_partials()
        trainer = load(find("trainers", job.trainer))
        parts = _read_parts(job)
        _estimate(folder, job, trainer, parts["train"])
        _baseline(folder, job, parts)
        attempt = RunAttempt(folder, job, clock.monotonic_s)  # training seconds begin here
        trained = trainer.train(job, parts, attempt)
        attempt.check_fence()
        _leave(folder, trained, attempt)


def _read_parts(job: TrainJob) -> dict[str, list[Row]]:
    from gristmill.core.rows import read_parquet

    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    return parts | {part: read_parquet(Path(path)) for part, path in job.parts.items()}


def _estimate(folder: RunFolder, job: TrainJob, trainer: port.Trainer, rows: list[Row]) -> None:
    estimate = trainer.estimate(job, rows)
    write_atomic(folder.estimate, msgspec.json.encode(estimate))
    metrics = {"train_s": estimate.train_s, "trained_tokens": float(estimate.trained_tokens)}
    append_progress(folder, Progress(job.fence, "estimate", 1, 1, 0.0, metrics))


def _baseline(folder: RunFolder, job: TrainJob, parts: dict[str, list[Row]]) -> None:
    path = folder.outputs("baseline")
    if path.exists():
        return
    append_progress(folder, Progress(job.fence, "baseline", 0, 1, 0.0))
    outputs = load(find("tasks", job.task)).baseline(parts["train"], parts["test"])
    if outputs is not None:
        write_lines(path, outputs)
    append_progress(folder, Progress(job.fence, "baseline", 1, 1, 0.0))


def _leave(folder: RunFolder, trained: port.Trained, attempt: RunAttempt) -> None:
    write_lines(folder.replay, [Replay(op, output) for op, output in trained.replay])
    if trained.base_outputs is not None:
        write_lines(folder.outputs("base"), trained.base_outputs)
    record = Trained(
        train_s=attempt.train_s(),
        export_s=attempt.export_s(),
        steps=trained.steps,
        epochs=trained.epochs,
        metrics=trained.metrics,
        trained_tokens=trained.trained_tokens,
        stopped_reason=trained.stopped_reason,
        device=trained.device,
        environment=_environment(),
    )
    write_atomic(folder.trained, msgspec.json.encode(record))


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _locked(folder: RunFolder, clock: Clock) -> IO[str]:
    """The folder's lock file, locked until it is closed; a dying predecessor is given a moment."""
    handle = folder.lock.open("w")
    deadline = clock.monotonic_s() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic_s() > deadline:
                handle.close()
                raise Conflict(f"Another attempt still holds {folder.path.name}.") from None
            time.sleep(0.1)
        else:
            return handle


def _translated(error: Exception) -> GristmillError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return GristmillError("The disk is full.", hint="Free some space and start the run again.")
    if isinstance(error, MemoryError):
        return GristmillError("The trainer ran out of memory.", hint="Lower the batch size or max_tokens.")
    return GristmillError(f"The trainer failed with {type(error).__name__}.")


def _tell(path: Path, error: GristmillError) -> None:
    document: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    write_atomic(path, msgspec.json.encode(document | {"param": error.param}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gristmill.stages.train.child")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--errors", type=Path, required=True, help="file that tells of a failure")
    parser.add_argument("--path", default="", help="the parent's import path: its plug-ins are ours")
    verbs = parser.add_subparsers(required=True)
    for name, names, verb in (
        ("run", ("folder",), lambda a: run_job(RunFolder(Path(a.folder)), SystemClock())),
        ("estimate", ("folder",), _run_estimate),
        ("prepare", ("trainer", "source", "folder"), _run_prepare),
        ("adopt", ("trainer", "task", "base", "base_path", "artifact_dir"), _run_adopt),
    ):
        sub = verbs.add_parser(name)
        for argument in names:
            sub.add_argument(argument)
        sub.set_defaults(verb=verb)
    return parser


def _run_estimate(arguments: argparse.Namespace) -> None:
    folder = RunFolder(Path(arguments.folder))
    job = folder.read_job()
    _estimate(folder, job, load(find("trainers", job.trainer)), _read_parts(job)["train"])


def _run_prepare(arguments: argparse.Namespace) -> None:
    trainer = load(find("trainers", arguments.trainer))
    trainer.prepare_base(Path(arguments.source), Path(arguments.folder))


def _run_adopt(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.artifact_dir)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = load(find("trainers", arguments.trainer))
    trainer.adopt(arguments.task, arguments.base, Path(arguments.base_path), folder)


if __name__ == "__main__":
    sys.exit(main())
