"""What an operation lists can serve it, and is called as it declares: by keyword, with the types that it names."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from spectralkernels.convolution import fused_depthwise, fused_series
from spectralkernels.declare import Case, Implementation, Operation
from spectralkernels.ops import load_operations

OPERATIONS = list(load_operations().values())


def cases(operation: Operation) -> Iterator[Case]:
    """The smoke cases, and where there is a compression the same without one: the library convolutions' only ones."""
    yield from (case for case, _ in operation.cases("smoke"))
    if any("compression" in block.axes for block in operation.profiles["smoke"]):
        yield from (case for case, _ in operation.cases("smoke", {"compression": (0.0,)}))


def inputs_of(subject: Implementation, inputs: dict[str, Any]) -> dict[str, Any]:
    """What its call takes; float32 inputs can be prepared by everybody."""
    return subject.prepare(**inputs) if subject.prepare else inputs


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda found: found.name)
def test_whoever_is_listed_serves_a_case(operation: Operation) -> None:
    waiting = {subject.name: subject for subject in operation.subjects}
    reasons: dict[str, str] = {}
    for case in cases(operation):
        if not waiting:
            break
        inputs = operation.make_inputs(case, "cpu")
        for name, subject in list(waiting.items()):
            why = subject.supports(**inputs_of(subject, inputs))
            if why is None:
                del waiting[name]
            else:
                reasons[name] = why
    assert not waiting, {name: reasons[name] for name in waiting}


def test_maps_and_series_have_catalogues_of_their_own() -> None:
    one, two = (
        {subject.name for subject in load_operations()[f"band_limited_conv{axes}d"].subjects} for axes in (1, 2)
    )
    planes, series = ({found.name for found in each.IMPLEMENTATIONS} for each in (fused_depthwise, fused_series))
    assert planes <= two and not planes & one
    assert series <= one and not series & two
    assert {name for name in one - two if name not in series} == set()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda found: found.name)
def test_calls_take_the_inputs_by_keyword_and_as_the_types_that_they_name(operation: Operation) -> None:
    case = next(iter(cases(operation)))
    inputs = operation.make_inputs(case, "cpu")
    for subject in operation.subjects:
        given = inputs_of(subject, inputs)
        assert misfits(subject.call, given) == [], subject.name
        inspect.signature(subject.supports).bind(**given)
    for answer in (operation.reference, operation.ideal):
        if answer is not None:
            inspect.signature(answer).bind(**inputs)


def misfits(call: Any, given: Mapping[str, Any]) -> list[str]:
    """What `call` does not declare of the inputs that it is given, or declares as another type."""
    signature = inspect.signature(call)
    signature.bind(**given)
    hints = get_type_hints(getattr(call, "func", call))
    parameters = signature.parameters
    rest = next((name for name, each in parameters.items() if each.kind is each.VAR_KEYWORD), None)
    found = []
    for name, value in given.items():
        known = name if name in parameters else rest
        assert known is not None, "bind would have refused it"
        if known not in hints:
            found.append(f"{name} has no type")
        elif not fits(value, hints[known]):
            found.append(f"{name} is no {hints[known]}: {value!r:.40}")
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as it can be told by looking at it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if origin is tuple:
        return isinstance(value, tuple) and (inner[-1] is ... or len(inner) == len(value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def test_a_wrong_type_and_a_missing_keyword_are_seen() -> None:
    """Planted faults."""

    def call(x: float, size: tuple[int, int], names: Sequence[str] = (), **rest: str) -> float:
        return x

    assert misfits(call, {"x": 1, "size": (1, 2)}) == []
    assert misfits(call, {"x": "1", "size": (1, 2, 3), "other": 4}) == [
        "x is no <class 'float'>: '1'",
        "size is no tuple[int, int]: (1, 2, 3)",
        "other is no <class 'str'>: 4",
    ]
    with pytest.raises(TypeError, match="missing a required argument: 'size'"):
        misfits(call, {"x": 1.0})
    assert misfits(lambda x: x, {"x": 1}) == ["x has no type"]
