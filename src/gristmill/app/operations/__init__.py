"""All operations, by noun; importing this module registers them."""

from gristmill.app.operations import chain, commerce, home, insight, release
from gristmill.app.operations.base import Operation, Params, Progress, operations, run

__all__ = [
    "Operation",
    "Params",
    "Progress",
    "chain",
    "commerce",
    "home",
    "insight",
    "operations",
    "release",
    "run",
]
