"""The engine port: what executes a release inside a supervised child process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gristmill.core.op import EngineSpec, FromChild, Op

Emit = Callable[[FromChild], None]


class Engine(Protocol):
    """An engine plug-in; it lives in a child of its own and may use threads. `emit` is thread-safe."""

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """Load all models, verifying their digests; returns release id → digest.

        Raises:
            BrokenInvariant: a file's hash changed. Missing: a library is absent.
        """
        ...

    def admit(self, request: int, release: str, op: Op) -> None:
        """Count the input exactly and emit `Counted` (or `Failed`); keep what was prepared until `go`."""
        ...

    def go(self, request: int, max_tokens: int | None) -> None:
        """Run an admitted request; emits chunks if `op.stream`, then `Done` or `Failed`."""
        ...

    def cancel(self, request: int) -> None:
        """Stop a request at once; emits `Done` with finish reason "cancelled"; unknown ids are ignored."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters by name."""
        ...

    def close(self) -> None:
        """Free everything; called once before the child exits."""
        ...
