"""Releases: registered model versions, and the movable names (aliases) that point at them.

Invariant: a release is never changed; moving an alias appends to its history: the deploy or the rollback.
"""

from __future__ import annotations

from typing import Any

import msgspec

PRODUCTION = "production"


class Release(msgspec.Struct, frozen=True):
    """One registered version of a product's model.

    Attributes:
        id: `rel_…`; product; version 1, 2, …; task; engine plug-in; kind: "model" or "adapter".
        base, base_digest: the base model and, for adapters, the digest of its served file.
        digest: of the artefact. customer_id: whose it is; None for the operator's products.
        public_name: `ft:…` name of a customer's fine-tune; products are served under their own name.
        run_id, report_id: where it came from; no run for an imported one. licence, card (Markdown).
        facts: options of the engine, hashes of an imported source, recipe digest …
    """

    id: str
    product: str
    version: int
    task: str
    engine: str
    kind: str
    base: str
    base_digest: str | None
    digest: str
    customer_id: str | None
    public_name: str | None
    run_id: str | None
    report_id: str | None
    licence: str
    card: str
    facts: dict[str, Any]
    created_at: str

    @property
    def name(self) -> str:
        """The public model name it is asked for under."""
        return self.public_name or self.product


class AliasMove(msgspec.Struct, frozen=True):
    """One line of an alias's history; `release_id` None removes it. reason: promote, rollback or remove."""

    id: str
    product: str
    alias: str
    release_id: str | None
    reason: str
    moved_at: str
