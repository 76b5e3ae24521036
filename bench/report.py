"""A table and a roofline of what benchmarks found: `python bench/report.py RUN.json ... --out bench/results/NAME.md`.

`pytest bench/ops.py --lines-json RUN.json` and `python bench/peers.py --json RUN.json` write such files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastserve.benchmark.cpu_report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu.md"), help="the page")
    arguments = parser.parse_args()
    try:
        picture = write_report(arguments.runs, arguments.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"bench/report.py: {error}") from None
    print(f"{arguments.out}, {picture}")


if __name__ == "__main__":
    main()
