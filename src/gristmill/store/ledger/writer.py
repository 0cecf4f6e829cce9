"""The ledger writer: one thread, one connection, many commands a commit.

Invariant: a command's future resolves only after the transaction that holds it is durable; a command that
fails rolls back to its own savepoint and takes nobody with it; commands keep their order, journals first.
Like commands in a row share a savepoint and their statements; when one of them fails they run again singly.
Source: sqlite.org, "Write-Ahead Logging", "SAVEPOINT".
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from gristmill.core.clock import Clock
from gristmill.core.errors import BrokenInvariant, GristmillError, Unavailable
from gristmill.core.invoice import Invoice
from gristmill.core.posting import PostingGroup
from gristmill.core.rating import Rater
from gristmill.core.usage import Settled, Settlement, UsageEvent
from gristmill.store.ledger import invoices, sql, wallets
from gristmill.store.ledger.books import Books
from gristmill.store.ledger.delivery import Command, Outcome, deliver
from gristmill.store.ledger.failures import as_error
from gristmill.store.ledger.reads import Reader, StoredAnswer
from gristmill.store.ledger.settle import settle_many

_log = structlog.get_logger(__name__)
_BATCH = 256
T = TypeVar("T")


class LedgerWriter:
    """The only writer of the ledger; every awaitable has a blocking twin `*_now` for the command line.

    Args:
        path: `ledger.db`, migrated. gateway: name that leases and stream journals are kept under.
        hourly_rate: cost of the machine in `currency`. busy_timeout_s: how long to wait for another process's
            write lock before commands fail with Unavailable.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        gateway: str,
        rater: Rater,
        hourly_rate: Decimal,
        currency: str,
        *,
        busy_timeout_s: float = 10,
    ) -> None:
        self.gateway = gateway
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._terms = (clock, gateway, rater, hourly_rate, currency)
        self.counters = {"commits": 0, "commands": 0}
        self._queue: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_open = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the connection and start the thread."""
        connection = sqlite3.connect(
            self._path,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        self._connection = connection
        self._books = Books(connection, *self._terms)
        self._reader = Reader(self._path)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._is_open = True
        self._thread.start()

    def close(self) -> None:
        """Write everything that waits, then stop; closing twice is no error."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        self._connection.close()
        self._reader.close()

    # Settlements and the journal of streams

    async def settle(self, settlement: Settlement) -> Settled:
        """Settle one request durably; settling it again answers as the first time and writes nothing.

        Raises:
            Conflict: its Idempotency-Key was settled by another request. Forbidden: the model has no price.
            BrokenInvariant: it was not held; the account is parked. Unavailable: disk full or locked; retry.
        """
        settled: Settled = await self._ask(Command("settle", settlement))
        return settled

    def settle_now(self, settlement: Settlement) -> Settled:
        """See `settle`."""
        settled: Settled = self._ask_now(Command("settle", settlement))
        return settled

    async def journal(self, event: UsageEvent) -> None:
        """Make durable what a stream has been sent so far; a later event of the request replaces it."""
        await self._ask(Command("journal", event))

    def journal_now(self, event: UsageEvent) -> None:
        """See `journal`."""
        self._ask_now(Command("journal", event))

    async def drop_journal(self, request_id: str) -> None:
        """Forget a stream's journal (a failed request that is free)."""
        await self._ask(_work(_drop_journal, request_id))

    def drop_journal_now(self, request_id: str) -> None:
        """See `drop_journal`."""
        self._ask_now(_work(_drop_journal, request_id))

    def recover(self) -> list[Settled]:
        """At start, before any request: settle what crashed streams had sent, give all leases back.

        A journal that cannot be settled stays, is logged, and is tried again at the next start.
        """
        settled = []
        for event in self._reader.journal(self.gateway):
            try:
                recovered = msgspec.structs.replace(event, status="recovered")
                settled.append(self.settle_now(Settlement(recovered)))
            except GristmillError as error:
                _log.error("journal_not_recovered", request_id=event.request_id, error=error.message)
        returned = self._ask_now(_work(wallets.return_all_leases))
        _log.info("ledger_recovered", requests=len(settled), leases=returned)
        return settled

    # Wallets, leases, postings, invoices

    async def open_lease(self, customer_id: str, currency: str, amount: int) -> int:
        """Move up to `amount` nano-units from the wallet to this gateway; returns what was granted."""
        return int(await self._ask(_work(wallets.open_lease, customer_id, currency, amount)))

    def open_lease_now(self, customer_id: str, currency: str, amount: int) -> int:
        """See `open_lease`."""
        return int(self._ask_now(_work(wallets.open_lease, customer_id, currency, amount)))

    async def return_lease(self, customer_id: str, currency: str, amount: int) -> None:
        """Give back `amount` nano-units of the lease (what is left of it at most)."""
        await self._ask(_work(wallets.return_lease, customer_id, currency, amount))

    def return_lease_now(self, customer_id: str, currency: str, amount: int) -> None:
        """See `return_lease`."""
        self._ask_now(_work(wallets.return_lease, customer_id, currency, amount))

    async def top_up(self, customer_id: str, amount: int, currency: str, source: str) -> int:
        """Add paid credit, once per `source`; returns the wallet's new balance."""
        return int(await self._ask(_work(wallets.top_up, customer_id, amount, currency, source)))

    def top_up_now(self, customer_id: str, amount: int, currency: str, source: str) -> int:
        """See `top_up`."""
        return int(self._ask_now(_work(wallets.top_up, customer_id, amount, currency, source)))

    async def post(self, group: PostingGroup) -> bool:
        """Post a group; False when its (source, purpose) was posted before.

        Raises:
            BrokenInvariant: it does not sum to zero. WalletEmpty: it would overdraw a wallet.
        """
        return bool(await self._ask(_work(Books.post, group)))

    def post_now(self, group: PostingGroup) -> bool:
        """See `post`."""
        return bool(self._ask_now(_work(Books.post, group)))

    async def issue(self, draft: Invoice, issued_at: str) -> Invoice:
        """Issue a previewed invoice; see `store.ledger.invoices.issue`."""
        invoice: Invoice = await self._ask(_work(invoices.issue, draft, issued_at))
        return invoice

    def issue_now(self, draft: Invoice, issued_at: str) -> Invoice:
        """See `issue`."""
        invoice: Invoice = self._ask_now(_work(invoices.issue, draft, issued_at))
        return invoice

    # Reading

    def find_answer(self, customer_id: str, route: str, key: str) -> StoredAnswer | None:
        """The stored answer of an Idempotency-Key, or None."""
        return self._reader.find_answer(customer_id, route, key)

    def positions(self, subscription_id: str, period: str) -> dict[str, int]:
        """Price key → quantity settled in the period."""
        return self._reader.positions(subscription_id, period)

    def balance(self, account: str, currency: str) -> int:
        """Balance of an account in nano-units, debit positive; 0 when it has no entries."""
        return self._reader.balance(account, currency)

    # The thread

    async def _ask(self, command: Command) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        command.loop, command.future = loop, future
        self._put(command)
        return await future

    def _ask_now(self, command: Command) -> Any:
        future: Future[Any] = Future()
        command.future = future
        self._put(command)
        return future.result()

    def _put(self, command: Command) -> None:
        with self._lock:
            if not self._is_open:
                raise Unavailable("The ledger is closed.", hint="The server is stopping; try again.")
            self._queue.put(command)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and batch[-1] is not None and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            is_last = batch[-1] is None
            commands = [command for command in batch if command is not None]
            if commands:
                self.counters["commits"] += 1
                self.counters["commands"] += len(commands)
                deliver(self._commit(commands))

    def _commit(self, commands: Sequence[Command]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            ordered = sorted(commands, key=lambda command: command.kind != "journal")
            for kind, group in groupby(ordered, key=lambda command: command.kind):
                run = list(group)
                if kind == "work":
                    for command in run:
                        outcomes += self._attempt([command])
                else:
                    outcomes += self._attempt(run)
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 nothing of this batch is durable: nothing is acknowledged
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have ended it by itself
                    self._connection.execute("ROLLBACK")
            failure = as_error(error)
            _log.error("ledger_commit_failed", error=str(error), commands=len(commands))
            return [Outcome(command, None, failure) for command in commands]
        return outcomes

    def _attempt(self, run: list[Command]) -> list[Outcome]:
        """Apply commands of one kind under one savepoint; when that fails, each under its own."""
        self._connection.execute("SAVEPOINT command")
        try:
            results = self._apply(run)
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # the database gave up the whole transaction (full disk), and `_commit` says so
            self._connection.execute("ROLLBACK TO command")
            self._connection.execute("RELEASE command")
            if len(run) > 1:
                return [outcome for command in run for outcome in self._attempt([command])]
            failure = as_error(error)
            self._park(run[0], failure)
            return [Outcome(run[0], None, failure)]
        self._connection.execute("RELEASE command")
        return [Outcome(command, result, None) for command, result in zip(run, results, strict=True)]

    def _apply(self, run: list[Command]) -> Sequence[Any]:
        if run[0].kind == "settle":
            return settle_many(self._books, [command.payload for command in run])
        if run[0].kind == "journal":
            return _journal_many(self._books, [command.payload for command in run])
        return [command.payload(self._books) for command in run]

    def _park(self, command: Command, failure: GristmillError) -> None:
        """Stop serving the account of a settlement that breaks an invariant; it is never billed for it."""
        if command.kind == "settle" and isinstance(failure, BrokenInvariant):
            event = command.payload.event
            _log.error("account_parked", customer_id=event.customer_id, request_id=event.request_id)
            self._books.cursor.execute(sql.PARK, (failure.message, event.customer_id))


def _work(function: Callable[..., T], *arguments: Any) -> Command:
    return Command("work", lambda books: function(books, *arguments))


def _journal_many(books: Books, events: Sequence[UsageEvent]) -> list[None]:
    latest = {event.request_id: event for event in events}
    rows = [
        (request_id, books.gateway, msgspec.json.encode(event).decode())
        for request_id, event in latest.items()
    ]
    sql.write(books.cursor, sql.JOURNAL, rows)
    return [None] * len(events)


def _drop_journal(books: Books, request_id: str) -> None:
    sql.select_in(books.cursor, sql.DROP_JOURNAL, [request_id])
