"""Stored steps of one network as rows, one per kind of layers and rate (standard library only)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectralbench.record import Record

if TYPE_CHECKING:  # it imports numpy and scipy, which no command line waits for
    from spectralbench.history import Series

OPERATION = "model_step"
NATIVE, FULL, SPECNET = "native", "torch_fft_full", "specnet"
PASSES = {"eval": "forward", "train": "both"}
"""The pass that is a step in a mode; the forward pass of a training alone is none."""
PHC = "phc"
"""Not an implementation: native layers of a network whose kernels are Kronecker products."""
BETA = "beta "
"""How the rate of SPECNET begins."""
RATED = ("band_limited", "band_limited_bits", "torch_fft")
"""Kinds whose function depends on the compression."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """One kind of layers at one rate; what was not measured is None.

    rate: `0.5` of a compression, `beta 1`, `n 4`, or nothing. inference, step: seconds. inference_ratio, step_ratio:
    native's time over this one's, each of the same interleaved rounds. saved, peak: bytes of a training step.
    achieved: the real compression. error: of the answer to an inference against the network as it was built.
    failed: why there is no number.
    """

    layers: str
    rate: str
    inference: float | None
    inference_ratio: float | None
    step: float | None
    step_ratio: float | None
    saved: float | None
    peak: float | None
    achieved: float | None
    error: float | None
    failed: str | None


def rate(record: Record) -> str:
    """What tells records of one kind of layers apart."""
    return _rate(_layers(record), record.case)


def _rate(layers: str, case: Mapping[str, Any]) -> str:
    if layers == PHC:
        return f"n {case['n']}"
    if layers in RATED:
        return f"{case['compression']:g}"
    return f"{BETA}{case['beta']:g}" if layers == SPECNET else ""


def rows(records: Iterable[Record]) -> list[StepRow]:
    """A row for each kind of layers and rate, native first, then as they come."""
    steps = [record for record in records if record.operation == OPERATION and record.status != "skipped"]
    steps = [record for record in steps if PASSES.get(str(record.case["mode"])) == record.pass_]
    keys = list(dict.fromkeys((_layers(record), rate(record)) for record in steps))
    order = list(dict.fromkeys([NATIVE, *(layers for layers, _ in keys)]))
    keys.sort(key=lambda key: order.index(key[0]))
    return [_row(key, [record for record in steps if (_layers(record), rate(record)) == key], steps) for key in keys]


def networks(series: Iterable[Series]) -> dict[str, list[StepRow]]:
    """The newest stored steps by network, batch and input: a row for each kind of layers and rate, without ratios."""
    found: dict[str, dict[tuple[str, str], dict[tuple[str, str], float]]] = {}
    for one in series:
        subject, params = one.key.subject, one.params
        if subject.operation != OPERATION or not {"network", "batch", "input", "mode", "compression", "beta", "n"} <= {
            *params
        }:
            continue
        if PASSES.get(str(params["mode"])) != subject.pass_:
            continue
        layers = PHC if params["n"] != 1 else subject.implementation
        values = found.setdefault(f"{params['network']}, {params['batch']}x{params['input']}", {})
        own = values.setdefault((layers, _rate(layers, params)), {})
        own[str(params["mode"]), one.key.metric] = one.newest.value
    return {name: [_stored(key, own) for key, own in kinds.items()] for name, kinds in found.items()}


def _stored(key: tuple[str, str], own: Mapping[tuple[str, str], float]) -> StepRow:
    return StepRow(
        layers=key[0],
        rate=key[1],
        inference=own.get(("eval", "device_time")),
        inference_ratio=None,
        step=own.get(("train", "device_time")),
        step_ratio=None,
        saved=own.get(("train", "saved_bytes")),
        peak=own.get(("train", "peak_allocated"), own.get(("train", "host_peak"))),
        achieved=own.get(("eval", "achieved_compression"), own.get(("train", "achieved_compression"))),
        error=own.get(("eval", "approximation_error")),
        failed=None,
    )


def _layers(record: Record) -> str:
    return PHC if record.case["n"] != 1 else record.implementation


def _row(key: tuple[str, str], own: Sequence[Record], steps: Sequence[Record]) -> StepRow:
    inferences = [record for record in own if record.case["mode"] == "eval"]
    trainings = [record for record in own if record.case["mode"] == "train"]
    failed = next((f"{record.failure}: {record.reason}" for record in own if record.status == "failed"), None)
    return StepRow(
        layers=key[0],
        rate=key[1],
        inference=_median(inferences, ("device_time",)),
        inference_ratio=_ratio(inferences, steps),
        step=_median(trainings, ("device_time",)),
        step_ratio=_ratio(trainings, steps),
        saved=_median(trainings, ("saved_bytes",)),
        peak=_median(trainings, ("peak_allocated", "host_peak")),
        achieved=_median(inferences or trainings, ("achieved_compression",)),
        error=_median(inferences, ("approximation_error",)),
        failed=failed,
    )


def _median(records: Sequence[Record], metrics: Sequence[str]) -> float | None:
    """Over cases and processes, of the first of the metrics that was taken."""
    for metric in metrics:
        found = [taken.median for record in records if (taken := record.metric(metric)) is not None]
        if found:
            return statistics.median(found)
    return None


def _ratio(own: Sequence[Record], steps: Sequence[Record]) -> float | None:
    """Native's time over this one's where both were timed in the same rounds."""
    ratios = []
    for record in own:
        beside = [other for other in steps if other.implementation == NATIVE and _rounds(other) == _rounds(record)]
        native = beside[0].metric("device_time") if beside else None
        mine = record.metric("device_time")
        if native is not None and mine is not None and mine.median > 0 and record.case["n"] == 1:
            ratios.append(native.median / mine.median)
    return statistics.median(ratios) if ratios else None


def _rounds(record: Record) -> tuple[Mapping[str, object], str, int]:
    """What the records that were timed in the same rounds share."""
    return record.case, record.pass_, record.replicate
