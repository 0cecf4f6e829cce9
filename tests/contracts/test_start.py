"""Starting is quick and light: the library and `--help` load neither torch nor a web framework."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "torch",
    "transformers",
    "fastapi",
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "numpy",
    "pyarrow",
    "onnxruntime",
}


def _modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_import_is_light() -> None:
    """If it fails, `import gristmill` has become slow for everybody."""
    assert not _modules_after("import gristmill") & HEAVY


def test_help_is_light() -> None:
    """If it fails, `gristmill --help` has become slow for everybody."""
    code = (
        "import sys\nsys.argv=['gristmill','--help']\nfrom gristmill.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit: pass"
    )
    assert not _modules_after(code) & HEAVY
