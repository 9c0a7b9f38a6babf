"""Masked convolutions that list the modes of their mask: found again by its numbers, however they were changed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_prepared import B, W, X, outcome
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.convolution import prepared
from spectralkernels.convolution.prepared import PREPARED
from spectralkernels.ops import masked_conv2d as masked_module

GRID = sk.masks.fft_grid((6, 6), (3, 3))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    PREPARED.forget()
    yield
    PREPARED.forget()


def convolve(mask: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return sk.masked_conv2d(X, W, mask, B, **{"groups": 2, "impl": "dft_gemm", **options})


def drawn(fraction: float = 0.5) -> Tensor:
    return sk.masks.radial(GRID, fraction) * (torch.rand(GRID[0], GRID[1] // 2 + 1) + 0.1)


@pytest.fixture
def whole_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked for by the calls that went the whole way."""
    ways: list[str] = []
    resolved = masked_module.resolved
    monkeypatch.setattr(masked_module, "resolved", lambda *given: ways.append(given[1]) or resolved(*given))
    return ways


@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "torch_fft", "direct"])
@pytest.mark.parametrize("stride", [1, 2])
def test_equal_numbers_are_found_again_in_any_tensor(impl: str, stride: int, whole_ways: list[str], seed: int):
    mask = torch.ones(GRID[0], GRID[1] // 2 + 1) if impl == "direct" else drawn()
    first = outcome(lambda: convolve(mask, impl=impl, stride=stride))
    for same in (mask, mask.clone(), torch.from_numpy(mask.numpy().copy())):
        assert outcome(lambda: convolve(same, impl=impl, stride=stride)) == first  # noqa: B023
    assert whole_ways == [impl]


def in_place(mask: Tensor) -> Tensor:
    return mask.mul_(drawn(0.2) != 0)


def by_data(mask: Tensor) -> Tensor:
    """Which the version counter does not see."""
    before = mask._version
    mask.data.mul_(drawn(0.2) != 0)
    assert mask._version == before
    return mask


def by_numpy(mask: Tensor) -> Tensor:
    """Nor this."""
    mask.numpy()[:] *= (drawn(0.2) != 0).numpy()
    return mask


def by_more_cells(mask: Tensor) -> Tensor:
    return mask.copy_(drawn(0.9))


def at_the_same_address(mask: Tensor) -> Tensor:
    memory = mask.untyped_storage()
    return torch.empty(0).set_(memory, 0, mask.shape).copy_(drawn(0.8))


def in_inference(mask: Tensor) -> Tensor:
    """A tensor without a version counter, twice."""
    with torch.inference_mode():
        changed = drawn(0.3)
        convolve(changed)
        return changed.copy_(drawn(0.7))


CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    in_place, by_data, by_numpy, by_more_cells, at_the_same_address, in_inference,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "torch_fft"])
def test_a_mask_that_was_changed_is_listed_anew(change: Callable[[Tensor], Tensor], impl: str, seed: int):
    mask = drawn()
    stale = outcome(lambda: convolve(mask, impl=impl))
    assert outcome(lambda: convolve(mask, impl=impl)) == stale
    mask = change(mask)
    found = outcome(lambda: convolve(mask, impl=impl))
    PREPARED.forget()
    assert found == outcome(lambda: convolve(mask.clone(), impl=impl))
    assert found != stale


def test_a_mask_whose_memory_was_freed_is_not_taken_for_its_heir(seed: int):
    """Freed memory of one size is given again at once."""

    def answers(mask: Tensor) -> int:
        modes = sk.masks.mode_list(mask, GRID)
        assert outcome(lambda: convolve(mask)) == outcome(lambda: convolve(mask, modes=modes))
        return mask.data_ptr()

    addresses = [answers(drawn(float(torch.rand(()).clamp(0.1)))) for _ in range(20)]
    assert len(set(addresses)) < len(addresses)


def test_a_mask_of_ones_that_is_one_no_more_is_not_served_by_the_library(seed: int):
    mask = torch.ones(GRID[0], GRID[1] // 2 + 1)
    for _ in range(2):
        convolve(mask, impl="direct")
    mask.data[1, 1] = 2.0
    with pytest.raises(sk.Unsupported, match="needs one of ones"):
        convolve(mask, impl="direct")


def test_what_has_no_numbers_of_its_own_goes_the_whole_way(seed: int):
    masks = torch.stack([drawn(0.3), drawn(0.8)])
    one_by_one = torch.stack([convolve(mask) for mask in masks])
    torch.testing.assert_close(torch.func.vmap(lambda mask: convolve(mask))(masks), one_by_one)
    one, mode = masks[0], FakeTensorMode()
    x, w, b, fake = (mode.from_tensor(each) for each in (X, W, B, one))
    with mode:
        assert sk.masked_conv2d(x, w, fake, b, groups=2, impl="dft_gemm").shape == one_by_one.shape[1:]
    mask = masks[0].clone().requires_grad_()  # every mode counts, whatever the numbers are
    for _ in range(2):
        (gradient,) = torch.autograd.grad(sk.masked_conv2d(X, W, mask, B, groups=2, impl="dft_gemm").sum(), mask)
        assert float(gradient[masks[0] == 0].abs().max()) > 0.0


def test_numbers_that_are_not_equal_to_themselves_are_never_found(whole_ways: list[str]):
    mask = drawn()
    mask[0, 1] = float("nan")
    for _ in range(3):
        assert convolve(mask).isnan().all()
    assert len(whole_ways) == 3


def test_few_masks_of_a_signature_are_held_within_the_bytes_of_constants(whole_ways: list[str], seed: int):
    masks = [drawn() for _ in range(prepared.MOST_MASKS + 1)]
    for mask in (*masks, *masks[1:], masks[0]):
        convolve(mask)
    assert len(whole_ways) == len(masks) + 1, "the oldest went"
    gc.collect()
    held = constants.kept_bytes()
    PREPARED.forget()
    gc.collect()
    assert held - constants.kept_bytes() == prepared.MOST_MASKS * masks[0].nbytes
    convolve(masks[0])
    constants.forget()
    wanted, ways = outcome(lambda: convolve(masks[0].clone())), len(whole_ways)
    assert outcome(lambda: convolve(masks[0])) == wanted and len(whole_ways) == ways, "made again, then found"
