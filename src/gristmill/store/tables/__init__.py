"""Every table of `ledger.db`, by theme; portable SQL, times as ISO 8601 UTC text, documents as JSON text."""

from gristmill.store.tables import account, chain, ledger, platform
from gristmill.store.tables.metadata import metadata

__all__ = ["account", "chain", "ledger", "metadata", "platform"]
