"""A third party's task, trainer, engine and price travel the whole chain, from rows to margin.

They come through the entry-point door, out of one folder (`throwaway/`): no file of Gristmill knows of them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gristmill.testing.server import ServerProcess

pytestmark = pytest.mark.slow

PLANS = """
[[plans]]
name = "by-letter"
fee = "2.00"

[[plans.prices]]
meter = "letters"
pricing = "flagfall"
params = { fall = "0.50", each = "0.001" }
"""
ASKED = ("level noon", "stressed desserts")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mirror: Any) -> Any:
    """A home on which the recipe is launched before its server starts."""
    home = tmp_path_factory.mktemp("throwaway") / "home"
    server = ServerProcess(home, plugins=[mirror.plugins], settings={"hourly_rate": "36.00"})
    yield server
    server.stop()
    assert "Traceback" not in server.log_text()


def test_plugins_of_each_kind_go_from_rows_to_margin(
    server: ServerProcess, mirror: Any, tmp_path: Path
) -> None:
    """A new task, trainer, engine or price would need more than its own folder."""
    launched = server.cli_json("launch", str(mirror.recipe("mirror", PLANS)))
    server.start()
    run = server.manage("run", "show", run=launched["run"])
    version, report, release = run["dataset_version"], run["report"], run["release"]
    assert (run["state"], release["id"], release["engine"]) == ("succeeded", launched["id"], "mirror")
    assert version["counts"]["kept"] == len(mirror.rows)
    assert [verdict["is_passed"] for verdict in report["verdicts"]] == [True, True]
    assert report["differences"]["exact-baseline"]["value"] == 1.0
    assert report["facts"]["parity"] == 1.0
    [deployed] = server.manage("deployment", "list")
    assert (deployed["release"], deployed["engine"], deployed["state"]) == (release["id"], "mirror", "ready")

    acme = server.buyer("Acme", "by-letter")
    assert [model.id for model in server.openai(acme.secret).models.list()] == ["mirror"]
    request_ids = []
    for text in ASKED:
        reply = server.post(acme.secret, "/v1/reverse", {"model": "mirror", "input": text})
        assert reply.json()["output"] == text[::-1]
        assert reply.json()["usage"] == {"letters": len(text), "output_tokens": 2}
        assert reply.headers["gristmill-release"] == release["id"]
        request_ids.append(reply.headers["x-request-id"])

    traces = [server.manage("request", "show", request=request_id) for request_id in request_ids]
    first, second = (trace["lines"][0] for trace in traces)
    assert [line["price"]["pricing"] for line in (first, second)] == ["flagfall", "flagfall"]
    assert (first["amount"], second["amount"]) == (510_000_000, 17_000_000)
    for trace in traces:
        assert trace["event"]["endpoint"] == "/v1/reverse"
        assert trace["evidence"]["run_id"] == launched["run"]
        assert trace["evidence"]["dataset_version_id"] == version["id"]
        assert {group["purpose"] for group in trace["groups"]} == {"usage", "cost"}
    usage = server.manage("usage", "show", customer=acme.id)
    assert usage["meters"]["letters"] == sum(map(len, ASKED))

    now = datetime.now(UTC)
    following = (now.replace(day=1) + timedelta(days=32)).strftime("%Y-%m-01")
    month = ["--period", now.strftime("%Y-%m"), "--as-of", following]
    invoice = server.cli_json("invoice", "issue", acme.id, *month)
    assert (invoice["number"], invoice["total"]) == (1, 2_530_000_000)
    assert sum(line["amount"] for line in invoice["lines"]) == 2_527_000_000
    printed = server.manage("invoice", "pdf", invoice=invoice["id"], output=str(tmp_path / "1.pdf"))
    assert Path(printed["path"]).read_bytes().startswith(b"%PDF")
    carried = server.manage("request", "show", request=request_ids[0])["lines"][0]
    assert carried["invoice_id"] == invoice["id"]

    margin = server.cli_json("margin", "show", "--as-of", following)
    [line] = margin["releases"]
    assert line["id"] == release["id"]
    assert line["revenue"] == "0.527000 USD"
    assert line["training_cost"] > "0.000000 USD"
    [total] = margin["totals"]
    assert total["revenue"] == "2.527000 USD"
    assert total["gross_margin"] < total["revenue"]
    assert server.broken_books() == []


def test_a_throwaway_gate_refuses_and_nothing_is_released(server: ServerProcess, mirror: Any) -> None:
    """A model that learnt nothing would be released and sold; exit code 3 tells a script."""
    recipe = mirror.recipe("blank", PLANS.replace("by-letter", "for-nothing"), learns=False)
    refused = server.cli("launch", str(recipe))
    assert refused.code == 3, refused
    assert "exact over baseline" in refused.err
    assert "Traceback" not in refused.err
    query = "SELECT product FROM release WHERE product = 'blank' UNION SELECT name FROM plan WHERE name = ?"
    assert server.rows(query, "for-nothing") == []
