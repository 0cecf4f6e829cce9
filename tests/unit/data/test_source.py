"""Sources: paths stay inside their folders, and what is absent names the command that brings it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.core.errors import Missing, UsageError
from gristmill.core.recipe import Source
from gristmill.stages.data.source import locate


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe's folder and a data folder, with a secret file outside both."""
    recipe_dir, data_dir = tmp_path / "recipe", tmp_path / "data"
    recipe_dir.mkdir()
    data_dir.mkdir()
    (tmp_path / "secret.csv").write_text("text,label\nsecret,a\n")
    return recipe_dir, data_dir


@pytest.mark.parametrize("path", ["../secret.csv", "a/../../secret.csv", "/etc/passwd", "", "a\0b", ".."])
def test_paths_that_leave_are_refused(folders: tuple[Path, Path], path: str) -> None:
    """A recipe from a stranger could read any file of the machine into a model."""
    with pytest.raises(UsageError):
        locate(Source(path=path), *folders)


def test_a_link_that_leaves_is_refused(folders: tuple[Path, Path]) -> None:
    """A link inside the recipe's folder would open what the path check closes."""
    (folders[0] / "rows.csv").symlink_to(folders[0].parent / "secret.csv")
    (folders[0] / "up").symlink_to(folders[0].parent)
    for path in ("rows.csv", "up/secret.csv"):
        with pytest.raises(UsageError, match="link"):
            locate(Source(path=path), *folders)


def test_both_folders_are_searched(folders: tuple[Path, Path]) -> None:
    """Data that lies in the home's data folder could not be named by a recipe."""
    (folders[1] / "rows.csv").write_text("text\n")
    assert locate(Source(path="rows.csv"), *folders).path == (folders[1] / "rows.csv").resolve()
    (folders[0] / "link.csv").symlink_to(folders[1] / "rows.csv")
    assert locate(Source(path="link.csv"), *folders).path is not None
    with pytest.raises(UsageError, match="no data file"):
        locate(Source(path="absent.csv"), *folders)
    with pytest.raises(UsageError, match="not a file"):
        locate(Source(path="."), *folders)


def test_a_missing_package_names_the_command(folders: tuple[Path, Path]) -> None:
    """A user would not know what to install."""
    with pytest.raises(Missing) as caught:
        locate(Source(package="gristmill-no-such-data", file="rows.csv"), *folders)
    assert caught.value.hint == "Run: pip install --no-deps gristmill-no-such-data"
    with pytest.raises(Missing, match="no data file"):
        locate(Source(package="datasketch", file="datasketch/absent.csv"), *folders)


@pytest.mark.parametrize(
    "source",
    [
        Source(package="datasketch", file="../../../../etc/passwd"),
        Source(package="datasketch", file="/etc/passwd"),
        Source(package="a; rm -rf /", file="x"),
        Source(hub="../../etc"),
        Source(hub="a/b/c"),
    ],
)
def test_names_that_are_no_names_are_refused(folders: tuple[Path, Path], source: Source) -> None:
    """A crafted name would reach the file system, the hub's addresses or a pip command shown to a user."""
    with pytest.raises(UsageError):
        locate(source, *folders)
