"""SpecNet's block under torch.compile and opcheck."""

from __future__ import annotations

import pytest
import torch
from effort import opcheck
from torch import Tensor

from spectralkernels.errors import RangeError
from spectralkernels.ops.spec_block import node, spec_block
from spectralkernels.ops.threshold_spectrum import threshold_spectrum


@pytest.mark.slow
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_it_traces_whole(seed: int):
    """Two blocks in one graph, with reserved room and with an exact count, whose shapes the graph learns as it runs."""
    x = torch.randn(8, 3, 8, 7)
    weights = [(torch.randn(o, c, 3, 3) / 4).requires_grad_() for c, o in ((3, 4), (4, 4))]
    for capacity in (0.6, 1.0, None):

        def net(x: Tensor, first: Tensor, second: Tensor, capacity: float | None = capacity) -> Tensor:
            z = spec_block(spec_block(x, first, 1.5, capacity=capacity), second, 1.0, n=9, capacity=capacity)
            return torch.fft.irfft2(z.to_dense(), s=(10, 9), norm="ortho")

        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        maps = [call(x, *weights) for call in (compiled, net)]
        assert torch.isfinite(maps[0]).all()
        torch.testing.assert_close(*maps)
        torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), weights) for each in maps))


@pytest.mark.slow
def test_the_operator_passes_opcheck(seed: int):
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    image = torch.randn(8, 3, 8, 7, requires_grad=True)
    spectrum = torch.fft.rfft2(image.detach(), s=(10, 9), norm="ortho").requires_grad_()
    before = threshold_spectrum(torch.fft.rfft2(torch.randn(8, 3, 10, 9), norm="ortho"), 0.5, n=9).compact()
    packed = before.values.detach().requires_grad_()
    last = ((8, 3, 10, 5), 9, torch.tensor(1.5))
    nothing = (None, None)
    for values, index, slots in ((image, nothing, None), (spectrum, nothing, 1000), (packed, before.index, 1600)):
        arguments = (values, *index, w, *last, True, slots == 1000, slots, "bitmap")
        opcheck(node.spec_block.differentiable, arguments, symbols=True)
    w_hat = torch.randn(4, 3, 10, 5, dtype=torch.complex64, requires_grad=True)
    arguments = (packed, *before.index, w_hat, *last, False, False, None, "bitmap")
    opcheck(node.spec_block.differentiable, arguments, symbols=True)


def test_a_threshold_without_a_number_is_refused():
    """What is on the meta device has none, in a graph as little as out of it."""
    x, weight, beta = torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3), torch.empty((), device="meta")
    y_hat = torch.fft.rfft2(x, norm="ortho")
    for call in (
        lambda beta: spec_block(x, weight, beta, capacity=1.0).to_dense(),
        lambda beta: threshold_spectrum(y_hat, beta).values,
    ):
        for run in (call, torch.compile(call, backend="eager")):
            with pytest.raises(RangeError, match="beta must be a number >= 0, got a tensor on the meta device"):
                run(beta)
