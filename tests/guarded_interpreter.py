"""For tests of Triton kernels: a process under the interpreter, outputs that begin as NaN between canaries, an error.

The interpreter must be chosen before Triton is imported, so the classes named `Interpreted` are not collected where
they stand: one test of their file runs them in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

CANARY, MARGIN = -12345.0, 2048


def relative_error(y: Tensor, expected: Tensor) -> float:
    """Relative L2; NaN where y has one, so that no comparison passes."""
    y, expected = y.detach().double(), expected.detach().double()
    return float((y - expected).norm() / expected.norm().clamp_min(1e-30))


def check_gradients(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bound: float, where: str) -> None:
    """Each within `bound` of the exact one, relative to it or to what it usually is: the first tensor is y, and a sum
    of n of its normal numbers, such as a bias's gradient, is about sqrt(n) and may by chance be near zero."""
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        error = float((got.detach().double() - want.detach()).norm())
        scale = float(want.detach().norm()) + 0.3 * max(want.numel(), wanted[0].numel()) ** 0.5
        assert error <= bound * scale, f"output {index}: {error / scale:.3g} > {bound:.3g}, {where}"


def environment(interpret: str, **extra: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": interpret, **extra}


def run_interpreted(file: str, seed: int, *classes: str) -> None:
    """Run classes of a test file, default `Interpreted`, under TRITON_INTERPRET=1."""
    pytest.importorskip("triton")
    arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "python_classes=Interpreted*"]
    done = subprocess.run(
        [sys.executable, *arguments, *(f"{Path(file)}::{name}" for name in classes or ("Interpreted",))],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment("1", SPECTRAL_SEED=str(seed), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, f"under TRITON_INTERPRET=1:\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty returns NaN between canaries, which must live at the end."""
    buffers: list[Tensor] = []
    original = torch.empty

    def empty(shape: Any, dtype: torch.dtype | None = None, device: Any = None, **rest: Any) -> Tensor:
        dtype = dtype or torch.float32
        if not dtype.is_floating_point or str(device) == "meta":
            return original(shape, dtype=dtype, device=device, **rest)
        count = torch.Size(shape).numel()
        buffer = torch.full((count + 2 * MARGIN,), CANARY, dtype=dtype)
        buffer[MARGIN : MARGIN + count] = float("nan")
        buffers.append(buffer)
        return buffer[MARGIN : MARGIN + count].view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", lambda like: empty(like.shape, like.dtype))
    yield
    for buffer in buffers:
        margin = torch.tensor(CANARY, dtype=buffer.dtype)
        assert (buffer[:MARGIN] == margin).all() and (buffer[-MARGIN:] == margin).all(), "wrote outside an output"
    assert buffers
