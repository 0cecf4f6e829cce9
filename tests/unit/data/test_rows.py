"""Rows in Parquet: what is written is what is read."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.rows import parquet_bytes, read_parquet, write_parquet

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["text", "label", "messages", "n"]), VALUES, max_size=4), max_size=8
)


@given(ROWS)
def test_rows_survive(rows: list[dict[str, object]]) -> None:
    """A trainer would learn from other rows than those that were checked and hashed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        write_parquet(rows, path)
        assert read_parquet(path) == rows
    assert parquet_bytes(rows) == parquet_bytes(rows)


def test_text_is_stored_as_it_is() -> None:
    """Other tools could not read the labels of a version, and text that looks like JSON would change."""
    import io

    import pyarrow.parquet as pq

    rows = [{"text": "5", "facts": ["a"]}, {"text": '{"a": 1}'}]
    table = pq.read_table(io.BytesIO(parquet_bytes(rows)))
    assert table.to_pylist() == [{"text": "5", "facts": '["a"]'}, {"text": '{"a": 1}', "facts": None}]
