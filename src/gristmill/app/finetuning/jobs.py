"""Fine-tuning jobs: a customer's file becomes a masked dataset version, a run, and a model of its own.

Invariant: everything a job is made of belongs to the customer of the key, and another customer's job answers
as an absent one does. Source: OpenAI API reference, "Fine-tuning".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gristmill.app.files import Files, check_rows
from gristmill.app.finetuning.request import JobRequest, hyper_of
from gristmill.app.pipeline.launch import add_dataset
from gristmill.app.pipeline.runs import cancel_run, create_run
from gristmill.app.platform import Platform
from gristmill.core.account import Caller
from gristmill.core.dataset import DatasetVersion
from gristmill.core.errors import Forbidden, NotFound, UsageError
from gristmill.core.recipe import Recipe
from gristmill.core.release import PRODUCTION, Release
from gristmill.core.run import Run, RunEvent
from gristmill.ports import discovery
from gristmill.stages.registry import queries as registry
from gristmill.stages.registry.bases import catalogue
from gristmill.stages.train import queries as runs

METER = "trained_tokens"
_TEST_FRACTION = 0.2
_TRAIN_NAME, _TEST_NAME = "train.jsonl", "test.jsonl"


class Trainable(msgspec.Struct, frozen=True):
    """A base model customers may fine-tune.

    Attributes:
        model: what a recipe calls it. name: its public name. tasks: what it learns; () when unknown, then the
            rows decide. trainer: None for the task's own.
    """

    model: str
    name: str
    tasks: tuple[str, ...] = ()
    trainer: str | None = None


class Jobs:
    """Create, list, read and cancel jobs.

    Args:
        submit: hands a run's id to the worker.
    """

    def __init__(self, platform: Platform, files: Files, submit: Callable[[str], None]) -> None:
        self._platform = platform
        self._files = files
        self._submit = submit

    def create(self, caller: Caller, request: JobRequest) -> Run:
        """Check everything, prepare the data, queue the run.

        Raises:
            Forbidden: the plan does not sell training. NotFound: no such base model or file.
            UsageError: a wrong value, or data that cannot teach this base.
        """
        base = self._base(request.model)
        self._check_plan(caller, base)
        training = self._rows(caller, request.training_file, "training_file", base)
        validation = None
        if request.validation_file is not None:
            validation = self._rows(caller, request.validation_file, "validation_file", base)
            if validation[0] != training[0]:
                raise UsageError("The two files hold rows of different tasks.", param="validation_file")
        recipe = self._recipe(caller, request, base, training[0], has_test=validation is not None)
        version = self._prepare(
            caller, recipe, training[1], validation and validation[1], request.training_file
        )
        run = create_run(
            self._platform,
            recipe,
            version,
            customer_id=caller.customer.id,
            suffix=request.suffix,
            alias=PRODUCTION,
            facts={
                "request": request.model_dump(mode="json"),
                "key_id": caller.key_id,
                "subscription_id": caller.subscription_id,
                "plan_id": caller.plan.id,
            },
        )
        self._submit(run.id)
        return run

    def get(self, caller: Caller, job_id: str) -> tuple[Run, Release | None]:
        """A job of this customer, and its model once it is registered.

        Raises:
            NotFound: absent, or another customer's.
        """
        with self._platform.db.read() as connection:
            try:
                run = runs.get_run(connection, job_id, caller.customer.id)
            except NotFound:
                raise _no_job(job_id) from None
            release_id = run.release_id
            release = registry.get_release(connection, release_id) if release_id else None
        return run, release

    def listed(
        self, caller: Caller, *, after: str | None, limit: int
    ) -> tuple[list[tuple[Run, Release | None]], bool]:
        """A page of this customer's jobs, the newest first, and whether more follow."""
        if after is not None:
            self.get(caller, after)
        with self._platform.db.read() as connection:
            found = runs.list_runs(connection, caller.customer.id, before=after, limit=limit + 1)
            releases = {
                one.id: one for one in registry.list_releases(connection, customer_id=caller.customer.id)
            }
        page = [(run, releases.get(run.release_id or "")) for run in found[:limit]]
        return page, len(found) > limit

    def cancel(self, caller: Caller, job_id: str) -> tuple[Run, Release | None]:
        """Ask a job to stop.

        Raises:
            NotFound: absent, or another customer's. Conflict: it has ended.
        """
        self.get(caller, job_id)
        cancel_run(self._platform, job_id, caller.customer.id)
        return self.get(caller, job_id)

    def events(
        self, caller: Caller, job_id: str, *, after: str | None, limit: int
    ) -> tuple[list[RunEvent], bool]:
        """A page of a job's events, the newest first, and whether more follow."""
        self.get(caller, job_id)
        with self._platform.db.read() as connection:
            found = list(reversed(runs.list_events(connection, job_id)))
        if after is not None:
            ids = [event.id for event in found]
            if after not in ids:
                raise NotFound(f"There is no event {after!r}.", param="after")
            found = found[ids.index(after) + 1 :]
        return found[:limit], len(found) > limit

    def _base(self, model: str) -> Trainable:
        allowed = self._platform.settings.customer_bases
        if model.startswith("ft:"):
            raise UsageError("Fine-tuning a fine-tuned model is not supported.", param="model")
        for known in catalogue():
            names = (known.name, known.package, known.hub)
            if model in names and set(names) & set(allowed):
                return Trainable(known.name, known.name, tuple(known.tasks), known.trainer)
        for one in allowed:
            if model in (one, Path(one).name):
                return Trainable(one, Path(one).name)
        shown = ", ".join(Path(one).name for one in allowed)
        raise NotFound(
            f"There is no base model {model!r} to fine-tune.", hint=f"Known: {shown}.", param="model"
        )

    def _check_plan(self, caller: Caller, base: Trainable) -> None:
        if caller.plan.billing == "internal":
            return
        name = f"ft:{base.name}:{caller.customer.slug}:"
        try:
            is_sold = METER in self._platform.rater.price_keys(caller.plan, name, [METER])
        except Forbidden:
            is_sold = False
        if not is_sold:
            raise Forbidden(
                f"The plan {caller.plan.name} does not include fine-tuning.",
                hint=f"Ask the operator for a plan with a price for {METER}.",
            )

    def _rows(self, caller: Caller, file_id: str, param: str, base: Trainable) -> tuple[str, bytes]:
        try:
            content = self._files.content(caller.customer, file_id)
        except NotFound:
            raise NotFound(f"There is no file {file_id!r}.", param=param) from None
        task = check_rows(content)
        if base.tasks and task not in base.tasks:
            raise UsageError(
                f"The file holds rows for {task}; {base.name} learns {' or '.join(base.tasks)}.", param=param
            )
        return task, content

    def _recipe(
        self, caller: Caller, request: JobRequest, base: Trainable, task: str, *, has_test: bool
    ) -> Recipe:
        name = base.trainer or discovery.find("tasks", task).capabilities["trainer"]
        trainer = discovery.load(discovery.find("trainers", name))
        data: dict[str, Any] = {
            "source": {"path": _TRAIN_NAME},
            "format": "jsonl",
            "licence": f"property of {caller.customer.slug}",
            "test_fraction": 0.0 if has_test else _TEST_FRACTION,
            "allow": request.mask_allow,
        }
        if has_test:
            data["test"] = {"path": _TEST_NAME}
        train: dict[str, Any] = {
            "trainer": name,
            "hyper": hyper_of(request.dials, trainer.check({})),
            "max_minutes": self._platform.settings.customer_max_minutes,
        }
        if request.seed is not None:
            train["seed"] = request.seed
        product = self._platform.clock.new_id("ft").replace("_", "-")
        return Recipe.model_validate(
            {
                "product": {
                    "name": product,
                    "task": task,
                    "description": f"Fine-tune of {caller.customer.slug}.",
                },
                "data": data,
                "base": {"model": base.model},
                "train": train,
            }
        )

    def _prepare(
        self, caller: Caller, recipe: Recipe, training: bytes, validation: bytes | None, file_id: str
    ) -> DatasetVersion:
        """A masked version of the rows; the plain file lies in a private folder while it is read."""
        platform = self._platform
        with tempfile.TemporaryDirectory(dir=platform.home / "runs", prefix=".files-") as folder:
            path = Path(folder)
            (path / _TRAIN_NAME).write_bytes(training)
            if validation is not None:
                (path / _TEST_NAME).write_bytes(validation)
            return add_dataset(platform, recipe, path, name=file_id, customer_id=caller.customer.id)


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no fine-tuning job {job_id!r}.", param="fine_tuning_job_id")
