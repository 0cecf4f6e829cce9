"""`kill -9` of the server during a run: the next server goes on at the step, from the checkpoint, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gristmill.app.pipeline.launch import add_dataset
from gristmill.app.pipeline.runs import create_run, run_folder
from gristmill.app.platform import Platform
from gristmill.app.settings import Settings
from gristmill.core.recipe import Recipe
from gristmill.stages.registry import queries as releases
from gristmill.stages.train import queries

SERVER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from gristmill.app.pipeline.worker import Worker
from gristmill.app.platform import Platform
from gristmill.app.settings import Settings

with Platform(Path({home!r}), Settings(hourly_rate="3.60")) as platform:
    worker = Worker(platform)
    worker.start()
    print("state", worker.wait({run!r}).state, flush=True)
    worker.close()
"""


def server(home: Path, run_id: str) -> subprocess.Popen[str]:
    """A process that works on the home's runs until `run_id` has ended."""
    path = [entry for entry in sys.path if entry]
    script = SERVER.format(path=path, home=str(home), run=run_id)
    command = [sys.executable, "-P", "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_server_resumes_its_run_once(
    tmp_path: Path, plugins: Path, product: Callable[..., Recipe], kills: int
) -> None:
    """A power cut would lose hours of training, or register and bill its model twice."""
    home = tmp_path / "home"
    recipe = product({"step_s": 0.1, "epochs": 3})
    with Platform(home, Settings()) as platform:
        version = add_dataset(platform, recipe, tmp_path / "recipe")
        run = create_run(platform, recipe, version, alias="production")
        steps = run_folder(platform, run.id).work / "steps.log"
    for _ in range(kills):
        before = len(lines(steps))
        process = server(home, run.id)
        deadline = time.monotonic() + 60
        while len(lines(steps)) < before + 6:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        at_kill = len(lines(steps))
        time.sleep(1.0)
        assert len(lines(steps)) <= at_kill + 1, "the trainer outlived its server"
    out, errors = server(home, run.id).communicate(timeout=120)
    assert out.endswith("state succeeded\n"), errors
    assert "Traceback" not in errors
    fences = [line.split() for line in lines(steps)]
    begun = {fence: next(int(step) for f, step in fences if f == fence) for fence, _ in fences}
    assert len(begun) == kills + 1
    assert list(begun.values()) == sorted(begun.values())
    assert begun[str(kills + 1)] > 0, "it began from nothing"
    assert len(fences) <= 36 + kills, "steps were done again that a checkpoint held"
    with Platform(home, Settings()) as platform, platform.db.read() as connection:
        [release] = releases.list_releases(connection)
        assert releases.current(connection, "desk") == release
        assert queries.get_run(connection, run.id).facts["trained"]["steps"] == 36
        groups = connection.exec_driver_sql("SELECT count(*) FROM posting_group").scalar_one()
        assert groups == 1
