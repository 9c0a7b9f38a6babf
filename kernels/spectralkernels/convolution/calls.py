"""A public call of a band-limited convolution: its arguments checked, its geometry, who computes it, and its answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectralkernels.autocast import cast
from spectralkernels.checks import checked_steps
from spectralkernels.convolution.geometry import (
    WeightSpectrum,
    check_arguments,
    check_spectrum_arguments,
    checked_groups,
    conv_band,
    filled,
    frozen_band,
    reach,
)
from spectralkernels.convolution.prepared import PREPARED, known_call, prepared, signature
from spectralkernels.declare import Operation
from spectralkernels.dispatch import resolved
from spectralkernels.errors import RangeError
from spectralkernels.layouts import as_given, batched


def call(
    operation: Operation,
    strided: Operation,
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    spatial: str,
    options: tuple[Any, ...],
    impl: str,
) -> Tensor:
    """Check the arguments of a public call, work out its geometry and run it; once per signature, see `prepared`.

    strided: the operation of a call with a stride or a dilation above 1, whose band is that of stride 1 and of the
        kernel with zeros between its taps. spatial: the axes in words, "length".
    options: compression, padding, groups, grid, stride and dilation.
    """
    key = signature(operation.name, impl, x, weight, bias, options)
    if (known := known_call(key)) is not None:
        return known(x, weight, bias)
    compression, padding, groups, grid, stride, dilation = options
    axes = len(spatial.split(", "))
    steps = {"stride": checked_steps("stride", stride, axes), "dilation": checked_steps("dilation", dilation, axes)}
    if any(step != 1 for of_axes in steps.values() for step in of_axes):
        operation = strided
    given, x = x, batched(x, f"[batch, channel, {spatial}]")
    device = x.device.type
    x, weight, bias = cast(x, device), cast(weight, device), cast(bias, device)
    if isinstance(weight, WeightSpectrum):
        if operation is strided:
            raise RangeError(
                f"stride and dilation must be 1 with a frozen WeightSpectrum, got {stride} and {dilation}; "
                "pass the weight itself"
            )
        groups = checked_groups(groups, weight)
        band = frozen_band(weight, tuple(x.shape[2:]), compression=compression, padding=padding, grid=grid)
        check_spectrum_arguments(x, weight, bias, band, groups, 1)
    else:
        groups = checked_groups(groups, weight)
        check_arguments(x, weight, bias, groups, 1, spatial)
        geometry = filled({"compression": compression, "padding": padding, "grid": grid})
        band = conv_band(tuple(x.shape[2:]), reach(weight.shape[2:], steps["dilation"]), **geometry)
    inputs: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "band": band, "groups": groups}
    if operation is strided:
        inputs.update(steps)
    implementation = resolved(operation, impl, device, inputs)
    y = as_given(implementation.call(**inputs), given, x, weight)
    if key is not None and not x.is_meta:
        PREPARED.keep(key, prepared(implementation, given, inputs))
    return y
