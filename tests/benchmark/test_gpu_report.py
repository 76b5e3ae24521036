"""A page from what steps left behind: recorded lines, also of steps that failed or were cut short."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.benchmark import gpu_report
from fastserve.benchmark.gpu_lines import Device, Failure, Measured
from fastserve.benchmark.gpu_report import write_report
from fastserve.benchmark.gpu_theory import Gpu, Work
from fastserve.benchmark.turns import Buckets

ROOT = Path(__file__).parents[2]
H100 = Device("NVIDIA H100 80GB HBM3", 2, "sm_90", 50_000_000, Gpu("measured", 3.0, 790, 400, 55), "abc1234")
JUNIT = """<testsuites><testsuite tests="5" skipped="1" failures="1" errors="1">
<testcase name="test_a"/><testcase name="test_b"><failure message="2 != 3&#10;more"/></testcase>
<testcase name="test_c"><error message=""/></testcase><testcase name="test_d"><skipped/></testcase>
<testcase name="test_e"/></testsuite></testsuites>"""


def measured(work: Work, device: Device = H100) -> list[dict[str, object]]:
    seconds = {"triton": [10e-6, 12e-6, 14e-6], "torch": [24e-6] * 3, "torch.compile": [12e-6] * 3}
    found = Measured(
        "ops", work, "bf16", ("triton", "cuda"), Buckets(tuple(seconds), {"single": seconds}), {"cuda": "E"}
    )
    return [line.as_dict() for line in found.lines(device)]


def written(path: Path, *entries: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_report, "driver_version", lambda: "580.1")
    monkeypatch.setattr(gpu_report, "nvcc_version", lambda: "13.0")
    monkeypatch.setattr(gpu_report, "device_name", lambda: "")
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def page_of(work: Path) -> str:
    return write_report(work, work / "out").read_text()


def test_a_line_holds_its_time_beside_theory_roof_and_peer(work: Path) -> None:
    entries = measured(Work("rms_norm", "2048 x 4096", memory_bytes=30e6, flops=6e6))
    written(work / "ops.jsonl", H100.as_dict(), *entries)
    page = page_of(work)
    assert "# NVIDIA H100 80GB HBM3\n" in page
    assert "driver 580.1" in page
    assert "- measured roofs: memory 3.00 TB/s, bf16 790 TFLOP/s, link 400 GB/s, host 55 GB/s" in page
    assert "- the maker's roofs: memory 3.35 TB/s, bf16 989 TFLOP/s, link 450 GB/s, host 64 GB/s" in page
    # 30 MB at 3 TB/s are 10 us, of 12; at 3.35 TB/s 8.96.
    row = "| rms_norm | 2048 x 4096 | bf16 | triton | 12 us +-8% | 8.96 us | 2.5e+03 | 0.5 | 83% | 75% |"
    assert f"{row} torch | 2.00 |" in page
    assert f"{row} torch.compile | 1.00 |" in page
    assert "- rms_norm, 2048 x 4096, cuda: E" in page


def test_models_have_a_column_of_tokens_per_second(work: Path) -> None:
    seconds = {"fastserve": [2e-3] * 3, "vllm 1": [3e-3] * 3}
    buckets = Buckets(tuple(seconds), {"single": seconds})
    step = Work("decode", "64 x 32 tokens, 1 GPU", memory_bytes=3e9, flops=20e9)
    found = Measured("model", step, "Q4_1", ("fastserve",), buckets, {}, num_tokens=64)
    written(work / "model.jsonl", H100.as_dict(), *(line.as_dict() for line in found.lines(H100)))
    late = Failure("model", "all", "2 GPUs", "vllm", "SlowStartError: not ready after 9 s")
    written(work / "model2.jsonl", late.as_dict())
    written(work / "ops.jsonl", *measured(Work("rms_norm", "1 x 2", memory_bytes=30e6)))
    page = page_of(work)
    header = "| op | shape | dtype | backend | time | {}theory | GB/s | TFLOP/s |"
    ops, models = page.index(f"## Ops\n\n{header.format('')}"), page.index("## Models\n\n")
    assert ops < models < page.index(header.format("tokens/s | "))
    row = (
        "| decode | 64 x 32 tokens, 1 GPU | Q4_1 | fastserve | 2 ms +-0% | 3.2e+04 | 896 us | 1.5e+03 | 10 |"
    )
    assert f"{row} 50% | 45% | vllm 1 | 1.50 |" in page
    assert "- all, 2 GPUs, vllm: SlowStartError: not ready after 9 s" in page


def test_the_lines_are_kept_beside_the_page(work: Path) -> None:
    entries = measured(Work("rms_norm", "1 x 2", memory_bytes=30e6))
    written(work / "ops.jsonl", H100.as_dict(), *entries)
    page = write_report(work, work / "out")
    assert page.name == "gpu-NVIDIA-H100-80GB-HBM3.md"
    kept = page.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == json.loads(json.dumps([H100.as_dict(), *entries]))


def test_an_unknown_gpu_has_no_theory(work: Path) -> None:
    device = dataclasses.replace(H100, name="NVIDIA X1")
    written(work / "ops.jsonl", device.as_dict(), *measured(Work("rms_norm", "1", memory_bytes=30e6), device))
    page = page_of(work)
    assert "| 12 us +-8% | - | 2.5e+03 | - | 83% | - |" in page
    assert "- the maker's roofs: no figures of this device are kept" in page


def test_tests_and_steps_that_failed_are_told(work: Path) -> None:
    (work / "tests.xml").write_text(JUNIT)
    (work / "steps.tsv").write_text("build\t0\t90\ntests\t1\t60\nops\t124\t150\n")
    (work / "tests.log").write_text("".join(f"line {number}\n" for number in range(100)))
    page = page_of(work)
    assert "2 passed, 2 failed, 1 skipped." in page
    assert "- test_b: 2 != 3\n- test_c: error\n" in page
    assert "| build | well | 90 |\n| tests | with status 1 | 60 |\n| ops | out of time | 150 |" in page
    assert "The end of what tests printed:" in page
    assert "line 99" in page
    assert "line 74\n" not in page


def test_a_page_is_written_whatever_is_missing(work: Path) -> None:
    late = Failure("collectives", "all_reduce", "16 x 4096", "all", "not reached in time")
    written(work / "collectives.jsonl", late.as_dict())
    with (work / "ops.jsonl").open("w") as file:
        file.write('{"kind": "li')
    (work / "tests.xml").write_text("<testsuites>")
    page = page_of(work)
    assert page.startswith("# no device\n") or page.startswith("# \n")
    assert "No results: they did not come to their end." in page
    assert "- all_reduce, 16 x 4096, all: not reached in time" in page
    assert "the line was cut short: {" in page


def test_the_page_needs_nothing_that_has_to_be_built(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update({'fastserve._C': None, 'torch': None}); "
        "import runpy; runpy.run_module('fastserve.benchmark.gpu_report', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_text().startswith("# ")
