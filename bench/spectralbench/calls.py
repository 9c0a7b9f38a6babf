"""From an operation and a case to things that can be called: inputs, right answer, the passes of an implementation.

Passes: "forward" runs without autograd, on inputs that `prepare` has prepared once. "both" is a training step: a
forward and the gradients of a fixed random cotangent. "backward" is those gradients alone, of one forward that is kept.
In passes with gradients, what `prepare` makes of a differentiated input belongs to the step, because weights change
every time; what it makes of anything else (masks, plans, frozen weights) is still made once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spectralbench.answers import poison, snapshot, tensors_in
from spectralbench.exchange import SIDES, Exchange
from spectralbench.gate import Expected, check, misfit
from spectralkernels.declare import Case, Implementation, Operation, Pass, fitting
from spectralkernels.errors import RangeError, Unsupported


@dataclass(frozen=True, slots=True)
class Question:
    """A case with its two input sets and their right answers.

    answers: by side of the exchange, of `Operation.reference_of` the subjects that are asked. differentiated: the
    inputs that passes with gradients differentiate. cotangents: by side, what these passes multiply the dense answer
    with, in float64; none in a forward pass. live_cotangents: the same as they are read, by dtype.
    """

    operation: Operation
    case: Case
    device: str
    pass_: Pass
    exchange: Exchange
    differentiated: tuple[str, ...]
    answers: tuple[Expected, ...]
    cotangents: tuple[Tensor, ...] = ()
    live_cotangents: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        return self.exchange.inputs

    @property
    def expected(self) -> Expected:
        """The right answer to the inputs as they are now."""
        return self.answers[self.exchange.side]

    def cotangent(self, dtype: torch.dtype) -> Tensor:
        """The cotangent in `dtype`, always in the same memory."""
        if dtype not in self.live_cotangents:
            first, second = (cotangent.to(dtype, copy=True) for cotangent in self.cotangents)
            self.live_cotangents[dtype] = first
            self.exchange.add("the cotangent", first, second)
        return self.live_cotangents[dtype]

    def tolerance(self, implementation: Implementation) -> float:
        """The largest relative L2 rounding error that counts as right; an accuracy class may have its own."""
        return (implementation.tolerance or self.operation.tolerance).at(self.case)

    def names(self, implementation: Implementation) -> tuple[str, ...]:
        """The inputs that `implementation` differentiates here."""
        own = implementation.gradients
        fit = self.differentiated if own is None else fitting(self.differentiated, own)
        return tuple(name for name in self.differentiated if name in fit)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave: the operation's output, the same as one tensor, and gradients by input name."""

    output: Any
    dense: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


class Run:
    """The timed call of one implementation; keeps what the latest call gave, so that it can be checked.

    The previous answer is let go before the next call, as a network would.
    """

    def __init__(self, name: str, call: Callable[[], Any]) -> None:
        self.name = name
        self.call = call
        self.latest: Any = None

    def __call__(self) -> None:
        self.latest = None
        self.latest = self.call()


@dataclass(frozen=True, slots=True)
class Bound:
    """An implementation bound to a question.

    run: its timed call. forward: a forward pass that records for a backward pass, or None. keep: the values it reads.
    """

    implementation: Implementation
    run: Run
    forward: Callable[[], Any] | None
    keep: Sequence[Any]


def ask(
    operation: Operation,
    case: Case,
    device: str,
    pass_: Pass,
    inputs: dict[str, Any],
    *,
    reference: Callable[..., Any] | None = None,
    exchange: Exchange | None = None,
) -> Question:
    """Work out the right answers to a case, with gradients where the pass has them.

    exchange: of `inputs`, where other questions share them. reference: computes the right answer; default the
    operation's (see `Operation.reference_of`).
    Raises: Unsupported if the pass needs gradients and the operation differentiates nothing; RangeError if it declares
    no tolerance for the case's dtype; ValueError if the answer is not finite or not in double precision.
    """
    if case.dtype not in operation.tolerance.relative:
        known = ", ".join(operation.tolerance.relative)
        raise RangeError(f"{operation.name} declares no tolerance for {case.dtype}; it has {known}")
    differentiated = _differentiated(operation, inputs)
    reference = reference or operation.reference
    if pass_ != "forward" and not differentiated:
        raise Unsupported(f"{operation.name} has no input to differentiate, so no {pass_} pass")
    exchange = exchange or Exchange.drawn(operation, case, inputs, device, pass_)
    answers, cotangents = [], []
    try:
        for side in SIDES:
            exchange.put(side)
            if pass_ == "forward":
                answers.append(Expected(_apart(truth(operation, inputs, reference), inputs)))
                continue
            leaves = {name: _double(inputs[name]).detach().requires_grad_() for name in differentiated}
            with torch.enable_grad():
                output = truth(operation, {**inputs, **leaves}, reference)
                cotangents.append(_cotangent(output, case.seed + side))
                gradients = torch.autograd.grad(output, list(leaves.values()), cotangents[side])
            apart = {name: _apart(found, inputs) for name, found in zip(leaves, gradients, strict=True)}
            answers.append(Expected(_apart(output.detach(), inputs), apart))
    finally:
        exchange.put(0)
    return Question(operation, case, device, pass_, exchange, differentiated, tuple(answers), tuple(cotangents))


