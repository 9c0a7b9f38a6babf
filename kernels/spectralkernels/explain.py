"""Say what a call would run, and why, instead of running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spectralkernels.dispatch import Asked, Explained, Explanation
from spectralkernels.errors import DtypeError


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Explain the call `function(*args, **kwargs)` of a public operation; nothing is computed.

        print(sk.explain(sk.band_limited_conv2d, x, weight, compression=0.5))

    Returns: what runs and why, and for every other implementation why it does not serve the call, or that it could.
    Raises: whatever the call raises on arguments that do not fit; DtypeError if `function` is no operation.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if "impl" not in getattr(function, "__annotations__", {}):
        raise DtypeError(f"function must be an operation such as sk.band_limited_conv2d, got {name!r}")
    try:
        function(*args, **{**kwargs, "impl": Asked(kwargs.get("impl", "auto"))})
    except Explained as found:
        return found.explanation
    raise AssertionError(f"{name} did not dispatch")
