"""Numbers as people read them: SI and binary prefixes, and ratios in words (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable

_DECIMAL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BINARY = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"), (1, "B"))
_SYMBOLS = {"second": "s", "joule": "J"}
_WORSE_BETTER = {"second": ("slower", "faster"), "byte": ("more", "less"), "joule": ("more", "less")}


def scale(values: Iterable[float], unit: str) -> tuple[float, str]:
    """The factor to divide by, and the symbol to show, so that the largest value reads as 1 to 999.

    Seconds and joules take a decimal prefix, bytes a binary one, anything else none.
    """
    largest = max((abs(value) for value in values), default=0.0)
    if unit == "byte":
        return next(((float(size), name) for size, name in _BINARY if largest >= size), (1.0, "B"))
    if unit in _SYMBOLS:
        prefixes = ((size, prefix) for size, prefix in _DECIMAL if largest >= size * 0.9995)
        size, prefix = next(prefixes, _DECIMAL[0] if largest == 0 else _DECIMAL[-1])
        return size, f"{prefix}{_SYMBOLS[unit]}"
    return 1.0, ""


def amount(value: float, unit: str) -> str:
    """One value with its unit: `1.23 ms`, `1.5 MiB`, `3.1e-07`."""
    divisor, symbol = scale((value,), unit)
    number = f"{value / divisor:.3g}" if abs(value / divisor) < 1000 else f"{value / divisor:.0f}"
    return f"{number} {symbol}".rstrip()


def in_percent(share: float) -> str:
    """A share of 1 in two digits, or in whole percent: `29 %`, `0.85 %`, `112 %`."""
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.0f} %"


def microseconds(seconds: float) -> str:
    """A time where the others beside it are of one order, in plain text: `49.3 us`."""
    return f"{seconds * 1e6:.4g} us"


def spread(value: float, low: float, high: float, unit: str) -> str:
    """A value and its interval in one unit: `1.23 [1.2, 1.31] ms`."""
    divisor, symbol = scale((value,), unit)
    return f"{value / divisor:.3g} [{low / divisor:.3g}, {high / divisor:.3g}] {symbol}".rstrip()


def ratio_words(ratio: float | None, unit: str) -> str:
    """New over old in words: `1.22x slower`, `1.10x less`, `the same`; None means the old value was zero."""
    if ratio is None:
        return "up from zero"
    worse, better = _WORSE_BETTER.get(unit, ("larger", "smaller"))
    if ratio <= 0:
        return f"down to zero, {better}"
    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{_times(ratio)} {worse}" if ratio > 1 else f"{_times(1 / ratio)} {better}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:.0f}x"
