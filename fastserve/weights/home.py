"""Where models are kept on this machine.

$FASTSERVE_HOME/models/NAME/FILE.gguf    a pulled model; complete whenever it exists
$FASTSERVE_HOME/models/NAME/.lock        held while it is pulled
$FASTSERVE_HOME/models/NAME/.pull-*/     a pull on its way, or what a killed one left (the next removes it)
"""

from __future__ import annotations

import os
from pathlib import Path

from fastserve.errors import ModelNotFoundError
from fastserve.weights.registry import KnownModel


def fastserve_home() -> Path:
    """$FASTSERVE_HOME, else `fastserve` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache).

    Raises ModelNotFoundError where there is none of these.
    """
    home = os.environ.get("FASTSERVE_HOME")
    if home:
        return Path(os.path.expanduser(home)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification has relative paths ignored
        return Path(cache) / "fastserve"
    try:
        return Path.home() / ".cache" / "fastserve"
    except RuntimeError:  # a user without a home, as in some containers
        raise ModelNotFoundError("there is no home folder to keep models in: set FASTSERVE_HOME") from None


def model_path(model: KnownModel) -> Path:
    """Where the model's file is, or will be once pulled."""
    return fastserve_home() / "models" / model.name / model.file_name


def is_kept(model: KnownModel) -> bool:
    """Whether the file is there, by its size: it was checked byte by byte before it got its name."""
    try:
        return model_path(model).stat().st_size == model.num_bytes
    except OSError:
        return False