def truth(operation: Operation, inputs: dict[str, Any], reference: Callable[..., Any]) -> Tensor:
    """The answer of a reference (the operation's, its ideal or a rival's) as one tensor; exceptions as for `ask`."""
    name = "ideal" if reference is operation.ideal else "reference"
    output = _dense(operation, reference(**inputs))
    if output.dtype not in (torch.float64, torch.complex128):
        raise ValueError(f"the {name} of {operation.name} must compute in double precision, it gave {output.dtype}")
    if not torch.isfinite(output).all():
        raise ValueError(f"the {name} of {operation.name} is not finite, so nothing can be checked against it")
    return output


def bind(question: Question, implementation: Implementation) -> Bound:
    """Prepare an implementation for the question's pass, outside the clock.

    Raises: Unsupported if it does not serve these inputs or has no such pass.
    """
    trainable = bool(question.names(implementation))
    trainer = cache(lambda: _training(question, implementation))
    if question.pass_ == "forward":
        prepared = _prepared(implementation, question.inputs)
        _exchange_prepared(question, implementation, prepared)
        return Bound(
            implementation,
            Run(implementation.name, lambda: implementation.call(**prepared)),
            (lambda: trainer().forward()) if trainable else None,
            [*question.inputs.values(), *prepared.values()],
        )
    if not trainable:
        raise Unsupported(f"{implementation.name} differentiates nothing here, so it has no {question.pass_} pass")
    training = trainer()
    if not training.again:
        _exchange_prepared(question, implementation, training.prepared)
    # The gradient of a sum is its cotangent: the same memory.
    keep = [*question.inputs.values(), *training.prepared.values(), question.live_cotangents]

    def gradients(dense: Tensor, keep_graph: bool) -> dict[str, Tensor]:
        leaves = training.leaves
        found = torch.autograd.grad(
            dense, list(leaves.values()), question.cotangent(dense.dtype), retain_graph=keep_graph
        )
        return dict(zip(leaves, found, strict=True))

    def both() -> Answer:
        output = training.forward()
        dense = _dense(question.operation, output)
        return Answer(output, dense, gradients(dense, keep_graph=False))

    call: Callable[[], Answer] = both
    if question.pass_ == "backward":
        kept_output = training.forward()
        kept = _dense(question.operation, kept_output)

        def backward() -> Answer:
            return Answer(kept_output, kept, gradients(kept, keep_graph=True))

        call = backward
    return Bound(implementation, Run(implementation.name, call), training.forward, keep)


def rehearse(
    operation: Operation, case: Case, implementation: Implementation, inputs: dict[str, Any], pass_: Pass
) -> None:
    """Call an implementation once as its timed call does, and look at the answer as its check does, whatever it is:
    what both launch can be noted.

    Raises: Unsupported if it does not serve these inputs.
    """
    differentiated = _differentiated(operation, inputs)
    question = Question(operation, case, "cpu", pass_, Exchange(inputs, {}), differentiated, ())
    if pass_ == "forward":
        bound = bind(question, implementation)
        bound.run()
        _dense(operation, bound.run.latest)
        return
    if not question.names(implementation):
        raise Unsupported(f"{implementation.name} differentiates nothing here, so it has no {pass_} pass")
    training = _training(question, implementation)
    dense = _dense(operation, training.forward())
    torch.autograd.grad(dense, list(training.leaves.values()), torch.ones_like(dense))


def answer(question: Question, bound: Bound) -> Answer:
    """What the latest call of an implementation gave."""
    return _answer(question, bound.run.latest)


def _answer(question: Question, latest: Any) -> Answer:
    return latest if isinstance(latest, Answer) else Answer(latest, _dense(question.operation, latest))


def verify(question: Question, bound: Bound) -> str | None:
    """Call once on either input set and check both answers; the first is spoiled before the second call.

    Whatever passes writes its whole answer on every call, from the inputs as they are, before the call is over on its
    stream: neither stale memory nor a remembered result nor work put off will do.
    """
    if question.pass_ != "forward" and bound.forward is not None:
        # Alone, because autograd would stop at a wrong shape or at an answer that depends on nothing.
        with torch.no_grad():
            dense = _dense(question.operation, bound.forward())
            found = check(dense, {}, question.expected, question.tolerance(bound.implementation))
        if found is not None:
            return found
        del dense
    try:
        # The second set first, so that the answer that stays is that of the first.
        question.exchange.put(1)
        found = call(question, bound)
    finally:
        question.exchange.put(0)
    if found is not None:
        return found
    spoil(question, bound)
    return call(question, bound)


