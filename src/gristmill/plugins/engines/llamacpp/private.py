"""Opening llama.cpp so that nobody but this process can speak to it.

xllamacpp's `Server` always opens an HTTP listener. It is put on a Unix socket in a folder of mode 0700 with a
random key, and the socket is removed as soon as the model is loaded: no address is left that a client, or
another user of the machine, could connect to.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gristmill.core.clock import SystemClock
from gristmill.core.errors import GristmillError
from gristmill.plugins.engines.llamacpp.models import Loaded, Options


def open_server(loaded: Loaded, options: Options) -> Any:
    """An `xllamacpp.Server` with the base and all adapters (none applied by default), for this process only.

    Raises:
        GristmillError: llama.cpp cannot load a file.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(loaded.base)
    params.model_alias = {"engine"}  # llama.cpp would answer with the file's path otherwise
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.context
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.warmup = False
    params.verbosity = 0
    params.cache_prompt = False  # a cache kept between requests is one shared between customers
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.slot_prompt_similarity = 0.0
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.ui = False
    params.n_threads_http = 1
    params.api_keys = [SystemClock().token(32).hex()]
    if loaded.adapters:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in loaded.adapters]
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        socket = Path(folder) / "engine.sock"
        params.hostnames = [str(socket)]
        try:
            return xllamacpp.Server(params)
        except RuntimeError:
            raise GristmillError(
                "llama.cpp cannot load the model.", hint="Is the GGUF whole, and does it fit into memory?"
            ) from None
        finally:
            socket.unlink(missing_ok=True)
