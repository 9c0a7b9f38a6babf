"""Custom operators: opaque to torch.compile, differentiable where a gradient is wanted, cheap to call where none is.

An operator is one step that torch cannot look into. `composed`, where an operation has it, is the same function as a
chain of torch's own operations, for the derivatives and transforms that need to.

`torch.library.custom_op` leads every call through Python twice, for a derivative and for the computation. Here a call
that needs no derivative takes an operator that has none: on 2 CPU cores 80 us in place of 180 us between calls of
something else, as in a network (a band-limited convolution of 64 channels of 32 x 32 takes 2.5 ms).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from spectralkernels.autocast import DEVICES, as_written
from spectralkernels.checks import is_batched
from spectralkernels.launch import dense as made_dense

NAMESPACE = "spectralkernels"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


OPERATORS: dict[str, Operator] = {}
"""By their names under torch.ops.spectralkernels."""


class Operator:
    """torch.ops.spectralkernels.<name>, and <name>_plain without a derivative; a call takes the right one.

    compute: mutates no input, and returns no view of one. schema: types of arguments and results. A rule that is
    registered takes all arguments in their order, or by keyword alone those that it names.
    """

    def __init__(self, name: str, compute: Callable[..., Any], schema: str) -> None:
        self.compute = compute
        self._names = (name, f"{name}_plain")
        for each in self._names:
            OPERATORS[each] = self
            _LIBRARY.define(each + schema, tags=(torch.Tag.pt2_compliant_tag,))
            _LIBRARY.impl(each, compute, "CompositeExplicitAutograd")
        self.differentiable, self.plain = (getattr(getattr(torch.ops, NAMESPACE), each).default for each in self._names)
        for device in DEVICES:
            for each, form in zip(self._names, (self.differentiable, self.plain), strict=True):
                _LIBRARY.impl(each, _as_written(form, device), f"Autocast{device.upper()}")
        self._backward: Callable[..., Any] = self._no_backward
        self._composed: Callable[..., Any] | None = None
        self._setup_context: Callable[..., None] = lambda ctx, inputs, output: None
        self._flops: Callable[..., int] | None = None
        _LIBRARY.impl(name, self._differentiated, "Autograd", with_keyset=True)

    def __call__(self, *arguments: Any) -> Any:
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
            self._tell_flops()
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if not needs_gradient and _nobody_looks(tensors):
            return self.compute(*arguments)
        if not torch.compiler.is_compiling() and any(map(_is_old_batch, tensors)):
            return _sample_by_sample(self, arguments)
        # Under vmap nobody may ask for a tangent.
        if self._composed is not None and torch._C._are_functorch_transforms_active():
            return self._composed(*arguments)
        # Torch takes the tangent of an operator without a rule for zero, and says nothing.
        if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
            if self._composed is not None:
                return self._composed(*arguments)
            raise NotImplementedError(f"{self._names[0]} has no forward-mode derivative; differentiate in reverse mode")
        return (self.differentiable if needs_gradient else self.plain)(*arguments)

    def _differentiated(self, *arguments: Any, **named: Any) -> Any:
        """The rule that `torch.library.register_autograd` makes, which takes a millisecond: the first call makes it."""
        return self._rule(*arguments, **named)

    @cached_property
    def _rule(self) -> Callable[..., Any]:
        backward = lambda ctx, *gradients: _sample_by_sample(partial(self._backward, ctx), gradients)  # noqa: E731
        setup_context = lambda ctx, inputs, output: self._setup_context(ctx, inputs, output)  # noqa: E731
        return make_autograd_impl(self.differentiable, Info(backward, setup_context))

    def register_fake(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: shapes and dtypes of the outputs, for tracing."""
        for each in self._names:
            torch.library.register_fake(f"{NAMESPACE}::{each}", self._in_order(rule), lib=_LIBRARY)
        return rule

    def _in_order(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """A rule of the arguments that it names, as one of all of them."""
        wanted = inspect.signature(rule).parameters
        if any(each.kind is not inspect.Parameter.KEYWORD_ONLY for each in wanted.values()):
            return rule
        names = [argument.name for argument in self.plain._schema.arguments]
        places = {name: names.index(name) for name in wanted}
        return lambda *arguments: rule(**{name: arguments[place] for name, place in places.items()})

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As `torch.library.register_autograd`."""
        self._backward, self._setup_context = backward, setup_context

    def register_composed(self, composed: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the operator as a chain of torch's own operations, taken in forward mode and within torch.func.

        Until `register_autograd` gives another, its derivative is that of the chain, which is made of the arguments
        when it is asked for: a backward pass registered so can be differentiated again and again.
        """
        self._composed = self._in_order(composed)
        if self._backward == self._no_backward:
            self._backward, self._setup_context = self._composed_backward, _save_arguments
        return composed

    def register_flops(self, formula: Callable[..., int]) -> Callable[..., int]:
        """Decorator: what `torch.utils.flop_counter` counts for a call, from the operator's arguments.

        Like torch's own formulas it counts products and sums over channels, and nothing that is element by element.
        A counter learns of it in a call by way of this object; see `flop_formulas` for calls that pass it by.
        """
        self._flops = self._in_order(formula)
        return formula

    def _tell_flops(self) -> None:
        """Tell the counters that are active, because torch's own registry comes with an import of Triton.

        A formula that somebody has given for the operator stays.
        """
        for mode in _get_current_dispatch_mode_stack():
            registry = getattr(getattr(mode, "counter", None), "flop_registry", None)
            if registry is not None:
                registry.update({**self.flop_formulas(), **registry})

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        """The formula of both forms, as a counter keeps them; none where nothing is counted."""
        formula = self._flops
        if formula is None:
            return {}

        def counted(*arguments: Any, out_val: Any) -> int:
            return formula(*arguments)

        counted._get_raw = True  # type: ignore[attr-defined]  # arguments as they are, not their shapes
        return {form.overloadpacket: counted for form in (self.differentiable, self.plain)}

    def _composed_backward(self, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        assert self._composed is not None
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # One argument may be made of another (Z of x and y, say), and a view is made of that argument alone.
            saved = iter([each.view_as(each) for each in ctx.saved_tensors])
            arguments = [next(saved) if each is Tensor else each for each in ctx.arguments]
            outputs = self._composed(*arguments)
        made = [outputs] if isinstance(outputs, Tensor) else outputs
        pulled = [(y, dy) for y, dy in zip(made, gradients, strict=True) if y.requires_grad and dy is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        found: list[Tensor | None] = [None] * len(arguments)
        if pulled:
            of, along = zip(*pulled, strict=True)
            inputs = [arguments[i] for i in wanted]
            parts = torch.autograd.grad(of, inputs, along, create_graph=again, allow_unused=True)
            for i, part in zip(wanted, parts, strict=True):
                found[i] = part
        return tuple(found)

    def _no_backward(self, ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(f"{NAMESPACE}::{self._names[0]} has no derivative")


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """The formulas of all operators that are imported, to count a graph of `torch.export` and calls of torch.ops by.

    Such calls lead by no `Operator`: FlopCounterMode(custom_mapping=flop_formulas()) counts them, too.
    """
    return {each: formula for found in OPERATORS.values() for each, formula in found.flop_formulas().items()}


def on_host(number: float | Tensor) -> Tensor:
    """A number as operators take it, Float64 []: torch.compile has a graph for every number that Python gives them."""
    if torch.compiler.is_compiling() or is_batched(number):
        return in_float64(number, torch.device("cpu"))
    return torch.full((), float(number), dtype=torch.float64, device="cpu")


def in_float64(number: float | Tensor, device: torch.device) -> Tensor:
    """A number in a comparison or an operator: of a sum AOTAutograd makes one of tensors, of `full` it does not."""
    return torch.zeros((), dtype=torch.float64, device=device) + number


def by_chain() -> bool:
    """Whether a backward pass is to be torch's own operations: differentiated again, or taken by a transform."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return torch.is_grad_enabled() or transformed


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative by this tensor is asked for: it has a gradient or a tangent, at any depth of transforms.

    Of what torch.compile traces only a gradient is known.
    """
    while not (torch.compiler.is_compiling() or tensor.requires_grad):
        if _has_tangent(tensor):
            return True
        if not _functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor has a tangent at its own depth of transforms, where alone torch tells."""
    if forward_ad._current_level < 0 or _functorch.is_batchedtensor(tensor):
        return False
    innermost = _functorch.peek_interpreter_stack()
    if innermost is not None and innermost.level() > max(0, _functorch.maybe_get_level(tensor)):
        with temporarily_pop_interpreter_stack():
            return _has_tangent(tensor)
    return unpack_dual(tensor).tangent is not None


_functorch = torch._C._functorch


def _sample_by_sample(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A function that `torch.autograd.grad(is_grads_batched=True)` calls once for a batch of gradients.

    That stands for a vmap of its own that has few rules; torch.func's takes its place.
    """
    batches = {i: each for i, each in enumerate(arguments) if isinstance(each, Tensor) and _is_old_batch(each)}
    if not batches:
        return function(*arguments)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    there: list[bool] = []
    one = False

    def run(*samples: Tensor) -> tuple[Tensor, ...]:
        nonlocal one
        given = dict(zip(batches, samples, strict=True))
        parts = function(*(given.get(i, each) for i, each in enumerate(arguments)))
        one = isinstance(parts, Tensor)
        parts = (parts,) if one else parts
        there.extend(part is not None for part in parts)
        return tuple(part for part in parts if part is not None)

    stacked = [torch._remove_batch_dim(each, level, 0, 0) for each in batches.values()]
    mapped = iter(torch._add_batch_dim(part, 0, level) for part in torch.func.vmap(run)(*stacked))
    found = tuple(next(mapped) if each else None for each in there)
    return found[0] if one else found


_OLD_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")
_is_old_batch = _functorch.is_legacy_batchedtensor


def _save_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(each for each in inputs if isinstance(each, Tensor)))
    ctx.arguments = [Tensor if isinstance(each, Tensor) else each for each in inputs]


def _nobody_looks(tensors: list[Tensor]) -> bool:
    """Whether a call without a derivative is of plain tensors, and nothing traces, watches or casts it.

    Then torch's dispatcher has nothing to add to a call but its time, 15 us and more.
    """
    return (
        nothing_traces()
        and nothing_watches()
        and len(tensors) > 0
        and all(type(tensor) in PLAIN and not tensor.is_meta and _as_in_memory(tensor) for tensor in tensors)
    )


def nothing_traces() -> bool:
    """Whether tensors are what they seem: no mode, transform, compiler or tracer stands behind them."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and not torch._C._dispatch_tls_is_dispatch_key_included(_OLD_VMAP)
    )


def nothing_watches() -> bool:
    """Whether nothing sees a call of plain tensors from within: a function mode, autocast, a profiler, a tangent."""
    return (
        torch._C._len_torch_function_stack() == 0
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


PLAIN = (Tensor, torch.nn.Parameter)


def _as_in_memory(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are there as they count; else the dispatcher makes them so.

    `z.conj().imag` is only marked as negative, and zeros that torch makes for itself have no memory.
    """
    return not (tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor())


def _as_written(form: Callable[..., Any], device: str) -> Callable[..., Any]:
    """A form of an operator within torch.autocast: as without it."""

    def run(*arguments: Any) -> Any:
        with as_written(device):
            return form(*arguments)

    return run


def operator(name: str, *, dense: bool = False) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator: the function as an `Operator`.

    dense: its tensors reach kernels that are told no strides, so `compute` gets each one as `launch.dense` makes it.
    """

    def register(compute: Callable[..., Any]) -> Operator:
        schema = torch.library.infer_schema(compute, mutates_args=())
        return Operator(name, _given_dense(compute) if dense else compute, schema)

    return register


def _given_dense(compute: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return compute(*(made_dense(each) if isinstance(each, Tensor) else each for each in arguments))

    return run
