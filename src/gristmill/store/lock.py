"""The home's lock: one process at a time writes a home.

Invariant: the lock is the operating system's (flock), so it ends with its holder, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gristmill.core.errors import Conflict


class HomeLock:
    """An exclusive lock on a file; the file holds the holder's process id for the message."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    def acquire(self) -> None:
        """Take the lock or raise Conflict naming the holder's process id."""
        if not self.try_acquire():
            holder = self._path.read_text(encoding="ascii") or "unknown"
            raise Conflict(
                f"Another Gristmill process ({holder}) is using the home {self._path.parent}.",
                hint="Stop it, or name another folder with --home.",
            )

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
