"""Calls that were made before: the same answers and errors, nothing confused, and no way around whoever looks on."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.convolution import calls as public_calls
from spectralkernels.convolution import prepared
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.prepared import PREPARED
from spectralkernels.declare import Operation
from spectralkernels.ops import load_operations

CONVOLUTIONS = ("band_limited_conv1d", "band_limited_conv2d")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    PREPARED.forget()
    yield
    PREPARED.forget()


def outcome(call: Callable[[], Tensor]) -> tuple[Any, ...]:
    """An answer with all that can be told of it, or an error."""
    try:
        y = call()
    except Exception as error:
        return type(error), str(error)
    return y.shape, y.stride(), y.dtype, y.requires_grad, y.is_inference(), y.detach().double().flatten().tolist()


# --- the same answers -----------------------------------------------------------------------------------------------


Arguments = tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]


def many_calls(axes: int) -> Iterator[Arguments]:
    """Odd, even, prime and single sizes, layouts, dtypes and options."""

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape[: 2 + axes])

    x, w, b = real(2, 4, 8, 7), real(6, 2, 3, 4), torch.randn(6)
    yield x, w, b, {"groups": 2, "compression": 0.5}
    yield x, w, None, {"groups": 2, "padding": "valid", "grid": "fast"}
    yield x[0], w, b, {"groups": 2, "compression": 0.3, "padding": (2,) * axes}
    yield x.double(), w.double(), b.double(), {"groups": 2, "padding": 1}
    yield x.half(), w.half(), b.half(), {"groups": 2, "compression": 0.5}
    yield real(1, 1, 1, 1), real(1, 1, 5, 5), None, {}
    yield real(4, 3, 11, 13).transpose(0, 1), real(3, 4, 2, 5), torch.randn(()).expand(3), {"compression": 0.5}
    yield real(0, 4, 8, 7), w, b, {"groups": 2, "compression": 0.5}
    yield real(3, 4, 9, 6), real(4, 1, 3, 3), torch.randn(4), {"groups": 4, "compression": 0.5}
    yield real(1, 66, 5, 6), real(3, 66, 3, 3), None, {"compression": 0.5}
    yield x, w, b, {"groups": 2, "compression": 0.5, "stride": 2, "dilation": 3}
    yield x[0], w, None, {"groups": 2, "stride": 3}
    if axes == 2:
        yield x.to(memory_format=torch.channels_last), w, b, {"groups": 2, "compression": 0.5}
        yield x, w.to(memory_format=torch.channels_last), b, {"groups": 2}


def few_calls(axes: int) -> Iterator[Arguments]:
    """Of one kernel for each map, and of one sample of strided maps; each takes the interpreter a second."""
    shape, taps = ((5, 4), (3, 2)) if axes == 2 else ((5,), (3,))
    yield torch.randn(1, 2, *shape), torch.randn(2, 1, *taps), torch.randn(2), {"groups": 2}
    yield torch.randn(*shape, 2).movedim(-1, 0), torch.randn(3, 2, *taps), None, {"compression": 0.5}


def walk(name: str, calls: Iterator[Arguments], chosen: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """The calls of those implementations, by name."""
    axes, function = (2 if name.endswith("2d") else 1), getattr(sk, name)
    known = [each for each in load_operations()[name].implementations if chosen(each) and not each.available("cpu")]
    for x, weight, bias, options in calls:
        for found in known:
            if found.frozen and "stride" in options:
                continue  # no spectrum has one
            if found.frozen:
                spectrum = sk.weight_spectrum(weight, tuple(x.shape[-axes:]), **options)
                yield found.name, partial(function, x, spectrum, bias, impl=found.name)
            else:
                yield found.name, partial(function, x, weight, bias, impl=found.name, **options)


def repeated(calls: Iterator[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Who serves some call: the first of a signature goes the whole way, the second by its key, to the same bits."""
    whole_way: list[str] = []
    resolved = public_calls.resolved
    monkeypatch.setattr(public_calls, "resolved", lambda *given: whole_way.append(given[1]) or resolved(*given))
    served = set()
    for impl, call in calls:
        with torch.no_grad():
            first, ways = outcome(call), len(whole_way)
            assert outcome(call) == first, impl
        if len(first) > 2:
            assert len(whole_way) == ways, f"{impl}: the whole way again"
            served.add(impl)
    return served


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_call_answers_as_before(name: str, monkeypatch: pytest.MonkeyPatch, seed: int):
    calls = many_calls(2 if name.endswith("2d") else 1)
    served = repeated(walk(name, calls, lambda each: each.engine != "triton" and not each.compiled), monkeypatch)
    assert served >= {"dft_gemm", "dft_gemm_frozen", "torch_fft", "direct"}


