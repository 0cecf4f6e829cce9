"""The fake engine for every test here; shops are opened by the tests, inside their own event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gristmill.testing.engines import FAKE_PLUGIN
from gristmill.testing.plugin_dist import installed


@pytest.fixture(autouse=True, scope="module")
def fake_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the plug-in."""
    with installed(tmp_path_factory.mktemp("plugins"), "fake-dist", FAKE_PLUGIN):
        yield