def call(question: Question, bound: Bound) -> str | None:
    """Call once and say what is wrong with what was in its answer when the call was over, or None.

    Nothing waits for the device between the call and the copy that is checked. Inputs it has written to are put right.
    """
    bound.run()
    taken = snapshot(bound.run.latest)
    return written(question) or _fault(question, bound, taken)


def written(question: Question) -> str | None:
    """Which inputs were written to, or None; they are put right."""
    names = question.exchange.written()
    return f"it writes to its input {', '.join(names)}" if names else None


def spoil(question: Question, bound: Bound) -> None:
    """Overwrite the latest answer, but for what the next call may read."""
    latest = bound.run.latest
    # The kept forward of a backward pass may have saved its own output.
    poison(latest.gradients if question.pass_ == "backward" else latest, bound.keep)


def fault(question: Question, bound: Bound) -> str | None:
    """What is wrong with the latest answer to the inputs as they are now, or None."""
    return _fault(question, bound, bound.run.latest)


def _fault(question: Question, bound: Bound, taken: Any) -> str | None:
    """What is wrong with the latest answer, of which `taken` is itself or a copy."""
    given = _answer(question, taken)
    latest = bound.run.latest
    # A copy has another layout.
    itself = latest.dense if isinstance(latest, Answer) else latest if isinstance(latest, Tensor) else given.dense
    own, asked = bound.implementation.tolerance, getattr(torch, question.case.dtype)
    tolerance = question.tolerance(bound.implementation)
    with torch.no_grad():
        floor = question.operation.gradient_floor
        found = check(given.dense, given.gradients, question.expected, tolerance, floor)
    return found or misfit(itself, asked, own is not None, question.expected.output.device)


@dataclass(frozen=True, slots=True)
class _Training:
    """A forward pass that records for a backward pass, the leaves to differentiate, and what it is called with.

    again: what it is called with is prepared anew in every call.
    """

    forward: Callable[[], Any]
    leaves: Mapping[str, Tensor]
    prepared: Mapping[str, Any]
    again: bool


def _training(question: Question, implementation: Implementation) -> _Training:
    leaves = {name: question.inputs[name].detach().requires_grad_() for name in question.names(implementation)}
    inputs = {**question.inputs, **leaves}
    with torch.enable_grad():
        prepared = _prepared(implementation, inputs)
    held = {id(leaf) for leaf in leaves.values()}
    passed = {id(value) for value in prepared.values()}
    derived = any(
        isinstance(value, Tensor) and value.requires_grad and id(value) not in held for value in prepared.values()
    )
    again = implementation.prepare is not None and (derived or not held <= passed)

    def forward() -> Any:
        with torch.enable_grad():
            return implementation.call(**(_prepared(implementation, inputs) if again else prepared))

    return _Training(forward, leaves, prepared, again)


def _exchange_prepared(question: Question, implementation: Implementation, prepared: Mapping[str, Any]) -> None:
    """Let what was prepared once take turns with what would have been prepared of the second input set."""
    if implementation.prepare is None or question.pass_ == "backward" or not question.answers:
        return
    question.exchange.put(1)
    try:
        other = implementation.prepare(**question.inputs)
    finally:
        question.exchange.put(0)
    question.exchange.add(f"what {implementation.name} prepares", prepared, other)


def _prepared(implementation: Implementation, inputs: dict[str, Any]) -> dict[str, Any]:
    """What `call` takes; Unsupported with the implementation's reason if it does not serve it."""
    prepared = inputs if implementation.prepare is None else implementation.prepare(**inputs)
    reason = implementation.supports(**prepared)
    if reason is not None:
        raise Unsupported(reason)
    return prepared


def _dense(operation: Operation, output: Any) -> Tensor:
    dense = output if isinstance(output, Tensor) else operation.dense(output)
    if not isinstance(dense, Tensor):
        raise TypeError(f"the dense answer of {operation.name} must be a tensor, got {type(dense).__name__}")
    return dense


def _apart(found: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """`found`, copied if it shares memory with an input, whose contents are exchanged."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(inputs)}
    return found.clone() if found.untyped_storage().data_ptr() in memory else found


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _differentiated(operation: Operation, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the inputs that passes with gradients differentiate."""
    return tuple(name for name in fitting(inputs, operation.gradients) if _differentiable(inputs[name]))


def _differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _cotangent(output: Tensor, seed: int) -> Tensor:
    """Normal noise like `output`, rounded to bfloat16 so that every dtype holds it exactly."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*output.shape, 2) if output.is_complex() else output.shape
    noise = torch.randn(shape, generator=generator).bfloat16().double().to(output.device)
    return torch.view_as_complex(noise) if output.is_complex() else noise
