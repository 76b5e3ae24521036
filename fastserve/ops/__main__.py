"""`python -m fastserve.ops`: op, what it mutates, backends usable on this machine."""

from __future__ import annotations

import fastserve.ops  # noqa: F401  (registers the ops)
from fastserve.ops.registry import table


def main() -> None:
    lines = [("op", "mutates", "backends")]
    lines += [(row.name, ", ".join(row.mutates) or "-", ", ".join(row.backends)) for row in table()]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for op, mutates, backends in lines:
        print(f"{op:<{widths[0]}}  {mutates:<{widths[1]}}  {backends}")


if __name__ == "__main__":
    main()
