"""Data to deployment: datasets, runs, releases and the history of their aliases."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Table, UniqueConstraint

from gristmill.store.tables.metadata import document, key, metadata, text, whole

dataset = Table(
    "dataset",
    metadata,
    key(),
    text("name"),
    text("task"),
    text("customer_id", nullable=True),
    text("created_at"),
    UniqueConstraint("name"),
)

dataset_version = Table(
    "dataset_version",
    metadata,
    key(),
    Column("dataset_id", ForeignKey("dataset.id"), nullable=False),
    whole("number"),
    text("digest"),
    document("document"),  # core.dataset.DatasetVersion
    text("created_at"),
    text("deleted_at", nullable=True),
    UniqueConstraint("dataset_id", "number"),
    UniqueConstraint("dataset_id", "digest"),
)

run = Table(
    "run",
    metadata,
    key(),
    text("product"),
    text("task"),
    text("state"),
    text("dataset_version_id"),
    text("base"),
    text("customer_id", nullable=True, index=True),
    document("recipe"),  # core.recipe.Recipe as JSON
    text("recipe_digest"),
    document("facts"),  # estimate, trained, cost, environment, error, hyper; suffix and file ids for API jobs
    whole("fence", default=0),
    Column("is_cancel_asked", Boolean, nullable=False, default=False),
    text("release_id", nullable=True),
    text("created_at"),
    text("started_at", nullable=True),
    text("ended_at", nullable=True),
)

run_event = Table(
    "run_event",
    metadata,
    key(),
    Column("run_id", ForeignKey("run.id"), nullable=False, index=True),
    text("level"),
    text("message"),
    document("data"),
    text("created_at"),
)

report = Table(
    "report",
    metadata,
    key(),
    text("run_id", nullable=True, index=True),
    text("release_id", nullable=True, index=True),
    document("document"),  # core.report.Report
    text("created_at"),
)

release = Table(
    "release",
    metadata,
    key(),
    text("product"),
    whole("version"),
    text("task"),
    text("engine"),
    text("kind"),  # model | adapter
    text("base"),
    text("base_digest", nullable=True),
    text("digest"),
    text("customer_id", nullable=True, index=True),
    text("public_name", nullable=True),  # ft:… names; products are served under their own name
    text("run_id", nullable=True),
    text("report_id", nullable=True),
    text("licence"),
    text("card"),
    document("facts"),
    text("created_at"),
    UniqueConstraint("product", "version"),
    UniqueConstraint("public_name"),
)

alias_move = Table(
    "alias_move",
    metadata,
    key(),
    text("product"),
    text("alias"),
    text("release_id", nullable=True),  # null: the alias was removed
    text("reason"),  # promote | rollback | remove
    text("moved_at"),
)

artifact_cost = Table(
    "artifact_cost",
    metadata,
    key(),
    Column("release_id", ForeignKey("release.id"), nullable=False, index=True),
    text("purpose"),  # training | evaluation
    whole("amount"),  # nano-units
    text("currency"),
    Column("seconds", Float, nullable=False),
    text("at"),
)
