"""Operators: which of its two forms a call takes, that both are well-formed, that a missing derivative is an error."""

from __future__ import annotations

import pytest
import torch
from effort import gradcheck, gradgradcheck, opcheck
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from spectralkernels.operators import Operator, operator

calls: list[str] = []


@operator("test_scaled")
def scaled(x: Tensor, factor: float) -> Tensor:
    """factor x"""
    calls.append("scaled")
    return factor * x


@scaled.register_fake
def _(*, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    calls.append("save")
    ctx.factor = inputs[1]


scaled.register_autograd(lambda ctx, dy: (doubled(dy) * (ctx.factor / 2), None), setup_context=_save)


@operator("test_doubled")
def doubled(x: Tensor) -> Tensor:
    """2 x, once differentiable: it is the derivative of `scaled`"""
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def called(x: Tensor) -> list[str]:
    calls.clear()
    y = scaled(x, 3.0)
    torch.testing.assert_close(y.detach(), 3.0 * x.detach())
    return list(calls)


def test_only_a_gradient_takes_the_way_through_autograd(seed: int):
    x = torch.randn(4)
    assert called(x) == ["scaled"]
    assert called(x.clone().requires_grad_()) == ["scaled", "save"]
    with torch.no_grad():
        assert called(x.clone().requires_grad_()) == ["scaled"]
    with torch.inference_mode():
        assert called(torch.randn(4)) == ["scaled"]


def test_the_derivative(seed: int):
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: scaled(x, 3.0), x)


def test_a_missing_derivative_is_an_error_when_it_is_asked_for(seed: int):
    x = torch.randn(4, requires_grad=True)
    y = doubled(x)
    with pytest.raises(RuntimeError, match="spectralkernels::test_doubled has no derivative"):
        y.sum().backward()
    dy = torch.randn(4, requires_grad=True)
    (dx,) = torch.autograd.grad(scaled(x, 3.0), x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="spectralkernels::test_doubled has no derivative"):
        dx.sum().backward()


@operator("test_product")
def product(x: Tensor, y: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    """(factor x y, nothing), differentiable by way of its chain"""
    calls.append("product")
    return x * (1.0 if y is None else y) * factor, x.new_empty(0)


@product.register_composed
def _(x: Tensor, y: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    return x * (1.0 if y is None else y) * factor, x.new_empty(0)


def test_a_chain_gives_the_derivative_where_no_other_is_registered(seed: int):
    x, y = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    calls.clear()
    assert gradcheck(lambda x, y: product(x, y, 3.0)[0], (x, y))
    assert "product" in calls
    assert gradgradcheck(lambda x, y: product(x, y, 3.0)[0], (x, y))
    assert gradgradcheck(lambda x: product(x, None, 3.0)[0], (x,))
    # one argument made of the other, and one that is the other
    assert gradgradcheck(lambda x: product(x, x.sin(), 3.0)[0], (x,))
    torch.testing.assert_close(torch.autograd.grad(product(x, x, 3.0)[0].sum(), x)[0], 6 * x)
    torch.testing.assert_close(torch.autograd.grad(product(x, y.detach(), 3.0)[0].sum(), x)[0], 3 * y)


def test_forward_mode_is_an_error_and_no_tangent_of_zero(seed: int):
    x, tangent = torch.randn(4), torch.randn(4)

    def through(x: Tensor) -> Tensor:
        return scaled(x.sin(), 3.0)

    with pytest.raises(
        NotImplementedError, match="test_scaled has no forward-mode derivative; differentiate in reverse"
    ):
        torch.func.jvp(through, (x,), (tangent,))
    with pytest.raises(NotImplementedError, match="test_scaled has no forward-mode derivative"):
        torch.func.jacfwd(through)(x)
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="test_scaled has no forward-mode derivative"):
            through(forward_ad.make_dual(x, tangent))
        assert called(x) == ["scaled"]  # what carries no tangent passes


@pytest.mark.slow
@pytest.mark.parametrize("differentiated", [True, False])
def test_both_forms_are_well_formed_and_trace_whole(differentiated: bool, seed: int):
    x = torch.randn(4, requires_grad=differentiated)
    for form in (scaled.differentiable, scaled.plain):
        tests = opcheck(form, (x.detach() if form is scaled.plain else x, 3.0))
        assert set(tests.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda x: scaled(x, 3.0) + 1, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, 3 * x + 1)
    assert y.requires_grad == differentiated
    if differentiated:
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full((4,), 3.0))


