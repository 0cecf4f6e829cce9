"""Prepare: a recipe's sources become the parts of an immutable dataset version.

Invariant: the digest is a pure function of schema, rows and their order; no group and no text is on both
sides of the split; a declared test part is checked and masked but never thinned out.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from gristmill.core.artifact import file_sha256
from gristmill.core.clock import Clock
from gristmill.core.dataset import Reject, Row
from gristmill.core.errors import Unavailable, UsageError
from gristmill.core.recipe import Recipe
from gristmill.core.rows import parquet_bytes, read_parquet, write_parquet
from gristmill.ports.task import Task
from gristmill.stages.data import duplicates, split
from gristmill.stages.data.ingest import Ingested, ingest, rejects_of
from gristmill.stages.data.mask import Masker
from gristmill.stages.data.source import Located, locate

PARTS = ("train", "validation", "test")
Progress = Callable[[str, int, int], None]
"""Told (stage, done, total): "read" and "read test" in bytes or rows, "compare" in rows, "store" in parts."""


class BlobStore(Protocol):
    """What is needed of `store.blobs.Blobs`."""

    def put(self, data: bytes) -> str:
        """Store bytes; returns their digest."""
        ...


class Prepared(msgspec.Struct, frozen=True):
    """A dataset version before it has a name and a number; fields as in `core.dataset.DatasetVersion`."""

    task: str
    parts: dict[str, str]
    counts: dict[str, int]
    digest: str
    lineage: dict[str, Any]
    licence: str
    source: str
    rejects_blob: str | None = None


def prepare(
    recipe: Recipe,
    task: Task,
    *,
    recipe_dir: Path,
    data_dir: Path,
    blobs: BlobStore,
    clock: Clock,
    progress: Progress | None = None,
) -> Prepared:
    """Read, check, mask, thin out, split and store a recipe's data.

    Args:
        recipe: its `data` section, task name and seed count.
        task: the plug-in that checks rows.
        recipe_dir: folder of the recipe.
        data_dir: the home's data folder.
        blobs: where parts are stored.
        clock: for the time it took (never part of the result).
        progress: see `Progress`.

    Returns:
        What `queries.add_version` records.

    Raises:
        UsageError: no usable rows, unknown columns, or data that cannot teach the task.
        Missing: a package or file that must be brought first.
    """
    started_s = clock.monotonic_s()
    work = _Work(recipe, task, progress or (lambda stage, done, total: None))
    work.read(recipe_dir, data_dir)
    rejects_blob = work.store_rejects(blobs)
    work.refuse_empty(rejects_blob)
    work.thin_out()
    parts = work.split()
    task.check(parts["train"], parts["test"])
    digest = digest_of(recipe.product.task, task, parts)
    stored = work.store_parts(parts, blobs)
    structlog.get_logger().info(
        "data_prepared", digest=digest, seconds=round(clock.monotonic_s() - started_s, 3), **work.counts
    )
    return Prepared(
        task=recipe.product.task,
        parts=stored,
        counts=work.counts,
        digest=digest,
        lineage=work.lineage(),
        licence=recipe.data.licence,
        source="; ".join(part.located.described for part in work.ingested),
        rejects_blob=rejects_blob,
    )


def digest_of(task_name: str, task: Task, parts: dict[str, list[Row]]) -> str:
    """SHA-256 of the schema and the rows of all parts in order, as lines of canonical JSON; hex."""
    hasher = hashlib.sha256()
    schema = [[field.name, field.is_required, field.is_text] for field in task.fields]
    hasher.update(_json_line({"task": task_name, "fields": schema}))
    for name in PARTS:
        hasher.update(_json_line({"part": name, "rows": len(parts[name])}))
        for row in parts[name]:
            hasher.update(_json_line(row))
    return hasher.hexdigest()


def load_part(path: Path, task: Task) -> list[Row]:
    """The rows of a part's Parquet file.

    Raises:
        UsageError: a row lacks a field that the task requires (a file of another task).
    """
    rows = read_parquet(path)
    required = [field.name for field in task.fields if field.is_required]
    for row in rows[:1]:
        missing = [name for name in required if name not in row]
        if missing:
            raise UsageError(f"{path.name} holds rows without {', '.join(missing)}.", param="task")
    return rows


def write_part(rows: list[Row], path: Path) -> None:
    """Write a part's Parquet file."""
    write_parquet(rows, path)


