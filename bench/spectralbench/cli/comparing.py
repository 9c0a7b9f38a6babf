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
    from spectralbench.compare import Compared


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Commit, branch, tag, '.' (working tree) or a record file.")],
    b: Annotated[str, typer.Argument(metavar="[B]", help="The same; default: the working tree.")] = ".",
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    impl: Annotated[list[str] | None, typer.Option("--impl", help="Kernels to compare (a,b); default: all.")] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", help="Baselines to hold them against too (a,b).")
    ] = None,
    profile: Annotated[str, typer.Option(help="Which cases; see `spectralbench run`.")] = "quick",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=V1,V2")] = None,
    launch: Annotated[str, typer.Option(help="eager or graph.")] = "eager",
    pairs: Annotated[int, typer.Option(min=2, help="Processes of each side, as far as time allows.")] = 8,
    margin: Annotated[float, typer.Option(min=0.001, help="Ratios this near to 1 are the same.")] = 0.03,
    time_budget: Annotated[float, typer.Option(min=1, help="Seconds for all processes together.")] = 170.0,
    own_harness: Annotated[
        bool, typer.Option("--own-harness", help="Measure each commit by its own harness, not by this one.")
    ] = False,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Of one thread, its CPU seconds: for a busy machine.")
    ] = False,
    as_json: terminal.Json = False,
) -> None:
    """Measure two states in turns, in pairs of fresh processes: is each kernel faster, the same, slower, or unclear?"""
    from spectralbench import compare as comparing
    from spectralbench import turns
    from spectralbench.cli.sweeping import assignments

    stored = Path(a).is_file() and Path(b).is_file()
    if cpu_time and (own_harness or stored):
        why = (
            "is how this harness measures" if own_harness else "is for measuring, and record files are read as they are"
        )
        raise terminal.fail(f"--cpu-time {why}; leave one of them out", 2)
    try:
        if stored:
            sides = {"A": comparing.processes_of([Path(a)]), "B": comparing.processes_of([Path(b)])}
            controls = terminal.split(control) or ()
        else:
            controls = terminal.split(control) or ()
            chosen = terminal.split(impl)
            what = turns.RaceRequest(
                tuple(operations or ()), profile, chosen and (*chosen, *controls), assignments(overrides), launch,
                time_budget, own_harness, cpu_time,
            )  # fmt: skip
            repository = Path.cwd()
            with tempfile.TemporaryDirectory(prefix="compare-") as folder:
                scratch = Path(folder)
                with (
                    comparing.checkout(a, repository, scratch) as first,
                    comparing.checkout(b, repository, scratch) as second,
                ):
                    race = turns.race_apart if own_harness else turns.race
                    sides = race({"A": first, "B": second}, what, pairs, scratch, terminal.say)
        found = comparing.judge(sides["A"], sides["B"], controls, margin)
    except turns.CompareError as error:
        raise terminal.fail(str(error), 2) from None
    if as_json:
        for ratio in found:
            terminal.out(json.dumps(dataclasses.asdict(ratio)))
    else:
        terminal.out("\n".join(lines(a, b, found, "CPU seconds of one thread" if cpu_time else "")))
    raise typer.Exit(comparing.exit_code(found))


def lines(a: str, b: str, found: Sequence[Compared], of: str = "") -> list[str]:
    """The answer in the first line, then a line per series. of: what was compared, if not the time of a wall clock."""
    counts = {word: sum(ratio.word == word for ratio in found) for word in dict.fromkeys(r.word for r in found)}
    said = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing to compare"
    return [f"{b} against {a}{of and ', '}{of}: {said}", *(_line(ratio) for ratio in found)]


def _line(ratio: Compared) -> str:
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
