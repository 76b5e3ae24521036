from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.errors import BackendError
from fastserve.ops import backend

X, WEIGHT = torch.ones(2, 4), torch.ones(4)


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "tpu")
    with pytest.raises(
        ValueError, match="FASTSERVE_BACKEND must be one of reference, cpu, cuda, triton, got 'tpu'"
    ):
        fastserve.ops.rms_norm(X, WEIGHT, 1e-5)


def test_a_backend_that_the_op_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "cuda")
    with pytest.raises(ValueError, match="rms_norm has no backend cuda: it has reference, cpu, triton"):
        fastserve.ops.rms_norm(X, WEIGHT, 1e-5)


def test_a_backend_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "cuda")
    with pytest.raises(ValueError, match="FASTSERVE_BACKEND=cuda does not run on cpu tensors"):
        fastserve.ops.all_reduce(X, None)


def test_the_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "reference")
    x = X.to(torch.bfloat16)  # which the CPU's kernels do not take
    assert fastserve.ops.rms_norm(x, WEIGHT, 0.0).dtype == torch.bfloat16


def test_a_change_of_the_variable_is_seen_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    fastserve.ops.rms_norm(X, WEIGHT, 1e-5)
    monkeypatch.setenv("FASTSERVE_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="FASTSERVE_BACKEND"):
        fastserve.ops.rms_norm(X, WEIGHT, 1e-5)
    monkeypatch.delenv("FASTSERVE_BACKEND")
    fastserve.ops.rms_norm(X, WEIGHT, 1e-5)


@pytest.mark.parametrize(
    ("implemented", "missing", "message"),
    [
        (("reference", "triton"), "has_triton", "triton is not installed: pip install fastserve"),
        (("reference", "cuda"), "cuda_ops", "built without its CUDA ops: install it again where nvcc"),
    ],
)
def test_what_is_missing_for_a_device_says_how_to_get_it(
    implemented: tuple[str, ...], missing: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, missing, lambda: None)
    with pytest.raises(BackendError, match=f"op cannot run on cuda tensors: .*{message}"):
        backend.choose_backend("op", dict.fromkeys(implemented), "cuda")


def test_a_forced_backend_that_was_not_built_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "cuda")
    monkeypatch.setattr(backend, "cuda_ops", lambda: None)
    with pytest.raises(BackendError, match=r"^op: fastserve was built without its CUDA ops"):
        backend.choose_backend("op", dict.fromkeys(("reference", "triton", "cuda")), "cuda")


def test_on_a_gpu_the_first_installed_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda_ops", lambda: None)
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    implemented = dict.fromkeys(("reference", "cpu", "cuda", "triton"))
    assert backend.choose_backend("op", implemented, "cuda") == "triton"
    monkeypatch.setattr(backend, "cuda_ops", lambda: backend)
    assert backend.choose_backend("op", implemented, "cuda") == "cuda"
    assert backend.choose_backend("op", implemented, "cpu") == "cpu"
