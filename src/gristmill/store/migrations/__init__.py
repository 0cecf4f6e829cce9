"""Alembic migrations of `ledger.db`; add one by `script.py.mako`, then raise HEAD in `store/migrate.py`."""
