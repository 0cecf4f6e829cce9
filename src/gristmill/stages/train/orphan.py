"""A child that ends with its parent, also when the parent is killed with `kill -9`.

Source: prctl(2), PR_SET_PDEATHSIG; where the system has none, a thread that watches the parent's id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_EVERY_S = 1.0


def die_with_parent(parent: int) -> None:
    """Arrange that this process is killed when `parent` ends; exits now if it has ended already.

    The kernel's signal is tied to the parent's thread that started the child; that thread follows it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    os._exit(1)
