"""A real `gristmill serve` for tests: on a home of its own and a free port, killed and started again at will.

Nothing here reaches into the server: it is a subprocess, spoken to over HTTP, by the command line, or by
reading its database. A killed server must take its children along; `kill9` waits for that and insists on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from gristmill.store.ledger import audit
from gristmill.store.ledger.reads import Reader
from gristmill.store.session import Database

if TYPE_CHECKING:
    import openai

_START_S = 90.0
_POLL_S = 0.05
_ENV = shutil.which("env") or "/usr/bin/env"
_GRISTMILL = str(Path(sys.executable).with_name("gristmill"))


class Ended(NamedTuple):
    """A command that has ended: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.out)


class Buyer(NamedTuple):
    """A customer with a key: id and the key's text."""

    id: str
    secret: str


class ServerProcess:
    """One home and the server on it.

    Args:
        home: the home folder; its parent also holds the log.
        plugins: folders of third-party plug-ins (see `testing.plugin_dist.write_plugin`).
        flags: of `gristmill serve`.
        settings: setting → value, given as `GRISTMILL_*`.
        certificate: authority the clients trust, when the flags turn TLS on.

    Attributes:
        base_url: of the present start. credential: the operator's. log: everything it wrote to stderr.
    """

    def __init__(
        self,
        home: Path,
        *,
        plugins: Sequence[Path] = (),
        flags: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        self.base_url = ""
        self.credential = ""
        self._flags = [*flags]
        self._certificate = certificate
        pairs = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, plugins))}
        pairs |= {f"GRISTMILL_{name.upper()}": value for name, value in (settings or {}).items()}
        self._prefix = [_ENV, *(f"{name}={value}" for name, value in pairs.items() if value)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self, until: str = "/readyz") -> None:
        """Start it and wait until it listens and `until` answers 200."""
        command = [*self._prefix, _GRISTMILL, "serve", "--home", str(self.home), "--port", "0", *self._flags]
        with self.log.open("ab") as log:
            begun = log.tell()
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while (found := re.search(r" on (https?://\S+)", self.log_text()[begun:])) is None:
            self._check_starting(deadline)
        self.base_url = found[1]
        shown = re.search(r"gmop-\w+", self.log_text())
        assert shown is not None, "the first start shows the operator's credential"
        self.credential = shown[0]
        with self.http() as client:
            while client.get(until).status_code != 200:
                self._check_starting(deadline)

    def stop(self) -> None:
        """Ask it to end and insist that it ends well."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(60)
        finally:
            self._process.kill()
            self._process = None
        assert code == 0, self.log_text()[-3000:]

    def kill9(self) -> None:
        """Kill it as a power cut would; its children must be gone within five seconds."""
        children = self.children()
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None
        deadline = time.monotonic() + 5
        while alive := [pid for pid in children if _parent(pid) is not None]:
            assert time.monotonic() < deadline, f"children outlived their server: {alive}"
            time.sleep(_POLL_S)

    def log_text(self) -> str:
        """Everything all starts have written."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def children(self, module: str = "") -> list[int]:
        """Process ids of the server's children, of those that run `module` when one is named (Linux)."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            with contextlib.suppress(OSError):
                if _parent(pid) == self.pid and module.encode() in (folder / "cmdline").read_bytes():
                    found.append(pid)
        return found

    # Speaking to it

    def http(self, **options: Any) -> httpx.Client:
        """A client without a credential."""
        return httpx.Client(base_url=self.base_url, verify=self._verify, timeout=60, **options)

    def operator(self) -> httpx.Client:
        """A client with the operator's credential."""
        return self.http(headers={"authorization": f"Bearer {self.credential}"})

    def openai(self, secret: str) -> openai.OpenAI:
        """The official client with a customer's key; it never tries twice."""
        import openai

        client = openai.DefaultHttpxClient(verify=self._verify)
        return openai.OpenAI(
            api_key=secret, base_url=f"{self.base_url}/v1", max_retries=0, timeout=60, http_client=client
        )

    def post(self, secret: str, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST a body (bytes as they are, else as JSON) with a customer's key."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with self.http() as client:
            return client.post(path, content=content, headers=sent)

    def manage(self, noun: str, verb: str = "run", **params: Any) -> Any:
        """Run an operation over HTTP as the operator; an error of it fails the test."""
        with self.operator() as client:
            answer = client.post(f"/manage/{noun}/{verb}", json=params, timeout=300)
        last = json.loads(answer.text.strip().splitlines()[-1])
        assert "result" in last, last
        return last["result"]

    def buyer(self, name: str, plan: str | None = None, wallet: str | None = None) -> Buyer:
        """A new customer with a key, and with `wallet` currency units paid in."""
        customer = self.manage("customer", "create", name=name, **({"plan": plan} if plan else {}))["id"]
        if wallet is not None:
            self.manage("wallet", "topup", customer=customer, amount=wallet)
        return Buyer(customer, self.manage("key", "create", customer=customer)["secret"])

    def cli(self, *arguments: str, timeout_s: float = 120) -> Ended:
        """Run `gristmill …` on this home."""
        done = subprocess.run(
            [*self._prefix, _GRISTMILL, *arguments, "--home", str(self.home)],
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def cli_json(self, *arguments: str) -> Any:
        """Run `gristmill … --json`, which must end well; returns its document."""
        ended = self.cli(*arguments, "--json")
        assert ended.code == 0, ended
        return ended.json

    def cli_started(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `gristmill …` on this home and leave it running."""
        command = [*self._prefix, _GRISTMILL, *arguments, "--home", str(self.home)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )

    # Reading its books

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of the home's `ledger.db`, read-only, as they are committed."""
        uri = f"file:{self.home / 'ledger.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def broken_books(self) -> list[str]:
        """Every ledger invariant that does not hold, in words; empty when all is well."""
        database = Database(self.home / "ledger.db")
        try:
            with database.read() as connection:
                return audit.broken(connection)
        finally:
            database.close()

    def balance(self, account: str, currency: str = "USD") -> int:
        """Balance of an account in nano-units, debit positive."""
        reader = Reader(self.home / "ledger.db")
        try:
            return reader.balance(account, currency)
        finally:
            reader.close()

    @property
    def _verify(self) -> Any:
        if self._certificate is None:
            return True
        import ssl

        return ssl.create_default_context(cafile=str(self._certificate))

    def _check_starting(self, deadline: float) -> None:
        assert self._process is not None
        is_alive = self._process.poll() is None and time.monotonic() < deadline
        assert is_alive, f"the server did not start: {self.log_text()[-3000:]}"
        time.sleep(_POLL_S)


@contextlib.contextmanager
def serving(home: Path, **options: Any) -> Iterator[ServerProcess]:
    """A started `ServerProcess`, stopped at the end of the block."""
    server = ServerProcess(home, **options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _parent(pid: int) -> int | None:
    """The parent's process id; None when the process is gone or waits only to be reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)
