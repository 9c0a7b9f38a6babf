"""For tests of Triton kernels: a process under the interpreter, outputs that begin as NaN between canaries, an error.

The interpreter must be chosen before Triton is imported, so that tests marked `interpreter` are a run of their own,
`TRITON_INTERPRET=1 pytest`, and no part of any other: see `conftest`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectralkernels.launch import HAS_TRITON, interpreted

interpreter = pytest.mark.interpreter
compiler = pytest.mark.skipif(not HAS_TRITON or interpreted(), reason="needs triton's compiler, not its interpreter")

# The compilers for which the expectations on machine code are written; what others make, `fingerprint` shows.
TRITON = importlib.import_module("triton").__version__ if HAS_TRITON else "none"
judged_compiler = pytest.mark.skipif(
    interpreted() or not TRITON.startswith(("3.6.", "3.7.")),
    reason=f"for the compiler of triton 3.6 and 3.7, not {TRITON}",
)

CANARY, UNWRITTEN, MARGIN = 77, -77, 8192


def repair_interpreter() -> None:
    """A comparison of scalars is a mask: the interpreter calls it by the dtype of what was compared, and triton 3.9
    refuses `block_of_bool & that` as the mask of a load.

    And most of the time goes to nothing: every function that a kernel calls exchanges the language for the
    interpreter's, which the launch has done; whether a sum of integers overflows is computed, and asserted by
    `device_assert` where `debug` is set, which it is not; a table of dtypes is built for every look-up.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    splat, exchange = interpreter.InterpreterBuilder.create_splat, interpreter._patch_lang
    builder, numpy_dtype, dtypes = interpreter.interpreter_builder, interpreter._get_np_dtype, dict[str, Any]()

    def create_splat(self: Any, shape: Any, value: Any) -> Any:
        mask = value.data.dtype == np.bool_
        return splat(self, shape, interpreter.TensorHandle(value.data, tl.int1) if mask else value)

    @cache
    def languages(function: Any) -> list[Any]:
        return [module for module in (tl, tl.core) if any(value is module for value in function.__globals__.values())]

    def exchange_once(function: Any) -> Any:
        left = any(tl.core.is_builtin(language.program_id) for language in languages(function))
        return exchange(function) if left else interpreter._LangPatchScope()

    def numpy_dtype_once(dtype: Any) -> Any:
        """By the name of its elements, which tells pointers apart."""
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = numpy_dtype(dtype)
        return dtypes[name]

    interpreter.InterpreterBuilder.create_splat = create_splat
    interpreter._get_np_dtype = numpy_dtype_once
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    interpreter._patch_lang = exchange_once


def relative_error(y: Tensor, expected: Tensor) -> float:
    """Relative L2; NaN where y has one, so that no comparison passes."""
    y, expected = y.detach().double(), expected.detach().double()
    return float((y - expected).norm() / expected.norm().clamp_min(1e-30))


def check_gradients(
    found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bound: float, where: str, terms: tuple[float, ...] = ()
) -> None:
    """Each within `bound` of the exact one, relative to it or to what it usually is: the first tensor is y, and a sum
    of n of its normal numbers, such as a bias's gradient, is about sqrt(n), give or take 1, and may be near zero.

    terms: products of normal numbers that a number of the first outputs sums, where more than its own number cancel.
    """
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        error = float((got.detach().double() - want.detach()).norm())
        count = want.numel() * (terms[index] if index < len(terms) else 1)
        scale = float(want.detach().norm()) + 0.3 * (max(count, wanted[0].numel()) ** 0.5 + 1)
        assert error <= bound * scale, f"output {index}: {error / scale:.3g} > {bound:.3g}, {where}"


def environment(interpret: str, **extra: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": interpret, **extra}


def python_interpreting(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own under TRITON_INTERPRET=1, in the root of the project."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env=environment("1", **extra),
    )


def within(content: Tensor, margin: complex) -> tuple[Tensor, Tensor]:
    """A copy of `content` inside a longer buffer of `margin`, and that buffer."""
    buffer = torch.full((content.numel() + 2 * MARGIN,), margin, dtype=content.dtype, device=content.device)
    inside = buffer[MARGIN : MARGIN + content.numel()].view(content.shape)
    inside.copy_(content)
    return inside, buffer


def in_poison(tensor: Tensor) -> Tensor:
    """The same numbers in the middle of a buffer of NaN, so that a read outside is seen."""
    nan = float("nan")
    return within(tensor, complex(nan, nan) if tensor.is_complex() else nan)[0]


def nan_inside(*shape: int) -> tuple[Tensor, Tensor]:
    """An output that begins as NaN between canaries, and their buffer, to be judged by `alive`."""
    return within(torch.full(shape, float("nan")), CANARY)


def alive(buffer: Tensor) -> bool:
    """Whether nothing wrote outside the output in the middle of a buffer."""
    margins = torch.cat([buffer[:MARGIN], buffer[-MARGIN:]])
    return bool((margins == margins.new_full((), CANARY)).all())


@contextmanager
def canaries() -> Iterator[None]:
    """torch.empty and empty_like hand out NaN, integers -77, between canaries, which must be alive at the end."""
    buffers: list[Tensor] = []
    original = torch.empty

    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        dtype = dtype or torch.float32
        if str(device) == "meta":
            return original(shape, dtype=dtype, device=device)
        unwritten = float("nan") if dtype.is_floating_point or dtype.is_complex else UNWRITTEN
        inside, buffer = within(torch.full(shape, unwritten, dtype=dtype, device=device), CANARY)
        buffers.append(buffer)
        return inside

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", lambda like: empty(like.shape, dtype=like.dtype, device=like.device))
        yield
    assert buffers, "the code under test allocates its outputs with torch.empty"
    for buffer in buffers:
        assert alive(buffer), "wrote outside an output"


@pytest.fixture
def guarded() -> Iterator[None]:
    """The whole test between `canaries`."""
    with canaries():
        yield
