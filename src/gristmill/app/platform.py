"""The platform: opens everything a home holds, once, and closes it in order.

Invariant: whoever has a Platform holds the home's lock, so there is one writer of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.app.settings import Settings
from gristmill.core.clock import Clock, SystemClock
from gristmill.core.errors import UsageError
from gristmill.stages.access import queries as access
from gristmill.stages.bill.rate import PluginRater
from gristmill.store.blobs import Blobs
from gristmill.store.cipher import Cipher, read_or_create_key
from gristmill.store.ledger.writer import LedgerWriter
from gristmill.store.lock import HomeLock
from gristmill.store.migrate import migrate
from gristmill.store.session import Database

if TYPE_CHECKING:
    from gristmill.app.pipeline.worker import Worker

GATEWAY = "gateway"


class Platform:
    """One opened home.

    Attributes:
        access_changed, release_changed: called after keys, customers or plans, and after releases or aliases
            changed; the server sets them to refresh what it holds in memory.
        worker: the server's worker of runs; None outside a server, where a command works by itself.
        deployments: what is being served now, one document a release; nothing outside a server.
    """

    def __init__(self, home: Path, settings: Settings, clock: Clock | None = None) -> None:
        self.home = home
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.access_changed: Callable[[], None] = _nothing
        self.release_changed: Callable[[], None] = _nothing
        self.worker: Worker | None = None
        self.deployments: Callable[[], list[dict[str, Any]]] = list
        _make_home(home)
        self._lock = HomeLock(home / "lock")
        self._lock.acquire()
        self.db = Database(home / "ledger.db")
        migrate(self.db)
        self.blobs = Blobs(home / "blobs", home / "artifacts")
        self.cipher = Cipher(read_or_create_key(home / "secret.key", self.clock), self.clock)
        self.rater = PluginRater()
        self.ledger = LedgerWriter(
            home / "ledger.db", self.clock, GATEWAY, self.rater, settings.hourly_rate, settings.currency
        )
        self.ledger.start()
        self.ledger.recover()  # whoever held this home before may have died in the middle of a request
        with self.db.write() as connection:
            access.seed_internal_plan(connection, self.clock, settings.currency)

    def close(self) -> None:
        """Write what waits, close the databases, free the lock."""
        self.ledger.close()
        self.db.close()
        self._lock.release()

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        for name in ("bases", "runs", "data"):
            (home / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The home folder {home} cannot be used: {error.strerror}.",
            hint="Name another with --home.",
            param="home",
        ) from None


def _nothing() -> None:
    """What happens after a change when no server holds anything in memory."""
