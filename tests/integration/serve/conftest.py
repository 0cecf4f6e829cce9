"""An unruly third-party engine, installed like any other, for the tests of supervision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gristmill.core.op import EngineSpec, ServedModel
from gristmill.testing.plugin_dist import installed

UNRULY_PLUGIN = '''
"""The fake engine with manners that a supervisor must cope with; each kind of Op is one of them."""
import os, signal, sys, threading, time
from pathlib import Path
from gristmill.core.errors import BrokenInvariant
from gristmill.core.op import Chunk, Counted, Done, Op
from gristmill.ports.manifest import Manifest
from gristmill.testing.engines import FakeEngine

MANIFEST = Manifest(
    name="unruly", kind="engines", summary="For tests.", implementation="unruly_dist:Unruly"
)

class Unruly(FakeEngine):
    def open(self, spec, emit):
        how = spec.options.get("load", "")
        if how == "refuse":
            raise BrokenInvariant("weights.onnx changed.", hint="Roll back.")
        if how == "raise":
            raise ValueError("bad weights")
        if how == "exit":
            os._exit(7)
        if how == "sleep":
            time.sleep(60)
        if how == "once" and Path(spec.options["mark"]).exists():
            raise BrokenInvariant("weights.onnx changed.")
        print("this goes nowhere")
        sys.stderr.write("loaded well\\n")
        self._raw_emit = emit
        return super().open(spec, emit)

    def admit(self, request, release, op):
        if op.kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif op.kind == "raise":
            raise ValueError("the prompt was " + op.inputs[0])
        elif op.kind == "block":
            threading.Event().wait()
        elif op.kind == "environment":
            self._raw_emit(Counted(request, {}))
            self._raw_emit(Done(request, [dict(os.environ), sys.path, os.getpid()], {}, 0.0, "stop", ""))
        elif op.kind == "flood":
            self._raw_emit(Counted(request, {}))
            for _ in range(5000):
                self._raw_emit(Chunk(request, "x", 1))
        elif op.kind == "unsendable":
            self._raw_emit(Counted(request, {}))
            self._raw_emit(Done(request, [object()], {}, 0.0, "stop", ""))
        elif op.kind == "stall":
            self._raw_emit(Counted(request, {}))
        else:
            super().admit(request, release, op)

    def cancel(self, request):
        super().cancel(request)
        self._raw_emit(Done(request, [], {}, 0.0, "cancelled", ""))
'''


@pytest.fixture(autouse=True)
def unruly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the plug-in for one test."""
    with installed(tmp_path_factory.mktemp("plugins"), "unruly-dist", UNRULY_PLUGIN):
        yield


@pytest.fixture
def spec() -> EngineSpec:
    """One release on the unruly engine."""
    return EngineSpec("unruly", (ServedModel("rel_1", "/nowhere", "digest-1"),), {"token_s": 0.002})
