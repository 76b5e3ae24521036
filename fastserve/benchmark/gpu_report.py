"""The page of a run of bench/gpu.sh, from what its steps left in a folder: markdown, and all lines beside it.

<step>.jsonl  lines, one each; <step>.log  what it printed; tests.xml  what pytest found
steps.tsv     name, exit status and seconds of each step
Needs nothing that has to be built: it also tells why building failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fastserve.benchmark.checkout import commit
from fastserve.benchmark.report import UNKNOWN, duration

Entry = Mapping[str, Any]

SECTIONS = {"ops": "Ops", "collectives": "Collectives", "model": "Models"}
PACKAGES = ("torch", "triton")
ENDED = {"0": "well", "124": "out of time", "137": "out of time, killed"}
LOG_LINES = 25
MAX_FAILED_TESTS = 40  # named on the page; pytest's own report has all
TOKENS = "tokens/s"  # a column where there is any


def write_report(work: Path, out: Path) -> Path:
    """gpu-DEVICE.md, and gpu-DEVICE.jsonl beside it; returns the page. What is missing is said on it."""
    entries = [entry for path in sorted(work.glob("*.jsonl"), key=_order) for entry in _entries(path)]
    name = next((entry["name"] for entry in entries if entry["kind"] == "device"), None) or device_name()
    stem = "gpu-" + re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{stem}.md"
    page.write_text("\n".join(_page(name, entries, work)) + "\n", encoding="utf-8")
    raw = "".join(json.dumps(entry) + "\n" for entry in entries)
    page.with_suffix(".jsonl").write_text(raw, encoding="utf-8")
    return page


def _order(path: Path) -> tuple[bool, str]:
    """The ops' own roofs come first: they were measured with nothing else going on."""
    return path.stem != "ops", path.stem


def _entries(path: Path) -> list[Entry]:
    """A step that was killed may leave half a line at the end."""
    found: list[Entry] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            cut = {
                "kind": "failure",
                "section": path.stem,
                "op": UNKNOWN,
                "shape": UNKNOWN,
                "backend": UNKNOWN,
            }
            found.append({**cut, "error": f"the line was cut short: {line[:60]}"})
    return found


def _page(name: str, entries: Sequence[Entry], work: Path) -> Iterable[str]:
    yield from (f"# {name}", "")
    yield from _surroundings(entries)
    yield ""
    yield from _steps(work)
    yield from _tests(work / "tests.xml")
    for section, title in SECTIONS.items():
        yield from _section(title, [entry for entry in entries if entry.get("section") == section])
    yield "Times are medians, +- half the distance of the quartiles: of ops and collectives of replays of CUDA graphs"
    yield "(fastserve/benchmark/gpu_timer.py); of models by the wall clock, of a step of decode or a call"
    yield "(gpu_engine.py), with rates of one GPU, exchange not counted. What theory says, and what to expect:"
    yield "bench/README.md."


def _surroundings(entries: Sequence[Entry]) -> Iterable[str]:
    yield f"- commit {commit()}, driver {driver_version()}, Python {platform.python_version()}"
    yield f"- {', '.join(f'{package} {version(package)}' for package in PACKAGES)}, nvcc {nvcc_version()}"
    for device in [entry for entry in entries if entry["kind"] == "device"][:1]:
        yield f"- {device['num_gpus']} GPUs, {device['architecture']}, L2 {device['l2_bytes'] / 1e6:.0f} MB"
        for title, gpu in (("measured", device["measured"]), ("the maker's", device["theory"])):
            if gpu is None:
                yield f"- {title} roofs: no figures of this device are kept"
                continue
            yield (
                f"- {title} roofs: memory {gpu['memory_tb_s']:.2f} TB/s, bf16 {gpu['bf16_tflop_s']:.0f} TFLOP/s, "
                f"link {gpu['link_gb_s']:.0f} GB/s, host {gpu['host_gb_s']:.0f} GB/s"
            )


