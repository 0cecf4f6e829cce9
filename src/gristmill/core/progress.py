"""Progress of long work, as data, so that a terminal, a server and a test can each show it their way."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """How far a long operation is: stage, units done of total (0 when unknown), and a line for people."""

    stage: str
    done: int = 0
    total: int = 0
    message: str = ""


Emit = Callable[[Progress], None]
