"""Prints the lock file: the exact versions installed here, without the packages that recipes pin by hash."""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

recipes = Path(__file__).parents[1] / "recipes"
pinned = {
    re.split(r"==", line)[0]
    for file in recipes.glob("*/requirements.txt")
    for line in file.read_text(encoding="utf-8").splitlines()
    if "==" in line and not line.startswith("#")
}
left_out = pinned | {"gristmill", "pip", "setuptools"}
versions = {d.metadata["Name"].lower().replace("_", "-"): d.version.split("+")[0] for d in distributions()}
sys.stdout.write(
    "# Exact versions that were tested together; made by `make lock`, used as pip constraints.\n"
)
for name, version in sorted(versions.items()):
    if name not in left_out:
        sys.stdout.write(f"{name}=={version}\n")