class _Work:
    """One preparation under way: rows of the training side and of the declared test, counts and steps."""

    def __init__(self, recipe: Recipe, task: Task, progress: Progress) -> None:
        self.recipe, self.task, self.progress = recipe, task, progress
        self.ingested: list[Ingested] = []
        self.counts: dict[str, int] = {}
        self.steps: list[dict[str, Any]] = []
        self.train: list[Row] = []
        self.test: list[Row] = []
        self._texts: list[str] = []
        self._masker = Masker(recipe.data.allow)

    def read(self, recipe_dir: Path, data_dir: Path) -> None:
        data = self.recipe.data
        masker = self._masker if data.mask else None
        found = [("read", locate(data.source, recipe_dir, data_dir), False)]
        if data.test is not None:
            found.append(("read test", locate(data.test, recipe_dir, data_dir), True))
        for stage, located, is_test in found:

            def advance(done: int, total: int, stage: str = stage) -> None:
                self.progress(stage, done, total)

            self.ingested.append(ingest(located, data, self.task, masker, is_test=is_test, advance=advance))
        masked = dict(sorted(self._masker.counts.items()))
        self.train = self.ingested[0].rows
        self.test = self.ingested[1].rows if data.test is not None else []
        n_read = sum(part.n_read for part in self.ingested)
        n_rejected = sum(len(part.unusable) for part in self.ingested)
        n_dropped = sum(part.n_dropped for part in self.ingested)
        self._step("check", n_read, n_read - n_rejected)
        self._step("drop", n_read - n_rejected, n_read - n_rejected - n_dropped, columns=data.drop)
        n_rows = len(self.train) + len(self.test)
        self._step("mask", n_rows, n_rows, is_on=data.mask, values=masked, n_allowed=len(data.allow))
        self.counts |= {"read": n_read, "rejected": n_rejected, "dropped": n_dropped}
        self.counts |= {"masked": sum(masked.values())} | {f"masked_{kind}": n for kind, n in masked.items()}

    def store_rejects(self, blobs: BlobStore) -> str | None:
        rejects = rejects_of(self.ingested, self._masker)
        if not rejects:
            return None
        return _stored(blobs, b"".join(msgspec.json.encode(reject) + b"\n" for reject in rejects))

    def refuse_empty(self, rejects_blob: str | None) -> None:
        for part in self.ingested:
            if part.rows:
                continue
            n_rejected = len(part.unusable)
            figures = f"{part.n_read} read, {n_rejected} rejected, {part.n_dropped} dropped"
            raise UsageError(
                f"{part.located.name} has no usable rows ({figures}).",
                hint=_first_reasons(rejects_of([part], self._masker)) or "Give a file with at least one row.",
                param="source",
                read=part.n_read,
                rejected=n_rejected,
                dropped=part.n_dropped,
                rejects_blob=rejects_blob,
            )

    def thin_out(self) -> None:
        """Duplicates, near duplicates and rows that leak the test part leave the training side."""
        data = self.recipe.data
        self._texts = self._compared(self.train)
        test_texts = self._compared(self.test)
        n_leaks = self._leave("leak", self._leaks(test_texts))
        hashes = [duplicates.text_hash(text) for text in self._texts]
        flags = duplicates.exact(hashes)
        n_conflicts = self._conflicts(hashes)
        n_exact = self._leave("duplicates", flags, with_another_label=n_conflicts)
        is_near, is_leak = duplicates.near(
            self._texts,
            data.near_duplicate_similarity,
            test_texts,
            lambda done, total: self.progress("compare", done, total),
        )
        flags = [one or other for one, other in zip(is_near, is_leak, strict=True)]
        n_near_leaks = sum(is_leak)
        similarity = data.near_duplicate_similarity
        self._leave("near_duplicates", flags, similarity=similarity, of_test_rows=n_near_leaks)
        self.counts |= {
            "duplicates": n_exact,
            "near_duplicates": sum(is_near),
            "leaks": n_leaks + n_near_leaks,
        }
        if not self.train:
            raise UsageError(
                "No training row is left: all repeat rows, texts or groups of the test part.",
                hint="Declare a test part that shares no text and no group with the training data.",
                param="test",
            )

    def split(self) -> dict[str, list[Row]]:
        data, seed = self.recipe.data, self.recipe.train.seed
        n_rows = len(self.train) + len(self.test)
        if data.test is None:
            flags = split.cut_test(self._keys(), self._classes(), fraction=data.test_fraction, seed=seed)
            self.test = self._take(flags)
        flags = split.cut_validation(
            self._keys(), self._classes(), fraction=data.validation_fraction, seed=seed
        )
        validation = self._take(flags)
        parts = {"train": self.train, "validation": validation, "test": self.test}
        sizes = {name: len(rows) for name, rows in parts.items()}
        how = {"by": data.group or "text", "seed": seed, "is_test_declared": data.test is not None}
        self._step("split", n_rows, sum(sizes.values()), parts=sizes, **how)
        self.counts |= {"kept": sum(sizes.values())} | sizes
        return parts

    def store_parts(self, parts: dict[str, list[Row]], blobs: BlobStore) -> dict[str, str]:
        stored = {}
        for done, name in enumerate(PARTS):
            self.progress("store", done, len(PARTS))
            stored[name] = _stored(blobs, parquet_bytes(parts[name]))
        self.progress("store", len(PARTS), len(PARTS))
        return stored

    def lineage(self) -> dict[str, Any]:
        return {"parents": [_parent(part.located) for part in self.ingested], "steps": self.steps}

    def _compared(self, rows: list[Row]) -> list[str]:
        # Without optional fields: a test row may carry more (an answer's facts) than its copy in training.
        names = [field.name for field in self.task.fields if field.is_required]
        return [
            duplicates.normalised(self.task.texts({name: row[name] for name in names if name in row}))
            for row in rows
        ]

    def _leaks(self, test_texts: list[str]) -> list[bool]:
        known = {duplicates.text_hash(text) for text in test_texts}
        groups = {row["group"] for row in self.test if "group" in row}
        return [
            duplicates.text_hash(text) in known or ("group" in row and row["group"] in groups)
            for row, text in zip(self.train, self._texts, strict=True)
        ]

    def _conflicts(self, hashes: list[bytes]) -> int:
        """How many repeated texts came with another label than the row that stays."""
        first: dict[bytes, Any] = {}
        return sum(
            first.setdefault(value, label) != label
            for value, label in zip(hashes, self._classes(), strict=True)
        )

    def _leave(self, step: str, flags: list[bool], **facts: Any) -> int:
        n_before = len(self.train) + len(self.test)
        n_left = len(self._take(flags))
        self._step(step, n_before, n_before - n_left, **facts)
        return n_left

    def _take(self, flags: list[bool]) -> list[Row]:
        taken = [row for row, flag in zip(self.train, flags, strict=True) if flag]
        self._texts = [text for text, flag in zip(self._texts, flags, strict=True) if not flag]
        self.train = [row for row, flag in zip(self.train, flags, strict=True) if not flag]
        return taken

    def _keys(self) -> list[str]:
        if self.recipe.data.group is not None:
            return [str(row["group"]) for row in self.train]
        return [duplicates.text_hash(text).hex() for text in self._texts]

    def _classes(self) -> list[bytes]:
        names = [field.name for field in self.task.fields if not field.is_text]
        return [_json_line([row.get(name) for name in names]) for row in self.train]

    def _step(self, step: str, rows_in: int, rows_out: int, **facts: Any) -> None:
        self.steps.append({"step": step, "rows_in": rows_in, "rows_out": rows_out} | facts)


def _parent(located: Located) -> dict[str, Any]:
    digest = file_sha256(located.path) if located.path is not None else None
    return {"source": located.described, "sha256": digest}


def _first_reasons(rejects: list[Reject]) -> str:
    shown = [
        f"line {reject.line}: {reject.field + ': ' if reject.field else ''}{reject.reason}"
        for reject in rejects[:3]
    ]
    return "First rejects: " + "; ".join(shown) + "." if shown else ""


def _json_line(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted") + b"\n"


def _stored(blobs: BlobStore, data: bytes) -> str:
    try:
        return blobs.put(data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable(
            "The disk is full: the dataset version was not stored.", hint="Free space and repeat."
        ) from None
