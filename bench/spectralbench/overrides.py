"""`--set name=v1,v2`: values of parameters in the place of those that a profile declares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spectralbench.fields import is_number
from spectralkernels.declare import Operation, Scalar
from spectralkernels.errors import RangeError


def parameters(operation: Operation, profile: str) -> dict[str, list[Scalar]]:
    """The values that a profile declares for each parameter, in declared order."""
    declared: dict[str, list[Scalar]] = {}
    for block in operation.profiles.get(profile, ()):
        for name, values in block.axes.items():
            declared.setdefault(name, []).extend(values)
    return declared


def parse(operation: Operation, profile: str, texts: Mapping[str, str]) -> dict[str, tuple[Scalar, ...]]:
    """The values of `--set name=v1,v2`, each of the type that the operation declares for that parameter.

    Raises: RangeError on an unknown parameter (with the known ones) or a value of another type.
    """
    declared = parameters(operation, profile)
    parsed = {}
    for name, text in texts.items():
        if name not in declared:
            raise RangeError(f"{operation.name} has no parameter {name!r}; it has {', '.join(declared)}")
        parsed[name] = tuple(value(name, part.strip(), declared[name]) for part in text.split(","))
    return parsed


def value(name: str, text: str, declared: Sequence[Scalar]) -> Scalar:
    """`text` as a value of a type that the declared values have; RangeError says what the parameter takes."""
    if all(isinstance(known, bool) for known in declared):
        if text.lower() not in ("true", "false"):
            raise RangeError(f"{name} takes true or false, got {text!r}")
        return text.lower() == "true"
    words = [known for known in declared if isinstance(known, str)]
    numbers = [known for known in declared if not isinstance(known, str)]
    if not numbers or text in words:
        return text
    kind = int if all(isinstance(known, int) for known in numbers) else float
    try:
        number = kind(text)
    except ValueError:
        wanted = "integers" if kind is int else "numbers"
        or_words = "".join(f", {word}" for word in dict.fromkeys(words))
        raise RangeError(f"{name} takes {wanted}, such as {numbers[0]}{or_words}, got {text!r}") from None
    if not is_number(number) and (kind is int or math.isfinite(number)):  # the operation refuses what is not finite
        raise RangeError(f"{name} must be a number that a record can hold, of 64 bits, got {text!r}")
    # A declared value is taken as it is written there, so that the case has the same id (0, not 0.0).
    return next((known for known in numbers if known == number), number)
