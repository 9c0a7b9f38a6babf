"""From a network and kinds of layers to the request of a sweep over `model_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spectralbench import sweep
from spectralbench.clock import usual_cache
from spectralbench.networks import load_network
from spectralbench.networks.layers import applied
from spectralbench.networks.models import built, check, sides
from spectralbench.quantity import amount
from spectralbench.steps import FULL, NATIVE, OPERATION, PHC, RATED, SPECNET
from spectralbench.sweep import Item, Request
from spectralbench.text import meant
from spectralbench.worker import State
from spectralbench.workloads import load_operations
from spectralkernels.errors import RangeError

DEFAULT_BATCH = 8
KIND_OF = {FULL: "torch_fft"}
"""The kind of layers of a subject of `model_step` that is named otherwise."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A network, the size of its input and the kinds of layers, each of which is known. parameters: how many it has."""

    network: str
    batch: int
    shape: tuple[int, ...]
    layers: tuple[str, ...]
    parameters: int

    @property
    def title(self) -> str:
        """`resnet18, 8x3x32x32, 11,173,962 parameters (42.6 MiB)`."""
        size = "x".join(map(str, (self.batch, *self.shape)))
        return f"{self.network}, {size}, {self.parameters:,} parameters ({amount(4 * self.parameters, 'byte')})"


def asked(network: str, layers: Sequence[str], batch: int | None, shape: str | None) -> ModelRequest:
    """What is asked for, checked by building the model and calling it once.

    layers: kinds of `model_step`, and "phc". batch: default 8, or the first size of `shape`. shape: sizes of one
    example, `3x32x32`, or of a batch, `8x3x32x32`; default the network's own.
    Raises: RangeError on an unknown network or kind, with the nearest; on an input that the model does not take; and on
    a model in which no convolution can be turned to one of the kinds.
    """
    known = (*(subject.name for subject in load_operations()[OPERATION].subjects), PHC)
    for name in layers:
        if name not in known:
            raise RangeError(f"unknown layers {name!r}{meant(name, known)}")
    own = None if ":" in network else load_network(network).input
    if shape is None:
        if own is None:
            raise RangeError(f"{network} needs --input, such as --input 8x3x224x224")
        sizes = own
    else:
        sizes = sides(shape)
        if len(sizes) == (4 if own is None else len(own) + 1):
            if batch not in (None, sizes[0]):
                raise RangeError(f"--input {shape} has a batch of {sizes[0]}, and --batch says {batch}; leave one out")
            batch, sizes = sizes[0], sizes[1:]
    batch = batch or DEFAULT_BATCH
    parameters = check(network, batch, sizes)
    for name in layers:
        if name != PHC:  # which depends on n
            applied(built(network, 0), KIND_OF.get(name, name))
    return ModelRequest(network, batch, sizes, tuple(layers), parameters)


def request(
    one: ModelRequest,
    *,
    compression: str,
    beta: str,
    n: str,
    device: str,
    processes: int,
    time_budget: float | None,
    timeout: float,
) -> Request:
    """The sweep. compression, beta, n: values with commas between, of the kinds that have them."""
    from spectralbench.metrics import load_metrics

    state = State("eager", usual_cache(device))
    metrics = [name for name, metric in load_metrics().items() if metric.models or device in metric.devices]
    return Request(
        operations=(OPERATION,),
        implementations=tuple(dict.fromkeys(NATIVE if name == PHC else name for name in one.layers)),
        overrides={
            "network": one.network,
            "batch": str(one.batch),
            "input": "x".join(map(str, one.shape)),
            "compression": compression,
            "beta": beta,
            "n": f"1,{n}" if PHC in one.layers else "1",
        },
        metrics=tuple(metrics),
        processes=processes,
        device=device,
        states=(state,),
        timeout=timeout,
        time_budget=time_budget,
        select=_chooser(one.layers),
        sources=sweep.SOURCES,
    )


def _chooser(layers: Sequence[str]) -> Callable[[list[Item]], list[Item]]:
    """Leave out the cases in which nothing changes for any of the kinds.

    Each of compression, beta and n sweeps for the kinds that have it, while the others stay at their first value.
    """

    def select(items: list[Item]) -> list[Item]:
        first = items[0].case
        chosen = []
        for item in items:
            first_rate, first_beta = (item.case[name] == first[name] for name in ("compression", "beta"))
            kinds: set[str] = set()
            if item.case["n"] == 1:
                if first_beta and (first_rate or set(RATED) & set(layers)):
                    kinds |= {*RATED, FULL}
                if first_rate:
                    kinds.add(SPECNET)
                kinds &= set(layers)
            if kinds or (first_rate and first_beta):
                kinds.add(NATIVE)
            names = tuple(name for name in item.implementations if name in kinds)
            if names:
                chosen.append(replace(item, implementations=names))
        return chosen

    return select
