"""Planted cheats: each is right when it is looked at once, and each is caught; the innocent beside it is not.

Every one of them once passed with a time. They stand for accidents too: a cache with the wrong key, a launch on another
stream, a scratch buffer that is an input.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_operation import (
    Packed,
    case,
    failed,
    implementation,
    make_inputs,
    measure,
    product,
    times,
    toy,
)

from spectralbench import timing
from spectralbench.outcome import Measured
from spectralbench.switches import positions
from spectralkernels.declare import Case, Pass, Tolerance


def caught(cheat: Callable[..., Any], says: str, tolerance: Tolerance | None = None, **options: Any) -> None:
    """The cheat fails as wrong with these words; innocents before and after it have a time."""
    subjects = implementation("before"), implementation("cheat", cheat), implementation("after")
    operation = toy(*subjects, **({} if tolerance is None else {"tolerance": tolerance}))
    outcomes = measure(operation=operation, **options)
    assert failed(outcomes["cheat"]).kind == "wrong"
    assert says in failed(outcomes["cheat"]).error, failed(outcomes["cheat"]).error
    assert times(outcomes["before"]) and times(outcomes["after"])


# --- remembered answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["nothing", "pointer and version"])
@pytest.mark.parametrize("pass_", ["forward", "both"])
def test_a_remembered_answer_that_is_cloned(key: str, pass_: Pass) -> None:
    known: dict[Any, Tensor] = {}

    def cheat(x: Tensor, w: Tensor) -> Tensor:
        at = key if key == "nothing" else (x.data_ptr(), x._version, w.data_ptr(), w._version)
        if at not in known:
            known[at] = product(x, w)
        return known[at].clone()

    # A clone is no function of leaves from an earlier step, so autograd finds out by itself in a training step.
    if pass_ == "both":
        outcome = measure(implementation("cheat", lambda x, w: cheat(x, w) + 0 * product(x, w)), pass_=pass_)["cheat"]
        assert failed(outcome).kind in ("wrong", "error")
    else:
        caught(cheat, "relative L2 error")


def test_gradients_that_are_remembered_in_a_backward_pass() -> None:
    class Remembering(torch.autograd.Function):
        known: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012 - shared on purpose

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return product(x, w)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
            if not Remembering.known:
                x, w = ctx.saved_tensors
                Remembering.known.append((0.75 * gradient * w, 0.75 * (gradient * x).sum(0)))
            return tuple(found.clone() for found in Remembering.known[0])

    caught(lambda x, w: Remembering.apply(x, w), "the gradient of x has relative L2 error", pass_="backward")


def test_honest_calls_and_then_old_buffers_in_turn() -> None:
    buffers: list[Tensor] = []

    def cheat(x: Tensor, w: Tensor) -> Tensor:
        buffers.append(product(x, w) if len(buffers) < 3 else buffers[-2])
        return buffers[-1]

    caught(cheat, "timed sample")


def test_what_is_prepared_takes_turns_too() -> None:
    """An answer that was remembered for the input as `prepare` left it."""
    known: list[Tensor] = []

    def cheat(x: Tensor, w_scaled: Tensor) -> Tensor:
        known.append(x * w_scaled)
        return known[0].clone()

    honest = implementation("honest", lambda x, w_scaled: x * w_scaled, prepare=both_scaled)
    outcomes = measure(honest, implementation("cheat", cheat, prepare=both_scaled))
    assert times(outcomes["honest"])
    assert "relative L2 error" in failed(outcomes["cheat"]).error


def both_scaled(x: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Copies of both inputs, so that no exchange of the inputs themselves reaches what is called."""
    return {"x": x.clone(), "w_scaled": 0.75 * w}


def test_the_second_input_set_keeps_a_threshold_that_was_chosen_for_the_first() -> None:
    """Another draw would move the threshold, which `prepare` and closures hold as a number: so a sign is turned."""

    def inputs(found: Case, device: str) -> dict[str, Any]:
        x = torch.randn(3, found["size"], generator=torch.Generator().manual_seed(found.seed))
        return {"x": x, "w": torch.ones(found["size"]), "beta": float(x.abs().median())}

    seen: set[bool] = set()

    def kept(x: Tensor, w: Tensor, beta: float) -> Tensor:
        seen.add(bool(x[0, 0] > 0))
        return torch.where(x.abs() > beta, x * w, 0.0)

    def right(x: Tensor, w: Tensor, beta: float) -> Tensor:
        return torch.where(x.double().abs() > beta, x.double() * w.double(), 0.0)

    operation = toy(implementation("honest", kept), make_inputs=inputs, reference=right, ideal=None)
    assert times(measure(operation=operation)["honest"])
    assert seen == {True, False}


# --- memory that is not written, or written when it should not be ---------------------------------------------------


def test_a_stale_packed_answer() -> None:
    known: list[Packed] = []

    def cheat(x: Tensor, w: Tensor) -> Packed:
        known.append(Packed(product(x, w).reshape(-1), x.shape)) if not known else None
        return known[0]

    def packed(x: Tensor, w: Tensor) -> Packed:
        return Packed(product(x, w).reshape(-1), x.shape)

    operation = toy(implementation("honest", packed), implementation("cheat", cheat), dense=Packed.to_dense)
    outcomes = measure(operation=operation)
    assert times(outcomes["honest"])
    assert "NaN" in failed(outcomes["cheat"]).error


def test_an_input_permuted_in_place_fails_the_culprit_alone() -> None:
    def cheat(x: Tensor, w: Tensor) -> Tensor:
        answer = product(x, w)
        x.copy_(x.flip(0))
        return answer

    caught(cheat, "it writes to its input x")


