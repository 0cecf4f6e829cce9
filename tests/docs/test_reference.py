"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("reference_make", DOCS / "reference" / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.mark.parametrize("page", sorted(make.PAGES))
def test_reference_page_is_current(page: str) -> None:
    """If it fails, a command, setting, error or recipe key differs from its page: docs/reference/make.py"""
    assert (DOCS / "reference" / page).read_text(encoding="utf-8") == make.PAGES[page]()
