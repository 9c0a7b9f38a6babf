"""How much the band-limited layers of a model drop: set by hand, or frozen from a few passes that keep an energy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spectralkernels.checks import as_number, check_compression, check_module, check_tensor, kind
from spectralkernels.convolution.geometry import conv_band, reach
from spectralkernels.errors import DtypeError, RangeError
from spectralkernels.masks import energy_index
from spectralkernels.masks.bands import EnergyMode
from spectralkernels.nn.conversion import Where, band_limited
from spectralkernels.nn.convolution import _BandLimited
from spectralkernels.spectra import half


def set_compression(
    model: nn.Module, compression: float | Mapping[str, float], *, where: Where = None
) -> dict[str, float]:
    """Set the rate of the band-limited layers of a model: one for all, or one by name.

    where: which layers, as in `convert`; not with a mapping, which says it itself.
    Returns: the rate of every layer that was set, by name; such a mapping sets them again.
    Raises: RangeError on a bad rate, a name that is no band-limited layer, or where there is none. Nothing is set then.
    """
    check_module(model)
    if isinstance(compression, Mapping):
        if where is not None:
            raise RangeError("where must be left out with a mapping, which names its layers itself")
        layers = dict(band_limited(model))
        unknown = [name for name in compression if name not in layers]
        if unknown:
            raise RangeError(f"{unknown[0]!r} is no band-limited layer; known: {', '.join(layers)}")
        rates = dict(compression)
    else:
        layers = dict(band_limited(model, where))
        rates = dict.fromkeys(layers, compression)
    for rate in rates.values():
        check_compression(rate)
    for name, rate in rates.items():
        layers[name].compression = rate
    return rates


@torch.no_grad()
def freeze_from_energy(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    energy: float = 0.9,
    mode: EnergyMode = "code",
    where: Where = None,
) -> dict[str, float]:
    """Run a few batches, let every layer keep the band that holds an energy, and freeze the widest band of each.

    In every pass a layer meets what the layers before it left over, at the rate that holds for this batch, as in the
    paper's dynamic selection. The rate found depends on all samples of a batch together, so that it is frozen before
    the model is used. The model runs in eval() and comes back as it was.

    batches: tensors, or tuples and lists of which the first is given to the model (as a DataLoader makes them), or
        mappings of its keyword arguments. energy: 0 < energy <= 1, of the map's. mode: as in `masks.energy_index`.
    Returns: the rate of every layer, by name; `set_compression` takes it.
    Raises: RangeError on a bad energy, or if no batch came or a layer was never called; the rates are then as before.
    Source: Dziedzic et al. 2019 ("static from dynamic"), section 3.2.
    """
    layers = dict(band_limited(model, where))
    before = {name: layer.compression for name, layer in layers.items()}
    modes_before = {module: module.training for module in model.modules()}
    if not 0.0 < as_number("energy", energy) <= 1.0:
        raise RangeError(f"energy must lie in (0, 1], got {energy}; divide a percentage by 100")
    rates: dict[str, float] = {}

    def follow(name: str, layer: _BandLimited, inputs: tuple[Tensor, ...]) -> None:
        layer.compression = rate = _rate(layer, inputs[0], energy, mode)
        rates[name] = min(rate, rates.get(name, rate))

    alone = isinstance(batches, (str, bytes)) or (isinstance(batches, Tensor) and batches.dim() == 0)
    if alone or not isinstance(batches, Iterable):
        raise DtypeError(f"batches must be something to iterate over, such as a list of tensors, got {kind(batches)}")
    if isinstance(batches, Tensor):
        check_tensor("batches", batches)
    count = 0
    with ExitStack() as undo:
        undo.callback(set_compression, model, before)
        undo.callback(_restore, modes_before)
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda layer, inputs, name=name: follow(name, layer, inputs))
            undo.callback(hook.remove)
        model.eval()
        for batch in batches:
            _call(model, batch)
            count += 1
    if not count:
        raise RangeError("batches must hold at least one batch, got none")
    missed = [name for name in layers if name not in rates]
    if missed:
        raise RangeError(f"no batch reached the layer {missed[0]}; leave it out with where=...")
    return set_compression(model, rates)


def _rate(layer: _BandLimited, x: Tensor, energy: float, mode: EnergyMode) -> float:
    """The rate at which a layer keeps exactly the band of `energy_index`, or one that holds it."""
    padded, padding = layer._padded(x)
    kernel = reach(layer.weight.shape[2:], layer.dilation)
    size = tuple(padded.shape[-len(kernel) :])
    n = conv_band(size, kernel, compression=0.0, padding=padding, grid=layer.grid).n
    # A series is a map of one row, whose rings are its frequencies.
    flat = padded if len(n) == 2 else padded.unsqueeze(2)
    k = int(energy_index(flat, (1, n[0]) if len(n) == 1 else (n[0], n[1]), energy, mode=mode))
    return rate_1d(k, n[0]) if len(n) == 1 else rate_2d(k, n)


def rate_2d(k: int, n: tuple[int, ...]) -> float:
    """A compression at which `spectra.kept_2d` keeps k of the shorter axis of a grid, and as many or more of others."""
    least = min(half(each) for each in n)
    # Half a frequency more than k, so that rounding cannot lose one.
    return 0.0 if k >= least else 1.0 - ((k + 0.5) / least) ** 2


def rate_1d(k: int, n: int) -> float:
    """A compression at which `spectra.kept_1d` keeps k."""
    return 0.0 if k >= half(n) else (half(n) - k - 0.5) / half(n)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)) and batch:
        model(batch[0])
    else:
        raise DtypeError(f"a batch must be a tensor, a tuple or list with one first, or a mapping, got {type(batch)}")


def _restore(modes: Mapping[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
