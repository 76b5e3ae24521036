"""What a benchmark found, in a file: its lines and the roofs of the machine at that time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve.benchmark.report import Line

if TYPE_CHECKING:
    from fastserve.benchmark.roofs import Roofs

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFile:
    roofs: Entry | None  # fields of Roofs; None where none were measured
    lines: Sequence[Entry]  # Line.as_dict


def write_run(path: Path, lines: Iterable[Line], roofs: Roofs | None) -> None:
    run = {
        "roofs": None if roofs is None else dataclasses.asdict(roofs),
        "lines": [line.as_dict() for line in lines],
    }
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def read_run(path: Path) -> RunFile:
    """Raises ValueError naming the file, where it is not one of `write_run`."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return RunFile(run["roofs"], run["lines"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a benchmark's file: --lines-json or --json writes one") from None
