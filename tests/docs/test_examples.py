"""Every example in the documentation runs as printed.

A page whose first line is `<!-- executed -->` becomes one shell script: `sh` blocks as they are, `python`
blocks fed to Python, and blocks with `file=NAME` written to that file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page for page in sorted(DOCS.rglob("*.md")) if page.read_text("utf-8").startswith("<!-- executed -->")
]


def script_of(page: str) -> str:
    """The shell script of a page's examples."""
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT"]
    for language, file, body in _BLOCK.findall(page):
        if file:
            parts.append(f"cat > {file} <<'END_OF_FILE'\n{body}END_OF_FILE")
        elif language == "sh":
            parts.append(body)
        elif language == "python":
            parts.append(f"python - <<'END_OF_FILE'\n{body}END_OF_FILE")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_examples_run(page: Path, tmp_path: Path) -> None:
    """If it fails, a reader who follows this page meets an error."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["GRISTMILL_HOME"] = str(tmp_path / "home")
    work = tmp_path / "work"
    work.mkdir()
    script = script_of(page.read_text("utf-8"))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