KERNELS = {"dft_triton", "dft_triton_save_bf16", "dft_triton_frozen", "cufft_triton"}
MAPS, SERIES = {"fused_depthwise", "fused_depthwise_bf16", "implicit_gemm_triton"}, {"fused_series"}


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_call_of_kernels_answers_as_before(name: str, monkeypatch: pytest.MonkeyPatch, poisoned: None, seed: int):
    axes = 2 if name.endswith("2d") else 1
    names = KERNELS | (MAPS if axes == 2 else SERIES)
    assert repeated(walk(name, few_calls(axes), lambda each: each.name in names), monkeypatch) == names


# --- what a key holds -----------------------------------------------------------------------------------------------

X, W, B = torch.randn(2, 2, 6, 6), torch.randn(2, 1, 3, 3), torch.randn(2)


def conv(x: Tensor = X, w: Any = W, b: Tensor | None = B, **options: Any) -> Tensor:
    given = {"groups": 2, "compression": 0.5, "impl": "dft_gemm"}
    return sk.band_limited_conv2d(x, w, b, **{**given, **options})


def learned(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def within(mode: AbstractContextManager[Any], call: Callable[[], Tensor]) -> Tensor:
    with mode:
        return call()


def frozen(outputs: int, per_group: int, groups: int, **options: Any) -> Any:
    """A spectrum of ones, of which facts may differ that its shape does not tell."""
    given = {"compression": 0.5, "grid": 9, **options}
    return sk.weight_spectrum(torch.ones(outputs, per_group, 3, 3), (6, 6), groups=groups, **given)


def learned_modes() -> Any:
    spectrum = frozen(2, 1, 2)
    return dataclasses.replace(spectrum, modes=learned(spectrum.modes))


LAST = X.to(memory_format=torch.channels_last)
PAIRS: dict[str, tuple[tuple[int, ...], Callable[[], Tensor], Callable[[], Tensor]]] = {
    "implementation": ((1,), conv, lambda: conv(impl="none such")),
    "size of x": ((2, 0, 0), conv, lambda: conv(X[:, :, :5])),
    "layout of x": ((2, 0, 1), conv, lambda: conv(LAST)),
    "dtype of x": ((2, 0, 2), conv, lambda: conv(X.double())),
    "gradient of x": ((2, 0, 4), conv, lambda: conv(learned(X))),
    "size of the weight": ((2, 1, 0), conv, lambda: conv(w=W[:, :, :2])),
    "layout of the weight": ((2, 1, 1), conv, lambda: conv(w=W.to(memory_format=torch.channels_last))),
    "dtype of the weight": ((2, 1, 2), conv, lambda: conv(w=W.double())),
    "gradient of the weight": ((2, 1, 4), conv, lambda: conv(w=learned(W))),
    "geometry of a frozen weight": (
        (2, 1, 5),
        lambda: conv(w=frozen(2, 1, 2), compression=None, groups=None, impl="dft_gemm_frozen"),
        lambda: conv(w=frozen(2, 1, 2, padding="valid"), compression=None, groups=None, impl="dft_gemm_frozen"),
    ),
    "groups of a frozen weight": (
        (2, 1, 8),
        lambda: conv(w=frozen(2, 1, 2), compression=None, groups=None, impl="dft_gemm_frozen"),
        lambda: conv(w=frozen(2, 1, 1), compression=None, groups=None, impl="dft_gemm_frozen"),
    ),
    "bias": ((2, 2), conv, lambda: conv(b=torch.randn(3))),
    "gradient of the bias": ((2, 2, 4), conv, lambda: conv(b=learned(B))),
    "dtype of the bias": ((2, 2, 2), conv, lambda: conv(b=B.double())),
    "options": ((2, 3), conv, lambda: conv(compression=0.2)),
    "stride": ((2, 3), conv, lambda: conv(stride=2)),
    "dilation": ((2, 3), lambda: conv(stride=2), lambda: conv(stride=2, dilation=2)),
    "types of options": ((2, 4), lambda: conv(padding=1), lambda: conv(padding=1.0)),
    "gradients at all": (
        (3,),
        lambda: within(torch.no_grad(), lambda: conv(learned(X))),
        lambda: conv(learned(X)),
    ),
    "gradient of a frozen weight": (
        (2, 1, 4),
        lambda: conv(w=frozen(2, 1, 2), compression=None, groups=None, impl="dft_gemm_frozen"),
        lambda: conv(w=learned_modes(), compression=None, groups=None, impl="dft_gemm_frozen"),
    ),
    "autocast": ((4,), conv, lambda: within(torch.autocast("cpu", torch.bfloat16), conv)),
}  # fmt: skip


def forgetful(place: tuple[int, ...]) -> Callable[..., Any]:
    """`signature` without what lies at a place."""
    whole = prepared.signature

    def dropped(facts: Any, place: tuple[int, ...]) -> Any:
        first, *rest = place
        if facts is None or first >= len(facts):
            return facts
        kept = dropped(facts[first], tuple(rest)) if rest else None
        return (*facts[:first], kept, *facts[first + 1 :])

    return lambda *given: dropped(whole(*given), place)


@pytest.mark.parametrize("what", PAIRS)
def test_a_call_is_not_taken_for_another(what: str, monkeypatch: pytest.MonkeyPatch):
    """And would be, if its key did not hold what differs."""
    place, one, other = PAIRS[what]
    wanted = outcome(other)
    PREPARED.forget()
    assert outcome(one) != wanted
    for _ in range(2):
        assert outcome(other) == wanted
    PREPARED.forget()
    monkeypatch.setattr(public_calls, "signature", forgetful(place))
    outcome(one)
    assert outcome(other) != wanted, "the planted fault was not seen"


def test_a_library_that_is_built_later_is_taken(monkeypatch: pytest.MonkeyPatch):
    x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 7, 7)
    ran: list[str] = []

    def noted(operation: Operation, *given: Any) -> Any:
        ran.append(resolved(operation, *given).name)
        raise InterruptedError  # before the work

    resolved = public_calls.resolved
    monkeypatch.setattr(public_calls, "resolved", noted)
    for built in (False, True):
        monkeypatch.setattr(build, "READY", built)
        with pytest.raises(InterruptedError):
            sk.band_limited_conv2d(x, w, compression=0.5)
    assert ran == ["dft_gemm", "dft_native"]


