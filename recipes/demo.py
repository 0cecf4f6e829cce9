"""The main job, from raw data to invoice, through public surfaces: the command line and the `openai` client.

Run by `make demo`. Everything it prints was measured in this run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

RECIPES = Path(__file__).parent
GRISTMILL = str(Path(sys.executable).with_name("gristmill"))
EXPECTED_S = {"reviewdesk": 150, "assistant": 180}
_LAST = ("gates", "release", "deployment", "requests, p50 / p95", "wall clock")
console = Console(stderr=True, highlight=False)


def main() -> int:
    """Run the demo; 0 when every link worked."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", type=Path, default=Path(".demo-home"))
    options.add_argument("--json", action="store_true", help="print the summary as JSON")
    given = options.parse_args()
    demo = Demo(given.home.resolve())
    try:
        summary = demo.run()
    finally:
        demo.stop()
    if given.json:
        sys.stdout.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    else:
        show(summary)
    epilogue(summary)
    return 0


class Demo:
    """One pass of the main job on a home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.started = time.monotonic()

    def run(self) -> dict[str, Any]:
        """All links in order; returns the summary as data."""
        step(1, "reviewdesk: from 12,808 labelled reviews to a released, priced model")
        begun = time.monotonic()
        launched = self.cli("launch", str(RECIPES / "reviewdesk"))
        reviewdesk_s = time.monotonic() - begun
        step(2, f"serve both products on one port: http://127.0.0.1:{self.port}")
        self.start_server()
        reviews = self.customer("Northwind Cinemas", "reviewdesk-business")
        self.cli("plan", "create", str(RECIPES / "assistant"))
        garden = self.customer("Larkspout", "assistant-credit")
        self.cli("wallet", "topup", garden["id"], "25.00")
        step(3, "assistant: fine-tuned by a customer, through the official openai client")
        begun = time.monotonic()
        job = self.fine_tune(garden["secret"])
        assistant_s = time.monotonic() - begun
        step(4, "requests of both customers, metered and settled")
        classify_ms = self.classify_reviews(reviews["secret"])
        chat_ms, answers = self.ask_questions(garden["secret"], job["model"])
        step(5, "invoices and margin")
        return {
            "home": str(self.home),
            "port": self.port,
            "key": garden["secret"],
            "model": job["model"],
            "answers": answers,
            "products": {
                "reviewdesk": self.product(launched["run"], reviewdesk_s, classify_ms),
                "assistant": self.product(job["run"], assistant_s, chat_ms),
            },
            "customers": [self.bill(reviews), self.bill(garden)],
            "seconds": round(time.monotonic() - self.started, 1),
            "expected_seconds": EXPECTED_S,
            "load_average": os.getloadavg()[0],
        }

    def cli(self, *words: str) -> Any:
        """One `gristmill` command on the demo's home; its progress goes to our stderr."""
        console.print(f"[dim]$ gristmill {' '.join(words)}[/dim]")
        done = subprocess.run(
            [GRISTMILL, *words, "--home", str(self.home), "--json"], stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            console.print(f"[red]gristmill {words[0]} ended with exit code {done.returncode}[/red]")
            sys.exit(done.returncode)
        return json.loads(done.stdout)

    def customer(self, name: str, plan: str) -> dict[str, str]:
        """A customer on a plan, with a key."""
        made = self.cli("customer", "create", name, "--plan", plan)
        key = self.cli("key", "create", made["id"])
        return {"id": made["id"], "name": name, "secret": key["secret"]}

    def start_server(self) -> None:
        """Start `gristmill serve` and wait until it is ready."""
        log = (self.home / "server.log").open("ab")
        self.server = subprocess.Popen(
            [GRISTMILL, "serve", "--home", str(self.home), "--port", str(self.port)], stdout=log, stderr=log
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.server.poll() is not None:
                sys.exit(f"The server ended early; see {self.home / 'server.log'}.")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    if b" 200 " in probe.recv(64):
                        return
            except OSError:
                pass
            time.sleep(0.2)
        sys.exit(f"The server was not ready within two minutes; see {self.home / 'server.log'}.")

    def client(self, key: str) -> openai.OpenAI:
        """The official client, pointed at this server."""
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def fine_tune(self, key: str) -> dict[str, Any]:
        """Upload, train, follow the events, as any OpenAI customer does."""
        client = self.client(key)
        folder = RECIPES / "assistant"
        training = client.files.create(file=folder / "train.jsonl", purpose="fine-tune")
        held_out = client.files.create(file=folder / "test.jsonl", purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="SmolLM2-135M-Instruct",
            training_file=training.id,
            validation_file=held_out.id,
            suffix="support",
            metadata={"mask_allow": "support@larkspout.example,303-555-0142"},
        )
        seen: set[str] = set()
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(1)
            for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=50).data):
                if event.id not in seen:
                    seen.add(event.id)
                    console.print(f"  [dim]{event.message}[/dim]")
            job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status != "succeeded" or job.fine_tuned_model is None:
            sys.exit(f"The fine-tuning job {job.id} {job.status}: {job.error.message if job.error else ''}")
        return {"run": job.id, "model": job.fine_tuned_model}

    def classify_reviews(self, key: str) -> list[float]:
        """Latencies (ms) of held-out reviews sent by four clients at once."""
        client = self.client(key)
        shown = self.cli("dataset", "show", "reviewdesk", "--rows", "300")
        texts = [row["text"] for row in shown["rows"]]

        def ask(text: str) -> float:
            begun = time.perf_counter()
            answer = client.post("/classify", cast_to=object, body={"model": "reviewdesk", "input": text})
            assert isinstance(answer, dict)
            assert answer["data"][0]["label"]
            return 1000 * (time.perf_counter() - begun)

        ask(texts[0])
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(ask, texts))

    def ask_questions(self, key: str, model: str) -> tuple[list[float], list[dict[str, str]]]:
        """Latencies (ms) of streamed answers to held-out questions, and the first few answers."""
        client = self.client(key)
        rows = [json.loads(line) for line in (RECIPES / "assistant" / "test.jsonl").open(encoding="utf-8")]
        latencies, answers = [], []
        for row in rows[:20]:
            begun = time.perf_counter()
            stream = client.chat.completions.create(
                model=model, messages=row["messages"][:-1], temperature=0, max_tokens=48, stream=True
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            latencies.append(1000 * (time.perf_counter() - begun))
            answers.append({"question": row["messages"][-2]["content"], "answer": text})
        return latencies, answers[:3]

    def product(self, run_id: str, seconds: float, latencies: list[float]) -> dict[str, Any]:
        """What the chain recorded of a product, and what its callers measured."""
        run = self.cli("run", "show", run_id)
        return {
            "seconds": round(seconds, 1),
            "run": run,
            "requests": len(latencies),
            "p50_ms": round(statistics.median(latencies), 1),
            "p95_ms": round(statistics.quantiles(latencies, n=20)[-1], 1),
        }

    def bill(self, customer: dict[str, str]) -> dict[str, Any]:
        """Usage, invoice (issued as of the first of next month, as PDF) and margin of one customer."""
        now = datetime.now(UTC)
        closing = (now.replace(day=1) + timedelta(days=32)).strftime("%Y-%m-01")
        usage = self.cli("usage", "show", customer["id"])
        invoice = self.cli("invoice", "issue", customer["id"], "--as-of", closing)
        pdf = self.home / f"invoice-{invoice['number']}.pdf"
        self.cli("invoice", "pdf", invoice["id"], "--output", str(pdf))
        margin = self.cli("margin", "show", "--customer", customer["id"], "--as-of", closing)
        return {
            "name": customer["name"],
            "usage": usage,
            "invoice": invoice,
            "pdf": str(pdf),
            "margin": margin,
        }

    def stop(self) -> None:
        """End the server, gently."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(30)
            except subprocess.TimeoutExpired:
                self.server.kill()


def free_port() -> int:
    """8080 when nobody listens there, else any free port."""
    for port in (8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the system gives no port")


def step(number: int, text: str) -> None:
    """A heading on stderr."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def show(summary: dict[str, Any]) -> None:
    """The summary table on stdout."""
    table = Table(title="The chain, as recorded", title_justify="left", header_style="bold")
    table.add_column("link")
    for name in summary["products"]:
        table.add_column(name, overflow="fold")
    columns = [product_rows(product) for product in summary["products"].values()]
    labels = dict.fromkeys(label for column in columns for label in column if label not in _LAST)
    for label in (*labels, *_LAST):
        table.add_row(label, *(column.get(label, "-") for column in columns))
    out = Console() if sys.stdout.isatty() else Console(width=160)
    out.print(table)
    money = Table(title="Customers", title_justify="left", header_style="bold")
    for name in (
        "customer",
        "requests",
        "usage",
        "charged",
        "invoice",
        "total due",
        "revenue",
        "gross margin",
    ):
        money.add_column(name, overflow="fold")
    for customer in summary["customers"]:
        money.add_row(*customer_row(customer))
    out.print(money)
    for pair in summary["answers"]:
        out.print(f"[dim]Q[/dim] {pair['question']}\n[dim]A[/dim] {pair['answer']}")


def product_rows(product: dict[str, Any]) -> dict[str, str]:
    """Label → text of one product's column."""
    run = product["run"]
    version, report = run["dataset_version"], run["report"]
    counts = version["counts"]
    rows = {
        "dataset version": f"{version['dataset']}@{version['number']} ({version['digest'][:12]})",
        "rows kept / dropped / masked": f"{counts['kept']} / {counts['dropped']} / {counts['masked']}",
        "base model": run["base"],
        "training": f"{run['train_s']:.0f} s, {run['cost']}",
    }
    for metric in report["metrics"]["candidate"]:
        others = [
            f"{subject} {other['value']:.3f}"
            for subject, metrics in report["metrics"].items()
            for other in metrics
            if subject != "candidate" and other["name"] == metric["name"]
        ]
        beside = f"; {', '.join(others)}" if others else ""
        rows[metric["name"]] = f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]{beside}"
    rows["gates"] = "\n".join(
        f"{'pass' if verdict['is_passed'] else 'REFUSED'}: {verdict['reason']}"
        for verdict in report["verdicts"]
    )
    release = run["release"]
    return rows | {
        "release": f"{release['name']} v{release['version']} ({release['digest'][:12]})",
        "deployment": f"{release['engine']}, {release['kind']}",
        "requests, p50 / p95": f"{product['requests']}, {product['p50_ms']} / {product['p95_ms']} ms",
        "wall clock": f"{product['seconds']:.0f} s",
    }


