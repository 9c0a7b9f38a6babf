"""What a request asks for, held against what there is before anything runs; a wrong name gets the known ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from spectralbench import names, overrides, shapes
from spectralbench.text import meant
from spectralkernels.declare import PROFILES, Case, Operation, Pass
from spectralkernels.errors import RangeError

if TYPE_CHECKING:
    from spectralbench.sweep import Request


def narrowed(request: Request, candidates: Sequence[Operation]) -> list[Operation]:
    """The operations that the request names or, where it names none, all of ours that have the parameters it sets."""
    from spectralbench.workloads import outside

    if not request.operations:
        candidates = [found for found in candidates if found.name not in outside().operations]
    if request.profile not in PROFILES:
        raise RangeError(f"unknown profile {request.profile!r}{meant(request.profile, PROFILES)}")
    if request.cases is not None and (len(candidates) != 1 or request.overrides):
        raise RangeError("a file of cases is of one operation, which must be named, and takes no values beside it")
    offered = dict.fromkeys(known.name for operation in candidates for known in operation.subjects)
    for name in request.implementations or ():
        if name not in offered:
            raise RangeError(f"unknown implementation {name!r}{meant(name, offered)}")
    settable = dict.fromkeys(
        name for operation in candidates for name in overrides.parameters(operation, request.profile)
    )
    for name in request.overrides:
        if name not in settable:
            raise RangeError(f"unknown parameter {name!r} in profile {request.profile!r}{meant(name, settable)}")
    if request.operations:
        return list(candidates)
    return [
        found for found in candidates if set(request.overrides) <= overrides.parameters(found, request.profile).keys()
    ]


def cases(request: Request, operation: Operation) -> Iterator[tuple[Case, Pass, tuple[str, ...]]]:
    """Every case and pass of an operation, with who may run it: those of the file or of the profile.

    RangeError on values that the operation refuses, or that no record can hold.
    """
    everybody = tuple(known.name for known in operation.subjects)
    if request.cases is not None:
        yield from ((case, pass_, everybody) for case, pass_ in shapes.read(request.cases, operation))
        return
    chosen = overrides.parse(operation, request.profile, request.overrides)
    for case, block in operation.cases(request.profile, chosen):
        if chosen and (why := shapes.refusal(operation, case)):
            raise RangeError(f"{names.operation(operation.name)} {names.short(dict(case.params))}: {why}")
        yield from ((case, pass_, block.implementations or everybody) for pass_ in block.passes)


def check_all_run(request: Request, chosen: Sequence[Operation], run: Collection[str]) -> None:
    """An implementation that was asked for by name runs or is refused; it is never left out without a word.

    run: those that have a case in the plan.
    """
    for name in request.implementations or ():
        if name not in run:
            elsewhere = [
                profile
                for profile in PROFILES
                for operation in chosen
                if name in {known.name for known in operation.subjects}
                for block in operation.profiles.get(profile, ())
                if block.implementations is None or name in block.implementations
            ]
            raise RangeError(
                f"implementation {name!r} has no case in profile {request.profile!r} under these --set; profiles that "
                f"run it: {', '.join(dict.fromkeys(elsewhere)) or 'none'}"
            )


def check_metrics(names: Sequence[str] | None) -> None:
    """RangeError on a metric that is unknown; None is fine."""
    if names is None:
        return
    from spectralbench.metrics import load_metrics

    known = load_metrics()
    for name in names:
        if name not in known:
            raise RangeError(f"unknown metric {name!r}{meant(name, known)}")
