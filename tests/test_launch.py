"""The one way to launch a kernel: on the device of its tensors, whichever is current, in a grid that CUDA allows."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from guarded_interpreter import compiler
from torch._subclasses.fake_tensor import FakeTensorMode

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.aot import noted_launches
from spectralkernels.convolution.fused.precision import PRECISIONS
from spectralkernels.convolution.fused_series.geometry import SeriesGeometry, chosen_form
from spectralkernels.errors import Unsupported
from spectralkernels.launch import LARGEST_GRID, Launch, LaunchPlan, forget_plans, planned_launch
from spectralkernels.tuning import noted_choices, pinned

triton = pytest.importorskip("triton")
MODULES = [importlib.import_module(each.name) for each in pkgutil.walk_packages(sk.__path__, f"{sk.__name__}.")]
WATCHED = [named for module in MODULES for named in getattr(module, "FINGERPRINTS", ())]
KERNELS = {
    value
    for module in MODULES
    for name, value in vars(module).items()
    if name.endswith("_kernel") and hasattr(value, "fn")
}


class TwoGpus:
    """torch.cuda where the first of two GPUs is current; `entered` are the devices that were made current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.entered: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.device)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        self.entered.append(device)
        yield
        self.current = before


@compiler
@pytest.mark.parametrize("index", [0, 1])
def test_every_kernel_is_launched_on_the_device_of_its_tensors(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched launches, as if their meta tensors were on a GPU, each noted with the device that is current."""
    from triton.runtime.jit import JITFunction

    constants.forget()  # what earlier tests left would not be made here, where torch.cuda is a stand-in
    gpus, where = TwoGpus(monkeypatch), torch.device("cuda", index)
    launched: list[tuple[Any, int, tuple[int, ...]]] = []

    def note(self: Any, *args: Any, grid: tuple[int, ...], **keywords: Any) -> None:
        launched.append((self, gpus.current, grid))

    def device(launch: Launch) -> torch.device:
        assert {tensor.device.type for tensor in launch.tensors.values()} == {"meta"}
        return where

    monkeypatch.setattr(Launch, "device", property(device))
    with noted_launches(), monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        for named in WATCHED:
            named.call()
        short_series()
    kernels, current, grids = map(set, zip(*launched, strict=True))
    assert kernels == KERNELS
    assert current == {index} and gpus.current == 0
    assert gpus.entered == [where] * (len(launched) if index == 1 else 0)
    assert all(0 < programs <= most for grid in grids for programs, most in zip(grid, LARGEST_GRID, strict=False))


def short_series() -> None:
    """The launches of one matrix, which no fingerprint watches."""
    from spectralkernels.convolution.fused_series.launches import convolve_launch, partial_sums, weight_gradient_launch

    geometry, precision = SeriesGeometry(19, 19, 3, -1, 20, 7), PRECISIONS["tf32x3"]
    form = chosen_form(geometry, precision)
    x, weight = torch.empty(2, 3, 19, device="meta"), torch.empty(3, 1, 3, device="meta")
    sums = torch.empty(partial_sums(2, 3, form), 3, 3, device="meta")
    convolve_launch(x, weight, None, x, None, geometry, form, precision).run()
    weight_gradient_launch(x, x, None, sums, geometry, form, precision).run()


def test_the_device_of_a_launch_is_that_of_its_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(3, device="cuda:1")
    assert Launch(None, (1,), {"batch": 3, "mask_ptr": None, "x_ptr": x}, {}).device == torch.device("cuda:1")


def launches(shape: tuple[int, ...], outputs: int, over_batch: bool, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    from spectralkernels.sparse import bitmap, multiply

    made: list[Launch] = []
    monkeypatch.setattr(Launch, "run", lambda launch: made.append(launch))
    blocks = bitmap.blocks_of(torch.Size(shape).numel())
    values = torch.empty(blocks * bitmap.BLOCK, dtype=torch.complex64, device="meta")
    words = torch.empty(blocks * 32, dtype=torch.int32, device="meta")
    first = (shape[0], outputs) if over_batch else (outputs, shape[1])
    dense = torch.empty(*first, *shape[2:], dtype=torch.complex64, device="meta")
    multiply._launch(values, words, None, dense, shape, over_batch)
    return made


@pytest.mark.parametrize("over_batch", [False, True])
def test_planes_of_millions_of_cells_can_be_launched(over_batch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the second and third axis a launch holds 65535 programs, each of 32 cells."""
    last = launches((1, 2, 2048, 2049), 3, over_batch, monkeypatch)[-1]
    assert math.prod(last.grid) == math.ceil(2048 * 2049 / 32)
    assert all(programs <= most for programs, most in zip(last.grid, LARGEST_GRID, strict=False))


def test_a_grid_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    last = launches((600_000, 1, 2, 2), 3, False, monkeypatch)[-1]
    monkeypatch.undo()
    with pytest.raises(Unsupported, match=r"sparse_multiply_kernel needs a grid of \(1, 1, 75000\), a launch holds \("):
        last.run()


def test_nothing_is_launched_without_programs() -> None:
    Launch(None, (0,), {}, {}).run()
    Launch(None, (3, 0), {}, {}).run()
    with pytest.raises(AttributeError):
        Launch(None, (1,), {"x_ptr": torch.zeros(1)}, {}).run()


def test_a_plan_is_made_once_but_where_tiles_are_pinned_or_noted() -> None:
    made: list[int] = []

    @planned_launch
    def plan(size: int) -> LaunchPlan:
        made.append(size)
        return LaunchPlan(None, (size,), {"size": size}, {})

    assert plan(3) is plan(3)
    with pinned({"toy": {"m": 16}}):
        assert plan(3) == LaunchPlan(None, (3,), {"size": 3}, {})
    with noted_choices():
        plan(3)
    assert made == [3, 3, 3]
    forget_plans()
    plan(3)
    assert made == [3] * 4


def test_a_launch_of_a_plan_has_arguments_of_its_own() -> None:
    plan = LaunchPlan(None, (1,), {"size": 3}, {"num_warps": 4})
    one, other = (plan.of({"x_ptr": torch.full((2,), value), "bias_ptr": None}) for value in (1.0, 2.0))
    one.arguments["size"] = 4
    assert other.arguments["size"] == plan.numbers["size"] == 3
    assert one.tensors.keys() == {"x_ptr"} and float(one.tensors["x_ptr"][0]) == 1.0
