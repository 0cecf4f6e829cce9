"""Prepare: what enters a version, what leaves it, and that its digest depends on the rows alone."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from gristmill.core.errors import UsageError
from gristmill.core.rows import read_parquet
from gristmill.stages.data.prepare import load_part, write_part

WORDS = [
    a + b for a in ("ba", "ko", "ri", "ste", "plu", "mon") for b in ("nda", "fter", "ll", "gine", "sk", "to")
]


def sentence(number: int) -> str:
    """A sentence unlike the others."""
    return " ".join(random.Random(number).choices(WORDS, k=8))


def csv_of(n_rows: int, n_groups: int = 20) -> str:
    """A file of `n_rows` rows in groups."""
    lines = [f"{sentence(n)},{'good' if n % 2 else 'bad'},g{n % n_groups}" for n in range(n_rows)]
    return "\n".join(["text,label,who", *lines]) + "\n"


def test_counts_add_up_and_no_group_is_in_two_parts(bench: Any) -> None:
    """A row would vanish unseen, or a model would be tested on groups it learnt."""
    bench.write("rows.csv", csv_of(200) + "short\n" + f"{sentence(0)},good,g0\n" + "x,plot,g1\n,good,g2\n")
    prepared = bench.run("rows.csv", group="who", drop={"label": ["plot"]})
    counts = prepared.counts
    assert counts["read"] == 204
    assert (counts["rejected"], counts["dropped"], counts["duplicates"]) == (2, 1, 1)
    left = (
        counts["rejected"]
        + counts["dropped"]
        + counts["duplicates"]
        + counts["near_duplicates"]
        + counts["leaks"]
    )
    assert counts["kept"] == counts["read"] - left
    groups = {part: {row["group"] for row in bench.rows(prepared, part)} for part in prepared.parts}
    assert len(groups["test"]) == 4
    assert len(groups["validation"]) == 2
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    assert sum(len(bench.rows(prepared, part)) for part in prepared.parts) == counts["kept"]


def test_steps_chain(bench: Any) -> None:
    """The lineage would not explain where rows went."""
    bench.write("rows.csv", csv_of(60))
    prepared = bench.run("rows.csv", licence="CC0-1.0")
    steps = prepared.lineage["steps"]
    assert [step["step"] for step in steps] == [
        "check",
        "drop",
        "mask",
        "leak",
        "duplicates",
        "near_duplicates",
        "split",
    ]
    for one, following in itertools.pairwise(steps):
        assert one["rows_out"] == following["rows_in"]
    assert steps[-1]["rows_out"] == prepared.counts["kept"]
    assert prepared.licence == "CC0-1.0"
    assert len(prepared.lineage["parents"][0]["sha256"]) == 64
    json.dumps(prepared.lineage)


def test_digest_is_of_rows_not_of_files(new_bench: Callable[[str], Any]) -> None:
    """The same data in another file, format or home would become another version."""
    first, second, third = new_bench("a"), new_bench("b"), new_bench("c")
    text = csv_of(50)
    first.write("rows.csv", text)
    names = text.splitlines()[0].split(",")
    objects = [dict(zip(names, line.split(","), strict=True)) for line in text.splitlines()[1:]]
    second.write("other.jsonl", "\n".join(json.dumps(item) for item in objects))
    third.write("rows.csv", text.replace("good", "fine"))
    one, other = first.run("rows.csv", group="who"), second.run("other.jsonl", group="who")
    assert one.digest == other.digest
    assert one.parts == other.parts
    assert third.run("rows.csv", group="who").digest != one.digest
    assert first.run("rows.csv", group="who").digest == one.digest


def test_rejects_are_stored_masked(bench: Any) -> None:
    """A bad row would be lost, or the rejects file would hold the personal data that masking took out."""
    bench.write(
        "rows.jsonl",
        "".join(json.dumps({"text": sentence(n), "label": "ab"[n % 2]}) + "\n" for n in range(20)).encode()
        + b'{"text": "write to ann@x.org"}\n'
        + b'{"text": "ann@x.org \xff", "label": "a"}\n'
        + b'{"text": "ann@x.org",,\n'
        + b'{"text": "ann@x.org ok fine", "label": "a"}\n',
    )
    prepared = bench.run("rows.jsonl", mask=False)
    rejects = [json.loads(line) for line in bench.blobs.get(prepared.rejects_blob).splitlines()]
    assert [(r["file"], r["line"], r["field"]) for r in rejects] == [
        ("rows.jsonl", 21, "label"),
        ("rows.jsonl", 22, ""),
        ("rows.jsonl", 23, ""),
    ]
    assert all(reject["reason"] and "[EMAIL_1]" in reject["masked"] for reject in rejects)
    assert "ann@x.org" not in bench.blobs.get(prepared.rejects_blob).decode()
    assert prepared.counts["rejected"] == 3


def test_no_rejects_no_blob(bench: Any) -> None:
    """A clean file would be shown as one with rejects."""
    bench.write("rows.csv", csv_of(20))
    assert bench.run("rows.csv").rejects_blob is None


def test_personal_data_is_masked_everywhere(bench: Any) -> None:
    """A person's address would enter the version through a group, a tag or a test part."""
    rows = [
        {"text": f"{sentence(n)} mail p{n % 4}@x.org", "label": "ab"[n % 2], "who": f"p{n % 4}@x.org"}
        | {"tags": [f"p{n % 4}@x.org", "ask help@shop.example"]}
        for n in range(40)
    ]
    test = [{"text": "mail p1@x.org and p9@x.org", "label": "a"}]
    bench.write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    bench.write("test.jsonl", "\n".join(map(json.dumps, test)))
    prepared = bench.run("rows.jsonl", group="who", test={"path": "test.jsonl"}, allow=["help@shop.example"])
    stored = [row for part in prepared.parts for row in bench.rows(prepared, part)]
    assert "@x.org" not in json.dumps(stored)
    assert bench.rows(prepared, "test")[0]["text"] == "mail [EMAIL_2] and [EMAIL_5]"
    for row in bench.rows(prepared):
        assert row["text"].endswith(row["group"])
        assert row["tags"] == [row["group"], "ask help@shop.example"]
    assert len({row["group"] for row in stored if "group" in row}) == 4
    assert prepared.counts["masked_email"] == prepared.counts["masked"] == 122