@pytest.mark.parametrize("at", [3, 5, 8])
def test_an_input_corrupted_late_while_the_culprit_reads_a_private_copy(at: int) -> None:
    count = [0]

    def cheat(x: Tensor, w: Tensor) -> Tensor:
        count[0] += 1
        answer = product(x, w)
        if count[0] == at:
            x.fill_(1.0)
        return answer

    caught(cheat, "it writes to its input x")


def test_wrong_in_one_call_of_ten(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw is missed with a probability of 0.9 to the power of 45: 0.9 %, two of five hardly ever."""
    monkeypatch.setattr(timing, "INSPECTED_SHARE", 1e9)  # on a busy machine a quarter of the time is fewer looks
    missed = 0
    for draw in range(5):
        chance = random.Random(seed + draw)

        def cheat(x: Tensor, w: Tensor, chance: random.Random = chance) -> Tensor:
            return product(x, w) * (0.5 if chance.random() < 0.1 else 1.0)

        missed += isinstance(measure(implementation("cheat", cheat))["cheat"], Measured)
    assert missed <= 1


# --- another answer than was asked for ------------------------------------------------------------------------------


def test_a_few_zeros_in_a_coarse_class() -> None:
    def cheat(x: Tensor, w: Tensor) -> Tensor:
        answer = product(x, w)
        # Elements of about the rms: four of 400,000 add 4e-3 to the relative L2 error.
        four = (answer.abs().flatten() - 1.0).abs().topk(4, largest=False).indices
        return answer.flatten().index_fill(0, four, 0.0).reshape(answer.shape)

    caught(cheat, "at one element", tolerance=Tolerance({"float32": 1e-2}, "coarse"), case=case(size=200_000))


def test_float64_for_float32() -> None:
    caught(lambda x, w: product(x.double(), w.double()), "the answer is torch.float64, the case asks for torch.float32")


def test_an_expanded_answer_and_a_subclass() -> None:
    class Later(Tensor):
        pass

    caught(lambda x, w: product(x, w).as_subclass(Later), "is a Later, which may put work off")
    operation = toy(
        implementation("expanded", lambda x, w: w.expand_as(x)),
        implementation("written", lambda x, w: w.expand_as(x).contiguous()),
        reference=lambda x, w: w.double().expand_as(x),
    )
    outcomes = measure(operation=operation)
    assert times(outcomes["written"])
    assert "every element needs its own memory" in failed(outcomes["expanded"]).error


# --- work that is put off ------------------------------------------------------------------------------------------


def test_work_in_a_thread_that_ends_before_the_answer_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is let go by the first look at the answer, which is later than the call is over."""
    waiting: list[tuple[threading.Event, threading.Thread]] = []
    finite = torch.isfinite

    def look(tensor: Tensor) -> Tensor:
        for event, thread in waiting:
            event.set()
            thread.join()
        waiting.clear()
        return finite(tensor)

    def cheat(x: Tensor, w: Tensor) -> Tensor:
        answer, event = torch.zeros_like(x), threading.Event()
        x, w = x.clone(), w.clone()

        def work() -> None:
            event.wait()
            answer.copy_(product(x, w))

        thread = threading.Thread(target=work)
        thread.start()
        waiting.append((event, thread))
        return answer

    monkeypatch.setattr(torch, "isfinite", look)
    caught(cheat, "all zeros")


def test_work_on_another_stream_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA: work on the side is done by the time that the whole device is waited for, and not before."""
    side: list[Callable[[], object]] = []

    def wait() -> None:
        while side:
            side.pop(0)()

    def cheat(x: Tensor, w: Tensor) -> Tensor:
        answer, x, w = torch.zeros_like(x), x.clone(), w.clone()
        side.append(lambda: answer.copy_(product(x, w)))
        return answer

    def honest(x: Tensor, w: Tensor) -> Tensor:
        answer = cheat(x, w)
        side.pop()()  # its stream waits for that one
        return answer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    operation = toy(
        implementation("honest", honest), implementation("cheat", cheat), implementation("after"),
        make_inputs=lambda found, device: make_inputs(found, "cpu"),
    )  # fmt: skip
    outcomes = measure(operation=operation, device="cuda")
    assert "all zeros" in failed(outcomes["cheat"]).error
    assert times(outcomes["honest"]) and times(outcomes["after"])


# --- the process left changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "threads from"),
        (lambda: torch.set_flush_denormal(True), "flush-denormal from False to True"),
        (lambda: torch.set_default_dtype(torch.float64), "default dtype from torch.float32 to torch.float64"),
        (lambda: torch._C._set_grad_enabled(True), "grad mode from False to True"),
        (lambda: torch.set_float32_matmul_precision("high"), "matmul precision from highest to high"),
        (lambda: torch.use_deterministic_algorithms(True), "deterministic algorithms from"),
        (lambda: setattr(torch.backends.cudnn, "benchmark", False), "cudnn.benchmark from True to False"),
        (lambda: setattr(torch.backends.cudnn, "allow_tf32", True), "cudnn.allow_tf32 from False to True"),
    ],
    ids=["threads", "flush", "dtype", "grad", "matmul", "deterministic", "cudnn_benchmark", "cudnn_tf32"],
)
def test_a_switch_of_the_process_left_changed(change: Callable[[], object], says: str) -> None:
    def cheat(x: Tensor, w: Tensor) -> Tensor:
        change()
        return product(x, w)

    before = positions()
    caught(cheat, says)
    assert positions() == before
