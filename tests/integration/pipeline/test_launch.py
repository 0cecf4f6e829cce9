"""Runs and launches on a real home: every link made, every refusal in its state, every step repeatable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gristmill.app.pipeline.engines import served_model
from gristmill.app.pipeline.execute import execute_run
from gristmill.app.pipeline.imports import import_release
from gristmill.app.pipeline.launch import add_dataset, launch
from gristmill.app.pipeline.runs import cancel_run, cap, create_run, machine_cost, run_folder
from gristmill.app.pipeline.worker import Worker, error_of
from gristmill.app.platform import Platform
from gristmill.core.artifact import load_verified
from gristmill.core.errors import Conflict, GateRefused, GristmillError, NotFound, UnknownField, UsageError
from gristmill.core.recipe import Recipe
from gristmill.core.run import Run
from gristmill.stages.evaluate import queries as reports
from gristmill.stages.registry import queries as releases
from gristmill.stages.train import queries
from gristmill.store.jobs import step_directly

Product = Callable[..., Recipe]


def queued(platform: Platform, recipe: Recipe, folder: Path, **options: Any) -> Run:
    """A run that waits for a worker."""
    return create_run(platform, recipe, add_dataset(platform, recipe, folder), **options)


def state_of(platform: Platform, run_id: str) -> Run:
    """The run as it is now."""
    with platform.db.read() as connection:
        return queries.get_run(connection, run_id)


def messages(platform: Platform, run_id: str) -> list[str]:
    """What the run told."""
    with platform.db.read() as connection:
        return [event.message for event in queries.list_events(connection, run_id)]


def balances(platform: Platform) -> dict[str, int]:
    """Every account's balance."""
    with platform.db.read() as connection:
        rows = connection.exec_driver_sql("SELECT account, amount FROM balance").fetchall()
    return dict(tuple(row) for row in rows)