def _steps(work: Path) -> Iterable[str]:
    path = work / "steps.tsv"
    rows = [row.split("\t") for row in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    yield from ("| step | ended | s |", "|---|---|---|")
    for name, status, seconds in rows:
        yield f"| {name} | {ENDED.get(status, f'with status {status}')} | {seconds} |"
    yield ""
    for name, status, _ in rows:
        if status != "0":
            yield from (
                f"The end of what {name} printed:",
                "",
                "```",
                *_tail(work / f"{name}.log"),
                "```",
                "",
            )


def _tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []


def _tests(path: Path) -> Iterable[str]:
    yield from ("## Tests", "")
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        yield from ("No results: they did not come to their end.", "")
        return
    total = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "skipped")}
    failed = [line for suite in suites for case in suite.iter("testcase") for line in _problems(case)]
    yield f"{total['tests'] - total['skipped'] - len(failed)} passed, {len(failed)} failed, {total['skipped']} skipped."
    yield from ("", *failed[:MAX_FAILED_TESTS], *([""] if failed else []))


def _problems(case: ElementTree.Element) -> Iterable[str]:
    """One line of a test that failed, in itself or around it."""
    for kind in ("failure", "error"):
        problem = case.find(kind)
        if problem is not None:
            message = (problem.get("message") or "").splitlines()
            yield f"- {case.get('name')}: {message[0] if message else kind}"
            return


def _section(title: str, entries: Sequence[Entry]) -> Iterable[str]:
    if not entries:
        return
    lines = [entry for entry in entries if entry["kind"] == "line"]
    yield from (f"## {title}", "")
    if lines:
        rows = [_row(entry) for entry in lines]
        columns = [name for name in rows[0] if name != TOKENS or any(row[TOKENS] != UNKNOWN for row in rows)]
        yield f"| {' | '.join(columns)} |"
        yield "|---" * len(columns) + "|"
        yield from (f"| {' | '.join(row[name] for name in columns)} |" for row in rows)
        yield ""
    failures = [entry for entry in entries if entry["kind"] == "failure"]
    if failures:
        yield from (f"- {e['op']}, {e['shape']}, {e['backend']}: {e['error']}" for e in failures)
        yield ""


def _row(entry: Entry) -> dict[str, str]:
    """Cells by column."""

    def cell(value: float | None, form: str) -> str:
        return UNKNOWN if value is None else format(value, form)

    seconds, theory_s = entry["seconds"], entry["theory_s"]
    median = seconds["median"]
    spread = (seconds["high"] - seconds["low"]) / 2 / median if median else 0.0
    return {
        **{column: entry[column] for column in ("op", "shape", "dtype", "backend")},
        "time": f"{duration(median)} +-{spread:.0%}",
        TOKENS: cell(entry["tokens_per_s"], ".4g"),
        "theory": UNKNOWN if theory_s is None else duration(theory_s),
        "GB/s": cell(entry["gbps"], ".3g"),
        "TFLOP/s": UNKNOWN if entry["gops"] is None else format(entry["gops"] / 1e3, ".3g"),
        "of measured roof": cell(entry["roof_share"], ".0%"),
        "of theory": UNKNOWN if theory_s is None or not median else f"{theory_s / median:.0%}",
        "peer": entry["baseline"] or UNKNOWN,
        "peer's time / ours": cell(entry["ratio"], ".2f"),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def device_name() -> str:
    return _told("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "no device"


def driver_version() -> str:
    return _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def nvcc_version() -> str:
    found = re.search(r"release ([\d.]+)", _told("nvcc", "--version", whole=True))
    return found[1] if found else "absent"


def _told(*command: str, whole: bool = False) -> str:
    """What a program prints, by default its first line; empty where there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if whole else done.stdout.strip().split("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastserve.benchmark.gpu_report", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(write_report(options.work, options.out))


if __name__ == "__main__":
    main()