def customer_row(customer: dict[str, Any]) -> list[str]:
    """One row of the customers' table."""
    usage, invoice, margin = customer["usage"], customer["invoice"], customer["margin"]["lines"][0]
    return [
        customer["name"],
        str(usage["requests"]),
        ", ".join(f"{quantity:,} {meter}" for meter, quantity in usage["meters"].items()),
        ", ".join(usage["amounts"].values()),
        f"No. {invoice['number']} ({Path(customer['pdf']).name})",
        invoice["total_shown"],
        margin["revenue"],
        f"{margin['gross_margin']} ({margin['margin_of_revenue']})",
    ]


def epilogue(summary: dict[str, Any]) -> None:
    """How to go on, as commands and code that work as printed."""
    total = sum(summary["expected_seconds"].values())
    if summary["seconds"] > 1.1 * total:
        console.print(
            f"\n[yellow]This took {summary['seconds']:.0f} s; two idle cores take about {total} s. "
            f"This machine is slower or busy (load average {summary['load_average']:.1f}).[/yellow]"
        )
    console.print(f"\nDone in {summary['seconds']:.0f} s. Start the server again on the same home:\n")
    console.print(f"  {GRISTMILL} serve --home {summary['home']} --port {summary['port']}\n", soft_wrap=True)
    console.print("and call it from Python:\n")
    console.print(
        f"  from openai import OpenAI\n\n"
        f'  client = OpenAI(base_url="http://127.0.0.1:{summary["port"]}/v1", api_key="{summary["key"]}")\n'
        f"  answer = client.chat.completions.create(\n"
        f'      model="{summary["model"]}",\n'
        f'      messages=[{{"role": "system", "content": "You are Larkspout support."}},\n'
        f'                {{"role": "user", "content": "Which setting do I use in winter?"}}],\n'
        f"      temperature=0,\n"
        f"  )\n"
        f"  print(answer.choices[0].message.content)\n",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