def test_a_launch_makes_every_link(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A release could not be traced to its report, run and data, or would cost nothing."""
    seen: list[tuple[str, int, int, str]] = []
    changed: list[bool] = []
    platform.release_changed = lambda: changed.append(True)
    made = launch(platform, product(), tmp_path / "recipe", lambda *told: seen.append(told))
    assert made.release.version == 1
    assert made.run.state == "succeeded"
    assert made.run.release_id == made.release.id
    assert made.release.run_id == made.run.id
    assert made.run.dataset_version_id == made.version.id
    assert made.report.is_passed
    assert made.report.facts["parity"] == 1.0
    assert {"candidate", "baseline", "base"} <= set(made.report.metrics)
    assert made.release.facts["labels"] == [
        "word0",
        "word1",
        "word10",
        *[f"word{i}" for i in range(11, 12)],
    ] + [f"word{i}" for i in range(2, 10)]
    assert "CC0-1.0" in made.release.card
    assert load_verified(platform.blobs.artifact_path(made.release.digest)).digest == made.release.digest
    with platform.db.read() as connection:
        assert releases.current(connection, "desk") == made.release
        assert reports.get_report(connection, str(made.release.report_id)) == made.report
        costs = connection.exec_driver_sql("SELECT purpose, amount FROM artifact_cost").fetchall()
    assert {purpose for purpose, _ in costs} == {"training", "evaluation"}
    booked = balances(platform)
    assert (
        booked[f"capitalised:{made.release.id}"] == -booked["accrued:hardware"] == made.run.facts["cost"] > 0
    )
    assert changed
    stages = {stage for stage, *_ in seen}
    assert {"run", "release", "dataset"} <= stages
    assert stages & {"baseline", "train", "export"}  # a quick child may be seen in one of them only


def test_a_second_launch_is_compared_with_production(
    platform: Platform, product: Product, tmp_path: Path
) -> None:
    """A worse model would replace the one in production without anybody seeing it."""
    first = launch(platform, product(), tmp_path / "recipe")
    gates = [{"metric": "accuracy", "against": "production", "min": 0.01}]
    with pytest.raises(GateRefused, match="accuracy over production"):
        launch(platform, product(gates=gates), tmp_path / "recipe")
    second = launch(platform, product(), tmp_path / "recipe")
    assert second.version.id == first.version.id
    assert second.release.version == 2
    assert second.report.differences["accuracy-production"].value == 0.0
    with platform.db.write() as connection:
        releases.rollback(connection, platform.clock, "desk")
        assert releases.current(connection, "desk") == first.release


def test_an_adapter_is_judged_beside_its_base(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A gate against the base would refuse every adapter, since its trainer cannot answer for the base."""
    gates = [{"metric": "accuracy", "against": "base", "min": 0.2, "min_low": 0.0}]
    made = launch(platform, product({"adapter": True}, gates=gates), tmp_path / "recipe")
    assert made.release.kind == "adapter"
    assert made.report.differences["accuracy-base"].value == 1.0
    served = served_model(platform, made.release)
    assert served.base_path == str(platform.home / made.release.facts["base_folder"])


@pytest.mark.parametrize(
    ("hyper", "gates", "reason"),
    [
        ({}, [{"metric": "accuracy", "min": 1.5}], "accuracy 1 .* is under 1.5"),
        ({}, [{"metric": "f1", "min": 0.1}], "f1 was not measured"),
        ({"spoil": True}, [], "parity 0 .* is under 0.98"),
    ],
)
def test_a_refused_run_registers_nothing(
    platform: Platform, product: Product, tmp_path: Path, hyper: Any, gates: Any, reason: str
) -> None:
    """A model that fails its gates, or was damaged by its export, would be sold."""
    with pytest.raises(GateRefused, match=reason) as caught:
        launch(platform, product(hyper, gates=gates), tmp_path / "recipe")
    assert caught.value.exit_code == 3
    with platform.db.read() as connection:
        [run] = queries.list_runs(connection)
        assert releases.list_releases(connection) == []
        assert releases.history(connection, "desk") == []
    assert run.state == "refused"
    assert any(message.startswith("Gate refused") for message in messages(platform, run.id))
    assert balances(platform)[f"cost:{run.id}"] == run.facts["cost"]


def test_a_failed_run_tells_its_reason(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A failure would be a traceback, or leave the run running for ever."""
    with pytest.raises(GristmillError, match="ZeroDivisionError") as caught:
        launch(platform, product({"fail_at": 2}), tmp_path / "recipe")
    assert "child.log" in str(caught.value.hint)
    with platform.db.read() as connection:
        [run] = queries.list_runs(connection)
    assert run.state == "failed"
    error = error_of(run)
    assert error is not None
    assert error.code == "error"


def test_every_step_can_be_begun_twice(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A server killed between a step's effect and its note would register or book twice."""
    run = queued(platform, product(), tmp_path / "recipe", alias="production")

    def twice(_name: str, work: Callable[[], Any]) -> Any:
        work()
        return work()

    execute_run(platform, run.id, twice)
    assert state_of(platform, run.id).state == "succeeded"
    with platform.db.read() as connection:
        assert len(releases.list_releases(connection)) == 1
        assert len(releases.history(connection, "desk")) == 1
        groups = connection.exec_driver_sql("SELECT count(*) FROM posting_group").scalar_one()
        costs = connection.exec_driver_sql("SELECT count(*) FROM artifact_cost").scalar_one()
        n_reports = connection.exec_driver_sql("SELECT count(*) FROM report").scalar_one()
    assert (groups, costs, n_reports) == (1, 2, 1)


def test_a_waiting_run_is_cancelled_at_once(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A cancelled run would still be trained, or cancelling twice would confuse its state."""
    run = queued(platform, product(), tmp_path / "recipe")
    assert cancel_run(platform, run.id).state == "cancelled"
    with pytest.raises(Conflict, match="is cancelled already"):
        cancel_run(platform, run.id)
    execute_run(platform, run.id, step_directly)
    assert state_of(platform, run.id).state == "cancelled"
    assert not run_folder(platform, run.id).path.exists()


def test_a_running_run_is_cancelled_at_its_checkpoint(
    platform: Platform, product: Product, tmp_path: Path
) -> None:
    """A run somebody stopped would go on spending, or its model would be released."""
    run = queued(platform, product({"step_s": 0.05, "epochs": 200}), tmp_path / "recipe")
    worker = threading.Thread(target=execute_run, args=(platform, run.id, step_directly))
    worker.start()
    while not run_folder(platform, run.id).progress.exists():
        time.sleep(0.05)
    cancel_run(platform, run.id)
    worker.join(timeout=60)
    assert state_of(platform, run.id).state == "cancelled"


def test_a_cap_stops_training_and_says_so(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A run would spend more than its recipe allows."""
    train = {"hyper": {"step_s": 0.1, "epochs": 50}, "max_cost": "0.001"}
    made = launch(platform, product(train=train, gates=[]), tmp_path / "recipe")
    assert made.run.facts["trained"]["stopped_reason"] == "max_cost"
    assert any("the cap of 1 s will end it before" in each for each in messages(platform, made.run.id))
    assert "ended early by | max_cost" in made.release.card


def test_caps_and_cost_are_exact(product: Product, platform: Platform) -> None:
    """The wrong one of two caps would be named, or a second cost another than declared."""
    rate = platform.settings.hourly_rate
    assert cap(product(train={"max_minutes": 1, "max_cost": "1"}), rate) == (60.0, "max_minutes")
    assert cap(product(train={"max_minutes": 60, "max_cost": "0.018"}), rate) == (18.0, "max_cost")
    assert cap(product(train={"max_minutes": 0}), rate)[0] == 0.0
    assert machine_cost(1.0, rate) == 1_000_000


def test_what_can_be_refused_is_refused_before_a_run(
    platform: Platform, product: Product, tmp_path: Path
) -> None:
    """A typing slip would be found after the data was read and the base model copied."""
    version = add_dataset(platform, product(), tmp_path / "recipe")
    with pytest.raises(UnknownField, match="stepz"):
        create_run(platform, product({"stepz": 1}), version)
    with pytest.raises(NotFound):
        create_run(platform, product(base={"model": "all-MiniLM-L6"}), version)
    with pytest.raises(UsageError, match="is for toy, the recipe for other"):
        create_run(platform, product(product={"name": "desk", "task": "other"}), version)
    with platform.db.read() as connection:
        assert queries.list_runs(connection) == []


def test_closing_a_worker_leaves_a_run_to_the_next(
    platform: Platform, product: Product, tmp_path: Path
) -> None:
    """Stopping the server would fail the run, or hang until it is trained."""
    run = queued(platform, product({"step_s": 0.1, "epochs": 3}), tmp_path / "recipe")
    steps = run_folder(platform, run.id).work / "steps.log"
    worker = Worker(platform)
    worker.start()
    while not steps.exists() or len(steps.read_text().splitlines()) < 5:
        time.sleep(0.05)
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 15
    assert state_of(platform, run.id).state == "running"
    after = Worker(platform)
    after.start()
    try:
        assert after.wait(run.id).state == "succeeded"
    finally:
        after.close()
    done = [line.split() for line in steps.read_text().splitlines()]
    assert done[0] == ["1", "0"]
    assert next(step for fence, step in done if fence == "2") != "0"


def test_two_workers_in_one_process_are_refused(platform: Platform) -> None:
    """Two queues in one process would mix the runs of two homes."""
    worker = Worker(platform)
    worker.start()
    try:
        with pytest.raises(Conflict):
            Worker(platform).start()
    finally:
        worker.close()


def test_an_artefact_enters_by_import(platform: Platform, product: Product, tmp_path: Path) -> None:
    """A model that was not trained here could not be sold, or would be without hashes, licence and report."""
    made = launch(platform, product(), tmp_path / "recipe")
    folder = platform.blobs.artifact_path(made.release.digest)
    release = import_release(
        platform, str(folder), product="bought", task="toy", licence="MIT", alias="production"
    )
    assert (release.version, release.run_id, release.licence) == (1, None, "MIT")
    assert release.digest == made.release.digest
    with platform.db.read() as connection:
        report = reports.get_report(connection, str(release.report_id))
        assert releases.current(connection, "bought") == release
    assert report.is_passed
    assert {"size_bytes", "load_s", "answers", "latency_p50_ms"} <= set(report.facts)
    assert "MIT" in release.card


def test_an_import_is_adopted_by_its_trainer_and_hashed(platform: Platform, tmp_path: Path) -> None:
    """A foreign model would enter without the trainer's form, or pickle would enter at all."""
    source = tmp_path / "foreign"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="may hold a pickle"):
        import_release(platform, str(source), product="bought", task="toy")
    (source / "pytorch_model.bin").rename(source / "model.safetensors")
    (source / "model.json").write_text('{"hello": "a"}')
    release = import_release(platform, str(source), product="bought", task="toy")
    assert list(release.facts["source_sha256"]) == ["model.safetensors"]
    with pytest.raises(NotFound):
        import_release(platform, str(tmp_path / "none"), product="bought", task="toy")
    assert list((platform.home / "runs").iterdir()) == []
