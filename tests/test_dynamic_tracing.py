"""torch.compile and torch.export with sizes, rates and thresholds that change: not a graph for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from effort import EFFORT
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import spectralkernels as sk

W, B = torch.randn(6, 4, 3, 3), torch.randn(6)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counted(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("eager")
    return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter


def convolve(x: Tensor, compression: float, stride: int = 1) -> Tensor:
    return sk.band_limited_conv2d(x, W, B, compression=compression, stride=stride)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_few_graphs_for_every_size_of_map(stride: int, seed: int):
    """Another where a transform of other matrices begins, not one per size."""

    def function(x: Tensor) -> Tensor:
        return convolve(x, 0.5, stride)

    compiled, counter = counted(function)
    for batch, height, width in ((2, 8, 9), (3, 13, 12), (5, 17, 14), (4, 18, 19)):
        x = torch.randn(batch, 4, height, width)
        torch.testing.assert_close(compiled(x), function(x))
    assert counter.frame_count <= 2


def given(x: Tensor) -> tuple[Tensor, Tensor]:
    """A mask that comes with its maps."""
    return x, sk.masks.radial(sk.masks.fft_grid(x.shape[2:], (3, 3), padding=1), 0.5)


def band_inside(x: Tensor) -> Tensor:
    """A mask that is made while torch.compile traces."""
    return sk.masked_conv2d(x, W, sk.masks.rectangular(sk.masks.fft_grid(x.shape[2:], (3, 3)), 0.5), B)


MASKED: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "given": (lambda x, mask: sk.masked_conv2d(x, W, mask, B, padding=1), given),
    "layer": (sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=partial(sk.masks.radial, fraction=0.5)), lambda x: (x,)),
    "inside": (band_inside, lambda x: (x,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED if EFFORT > 1 else ["given"])
def test_few_graphs_for_masks_of_every_size(name: str, seed: int):
    """Odd, even and other sides of both axes: what is even is decided within the graph."""
    function, arguments = MASKED[name]
    compiled, counter = counted(function)
    for batch, height, width in ((2, 8, 9), (5, 13, 12), (7, 17, 14), (4, 18, 19)):
        x = torch.randn(batch, 4, height, width)
        torch.testing.assert_close(compiled(*arguments(x)), function(*arguments(x)))
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_threads_share_a_compiled_layer(seed: int):
    """Whoever comes first compiles it while the others wait, and what a layer remembers is no lock of theirs."""
    layer = sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=partial(sk.masks.radial, fraction=0.5)).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    maps = [torch.randn(2, 4, 8, 9) for _ in range(4)]
    with ThreadPoolExecutor(len(maps)) as threads:
        found = list(threads.map(compiled, maps, timeout=120))
    for x, y in zip(maps, found, strict=True):
        torch.testing.assert_close(y, layer(x))


@pytest.mark.slow
def test_one_graph_for_every_rate_above_0(seed: int):
    compiled, counter = counted(convolve)
    x = torch.randn(2, 4, 9, 8)
    for compression in (0.1, 0.25, 0.5, 0.9):
        torch.testing.assert_close(compiled(x, compression), convolve(x, compression))
    assert counter.frame_count == 1


def threshold(x: Tensor, beta: float | Tensor, impl: str) -> Tensor:
    y = torch.fft.rfft2(x, norm="ortho")
    return sk.threshold_spectrum(y, beta, relative=True, n=x.shape[-1], impl=impl).to_dense()


def block(x: Tensor, beta: float | Tensor, impl: str) -> Tensor:
    return sk.spec_block(x, W, beta, capacity=1.0, impl=impl).to_dense()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "impl", "dynamic"),
    [(threshold, "dense", None), (block, "bitmap", True)]
    + [(block, "bitmap", None), (threshold, "bitmap", True), (block, "dense", True)] * (EFFORT > 1),
)
def test_at_most_two_graphs_for_every_threshold(
    function: Callable[..., Tensor], impl: str, dynamic: bool | None, seed: int
):
    """A number that changes becomes a symbol at its second value, and a tensor never is one."""
    x = torch.randn(3, 4, 7, 8)
    for kind in (float, torch.tensor):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter)
        for beta in (0.2, 0.3, 0.5, 0.7, 1.1):
            found, want = compiled(x, kind(beta), impl), function(x, beta, impl)
            torch.testing.assert_close(found, want)
            assert want.any()
        assert counter.frame_count <= (1 if dynamic or kind is torch.tensor else 2)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "impl"), [(threshold, "dense"), (block, "bitmap")])
def test_a_number_stays_a_symbol_below_the_tracer(function: Callable[..., Tensor], impl: str, seed: int):
    """AOTAutograd makes tensors of the numbers that it can, and a graph for every value of those that it cannot."""
    x, counter = torch.randn(3, 4, 7, 8), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for beta in (0.2, 0.3, 0.5, 0.7):
        torch.testing.assert_close(compiled(x, beta, impl), function(x, beta, impl))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_a_compiled_threshold_has_a_gradient_and_the_same_limits(seed: int):
    """Rounded to the precision of the magnitudes, up to infinity; refused where it is none."""
    y = torch.randn(2, 5, 4, dtype=torch.cfloat)
    y[0, 1, 1] = complex(0.7, 0.0)  # equal to a threshold of 0.7 once that is rounded: dropped
    compiled = torch.compile(kept_energy, fullgraph=True, backend="aot_eager")
    for beta, relative in ((0.7, False), (math.inf, True)):
        graded = [y.clone().requires_grad_() for _ in range(2)]
        energies = [f(each, beta, relative) for f, each in zip((kept_energy, compiled), graded, strict=True)]
        torch.testing.assert_close(*energies)
        torch.testing.assert_close(*(torch.autograd.grad(e, g)[0] for e, g in zip(energies, graded, strict=True)))
    for beta in (-1.0, torch.tensor(-1.0)):
        with pytest.raises(Exception, match=">= 0"):
            compiled(y, beta, False)


def kept_energy(y: Tensor, beta: float, relative: bool) -> Tensor:
    return sk.threshold_spectrum(y, beta, relative=relative, impl="dense").values.abs().square().sum()


class Layer(nn.Module):
    def __init__(self, name: str, compression: float) -> None:
        super().__init__()
        self.name, self.compression = name, compression
        self.weight, self.bias = nn.Parameter(W.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "masked layer":
            return MASKED["layer"][0](x)
        if self.name == "masked":
            mask = sk.masks.rectangular((10, 9), self.compression)
            return sk.masked_conv2d(x, self.weight, mask, self.bias)
        stride = 2 if self.name == "strided" else 1
        return sk.band_limited_conv2d(x, self.weight, self.bias, compression=self.compression, stride=stride)


@pytest.mark.parametrize(
    ("name", "compression", "strict"),
    [
        ("plain", 0.0, True),
        ("plain", 0.0, False),
        ("plain", 0.5, False),
        ("strided", 0.5, False),
        ("masked", 0.5, False),
    ]
    + [("masked", 0.5, True), ("masked layer", 0.5, False)] * (EFFORT > 1),
)
def test_an_export_serves_every_batch(name: str, compression: float, strict: bool, seed: int):
    layer = Layer(name, compression)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(layer, (torch.randn(2, 4, 9, 8),), dynamic_shapes=shapes, strict=strict).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4, 9, 8)
        torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("name", ["plain", "strided", "masked"])
def test_torch_jit_trace_is_refused_in_words(name: str):
    with pytest.raises(sk.Unsupported, match=r"torch\.jit\.trace would hold the sizes of its example"):
        torch.jit.trace(Layer(name, 0.5), (torch.randn(2, 4, 9, 8),))
