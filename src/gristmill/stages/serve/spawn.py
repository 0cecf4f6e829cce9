"""Spawning an engine child: its environment, its socket and what becomes of its stderr.

Invariant: a child's environment is built from an allow-list; no `GRISTMILL_*` variable and no secret of the
parent reaches a plug-in. The working directory is never on its import path (`-P`).
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import structlog

from gristmill.core.errors import Unavailable
from gristmill.core.op import EngineSpec

_ALLOWED = frozenset(
    {"PATH", "HOME", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"}
)
_LINE_BYTES = 2000
_log = structlog.get_logger()


def child_environment(spec: EngineSpec, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a child starts with; its OpenMP threads sleep while they wait, as the cores are shared.

    Args:
        spec: its `threads` option becomes OMP_NUM_THREADS.
        environment: overrides of the defaults; names outside the allow-list are left out. `PYTHONPATH`
            defaults to this process's import path, so that a plug-in found here is found in the child.
    """
    defaults = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": pwd.getpwuid(os.getuid()).pw_dir,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(entry for entry in sys.path if entry)),
        "LANG": "C.UTF-8",
    }
    allowed = {name: value for name, value in (environment or {}).items() if name in _ALLOWED}
    threads = spec.options.get("threads")
    omp = {"OMP_NUM_THREADS": str(threads)} if isinstance(threads, int) and threads > 0 else {}
    return {**defaults, **allowed, **omp, "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1"}


def spawn(
    spec: EngineSpec, environment: Mapping[str, str] | None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a child; returns the process and our end of its socket (non-blocking).

    It must be called on a thread that lives as long as the child may: on Linux the child is killed when the
    thread that started it ends.

    Raises:
        Unavailable: the system refuses another process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [sys.executable, "-P", "-m", "gristmill.stages.serve.child", str(theirs.fileno())]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(spec, environment),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise Unavailable(f"The engine {spec.engine} cannot be started: {error.strerror}.") from None
    finally:
        theirs.close()
    ours.setblocking(False)
    assert process.stderr is not None
    log_lines = threading.Thread(
        target=_log_lines, args=(process.stderr, spec.engine, process.pid), name="engine-stderr", daemon=True
    )
    log_lines.start()
    return process, ours


def _log_lines(stderr: IO[bytes], engine: str, pid: int) -> None:
    with stderr:
        while line := stderr.readline(_LINE_BYTES):
            if text := line.decode("utf-8", "replace").rstrip():
                _log.info("engine_stderr", engine=engine, pid=pid, line=text)
