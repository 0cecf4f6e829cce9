"""Every benchmark in turn: `make bench`. Each prints its table and leaves raw JSON beside this file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
RUNS = (
    ("classify", "Classify: requests a second", []),
    ("chat", "Chat: tokens a second", []),
    ("training", "Training: the same rows", ["--rows", "2000"]),
)


def main() -> int:
    """Run all; 1 when one misses its limit."""
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start\n", flush=True)
    failed = []
    for name, title, options in RUNS:
        print(f"## {title}\n", flush=True)
        raw = str(FOLDER / f"{name}.raw.json")
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--json", raw, *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        print(f"A limit was missed: {', '.join(failed)}.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
