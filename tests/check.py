"""Every quality gate of the project in one command: ``uv run python tests/check.py``.

Formatting, lint, types and import contracts first (they take seconds), then the
tests. All are run even if one fails; the exit code says whether all passed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(sys.executable).parent
GATES = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "imports": ["lint-imports"],
    # Two processes use both cores of a small machine; what starts processes itself stays in one (tests/conftest.py).
    "tests": ["pytest", "-q", "--durations=10", "-n", "2", "--dist", "loadgroup"],
}


def main() -> int:
    """Run all gates; 0 if all passed."""
    failed = []
    for name, (tool, *arguments) in GATES.items():
        started = time.monotonic()
        code = subprocess.run([TOOLS / tool, *arguments], check=False).returncode
        verdict = "FAILED" if code else "passed"
        print(f"== {name}: {verdict} in {time.monotonic() - started:.0f} s", flush=True)
        if code:
            failed.append(name)
    print(f"== failed: {', '.join(failed)}" if failed else "== all gates passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
