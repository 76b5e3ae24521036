"""The page of some runs on CPUs: one table of their lines, and where each lies under the roofs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastserve.benchmark.report import UNKNOWN, duration
from fastserve.benchmark.run_file import Entry, RunFile, read_run
from fastserve.benchmark.summary import Summary

COLUMNS = ("op", "shape", "dtype", "cores", "backend", "time", "GB/s", "GOP/s", "of the roof", "ratio")
PICTURE_DPI = 110


def write_report(runs: Sequence[Path], page: Path) -> Path:
    """Writes `page` (markdown) and the picture beside it (PNG); returns the picture's path.

    Raises ValueError where a file is not a benchmark's, or where none of them has a line.
    """
    found = [read_run(path) for path in runs]
    lines = [line for run in found for line in run.lines]
    if not lines:
        raise ValueError(f"no line in {', '.join(map(str, runs))}")
    roofs = next((run.roofs for run in found if run.roofs is not None), None)
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_suffix(".png")
    _draw(lines, roofs, picture)
    page.write_text("\n".join(_page(found, lines, picture.name)) + "\n", encoding="utf-8")
    return picture


def _page(runs: Sequence[RunFile], lines: Sequence[Entry], picture: str) -> Iterator[str]:
    machine = lines[0]["machine"]
    yield f"# {machine['cpu']}, {machine['num_cores']} cores, {machine['isa']}"
    yield ""
    commits = ", ".join(dict.fromkeys(line["machine"]["commit"] for line in lines))
    yield f"Commits: {commits}. Times are medians +- the quartiles' spread, taken in turns with those compared."
    for run in runs:
        if run.roofs is not None:
            yield ""
            yield _roofs_line(run.roofs)
    yield ""
    yield f"![Every line under the roofs of the machine]({picture})"
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for line in lines:
        yield "| " + " | ".join(_cells(line)) + " |"


def _roofs_line(roofs: Entry) -> str:
    peaks = ", ".join(f"{kind} {gops:.0f} GOP/s" for kind, gops in roofs["peak_gops"].items())
    where = f"{roofs['num_threads']} threads, {roofs['isa']}, cores {roofs['placement']['state']}"
    return f"Roofs ({where}): read {roofs['read_gbps']:.1f} GB/s; {peaks}."


def _cells(line: Entry) -> Iterator[str]:
    yield from (line["op"], line["shape"], line["dtype"], line["state"], line["backend"])
    seconds = Summary(**line["seconds"])
    yield f"{duration(seconds.median)} +-{seconds.spread:.0%}"
    for name in ("gbps", "gops"):
        yield UNKNOWN if line[name] is None else f"{line[name]:.3g}"
    yield UNKNOWN if line["roof_share"] is None else f"{line['roof_share']:.0%}"
    yield UNKNOWN if line["ratio"] is None else f"{line['ratio']:.2f} x {line['baseline']}"


def _draw(lines: Iterable[Entry], roofs: Entry | None, picture: Path) -> None:
    """The roofline model (Williams, Waterman, Patterson 2009): operations a second over operations a byte."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GOP/s")
    if roofs is not None:
        for kind, peak in roofs["peak_gops"].items():
            ridge = peak / roofs["read_gbps"]
            axes.plot([ridge / 1000, ridge, ridge * 100], [peak / 1000, peak, peak], label=f"roof, {kind}")
    placed = [line for line in lines if line["gbps"] and line["gops"]]
    for ours in (True, False):
        points = [line for line in placed if (line["baseline"] is not None) is ours]  # ours have one
        axes.scatter(
            [line["gops"] / line["gbps"] for line in points],
            [line["gops"] for line in points],
            marker="o" if ours else "x",
            label="fastserve" if ours else "others",
        )
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=PICTURE_DPI)
