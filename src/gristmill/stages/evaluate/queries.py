"""SQL of reports: the evidence of a run or an import, written once and then tied to its release."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, insert, select, update

from gristmill.core.clock import Clock
from gristmill.core.errors import NotFound
from gristmill.core.report import Report
from gristmill.store.tables.chain import report


def add_report(c: Connection, clock: Clock, measured: Report, run_id: str | None = None) -> str:
    """Store a report; returns its id. Figures that are not numbers are left out: JSON has none."""
    identity = clock.new_id("rep")
    values = {"id": identity, "run_id": run_id, "document": to_document(measured)}
    c.execute(insert(report).values(created_at=clock.now().isoformat(), **values))
    return identity


def tie_report(c: Connection, report_id: str, release_id: str) -> None:
    """Note which release a report let ship."""
    c.execute(update(report).where(report.c.id == report_id).values(release_id=release_id))


def get_report(c: Connection, report_id: str) -> Report:
    """A report by id.

    Raises:
        NotFound: none has this id.
    """
    document = c.execute(select(report.c.document).where(report.c.id == report_id)).scalar_one_or_none()
    if document is None:
        raise NotFound(f"There is no report {report_id!r}.", param="report")
    return msgspec.convert(document, Report)


def to_document(measured: Report) -> dict[str, object]:
    """A report as JSON-able data without NaN or infinity, which JSON has no name for."""
    finite = msgspec.structs.replace(
        measured,
        metrics={s: [m for m in each if _is_finite(m.value)] for s, each in measured.metrics.items()},
        differences={name: m for name, m in measured.differences.items() if _is_finite(m.value)},
        facts={name: value for name, value in measured.facts.items() if _is_finite(value)},
    )
    document: dict[str, object] = msgspec.to_builtins(finite)
    return document


def _is_finite(value: float) -> bool:
    return value - value == 0