# --- whoever looks on -----------------------------------------------------------------------------------------------


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


SLOW: dict[str, Callable[[], Any]] = {
    "a dispatch mode": lambda: within(Dispatching(), conv),
    "fake tensors": lambda: within(FakeTensorMode(allow_non_fake_inputs=True), conv),
    "vmap": lambda: torch.vmap(lambda x: conv(x))(X.unsqueeze(0)),
    "a gradient of torch.func": lambda: torch.func.grad(lambda x: conv(x).sum())(X),
    "a compiler": lambda: within(mock.patch.object(torch.compiler, "_is_compiling_flag", True), conv),
    "a subclass": lambda: conv(X.as_subclass(Subclass)),
    "meta tensors": lambda: conv(X.to("meta"), W.to("meta"), B.to("meta")),
    "meta tensors and autocast": lambda: within(
        torch.autocast("cpu", torch.bfloat16), lambda: conv(X.to("meta"), W.to("meta"), B.to("meta"))
    ),
    "a question": lambda: sk.explain(sk.band_limited_conv2d, X, W, B, groups=2, compression=0.5, impl="dft_gemm"),
    "options in a list": lambda: conv(padding=[1, 1]),
    "a number of numpy": lambda: conv(compression=np.float64(0.5)),
}


@pytest.mark.parametrize("who", SLOW)
def test_other_calls_go_the_whole_way(who: str):
    for _ in range(2):
        SLOW[who]()
    assert PREPARED.get.__self__ == {}


class Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


PROFILER = [torch.profiler.ProfilerActivity.CPU]
SEEN: dict[str, Callable[[], Tensor]] = {
    "a function mode": lambda: within(Function(), conv),
    "a default device": lambda: within(torch.device("cpu"), conv),
    "a profiler": lambda: within(torch.profiler.profile(activities=PROFILER), conv),
    "forward mode": lambda: within(forward_ad.dual_level(), conv),
    "a negative view": lambda: conv(torch._neg_view(-X)),
    "zeros without memory": lambda: conv(b=torch._efficientzerotensor(2)) + B.view(-1, 1, 1),
    "a gradient": lambda: conv(learned(X)),
}


@pytest.mark.parametrize("who", SEEN)
def test_who_looks_on_sees_the_operator(who: str, monkeypatch: pytest.MonkeyPatch):
    bodies: list[int] = []
    run = prepared.Prepared.__call__

    def noted(self: prepared.Prepared, *tensors: Any) -> Tensor:
        body = self.body and (lambda *given: bodies.append(1) or self.body(*given))
        return run(prepared.Prepared(**{**{n: getattr(self, n) for n in self.__slots__}, "body": body}), *tensors)

    monkeypatch.setattr(prepared.Prepared, "__call__", noted)
    wanted = conv()
    conv()
    assert bodies == [1], "a call that nobody looks at goes by its body"
    for _ in range(2):
        torch.testing.assert_close(SEEN[who]().detach(), wanted)
    assert bodies == [1]


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_a_call_keeps_no_tensor_of_its_own_and_no_matrix_that_is_forgotten(seed: int):
    tensors, wanted = [X.clone(), W.clone(), B.clone()], conv()
    for impl in ("dft_gemm", "torch_fft", "direct"):
        for _ in range(2):
            conv(*tensors, impl=impl, compression=0.0)
    kept = [each for entry in constants._entries.values() for each in constants._tensors(entry.value)]
    assert kept and len(PREPARED.get.__self__) == 4
    alive = [weakref.ref(each) for each in (*tensors, *kept)]
    constants.forget()
    del tensors, kept
    gc.collect()
    assert not any(each() is not None for each in alive)
    assert torch.equal(conv(), wanted) and constants.kept_bytes() > 0


def test_calls_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "MOST_PLANS", 6)
    for i in range(40):
        conv(compression=i / 50)
        assert len(PREPARED.get.__self__) <= 6
    assert torch.equal(conv(compression=0.0), conv(compression=0.0))


def test_threads_may_call_and_forget_at_once():
    with torch.no_grad():
        wanted, wrong = [conv(compression=c) for c in (0.2, 0.5)], []

    def calls() -> None:
        for i in range(60):
            if i % 20 == 19:
                constants.forget()
                PREPARED.forget()
            with torch.no_grad():
                if not torch.equal(conv(compression=(0.2, 0.5)[i % 2]), wanted[i % 2]):
                    wrong.append(i)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
