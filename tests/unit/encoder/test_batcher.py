"""Length buckets and the batcher."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.errors import BrokenInvariant, GristmillError, Unavailable
from gristmill.kit.batcher import Batcher, Item, neighbours
from gristmill.kit.buckets import padded, shuffled_batches, sorted_batches

lengths_of_rows = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@given(lengths_of_rows, st.integers(1, 2000), st.integers(1, 64), st.integers(0, 3))
def test_every_row_is_in_one_batch_within_budget(
    lengths: list[int], batch_tokens: int, batch_size: int, epoch: int
) -> None:
    """Broken: rows are lost or trained twice, or a batch outgrows memory."""
    for plan in (
        sorted_batches(lengths, batch_tokens, batch_size),
        shuffled_batches(lengths, batch_size, batch_tokens, seed=1, epoch=epoch),
    ):
        assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
        for batch in plan:
            longest = max(lengths[row] for row in batch)
            assert len(batch) <= batch_size
            assert len(batch) == 1 or len(batch) * longest <= batch_tokens


def test_a_plan_depends_on_seed_and_epoch_only() -> None:
    """Broken: a resumed run sees other batches than the one that was killed."""
    lengths = list(range(5, 205))
    plans = [
        np.concatenate(shuffled_batches(lengths, 8, 4096, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] != plans[3]


def test_padding_is_masked() -> None:
    """Broken: a model reads padding as text."""
    ids, mask = padded([[5, 6, 7], [8]], pad=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@given(lengths_of_rows, st.data())
def test_neighbours_hold_the_lead_and_the_budget(lengths: list[int], data: st.DataObject) -> None:
    """Broken: the request whose turn it is waits for ever, or a batch is too large or mostly padding."""
    lengths.sort()
    position = data.draw(st.integers(0, len(lengths) - 1))
    start, end = neighbours(lengths, position, 512)
    assert start <= position < end
    batch = lengths[start:end]
    assert len(batch) == 1 or batch[-1] * len(batch) <= max(512, lengths[position])


class Recorder:
    """Runs batches slowly and notes them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.done: dict[int, Any] = {}

    def run(self, group: str, rows: list[Any]) -> list[Any]:
        """Answer a row of ids with its first id; the first batch waits for the gate."""
        self.gate.wait(5)
        self.batches.append([len(row) for row in rows])
        if group == "broken":
            raise ValueError("not ours")
        return [row[0] for row in rows]

    def item(self, number: int, length: int, group: str = "a") -> Item:
        """An item whose answer must be its own number."""

        def done(result: Any, busy_s: float, error: GristmillError | None) -> None:
            self.done[number] = error if error is not None else result

        return Item(group, [number] * length, done)

    def wait(self, n: int) -> None:
        """Until `n` items are answered."""
        deadline = time.monotonic() + 5
        while len(self.done) < n:
            assert time.monotonic() < deadline, self.done
            time.sleep(0.002)


def test_like_lengths_run_together_and_answers_reach_their_items() -> None:
    """Broken: short texts are padded to long ones, or an answer goes to another customer."""
    recorder = Recorder()
    batcher = Batcher(recorder.run, batch_tokens=4096, max_items=1000)
    batcher.put([recorder.item(0, 5)])
    time.sleep(0.05)
    batcher.put([recorder.item(number, 10 if number % 2 else 200) for number in range(1, 41)])
    recorder.gate.set()
    recorder.wait(41)
    batcher.close()
    assert recorder.done == {number: number for number in range(41)}
    assert sorted(map(len, recorder.batches)) == [1, 20, 20]


def test_two_workers_answer_everything_once() -> None:
    """Broken: with several threads an item is run twice, lost, or two batches wait for each other."""
    recorder = Recorder()
    recorder.gate.set()
    batcher = Batcher(recorder.run, batch_tokens=64, max_items=5000, workers=3)
    batcher.put([recorder.item(number, 3 + number % 40) for number in range(2000)])
    recorder.wait(2000)
    batcher.close()
    assert recorder.done == {number: number for number in range(2000)}
    assert sum(map(len, recorder.batches)) == 2000


def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    """Broken: one customer's 500 texts make everyone else wait for all of them."""
    recorder = Recorder()
    batcher = Batcher(recorder.run, batch_tokens=100, max_items=1000)
    batcher.put([recorder.item(number, 50) for number in range(500)])
    time.sleep(0.05)
    batcher.put([recorder.item(999, 9)])
    recorder.gate.set()
    recorder.wait(501)
    batcher.close()
    assert [9] in recorder.batches[:4]


def test_a_full_queue_and_a_broken_batch_are_errors_not_the_end() -> None:
    """Broken: memory grows without bound, or one bad batch stops the engine for good."""
    recorder = Recorder()
    recorder.gate.set()
    batcher = Batcher(recorder.run, batch_tokens=100, max_items=5)
    with pytest.raises(Unavailable):
        batcher.put([recorder.item(number, 5) for number in range(6)])
    batcher.put([recorder.item(1, 5, group="broken")])
    recorder.wait(1)
    batcher.put([recorder.item(2, 5)])
    recorder.wait(2)
    batcher.close()
    assert isinstance(recorder.done[1], BrokenInvariant)
    assert recorder.done[2] == 2


def test_dropped_items_are_not_run() -> None:
    """Broken: a cancelled request still costs engine time."""
    recorder = Recorder()
    batcher = Batcher(recorder.run, batch_tokens=100, max_items=50)
    batcher.put([recorder.item(0, 5)])
    time.sleep(0.05)
    dropped = recorder.item(1, 5)
    batcher.put([dropped, recorder.item(2, 5)])
    dropped.is_dropped = True
    recorder.gate.set()
    recorder.wait(2)
    batcher.close()
    assert recorder.done == {0: 0, 2: 2}
