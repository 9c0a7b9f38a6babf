"""Short names of cases: `conv2d 8x64->64 32x32 K7 c.5`, the same in a terminal, a report and a test's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from spectralbench.record import Scalar

OPERATIONS: Mapping[str, str] = {
    "band_limited_conv1d": "conv1d",
    "band_limited_conv2d": "conv2d",
    "masked_conv2d": "masked conv2d",
    "strided_conv1d": "strided conv1d",
    "strided_conv2d": "strided conv2d",
}
USUAL: Mapping[str, Scalar] = {
    "grid": "tight", "groups": 1, "input": "photo", "relative": False, "storage": "exact", "dtype": "float32",
    "pass": "forward", "cache": "warm", "launch": "eager", "seed": 0, "dilation": 1,
}  # fmt: skip
"""Values that go without saying."""

LETTERS: Mapping[str, str] = {"kernel_size": "K", "compression": "c", "rate": "c", "stride": "s", "dilation": "d"}


def operation(name: str) -> str:
    """An operation as people say it."""
    return OPERATIONS.get(name, name.replace("_", " "))


def short(facts: Mapping[str, Scalar], leave_out: frozenset[str] = frozenset()) -> str:
    """What a case is, without what goes without saying. facts: its parameters, and dtype, pass and the like."""
    return " ".join(_words({name: value for name, value in facts.items() if name not in leave_out}))


class Named(Protocol):
    """A case: an operation at given parameters and dtype (see `spectralkernels.declare.Case`)."""

    @property
    def operation(self) -> str: ...
    @property
    def params(self) -> tuple[tuple[str, Scalar], ...]: ...
    @property
    def dtype(self) -> str: ...


def of_case(case: Named, pass_: str) -> str:
    """`conv2d 8x64->64 32x32 K7 c.5 fwd+bwd`."""
    return f"{operation(case.operation)} {short({**dict(case.params), 'dtype': case.dtype, 'pass': pass_})}".strip()


def number(value: Scalar) -> str:
    """`.5`, `7`, `1e-05`; booleans and text as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:g}"
    return text[1:] if text.startswith("0.") else text


def _words(left: dict[str, Scalar]) -> Iterator[str]:
    batch = left.pop("batch", None)
    inputs, outputs, channels = (left.pop(name, None) for name in ("in_channels", "out_channels", "channels"))
    groups = left.pop("groups", None)
    depthwise = groups is not None and groups == inputs == outputs and groups != 1
    if inputs is not None and outputs is not None:
        maps = f"{inputs}" if depthwise else f"{inputs}->{outputs}"
    else:
        maps = "" if channels is None and inputs is None else f"{inputs if channels is None else channels}"
    if batch is not None or maps:
        yield "x".join(str(part) for part in (batch, maps) if part not in (None, ""))
    if depthwise:
        yield "depthwise"
    elif groups not in (None, 1):
        yield f"{groups} groups"
    height, width = left.pop("height", None), left.pop("width", None)
    if height is not None and width is not None:
        yield f"{height}x{width}"
    elif height is not None or width is not None:
        yield f"{height or width}"
    if (length := left.pop("length", None)) is not None:
        yield f"L{length}"
    for name, value in left.items():
        if USUAL.get(name) == value and type(USUAL[name]) is type(value):
            continue
        if name == "pass":
            yield "fwd+bwd" if value == "both" else str(value)
        elif name in LETTERS:
            yield f"{LETTERS[name]}{number(value)}"
        elif name in ("N", "input", "dtype", "mask", "cache", "launch", "selection", "map"):
            yield f"N{value}" if name == "N" else str(value)
        else:
            yield f"{name}={number(value)}"
