"""Reads pip's dry-run report on stdin; exit code 1 when the torch it would install brings NVIDIA packages."""

import json
import platform
import sys

report = json.load(sys.stdin)
needs = [need for item in report["install"] for need in item["metadata"].get("requires_dist", [])]
is_cuda = platform.system() == "Linux" and any(need.startswith(("nvidia", "cuda")) for need in needs)
sys.exit(is_cuda)
