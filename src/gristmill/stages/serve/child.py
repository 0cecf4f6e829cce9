"""The engine child: `python -m gristmill.stages.serve.child FD` hosts one engine plug-in behind a socket.

The main thread reads, hands over to the engine and answers pings, so an engine must return quickly from
`admit`, `go` and `cancel`. Worker threads emit; a writer thread sends all that has gathered in one call.
Invariant: it never outlives its parent (PR_SET_PDEATHSIG on Linux, the socket's end everywhere), and it
writes no prompt anywhere but into the engine: stdout is closed, a failure is told by type and place only.
Source: prctl(2), "PR_SET_PDEATHSIG".
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from gristmill.core.errors import GristmillError
from gristmill.core.op import (
    AskStats,
    Cancel,
    Chunk,
    Counted,
    Done,
    EngineSpec,
    Failed,
    FromChild,
    Go,
    Open,
    Ready,
    Stats,
    ToChild,
)
from gristmill.ports import discovery
from gristmill.ports.engine import Engine
from gristmill.stages.serve.frames import FrameError, append_frame, decode_spec, to_child_reader

LOAD_FAILED = 3
"""Exit code after `Failed(request=-1)`."""

_READ_BYTES = 256 << 10
_FLUSH_BYTES = 1 << 20
_FLUSH_S = 0.001
_SILENCE_S = 0.0003
_CLOSE_S = 3.0
_PR_SET_PDEATHSIG = 1


class Outbox:
    """Messages on their way to the parent: `emit` from any thread, few system calls, order kept a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_woken = False
        self._reader_thread = threading.get_ident()
        self._flushed_at = self._emitted_at = 0.0
        threading.Thread(target=self._write, name="outbox", daemon=True).start()

    def emit(self, message: FromChild) -> None:
        """Queue a message; over 1 MiB of backlog the caller itself waits until it is sent."""
        is_reader = threading.get_ident() == self._reader_thread  # it flushes by itself, soon
        with self._lock:
            try:
                append_frame(self._pending, message)
            except FrameError as error:
                append_frame(self._pending, _unsendable(message, str(error)))
            is_due = len(self._pending) > _FLUSH_BYTES
            if not is_reader:  # the first after a silence goes at once, those on its heels together
                now = time.perf_counter()
                is_due |= now - self._emitted_at > _SILENCE_S
                self._emitted_at = now
            must_wake = not (is_due or is_reader or self._is_woken)
            self._is_woken |= must_wake
        if is_due:
            self.flush()
        elif must_wake:
            self._wakes.put(None)

    def flush(self) -> None:
        """Send all that is queued."""
        with self._send_lock:
            with self._lock:
                data, self._pending, self._is_woken = self._pending, bytearray(), False
            self._flushed_at = time.perf_counter()
            if data:
                try:
                    self._sock.sendall(data)
                except OSError:  # the parent is gone: nothing is left to work for
                    os._exit(0)

    def flush_if_due(self) -> None:
        """Flush when the reader has been busy for a millisecond, lest a burst wait for its end."""
        if self._pending and time.perf_counter() - self._flushed_at > _FLUSH_S:
            self.flush()

    def _write(self) -> None:
        while True:
            self._wakes.get()
            self.flush()


def main(fd: int) -> int:
    """Host the engine until the parent closes its end; returns the exit code."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sys.setswitchinterval(0.001)
    spec = _read_spec(sock)
    if spec is None:
        return 0
    outbox = Outbox(sock)
    engine = _load(spec, outbox)
    if engine is None:
        return LOAD_FAILED
    gc.collect()
    gc.freeze()
    _serve(sock, engine, outbox)
    _close(engine)
    return 0


def _read_spec(sock: socket.socket) -> EngineSpec | None:
    header = sock.recv(4, socket.MSG_WAITALL)
    if len(header) < 4:
        return None
    n_bytes = int.from_bytes(header, "big")
    payload = sock.recv(n_bytes, socket.MSG_WAITALL)
    return decode_spec(payload) if len(payload) == n_bytes else None


def _load(spec: EngineSpec, outbox: Outbox) -> Engine | None:
    try:
        engine: Engine = discovery.load(discovery.find("engines", spec.engine))
        outbox.emit(Ready(engine.open(spec, outbox.emit)))
    except GristmillError as error:
        outbox.emit(_failed(-1, error))
    except Exception as error:  # noqa: BLE001 - the child is a surface: whatever breaks is told to the parent
        text = f"The engine {spec.engine} did not load: {type(error).__name__}: {error}"
        outbox.emit(Failed(-1, GristmillError.code, text))
    else:
        outbox.flush()
        return engine
    outbox.flush()
    return None


def _serve(sock: socket.socket, engine: Engine, outbox: Outbox) -> None:
    reader = to_child_reader()
    while data := sock.recv(_READ_BYTES):
        for message in reader.feed(data):
            _handle(engine, message, outbox)
            outbox.flush_if_due()
        outbox.flush()


def _handle(engine: Engine, message: ToChild, outbox: Outbox) -> None:
    request = -1
    try:
        match message:
            case Open(request, release, op):
                engine.admit(request, release, op)
            case Go(request, max_tokens):
                engine.go(request, max_tokens)
            case Cancel(request):
                engine.cancel(request)
            case AskStats():
                outbox.emit(Stats(_counters(engine)))
    except GristmillError as error:
        outbox.emit(_failed(request, error))
    except Exception as error:  # noqa: BLE001 - the child is a surface: one request fails, the engine goes on
        _report(error)
        text = f"The engine failed on this request ({type(error).__name__})."
        outbox.emit(Failed(request, GristmillError.code, text))


def _counters(engine: Engine) -> dict[str, float]:
    try:
        counters = engine.stats()
    except Exception as error:  # noqa: BLE001 - the child is a surface: a ping is answered all the same
        _report(error)
        counters = {}
    return {**counters, **_measured()}


def _failed(request: int, error: GristmillError) -> Failed:
    text = error.message if error.hint is None else f"{error.message} {error.hint}"
    return Failed(request, error.code, text, error.param)


def _unsendable(message: FromChild, reason: str) -> FromChild:
    if isinstance(message, Counted | Chunk | Done | Failed):
        return Failed(message.request, GristmillError.code, f"The engine's answer cannot be sent: {reason}.")
    return Stats({})


def _report(error: Exception) -> None:
    """Tell stderr the type and the places of an error, never its text: that may quote a prompt."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    sys.stderr.write(f"{type(error).__name__} at {' < '.join(reversed(places))}\n")


def _measured() -> dict[str, float]:
    """What the host itself measures: resident memory and processor time, by which a stall is recognised."""
    try:
        n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        rss_bytes = n_pages * resource.getpagesize()
    except OSError:  # not Linux: the peak is the next best figure
        rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rss_bytes": float(rss_bytes), "cpu_s": time.process_time()}


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _close(engine: Engine) -> None:
    """Close the engine, but end in any case: the parent may be gone and nobody would kill us."""
    limit = threading.Timer(_CLOSE_S, os._exit, (0,))
    limit.daemon = True
    limit.start()
    engine.close()


if __name__ == "__main__":
    code = 0
    with contextlib.suppress(ConnectionError):
        code = main(int(sys.argv[1]))
    # Native libraries' exit handlers and lingering threads must not hold a finished child.
    sys.stderr.flush()
    os._exit(code)
