"""Every way to call `fastserve` wrongly is one line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve import _C
from fastserve.cli import install, main
from fastserve.cli.main import VERBS
from fastserve.errors import WeightFileError

HEAVY = ["torch", "triton", "numpy", "uvicorn", "starlette", "prometheus_client", "tokenizers", "jinja2"]
HEAVY += ["yaml", "asyncio", "fastserve._C"]


def cli(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTSERVE_")}
    return subprocess.run(
        [sys.executable, "-m", "fastserve", *argv],
        capture_output=True,
        text=True,
        env={**clean, **environ},
        timeout=60,
        check=False,
    )


def test_help_names_every_verb() -> None:
    ran = cli("--help")
    assert ran.returncode == 0
    assert all(verb in ran.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_heavy(verb: str | None) -> None:
    argv = [*([verb] if verb else []), "--help"]
    code = f"""
import sys
from fastserve.cli.main import main
try:
    main({argv!r})
except SystemExit as end:
    assert end.code == 0
print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nope"], "unknown verb 'nope'"),
        (["serve", "--nope"], "unrecognized arguments: --nope"),
        (["serve", "--port", "x"], "--port must be an integer"),
        (["serve", "--port", "70000"], "--port must be in [0, 65535], got 70000"),
        (["serve", "--devices", "0"], "--devices must be >= 1, got 0"),
        (["serve", "--max-prompts", "0"], "--max-prompts must be > 0, got 0"),
        (["serve", "--drain-timeout", "-1"], "--drain-timeout must be >= 0"),
        (["serve", "--api-key", " "], "api_key must be printable and not empty"),
        (["generate", "--temperature", "-1", "hello"], "--temperature must be in [0, 100], got -1.0"),
        (["generate", ""], "a prompt must not be empty"),
        (["plan", "--devices", "two"], "--devices must be a number, cpu:CORES"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTSERVE_CONFIG", raising=False)
    monkeypatch.setattr(install, "import_module", lambda name: SimpleNamespace())
    assert main.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fastserve: error: ")
    assert message in lines[0]


def test_no_verb_shows_the_help() -> None:
    ran = cli()
    assert ran.returncode == 2
    assert "VERB" in ran.stdout


def test_version() -> None:
    import fastserve

    assert cli("--version").stdout == f"fastserve {fastserve.__version__}\n"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (WeightFileError("model.gguf: cut short\nat offset 7"), 1),
        (ValueError("too small"), 1),
        (ModuleNotFoundError("No module named 'starlette'"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_line(
    raised: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_verb(monkeypatch, raised)
    assert main.main(["info"]) == code
    lines = capsys.readouterr().err.splitlines()
    expected = (
        []
        if isinstance(raised, KeyboardInterrupt)
        else [f"fastserve: error: {' '.join(str(raised).split())}"]
    )
    assert lines == expected


def test_debug_lets_the_traceback_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_verb(monkeypatch, ValueError("too small"))
    monkeypatch.setenv("FASTSERVE_DEBUG", "1")
    with pytest.raises(ValueError, match="too small"):
        main.main(["info"])


def _with_verb(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def run(settings: Any) -> int:
        raise raised

    verb = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(main, "import_module", lambda name: verb)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fastserve", "info"]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert ran.returncode == 141
    assert ran.stderr == ""


UNUSABLE_ISAS = ["vax", *(name for name, supported, _ in _C.isas() if not supported)]


@pytest.mark.parametrize("isa", UNUSABLE_ISAS)
@pytest.mark.parametrize("devices", ["1", "2"])
def test_an_isa_that_cannot_be_had_is_one_line(isa: str, devices: str, smollm2_path: Path) -> None:
    argv = ("generate", "--model", str(smollm2_path), "--devices", devices, "hello")
    ran = cli(*argv, FASTSERVE_ISA=isa)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"fastserve: error: FASTSERVE_ISA={isa}: ")
    assert ran.stdout == ""


def test_a_checkout_without_the_extension_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    package = tmp_path / "fastserve"
    package.mkdir()
    (tmp_path / "CMakeLists.txt").write_text("")
    monkeypatch.setattr(install, "import_module", missing)
    monkeypatch.setattr(install.fastserve, "__file__", str(package / "__init__.py"))
    assert main.main(["serve"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run `pip install -e .` in {tmp_path}" in line
    assert "leave that folder" in line
