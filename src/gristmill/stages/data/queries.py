"""SQL of datasets and their versions.

Invariant: a version's number is allocated by the database and never used twice; a version is never changed,
a deleted one keeps its number and its record.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, Row, Select, func, insert, select, update

from gristmill.core.clock import Clock
from gristmill.core.dataset import DatasetVersion
from gristmill.core.errors import Conflict, Gone, NotFound, did_you_mean
from gristmill.stages.data.prepare import Prepared
from gristmill.store.tables.chain import dataset, dataset_version, run

_HINT = "See: gristmill dataset list"


def add_version(
    c: Connection, clock: Clock, *, name: str, prepared: Prepared, customer_id: str | None = None
) -> DatasetVersion:
    """Record what `prepare` made as the next version of a dataset, which is created when it is new.

    The same digest gives the version that exists, also when it had been deleted (it is then there again).

    Args:
        c: a write transaction.
        clock: time and ids.
        name: of the dataset.
        prepared: its new state.
        customer_id: whose data it is; None for the operator's.

    Raises:
        Conflict: the name belongs to another task or customer.
    """
    dataset_id = _dataset(c, clock, name, prepared.task, customer_id)
    known = c.execute(
        select(dataset_version.c.id, dataset_version.c.deleted_at).where(
            dataset_version.c.dataset_id == dataset_id, dataset_version.c.digest == prepared.digest
        )
    ).one_or_none()
    if known is not None:
        if known.deleted_at is not None:
            _revive(c, known.id, prepared)
        return get_version(c, known.id)
    return _insert(c, clock, dataset_id, name, prepared)


def list_versions(
    c: Connection, name: str | None = None, *, customer_id: str | None = None
) -> list[DatasetVersion]:
    """Versions that are not deleted, by dataset and number; of one dataset or one customer when given."""
    query = _versions(customer_id).where(dataset_version.c.deleted_at.is_(None))
    if name is not None:
        query = query.where(dataset.c.name == name)
    return [_version(row) for row in c.execute(query)]


def get_version(c: Connection, name_or_id: str, *, customer_id: str | None = None) -> DatasetVersion:
    """A version by id (`dsv_…`), by `name@number`, or the newest by name.

    Args:
        c: a connection.
        name_or_id: what the user wrote.
        customer_id: when given, only that customer's versions are seen.

    Raises:
        NotFound: no such version; the hint has the nearest name. Gone: it was deleted.
    """
    name, _, number = name_or_id.rpartition("@")
    query = _versions(customer_id)
    if name and number.isdecimal() and len(number) < 18:
        query = query.where(dataset.c.name == name, dataset_version.c.number == int(number))
    else:
        query = query.where((dataset_version.c.id == name_or_id) | (dataset.c.name == name_or_id))
    rows = c.execute(query).all()
    kept = [row for row in rows if row.deleted_at is None]
    if kept:
        return _version(kept[-1])
    if rows:
        raise Gone(f"Dataset version {name_or_id!r} was deleted.", hint=_HINT, param="dataset")
    names = {row.name for row in c.execute(_versions(customer_id))}
    hint = did_you_mean(name or name_or_id, sorted(names), _HINT)
    raise NotFound(f"There is no dataset version {name_or_id!r}.", hint=hint, param="dataset")


def delete_version(
    c: Connection, clock: Clock, name_or_id: str, *, customer_id: str | None = None
) -> DatasetVersion:
    """Mark a version as deleted and return it; its record and number stay.

    Raises:
        Conflict: a run uses it. NotFound, Gone: as `get_version`.
    """
    version = get_version(c, name_or_id, customer_id=customer_id)
    runs = c.execute(
        select(run.c.id).where(run.c.dataset_version_id == version.id).order_by(run.c.id).limit(3)
    )
    used_by = list(runs.scalars())
    if used_by:
        raise Conflict(
            f"Dataset version {version.dataset}@{version.number} is used by run {', '.join(used_by)}.",
            hint="A version that a run learnt from stays, as evidence.",
            param="dataset",
        )
    c.execute(
        update(dataset_version)
        .where(dataset_version.c.id == version.id)
        .values(deleted_at=clock.now().isoformat())
    )
    return version


def _next_version(c: Connection, clock: Clock, dataset_id: str, digest: str, now: str) -> tuple[int, str]:
    # The database allocates the number, in the statement that uses it; the document follows.
    version_id = clock.new_id("dsv")
    next_number = (
        select(func.coalesce(func.max(dataset_version.c.number), 0) + 1)
        .where(dataset_version.c.dataset_id == dataset_id)
        .scalar_subquery()
    )
    number = c.execute(
        insert(dataset_version)
        .values(
            id=version_id,
            dataset_id=dataset_id,
            number=next_number,
            digest=digest,
            document={},
            created_at=now,
        )
        .returning(dataset_version.c.number)
    ).scalar_one()
    return number, version_id


def _insert(c: Connection, clock: Clock, dataset_id: str, name: str, prepared: Prepared) -> DatasetVersion:
    now = clock.now().isoformat()
    number, version_id = _next_version(c, clock, dataset_id, prepared.digest, now)
    version = DatasetVersion(
        id=version_id,
        dataset=name,
        number=number,
        task=prepared.task,
        digest=prepared.digest,
        parts=prepared.parts,
        counts=prepared.counts,
        licence=prepared.licence,
        source=prepared.source,
        lineage=prepared.lineage,
        rejects_blob=prepared.rejects_blob,
        created_at=now,
    )
    c.execute(
        update(dataset_version)
        .where(dataset_version.c.id == version_id)
        .values(document=msgspec.to_builtins(version))
    )
    return version


def _revive(c: Connection, version_id: str, prepared: Prepared) -> None:
    # The same rows, but perhaps laid out in other bytes by another pyarrow: name the parts that are here now.
    row = c.execute(select(dataset_version.c.document).where(dataset_version.c.id == version_id)).one()
    version = msgspec.structs.replace(_version(row), parts=prepared.parts, rejects_blob=prepared.rejects_blob)
    c.execute(
        update(dataset_version)
        .where(dataset_version.c.id == version_id)
        .values(deleted_at=None, document=msgspec.to_builtins(version))
    )


def _dataset(c: Connection, clock: Clock, name: str, task: str, customer_id: str | None) -> str:
    known = c.execute(select(dataset).where(dataset.c.name == name)).one_or_none()
    if known is None:
        dataset_id = clock.new_id("ds")
        c.execute(
            insert(dataset).values(
                id=dataset_id,
                name=name,
                task=task,
                customer_id=customer_id,
                created_at=clock.now().isoformat(),
            )
        )
        return dataset_id
    if known.customer_id != customer_id:
        raise Conflict(f"The dataset name {name!r} is taken.", hint="Choose another name.", param="name")
    if known.task != task:
        raise Conflict(
            f"Dataset {name!r} holds rows of the task {known.task}, not {task}.",
            hint="Choose another name.",
            param="name",
        )
    return str(known.id)


def _versions(customer_id: str | None) -> Select[tuple[object, ...]]:
    query = (
        select(dataset.c.name, dataset_version.c.document, dataset_version.c.deleted_at)
        .join_from(dataset_version, dataset)
        .order_by(dataset.c.name, dataset_version.c.number)
    )
    return query if customer_id is None else query.where(dataset.c.customer_id == customer_id)


def _version(row: Row[tuple[object, ...]]) -> DatasetVersion:
    return msgspec.convert(row.document, DatasetVersion)
