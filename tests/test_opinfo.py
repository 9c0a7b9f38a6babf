"""PyTorch's own samples of conv1d and conv2d, to every implementation that can run here: right, or refused in words.

`pytest -s tests/test_opinfo.py` prints how many of the samples each implementation passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from effort import EFFORT
from torch import Tensor

import spectralkernels as sk
from spectralkernels.declare import Implementation
from spectralkernels.ops import load_operation

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")

DTYPES = (torch.float64,) if EFFORT <= 1 else (torch.float64, torch.float32, torch.bfloat16)
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "conv1d": (sk.band_limited_conv1d, ("band_limited_conv1d", "strided_conv1d")),
    "conv2d": (sk.band_limited_conv2d, ("band_limited_conv2d", "strided_conv2d")),
}


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]]:
    """(x, weight, bias, options) of torch's own tests."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (each for each in op_db if each.name == f"nn.functional.{name}")
    for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
        weight, bias = sample.args
        yield sample.input, weight, bias, sample.kwargs


def implementations(operations: tuple[str, ...]) -> dict[str, Implementation]:
    found = {each.name: each for name in operations for each in load_operation(name).implementations}
    return {
        name: each
        for name, each in found.items()
        if each.available("cpu") is None and (EFFORT > 1 or not each.compiled)
    }


def outcome(name: str, implementation: Implementation, sample: tuple[Any, ...]) -> str:
    """ "passed", or the words in which it is refused; a wrong answer or gradient is an AssertionError."""
    function, _ = CONVOLUTIONS[name]
    x, weight, bias, options = sample
    kernel = weight
    try:
        if implementation.frozen:
            size = tuple(x.shape[-(weight.dim() - 2) :])
            geometry = {key: value for key, value in options.items() if key in ("padding", "groups")}
            kernel = sk.weight_spectrum(weight, size, **{"padding": 0, **geometry})
        leaves = [x.clone().requires_grad_(), kernel if implementation.frozen else kernel.clone().requires_grad_()]
        got = function(*leaves, bias, **{"padding": 0, **options}, impl=implementation.name)
    except sk.SpectralKernelsError as error:
        return str(error)
    given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    want = getattr(F, name)(*given, bias, **sample[3])
    close: dict[str, Any] = {"rtol": 0, "atol": TOLERANCES[x.dtype] * float(want.detach().abs().max() + 1)}
    torch.testing.assert_close(got, want, **close)
    dy = torch.randn_like(want)
    ours, theirs = ([each for each in some if isinstance(each, Tensor)] for some in (leaves, given))
    for found, expected in zip(torch.autograd.grad(got, ours, dy), torch.autograd.grad(want, theirs, dy), strict=False):
        close["atol"] = TOLERANCES[x.dtype] * float(expected.abs().max() + 1)
        torch.testing.assert_close(found, expected, **close)
    return "passed"


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_sample_is_right_or_refused_in_words(name: str, seed: int):
    _, operations = CONVOLUTIONS[name]
    for dtype in DTYPES:
        drawn = list(samples(name, dtype))
        assert len(drawn) >= 10
        for each, implementation in implementations(operations).items():
            outcomes = Counter(outcome(name, implementation, sample) for sample in drawn)
            passed = outcomes.pop("passed", 0)
            print(f"{name} {str(dtype)[6:]}: {each} passes {passed} of {len(drawn)}")
            for reason, count in outcomes.items():
                print(f"    {count}: {reason}")
            assert each not in ("dft_native", "dft_gemm", "direct", "torch_fft") or passed == len(drawn)
