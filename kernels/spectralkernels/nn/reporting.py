"""What each convolution of a model costs here: rate, saved bytes, arithmetic and time, with torch's layer beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spectralkernels.checks import as_integer, check_module, check_tensor
from spectralkernels.convolution.cost import dft_gemm_flops
from spectralkernels.convolution.geometry import conv_band, reach
from spectralkernels.convolution.strided import computed_band
from spectralkernels.errors import RangeError
from spectralkernels.nn.convolution import _BandLimited
from spectralkernels.nn.table import table


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One convolution at the maps that it met.

    compression, achieved: nominal and real rate; None for a layer without one. saved_bytes: distinct storages that a
    forward pass keeps for its backward pass, input and weight included. flops: of the way that the layer takes, one
    forward pass. seconds: median of a forward pass as the model stands (training or eval, with gradients in training).
    native_*: the same of torch.nn's layer with the same weights.
    """

    name: str
    layer: str
    input: tuple[int, ...]
    compression: float | None
    achieved: float | None
    saved_bytes: int
    native_saved_bytes: int
    flops: int
    native_flops: int
    seconds: float
    native_seconds: float


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The convolutions of a model in the order in which they were called; prints as a table."""

    layers: tuple[LayerReport, ...]

    def total(self, field: str) -> float:
        """Sum of `saved_bytes`, `flops`, `seconds` or their `native_` twins over the layers."""
        return sum(getattr(layer, field) for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "type", "input", "rate", "achieved", "saved MB", "native", "MFLOP", "native", "ms", "native")
        rows = [
            (
                layer.name or "(the model)",
                layer.layer,
                "x".join(map(str, layer.input)),
                _rate(layer.compression),
                _rate(layer.achieved),
                *_costs(layer.saved_bytes, layer.native_saved_bytes, 1e6),
                *_costs(layer.flops, layer.native_flops, 1e6),
                *_costs(layer.seconds, layer.native_seconds, 1e-3),
            )
            for layer in self.layers
        ]
        sums = [
            cell
            for field, unit in (("saved_bytes", 1e6), ("flops", 1e6), ("seconds", 1e-3))
            for cell in _costs(self.total(field), self.total(f"native_{field}"), unit)
        ]
        return table(head, [*rows, ("all", "", "", "", "", *sums)])


def report(model: nn.Module, x: Any, *, repeats: int = 5) -> ModelReport:
    """Run a model once, then each of its convolutions alone, beside torch's layer with the same weights.

        print(sk.nn.report(model, x))

    The two of a layer take turns, `repeats` times after one that does not count. The model, its mode (training or
    eval), its buffers and its gradients come back as they were.
    x: what the model is called with, a tensor, or a tuple of arguments.
    Returns: a row for each convolution that was called, by its first call.
    Raises: RangeError if repeats < 1 or no convolution was called.
    """
    check_module(model)
    if as_integer("repeats", repeats) < 1:
        raise RangeError(f"repeats must be at least 1, got {repeats}")
    arguments = x if isinstance(x, tuple) else (x,)
    rows = [_row(name, layer, met, repeats) for name, layer, met in _inputs(model, arguments)]
    if not rows:
        raise RangeError(
            f"{type(model).__name__} called no torch.nn.Conv1d or Conv2d, so that there is nothing to report"
        )
    return ModelReport(tuple(rows))


def _inputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[tuple[str, _ConvNd, Tensor]]:
    """Every convolution with the first map that it met."""
    met: dict[str, tuple[_ConvNd, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):

            def remember(layer: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                assert isinstance(layer, _ConvNd)
                check_tensor(f"the input of {name or 'the model'}", inputs[0])
                met.setdefault(name, (layer, inputs[0].detach().clone()))

            hooks.append(module.register_forward_pre_hook(remember))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            model(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])  # running statistics
    return [(name, layer, inputs) for name, (layer, inputs) in met.items()]


def _row(name: str, layer: _ConvNd, x: Tensor, repeats: int) -> LayerReport:
    from statistics import median  # brings fractions and decimals

    native = _native(layer)
    subjects: tuple[Callable[[Tensor], Tensor], ...] = (layer.forward, native)
    training = layer.training
    seconds: tuple[list[float], ...] = ([], [])
    with torch.set_grad_enabled(training):
        for turn in range(repeats + 1):
            for forward, times in zip(subjects, seconds, strict=True):
                elapsed = _seconds(forward, x)
                if turn:
                    times.append(elapsed)
    saved, native_saved = (_saved_bytes(forward, x) for forward in subjects)
    y = native(x[:1])
    native_flops = 2 * len(x) * y.numel() * math.prod(layer.weight.shape[1:])
    compression, achieved, flops = _band(layer, x, native_flops)
    return LayerReport(
        name,
        type(layer).__name__,
        tuple(x.shape),
        compression,
        achieved,
        saved,
        native_saved,
        flops,
        native_flops,
        median(seconds[0]),
        median(seconds[1]),
    )


def _native(layer: _ConvNd) -> Callable[[Tensor], Tensor]:
    """torch's own forward of a layer."""
    kind = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return lambda x: kind.forward(layer, x)  # type: ignore[arg-type]


def _band(layer: _ConvNd, x: Tensor, native_flops: int) -> tuple[float | None, float | None, int]:
    """(nominal rate, achieved rate, FLOPs) of a layer."""
    if not isinstance(layer, _BandLimited):
        return None, None, native_flops
    padded, padding = layer._padded(x)
    kernel = tuple(layer.weight.shape[2:])
    reached = reach(kernel, layer.dilation)
    band = conv_band(tuple(padded.shape[2:]), reached, compression=layer.compression, padding=padding, grid=layer.grid)
    strided = computed_band(band, layer.stride, kernel)
    spectral = dft_gemm_flops(len(x), x.shape[1], layer.out_channels, layer.groups, strided)
    direct = layer.explain(x).chosen.startswith("direct")
    return layer.compression, band.achieved_compression, native_flops if direct else spectral


def _seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    _wait(x)
    start = time.perf_counter()
    forward(x)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _saved_bytes(forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass saves, as in training: x has a gradient."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().requires_grad_(x.is_floating_point())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward(x)
    del y
    return sum(storages.values())


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2f}"


def _costs(ours: float, native: float, unit: float) -> tuple[str, str]:
    return f"{ours / unit:.2f}", f"{native / unit:.2f}"
