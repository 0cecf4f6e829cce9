"""The door of the serve stage: what the rest of Gristmill may use of it.

It holds no code; each name lives in a module of its own beside this one.
"""

from gristmill.stages.serve.deployments import (
    Deployments,
    DeploymentStatus,
    EngineStats,
    GroupKey,
    Wanted,
    grouped,
)
from gristmill.stages.serve.link import Call
from gristmill.stages.serve.process import EngineProcess, OnEvent, Supervision
from gristmill.stages.serve.session import EngineSession, OnProgress, run_ops

__all__ = [
    "Call",
    "DeploymentStatus",
    "Deployments",
    "EngineProcess",
    "EngineSession",
    "EngineStats",
    "GroupKey",
    "OnEvent",
    "OnProgress",
    "Supervision",
    "Wanted",
    "grouped",
    "run_ops",
]
