"""Masked convolutions that were called before: the same answers, nothing confused, and a mask's numbers read anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_prepared import B, W, X, forgetful, learned, outcome
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.prepared import PREPARED
from spectralkernels.dispatch import reads
from spectralkernels.ops import masked_conv2d as masked_module

GRID = sk.masks.fft_grid((6, 6), (3, 3))
CELLS = sk.masks.mode_list(sk.masks.radial(GRID, fraction=0.4), GRID, form="cells")
STEPS = sk.masks.mode_list(sk.masks.radial(GRID, fraction=0.4), GRID, form="steps")
MASK = torch.rand(GRID[0], GRID[1] // 2 + 1)
WHOLE = sk.masks.mode_list(torch.ones_like(MASK), GRID)
ONE_OF_A_PAIR = torch.zeros_like(MASK).bool()
ONE_OF_A_PAIR[1, 0] = True  # kept whole if bool, by half if not


def masked(x: Tensor = X, mask: Tensor = MASK, **options: Any) -> Tensor:
    return sk.masked_conv2d(x, W, mask, B, **{"groups": 2, "modes": CELLS, "impl": "dft_gemm", **options})


MASKED: dict[str, tuple[tuple[int, ...], Callable[[], Tensor], Callable[[], Tensor]]] = {
    "modes": ((2, 3), masked, lambda: masked(modes=sk.masks.mode_list(sk.masks.radial(GRID, fraction=0.1), GRID))),
    "dtype of the mask": ((2, 5, 2), masked, lambda: masked(mask=ONE_OF_A_PAIR)),
    "gradient of the mask": ((2, 5, 4), masked, lambda: masked(mask=learned(MASK))),
    "stride": ((2, 3), masked, lambda: masked(stride=2)),
}


@pytest.mark.parametrize("what", MASKED)
def test_a_masked_call_is_not_taken_for_another(what: str, monkeypatch: pytest.MonkeyPatch):
    place, one, other = MASKED[what]
    wanted = outcome(other)
    PREPARED.forget()
    assert outcome(one) != wanted
    assert outcome(other) == wanted == outcome(other)
    PREPARED.forget()
    monkeypatch.setattr(masked_module, "signature", forgetful(place))
    outcome(one)
    assert outcome(other) != wanted, "the planted fault was not seen"


@pytest.mark.parametrize("modes", [CELLS, STEPS], ids=["cells", "steps"])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"impl": "torch_fft"}, {"impl": "auto"}], ids=str)
def test_a_masked_call_answers_as_before(modes: Any, options: dict[str, Any], seed: int):
    """Whatever numbers its mask holds by then: bool, soft, one for each sample, or changed in place."""
    for mask in (MASK > 0.5, torch.rand_like(MASK), torch.rand(2, 1, *MASK.shape).double()):
        for _ in range(2):
            mask = mask.clone()
            mask[..., 1, 1] = 0
            PREPARED.forget()
            wanted = outcome(lambda: masked(mask=mask, modes=modes, **options))  # noqa: B023
            mask_before = mask.clone()
            mask[..., 1, 1] = 1
            assert len(PREPARED.get.__self__) == 1
            assert outcome(lambda: masked(mask=mask, modes=modes, **options)) != wanted  # noqa: B023
            assert outcome(lambda: masked(mask=mask_before, modes=modes, **options)) == wanted  # noqa: B023
            assert len(PREPARED.get.__self__) == 1


@pytest.mark.parametrize("impl", ["dft_gemm", "dft_gemm_frozen", "dft_native", "dft_native_frozen"])
@pytest.mark.parametrize("size", [(5, 6), (6, 5), (1, 3)])
def test_a_plan_reads_a_mask_as_a_whole_call_does(impl: str, size: tuple[int, int], seed: int):
    """To the same bits: of every dtype, layout and symmetry, with modes that leave holes, and numbers that overflow."""
    if impl.startswith("dft_native") and build.COMPILER is None:
        pytest.skip("no C++ compiler")
    read_by_a_plan(impl, size)


@pytest.mark.interpreter
def test_a_plan_of_kernels_reads_a_mask_as_a_whole_call_does(poisoned: None, seed: int):
    read_by_a_plan("dft_triton", (4, 5))


def read_by_a_plan(impl: str, size: tuple[int, int]) -> None:
    x, w = 1e-6 * torch.randn(2, 2, *size), torch.randn(2, 1, 2, 3)
    n = sk.masks.fft_grid(size, (2, 3))
    weights = torch.rand(n[0], n[1] // 2 + 1) + 0.1
    large, wide = weights.clone(), weights.repeat_interleave(2, 1)
    large[0, 1] = 2e38  # no mean of a pair
    kept = sk.masks.hermitian(torch.rand_like(weights) < 0.6, n)
    for form in ("cells", "steps"):
        modes = sk.masks.mode_list(kept, n, form=form)  # type: ignore[arg-type]
        weight: Any = w
        if impl.endswith("frozen"):
            weight = sk.masked_weight_spectrum(w, modes, size, groups=2)
        for mask in (
            weights > 0.5,
            weights.half(),
            weights.double(),
            wide[:, ::2],
            large,
            torch.rand(2, 1, *kept.shape),
        ):
            call = partial(sk.masked_conv2d, x, weight, mask, modes=modes, groups=2, impl=impl)
            PREPARED.forget()
            with torch.no_grad():
                first = outcome(call)
                assert isinstance(first[-1], list) and outcome(call) == first
            (plan,) = PREPARED.get.__self__.values()
            assert plan.body is not None
            fft = sk.masked_conv2d(x, w, mask, modes=modes, groups=2, impl="torch_fft").double()
            assert float((torch.tensor(first[-1]).view(fft.shape) - fft).norm()) <= 1e-4 * float(fft.norm())


@pytest.mark.parametrize("modes", [STEPS, WHOLE], ids=["some", "whole"])
def test_who_is_served_by_the_numbers_of_a_mask_says_so(modes: Any):
    """`supports` and `auto` answer alike for every mask of a signature where they say that they read none."""
    band = conv_band((6, 6), (3, 3), compression=0.0)
    given = [
        {"x": X, "weight": W, "mask": mask, "bias": B, "band": band, "modes": modes, "groups": 2}
        for mask in (torch.ones_like(MASK), MASK)
    ]
    operation = masked_module.OPERATION
    told = {each.name for each in operation.implementations if reads(operation, each.name, given[0])}
    found = {
        each.name
        for each in operation.implementations
        if (each.supports(**given[0]) is None) != (each.supports(**given[1]) is None)
    }
    assert found == told == ({"direct"} if modes is WHOLE else set())
    assert reads(operation, "auto", given[0]) == bool(told)


def test_who_reads_the_mask_is_asked_each_time():
    for mask in (torch.ones_like(MASK), MASK):
        wanted = masked(mask=mask, modes=WHOLE)
        torch.testing.assert_close(masked(mask=mask, modes=WHOLE, impl="auto"), wanted)
    with pytest.raises(sk.Unsupported, match="needs one of ones"):
        masked(modes=WHOLE, impl="direct")
    with pytest.raises(sk.Unsupported, match="drops no mode"):
        masked(mask=torch.ones_like(MASK), impl="direct")