def test_an_operator_under_vmap(seed: int):
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.vmap(lambda row: scaled(row, 3.0))(x), 3 * x)


def test_a_rule_gets_the_arguments_that_it_names_and_may_not_name_others():
    weighed = Operator(
        "test_weighed", lambda x, y, factor: factor * (x + y), "(Tensor x, Tensor y, float factor) -> Tensor"
    )
    weighed.register_fake(lambda *, y: torch.empty_like(y))
    weighed.register_composed(lambda x, y, factor: factor * x + factor * y)
    weighed.register_flops(lambda *, factor, x: int(factor) * x.numel())
    formula = next(iter(weighed.flop_formulas().values()))
    assert formula(torch.ones(5), torch.ones(5), 3.0, out_val=None) == 15
    assert torch.func.jvp(lambda x: weighed(x, x, 2.0), (torch.ones(2),), (torch.ones(2),))[1].tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match="'weight' is not in"):
        weighed.register_flops(lambda *, weight: 0)


def test_a_schema_may_be_given():
    added = Operator("test_added", lambda x, y: x + (1 if y is None else y), "(Tensor x, Tensor? y) -> Tensor")
    x = torch.full((2,), 3.0)
    torch.testing.assert_close(added(x, x), 2 * x)
    torch.testing.assert_close(added(x, None), x + 1)


def test_a_call_that_nobody_looks_at_passes_torch_by(seed: int):
    """Whoever looks finds the operator: a gradient, a mode, a profiler, autocast, a tensor without numbers."""
    seen: list[str] = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    x = torch.randn(3)
    forms: list[str] = []
    passing_by = Operator("passed_by", lambda x: x + 1, "(Tensor x) -> Tensor")
    passing_by.plain = lambda x: forms.append("plain") or x + 1  # type: ignore[assignment, func-returns-value]
    passing_by.differentiable = lambda x: forms.append("differentiable") or x + 1  # type: ignore
    assert torch.equal(passing_by(x), x + 1) and torch.equal(passing_by(torch.nn.Parameter(x).detach()), x + 1)
    assert forms == []
    passing_by(x.clone().requires_grad_())
    with torch.no_grad():
        passing_by(torch.nn.Parameter(x))
    assert forms == ["differentiable"]
    with Looking():
        passing_by(x)
    with torch.autocast("cpu", torch.bfloat16):
        passing_by(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        passing_by(x)
    passing_by(torch.empty(3, device="meta"))
    with torch.device("cpu"):
        passing_by(x)
    assert forms == ["differentiable", *["plain"] * 5]


def test_marked_tensors_are_read_as_what_they_stand_for(seed: int):
    """Negative, conjugate and zero only by a mark: what is computed in C++ reads memory alone."""
    read: list[str] = []

    def compute(x: Tensor) -> Tensor:
        assert not (x.is_neg() or x.is_conj() or x._is_zerotensor())
        read.append("memory")
        return x + 0

    reading = Operator("read_from_memory", compute, "(Tensor x) -> Tensor")
    marked = (torch._neg_view(torch.randn(3)), torch.randn(3, dtype=torch.complex64).conj())
    for x in (*marked, torch._efficientzerotensor(3)):
        torch.testing.assert_close(reading(x), x.clone(), rtol=0, atol=0)
    assert len(read) == 3