def test_a_declared_test_part_is_never_thinned(bench: Any) -> None:
    """A user's own benchmark would change under them, or the training part would hold its answers."""
    test = [f"{sentence(n)},good,t" for n in (0, 0, 1, 2)]
    bench.write("rows.csv", csv_of(60))
    bench.write("test.csv", "\n".join(["text,label,who", *test]))
    prepared = bench.run("rows.csv", test={"path": "test.csv"}, drop={"label": ["nothing"]})
    assert [row["text"] for row in bench.rows(prepared, "test")] == [line.split(",")[0] for line in test]
    learnt = {row["text"] for part in ("train", "validation") for row in bench.rows(prepared, part)}
    assert not learnt & {line.split(",")[0] for line in test}
    assert prepared.counts["leaks"] == 3
    for one, following in itertools.pairwise(prepared.lineage["steps"]):
        assert one["rows_out"] == following["rows_in"]


def test_groups_of_a_declared_test_part_leave_training(bench: Any) -> None:
    """A group on both sides would let a model be tested on what it learnt."""
    bench.write("rows.csv", csv_of(60, n_groups=6))
    bench.write("test.csv", "text,label,who\nsomething new,good,g0\n")
    prepared = bench.run("rows.csv", test={"path": "test.csv"}, group="who")
    learnt = {row["group"] for part in ("train", "validation") for row in bench.rows(prepared, part)}
    assert learnt == {"g1", "g2", "g3", "g4", "g5"}
    bench.write("one.csv", "text,label,who\nsomething else,good,g0\n")
    with pytest.raises(UsageError, match="No training row is left"):
        bench.run("one.csv", test={"path": "test.csv"}, group="who")


def test_conflicting_labels_are_counted(bench: Any) -> None:
    """The same text under two labels would stay hidden from who must mend the data."""
    bench.write("rows.csv", csv_of(30) + f"{sentence(0)},good,g0\n")
    step = bench.run("rows.csv").lineage["steps"][4]
    assert (step["step"], step["with_another_label"]) == ("duplicates", 1)


@pytest.mark.parametrize("content", ["", "text,label\n", "text,label\n,a\n,b\n", "\n\n"])
def test_no_usable_row_is_a_usage_error_with_counts(bench: Any, content: str) -> None:
    """A run would start on nothing, or the user would not learn why all rows were refused."""
    bench.write("rows.csv", content)
    with pytest.raises(UsageError) as caught:
        bench.run("rows.csv")
    assert caught.value.hint


def test_all_rejected_names_the_first_reasons(bench: Any) -> None:
    """The user would have to guess what is wrong with every row."""
    bench.write("rows.csv", "text,label\n,a\nfine,\n")
    with pytest.raises(UsageError, match="2 read, 2 rejected") as caught:
        bench.run("rows.csv")
    assert "line 2: text: must be text" in str(caught.value.hint)
    assert caught.value.details["rejected"] == 2


@pytest.mark.parametrize(
    "settings",
    [{"columns": {"text": "txt"}}, {"group": "txt"}, {"drop": {"txt": ["a"]}}],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_unknown_columns_name_those_that_exist(bench: Any, name: str, settings: dict[str, Any]) -> None:
    """A misspelt column would reject each row, or drop none, without a word on why."""
    content = csv_of(20) if name == "rows.csv" else json.dumps({"text": "a", "label": "b", "who": "c"})
    bench.write(name, content)
    with pytest.raises(UsageError, match="no column 'txt'") as caught:
        bench.run(name, **settings)
    assert caught.value.hint == "Its columns: text, label, who."


def test_a_required_column_that_nobody_named(bench: Any) -> None:
    """A file with other column names would be refused row by row instead of once."""
    bench.write("rows.csv", "review,stars\nfine,5\n")
    with pytest.raises(UsageError, match="no column 'text'") as caught:
        bench.run("rows.csv")
    assert "review, stars" in str(caught.value.hint)


def test_small_data_gets_parts_that_are_not_empty(bench: Any) -> None:
    """Three rows would leave nothing to train on or nothing to test with."""
    bench.write("rows.csv", "text,label\none thing,a\nanother matter,a\nthird subject,a\n")
    assert {
        part: len(bench.rows(bench.run("rows.csv"), part)) for part in ("train", "validation", "test")
    } == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


def test_progress_is_told(bench: Any) -> None:
    """Long work would show no progress."""
    told: list[tuple[str, int, int]] = []
    bench.write("rows.csv", csv_of(30))
    bench.run("rows.csv", progress=lambda *args: told.append(args))
    for stage in ("read", "compare", "store"):
        last = [item for item in told if item[0] == stage][-1]
        assert last[1] == last[2] > 0


def test_parts_load_again(bench: Any, tmp_path: Any) -> None:
    """A trainer child could not read what was stored."""
    rows = [{"text": "a", "label": "b", "tags": ["c"]}]
    path = tmp_path / "part.parquet"
    write_part(rows, path)
    assert load_part(path, bench.task) == read_parquet(path) == rows
    write_part([{"other": "a"}], path)
    with pytest.raises(UsageError, match="without text, label"):
        load_part(path, bench.task)
