"""Constants of a geometry: a call in any mode leaves nothing behind that a later call could not use; bytes are few."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.constants import MOST_PLANS, Plans, Recalled, constant, planned


@pytest.fixture(autouse=True)
def fresh():
    constants.forget()
    yield
    constants.forget()


# --- every implementation after a first call in every mode ----------------------------------------------------------

N = sk.masks.fft_grid((7, 6), (3, 3))
LISTED = sk.masks.mode_list(sk.masks.radial(N, 0.5), N)
CALLS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "band_limited_conv2d": lambda x, w, impl: sk.band_limited_conv2d(x, w, compression=0.5, impl=impl),
    "band_limited_conv1d": lambda x, w, impl: sk.band_limited_conv1d(x[..., 0], w[..., 0], compression=0.5, impl=impl),
    "masked_conv2d": lambda x, w, impl: sk.masked_conv2d(x, w, sk.masks.radial(N, 0.5), modes=LISTED, impl=impl),
}
RUNS = [
    (name, found.name)
    for name in CALLS
    for found in sk.implementations(name, "cpu")
    if found.available and found.name in ("dft_gemm", "torch_fft", "direct_lowpass", "dft_triton")
]
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "fake tensors": FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 7, 6, device="cpu"), torch.randn(3, 4, 3, 3, device="cpu")


def check_as_if_first(call: Callable[[Tensor, Tensor, str], Tensor], impl: str) -> None:
    x, w = inputs()
    x.requires_grad_(), w.requires_grad_()
    y = call(x, w, impl)
    after = (y, *torch.autograd.grad(y.square().sum(), (x, w)))
    constants.forget()
    y = call(x, w, impl)
    first = (y, *torch.autograd.grad(y.square().sum(), (x, w)))
    for a, b in zip(after, first, strict=True):
        assert type(a) is Tensor and a.device.type == "cpu"
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "impl"), RUNS)
def test_a_first_call_in_a_mode_harms_no_later_one(name: str, impl: str, mode: str, seed: int):
    with MODES[mode]():
        y = CALLS[name](*inputs(), impl)
    assert y.shape[:2] == (2, 3)
    check_as_if_first(CALLS[name], impl)


@pytest.mark.drawn
@pytest.mark.parametrize(("name", "impl"), RUNS)
def test_a_first_call_in_an_export_harms_no_later_one(name: str, impl: str, seed: int):
    x, w = inputs()

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return CALLS[name](x, w, impl)

    for strict in (True, False):
        torch.export.export(Layer(), (x, w), strict=strict)
    check_as_if_first(CALLS[name], impl)


@pytest.mark.parametrize(("name", "impl"), RUNS)
def test_a_first_call_in_a_transform_harms_no_later_one(name: str, impl: str, seed: int):
    x, w = inputs()
    torch.func.grad(lambda x: CALLS[name](x, w, impl).square().sum())(x)
    check_as_if_first(CALLS[name], impl)
    constants.forget()
    torch.vmap(lambda x: CALLS[name](x, w, impl))(x.unsqueeze(0))
    check_as_if_first(CALLS[name], impl)


# --- the memory -----------------------------------------------------------------------------------------------------


@constant
def ramp(length: int, start: float = 0.0) -> tuple[Tensor, Tensor]:
    made = torch.arange(start, start + length, dtype=torch.float64)
    return made, made[:1]


def test_a_constant_is_made_once_and_is_an_ordinary_tensor():
    with torch.inference_mode(), torch.device("meta"):
        first, _ = ramp(4)
    assert ramp(4)[0] is first and ramp(4, 1.0)[0] is not first
    assert first.device.type == "cpu" and not first.is_inference()


def test_the_memory_is_bounded_in_bytes_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "MOST_BYTES", 40 * 800)
    monkeypatch.setattr(constants, "ALWAYS_KEPT", 3)
    kept = ramp(100)[0]
    for start in range(1, 200):
        ramp(100, float(start))
        assert ramp(100)[0] is kept  # what is used stays
        assert constants.kept_bytes() == min(40, start + 1) * 800  # views count once
    large = [ramp(10**5, float(start))[0] for start in range(3)]
    assert [ramp(10**5, float(start))[0] is made for start, made in enumerate(large)] == [True] * 3
    assert constants.kept_bytes() == 3 * 800_000


def test_a_constant_that_is_recalled_counts_as_used_and_is_made_again_once_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "MOST_BYTES", 40 * 800)
    monkeypatch.setattr(constants, "ALWAYS_KEPT", 3)
    recalled = Recalled(ramp, 100)
    first = recalled()
    for start in range(1, 100):
        ramp(100, float(start))
        assert recalled() is first is ramp(100)
    for start in range(1, 100):
        ramp(100, float(start))
    again = recalled()
    assert again is not first and again is recalled() is ramp(100)
    torch.testing.assert_close(again, first)


@pytest.mark.slow
def test_random_map_sizes_stay_below_the_bound(seed: int):
    for height in range(60, 250, 19):
        for width in range(61, 250, 17):
            x, w = torch.randn(1, 1, height, width), torch.randn(1, 1, 3, 3)
            sk.band_limited_conv2d(x, w, compression=0.3, impl="dft_gemm")
            assert constants.kept_bytes() <= constants.MOST_BYTES


def test_an_error_reaches_the_caller():
    @constant
    def broken(n: int) -> Tensor:
        raise ValueError(f"no {n}")

    for _ in range(2):
        with pytest.raises(ValueError, match="no 3"):
            broken(3)


def test_threads_and_a_fork_may_ask_for_the_same_constant():
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(ramp(50)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for each in found:
        torch.testing.assert_close(each, torch.arange(50.0, dtype=torch.float64))
    child = os.fork()
    if child == 0:
        os._exit(0 if ramp(51)[0].sum() == 51 * 25 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_else_remembers_tensors():
    """Every function that remembers a tensor does so here: others would keep the tensors of a mode."""
    from test_layout import KERNELS

    remembering = re.compile(r"^@(?:lru_cache\(.*\)|cache)\ndef (\w+)\([^)]*\) -> ([^:]*):", re.MULTILINE)
    found = [
        (name, made) for path in sorted(KERNELS.rglob("*.py")) for name, made in remembering.findall(path.read_text())
    ]
    assert ("staircase", "tuple[tuple[int, int], ...]") in found
    known = {"_photographs", "_compiled"}  # the inputs of a benchmark, and a function
    assert {name for name, made in found if re.search("Tensor|DFT|Matrices|Operators", made)} == known


def test_the_default_dtype_does_not_reach_a_constant(seed: int):
    x, w = inputs()
    want = sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_gemm")
    constants.forget()
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_gemm"), want)
    finally:
        torch.set_default_dtype(torch.float32)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_once_and_anew_where_sizes_are_traced():
    asked: list[object] = []

    @planned
    def plan(*args: object) -> tuple[object, ...]:
        asked.append(args)
        return args

    assert plan(1, (2, 3)) is plan(1, (2, 3)) and plan(True, (2, 3))[0] is True
    assert len(asked) == 2
    with FakeTensorMode():
        assert plan(1, (2, 3)) == (1, (2, 3)) and len(asked) == 3


def test_plans_are_bounded_in_number_and_the_oldest_go():
    plans: Plans[int] = Plans()
    for key in range(MOST_PLANS):
        assert plans.keep(key, -key) == -key
    assert plans.get(0) == 0 and plans.get(MOST_PLANS) is None
    plans.keep(MOST_PLANS, 7)
    assert plans.get(0) is None and plans.get(MOST_PLANS) == 7 and plans.get(MOST_PLANS - 1) == 1 - MOST_PLANS


@pytest.mark.parametrize(
    ("right", "wrong"),
    [({"padding": 1}, {"padding": True}), ({"groups": 1}, {"groups": True}), ({"padding": 1}, {"padding": 1.0}),
     ({"compression": 0}, {"compression": False}), ({"grid": 9}, {"grid": 9.0}),
     ({"padding": (1, 1)}, {"padding": (1, True)}),
     ({"grid": 9}, {"grid": [9, True]})],
)  # fmt: skip
def test_a_call_that_fitted_excuses_no_other(right: dict[str, object], wrong: dict[str, object], seed: int):
    """1, 1.0 and True are one key of a dictionary."""
    x, w = torch.randn(1, 2, 7, 6), torch.randn(3, 2, 3, 3)
    for _ in range(2):
        assert sk.band_limited_conv2d(x, w, **right).shape[1] == 3  # type: ignore[arg-type]
        with pytest.raises(sk.SpectralKernelsError):
            sk.band_limited_conv2d(x, w, **wrong)  # type: ignore[arg-type]


def test_a_stride_that_fitted_excuses_no_other(seed: int):
    x, w = torch.randn(1, 2, 7), torch.randn(3, 2, 3)
    for wrong in (1.0, True):
        assert sk.band_limited_conv1d(x, w, stride=1).shape == (1, 3, 7)
        with pytest.raises(sk.SpectralKernelsError, match=f"stride must be .*, got {wrong}"):
            sk.band_limited_conv1d(x, w, stride=wrong)  # type: ignore[arg-type]


def test_a_geometry_that_fitted_excuses_no_other_tensors(seed: int):
    x, w, b = torch.randn(1, 2, 7, 6), torch.randn(3, 2, 3, 3), torch.randn(3)
    sk.band_limited_conv2d(x, w, b)
    for wrong in ((x.double(), w, b), (x, w, b.half()), (x, w[:, :1], b), (x, w, b[:2]), (x.to(torch.int32), w, b)):
        for _ in range(2):
            with pytest.raises(sk.SpectralKernelsError):
                sk.band_limited_conv2d(*wrong)
