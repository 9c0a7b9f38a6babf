"""BitReLU is torch's ReLU in every number, and keeps a bit per element."""

from __future__ import annotations

import copy

import pytest
import torch
from effort import gradcheck, gradgradcheck
from torch import Tensor, nn

import spectralkernels as sk
from spectralbench.held import saved_by

SHAPES = [(1,), (7,), (8,), (9, 1), (2, 3, 5, 7), (3, 0, 4)]


def maps(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, dtype=dtype)
    return x.masked_fill(torch.rand(shape) < 0.2, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_and_gradients_are_torchs(shape: tuple[int, ...], dtype: torch.dtype, poisoned: None, seed: int):
    x = maps(shape, dtype)
    layouts = [x, x.repeat(2, *(1,) * (x.dim() - 1))[::2], x.transpose(0, -1)]
    if x.dim() == 4:
        layouts.append(x.to(memory_format=torch.channels_last))
    for given in layouts:
        mine, theirs = (given.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
        got, want = sk.nn.BitReLU(inplace=True)(mine), torch.relu(theirs)
        g = torch.randn_like(want)
        got.backward(g)
        want.backward(g)
        assert torch.equal(got, want) and torch.equal(mine.grad, theirs.grad)


def test_special_values_pass_as_in_torch():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-45, -1e-45, 2.0, -3.0])
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    g = torch.tensor([1.0, 2.0, float("nan"), 4.0, float("inf"), 6.0, 7.0, 8.0, 9.0])
    got, want = sk.nn.BitReLU()(mine), torch.relu(theirs)
    got.backward(g)
    want.backward(g)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got[1:], want[1:])
    assert torch.equal(mine.grad, theirs.grad)


def test_gradients_of_gradients_and_transforms(seed: int):
    x = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    layer = sk.nn.BitReLU()
    assert gradcheck(layer, (x,))
    assert gradgradcheck(lambda x: layer(x) * x, (x,))
    per_row = torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x.detach())
    torch.testing.assert_close(per_row, 2 * x.detach().relu())
    _, tangent = torch.func.jvp(layer, (x.detach(),), (torch.ones(3, 5, dtype=torch.float64),))
    assert torch.equal(tangent, (x.detach() > 0).double())


def test_it_traces(seed: int):
    layer = torch.compile(nn.Sequential(nn.Linear(5, 11), sk.nn.BitReLU()), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 5)
    layer(x).sum().backward()
    eager = copy.deepcopy(layer._orig_mod)
    eager.zero_grad()
    eager(x).sum().backward()
    torch.testing.assert_close(layer._orig_mod[0].weight.grad, eager[0].weight.grad)


def test_a_bit_per_element_is_saved():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert saved_by(lambda: sk.nn.BitReLU()(2 * x)) == x.numel() / 8
    assert saved_by(lambda: nn.ReLU()(2 * x)) == x.numel() * 4


def block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 5, padding=2))


def test_behind_a_relu_a_band_saves_less_than_torch_with_bits_alone(seed: int):
    """In a net: the map is kept once, as its spectrum, and no longer beside it."""
    x, saved = torch.randn(4, 4, 24, 24), {}
    model = block()
    saved["native"] = saved_by(lambda: model(x))
    for bits in (False, True):
        found = sk.nn.convert(model, compression=0.6, copy=True, relu_bits=bits)
        assert found.relus == (("1",) if bits else ()) and found.swapped == ("0", "2")
        assert ("saves a bit per element" in str(found)) == bits
        saved[bits] = saved_by(lambda found=found: found.model(x))
    element = 4 * 16 * 24 * 24
    assert saved[False] - saved[True] == 4 * element - element / 8
    assert saved[True] < saved["native"] < saved[False]


def test_a_converted_model_answers_the_same_with_bits(seed: int):
    plain, x = block(), torch.randn(2, 4, 9, 7)
    answers = []
    for bits in (False, True):
        model = sk.nn.convert(plain, compression=0.3, copy=True, relu_bits=bits).model
        y = model(x)
        y.square().sum().backward()
        answers.append((y.detach(), [parameter.grad for parameter in model.parameters()]))
    assert torch.equal(answers[0][0], answers[1][0])
    for one, other in zip(answers[0][1], answers[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_relus_of_another_kind_are_left_alone():
    class Own(nn.ReLU):
        pass

    model = nn.Sequential(nn.Conv2d(2, 2, 3), Own(), nn.ReLU6(), nn.ReLU())
    assert sk.nn.convert(model, compression=0.5, relu_bits=True).relus == ("3",)
    assert [type(module) for module in model[1:]] == [Own, nn.ReLU6, sk.nn.BitReLU]
