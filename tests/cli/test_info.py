from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import fastserve
from fastserve.cli import info
from fastserve.cli.install import InstallError
from fastserve.cli.main import main


def test_info_tells_version_isa_cores_memory_gpu_and_extras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = [("avx512", False, "AVX-512 F"), ("portable", True, "nothing")]
    monkeypatch.setattr(
        info, "require_native", lambda: SimpleNamespace(isa=lambda: "portable", isas=lambda: built)
    )
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["version"].startswith(fastserve.__version__)
    assert lines["avx512"] == "built; this CPU lacks it (needs AVX-512 F)"
    assert lines["portable"] == "built, usable"
    assert {"python", "cores", "memory", "gpu", "torch", "triton"} <= set(lines)


def test_info_works_where_the_extension_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise InstallError("install FastServe again")

    monkeypatch.setattr(info, "require_native", broken)
    assert main(["info"]) == 0
    assert "not usable: install FastServe again" in capsys.readouterr().out


def test_an_isa_that_the_cpu_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> str:
        raise RuntimeError("FASTSERVE_ISA=avx512: this CPU lacks it")

    monkeypatch.setattr(info, "require_native", lambda: SimpleNamespace(isa=lacking, isas=list))
    assert info.native() == [("cpu kernels", "not usable: FASTSERVE_ISA=avx512: this CPU lacks it")]


def test_gpu_is_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Some GPU, 81559 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(info.shutil, "which", lambda name: str(tool))
    assert info.gpu() == "Some GPU, 81559 MiB, 570.1"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert info.gpu().startswith("nvidia-smi fails: ")


def test_no_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    monkeypatch.setattr(info.Path, "glob", lambda self, pattern: iter(()))
    assert info.gpu().startswith("none")


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise info.PackageNotFoundError(package)

    monkeypatch.setattr(info, "version", missing)
    assert info.package_version("triton") == "not installed (pip install 'fastserve[gpu]')"
