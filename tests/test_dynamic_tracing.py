"""torch.compile and torch.export with sizes, rates and thresholds that change: not a graph for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
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


def test_one_graph_for_every_rate_above_0(seed: int):
    compiled, counter = counted(convolve)
    x = torch.randn(2, 4, 9, 8)
    for compression in (0.1, 0.25, 0.5, 0.9):
        torch.testing.assert_close(compiled(x, compression), convolve(x, compression))
    assert counter.frame_count == 1


@pytest.mark.parametrize("relative", [False, True])
def test_thresholds_change_between_calls(relative: bool, seed: int):
    def function(y: Tensor, beta: float) -> Tensor:
        return sk.threshold_spectrum(y, beta, relative=relative, n=8, impl="dense").to_dense()

    compiled, _ = counted(function)
    y = torch.fft.rfft2(torch.randn(2, 3, 8, 8), norm="ortho")
    for beta in (0.1, 0.5, 0.9):
        torch.testing.assert_close(compiled(y, beta), function(y, beta))


class Layer(nn.Module):
    def __init__(self, name: str, compression: float) -> None:
        super().__init__()
        self.name, self.compression = name, compression
        self.weight, self.bias = nn.Parameter(W.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
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
    ],
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
