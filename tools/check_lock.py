"""Does pyproject.toml agree with locks/? Prints the names that differ and exits 1 when not."""

from __future__ import annotations

import sys
from pathlib import Path

from skiff.images.pins import differences


def main() -> int:
    found = differences(Path(__file__).resolve().parent.parent)
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("  -> run: make lock", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
