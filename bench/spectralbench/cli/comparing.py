"""`spectralbench compare A B`: is B faster than A, and still right?"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectralbench.cli import terminal

if TYPE_CHECKING:
    from spectralbench.compare import Ratio


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Commit, branch, tag, '.' (working tree) or a record file.")],
    b: Annotated[str, typer.Argument(metavar="[B]", help="The same; default: the working tree.")] = ".",
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    impl: Annotated[list[str] | None, typer.Option("--impl", help="Kernels to compare (a,b); default: all.")] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", help="Baselines to hold them against (a,b).")
    ] = None,
    profile: Annotated[str, typer.Option(help="Which cases; see `spectralbench run`.")] = "quick",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=V1,V2")] = None,
    launch: Annotated[str, typer.Option(help="eager or graph.")] = "eager",
    pairs: Annotated[int, typer.Option(min=2, help="Processes of each side.")] = 4,
    margin: Annotated[float, typer.Option(min=0.001, help="Ratios this near to 1 are the same.")] = 0.03,
    time_budget: Annotated[float, typer.Option(min=1, help="Seconds for all processes together.")] = 170.0,
    own_harness: Annotated[
        bool, typer.Option("--own-harness", help="Measure each commit by its own harness, not by this one.")
    ] = False,
    as_json: terminal.Json = False,
) -> None:
    """Measure two states A B B A in fresh processes and say for each kernel: faster, the same, slower, cannot tell."""
    from spectralbench import compare as comparing

    try:
        if Path(a).is_file() and Path(b).is_file():
            sides = {"A": comparing.processes_of([Path(a)]), "B": comparing.processes_of([Path(b)])}
            controls = terminal.split(control) or ()
        else:
            controls = terminal.split(control) or _usual_controls(operations)
            arguments = [*(operations or ()), "--profile", profile, "--launch", launch]
            arguments += ["--metrics", "device_time,rounding_error"]
            if impl:
                arguments += ["--impl", ",".join([*(terminal.split(impl) or ()), *controls])]
            for text in overrides or ():
                arguments += ["--set", text]
            what = comparing.Sweep(tuple(arguments), time_budget / (2 * pairs), own_harness)
            repository = Path.cwd()
            with tempfile.TemporaryDirectory(prefix="compare-") as folder:
                scratch = Path(folder)
                with (
                    comparing.checkout(a, repository, scratch) as first,
                    comparing.checkout(b, repository, scratch) as second,
                ):
                    sides = comparing.race({"A": first, "B": second}, what, pairs, scratch, terminal.say)
        found = comparing.judge(sides["A"], sides["B"], controls, margin)
    except comparing.CompareError as error:
        raise terminal.fail(str(error), 2) from None
    if as_json:
        for ratio in found:
            terminal.out(json.dumps(dataclasses.asdict(ratio)))
    else:
        terminal.out("\n".join(lines(a, b, found)))
    raise typer.Exit(comparing.exit_code(found))


def lines(a: str, b: str, found: Sequence[Ratio]) -> list[str]:
    """The answer in the first line, then a line per series."""
    counts = {word: sum(ratio.word == word for ratio in found) for word in dict.fromkeys(r.word for r in found)}
    said = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing to compare"
    return [f"{b} against {a}: {said}", *(_line(ratio) for ratio in found)]


def _line(ratio: Ratio) -> str:
    operation, implementation, case, dtype, pass_, *_ = ratio.series
    where = f"{operation} {implementation} {dtype} {pass_} [{case}]"
    if ratio.why is not None:
        return f"{ratio.word:11} {where}: {ratio.why}"
    within = f" [{ratio.interval[0]:.3f}, {ratio.interval[1]:.3f}]" if ratio.interval else ""
    held = f" over {', '.join(ratio.control)}" if ratio.control else ""
    more = f"; about {ratio.needed} pairs would tell" if ratio.needed else ""
    exact = ""
    if ratio.errors is not None and ratio.errors[0] != ratio.errors[1]:
        exact = f"; error {ratio.errors[0]:.1e} -> {ratio.errors[1]:.1e}"
    return f"{ratio.word:11} {ratio.ratio:.3f}x{within} {ratio.pairs} pairs{held}{more}{exact}  {where}"


def _usual_controls(operations: Sequence[str] | None) -> tuple[str, ...]:
    """The first baseline that every operation declares: an implementation of somebody else's."""
    from spectralbench import sweep
    from spectralbench.worker import resolve

    with terminal.usage_errors():
        chosen = sweep.choose_operations(operations or (), resolve(sweep.SOURCES.operations)())
    first = [next((s.name for s in operation.subjects if s.role == "baseline"), None) for operation in chosen]
    return tuple(dict.fromkeys(name for name in first if name is not None))
