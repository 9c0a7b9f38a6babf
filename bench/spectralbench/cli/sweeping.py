"""`spectralbench run`: options to a request, progress to stderr, records to stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spectralbench import names
from spectralbench.cli import listing, tables, terminal
from spectralbench.record import Record, record_line
from spectralbench.text import printable

if TYPE_CHECKING:
    from spectralbench.ceilings import Ceilings
    from spectralbench.sweep import Item, Request, Sweep

INTERRUPTED = 130
NOTHING = 3
EVERY_SECONDS = 10.0
"""Between two lines of progress where there is no terminal for a bar."""

BESIDE_LABEL = 38
"""Columns of a bar that are not the case's name: what is too long would squeeze them."""


def run(
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, quick, study, claims, models, gpu or asv.")] = "quick",
    impl: Annotated[list[str] | None, typer.Option("--impl", help="Only these implementations (a,b).")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=V1,V2", help="Values of a parameter instead of the profile's."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Your own shapes of one operation: a column per parameter, a line a case."
        ),
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metrics", help="Only these metrics (a,b).")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs in fresh processes; default 1; claims 3; study, gpu 5.")
    ] = None,
    time_budget: Annotated[float | None, typer.Option(min=0, help="Start no case after this many seconds.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which a case is killed.")] = 300.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure again what is stored already at this commit.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be measured.")] = False,
    results: terminal.Results = Path("results"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    cache: Annotated[str | None, typer.Option(help="warm or cold; default: cold on cuda, warm on cpu.")] = None,
    launch: Annotated[str, typer.Option(help="eager or graph.")] = "eager",
    seed: Annotated[int, typer.Option(help="Seed of the inputs, part of the identity.")] = 0,
    pin: Annotated[
        str | None, typer.Option(metavar="JSON", help="Tiles to run with: a record's `tiles`, or @FILE with them.")
    ] = None,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="Quartiles, every metric, GB/s, GFLOP/s and percent of the floor; 160 columns."),
    ] = False,
    as_json: terminal.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no talk but errors.")] = False,
) -> None:
    """Measure operations and store every case as it is done; running again resumes."""
    terminal.check_operations(operations)
    wanted, names_of_metrics = terminal.split(impl), terminal.split(metrics)
    listing.check_names(device, operations, profile, wanted, assignments(overrides), names_of_metrics)
    with terminal.usage_errors():
        from spectralbench import sweep
        from spectralbench.clock import usual_cache
        from spectralbench.outcome import FailureKind
        from spectralbench.worker import State

        where = sweep.choose_device(device)
        request = sweep.Request(
            operations=tuple(operations or ()),
            profile=profile,
            implementations=wanted,
            overrides=assignments(overrides),
            cases=cases,
            metrics=names_of_metrics,
            seed=seed,
            processes=processes,
            device=where,
            states=(State(launch, cache or usual_cache(where)),),
            timeout=timeout,
            time_budget=time_budget,
            retry=get_args(FailureKind) if retry_failed else (),
            remeasure=remeasure,
            pin=_pins(pin),
            sources=sweep.SOURCES,
        )
        done = _dry_run(request, results, quiet) if dry_run else swept(request, results, quiet)
    if dry_run:
        _print_plan(done, as_json)
        return
    if as_json:
        for record in done.records:
            sys.stdout.write(record_line(record))
    else:
        console = terminal.data()
        found = tables.rows(done.records)
        ceilings = _ceilings(where) if wide and found else None
        for operation, rows in found.items():
            for table in (
                [tables.operation_table(operation, rows, ceilings)] if wide else tables.case_tables(operation, rows)
            ):
                console.print(table)
    if done.stopped == "interrupt":
        raise typer.Exit(INTERRUPTED)
    if any(record.status == "failed" for record in done.records):
        raise typer.Exit(1)
    if done.records and all(record.status == "skipped" for record in done.records):
        raise terminal.fail("nothing was measured: every case was skipped here; the reasons are above", NOTHING)


def _ceilings(device: str) -> Ceilings:
    from spectralbench.ceilings import ceilings_here

    return ceilings_here(device)


class Bar:
    """How far a sweep is and how long it will take, on stderr; failures are named as they happen.

    A bar on a terminal, count and time left first, because a narrow window cuts off what comes last. Elsewhere a line
    every EVERY_SECONDS, so that a log shows that it goes on.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = terminal.talk()
        self.bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            TextColumn("left,"),
            TextColumn("{task.description}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.lines = not quiet and not self.console.is_terminal
        self.clock = clock
        self.began = self.said = clock()
        self.task = self.bar.add_task("starting", total=None)

    def start(self, item: Item, done: int, total: int) -> None:
        label = names.of_case(item.case, item.pass_)
        shown = label[: max(8, self.console.width - BESIDE_LABEL)].replace("[", r"\[")
        self.bar.update(self.task, description=shown, completed=done, total=total)
        now = self.clock()
        if self.lines and now - self.said >= EVERY_SECONDS:
            self.said = now
            left = f"{timedelta(seconds=round((now - self.began) / done * (total - done)))} left" if done else "first"
            terminal.say(f"{done}/{total} {left}, {label}")

    def finish(self, item: Item, records: Sequence[Record]) -> None:
        self.bar.advance(self.task)
        for record in records:
            if record.status == "failed":
                text = f"failed: {item.label} {record.implementation}: {record.failure}: {record.reason}"
                self.bar.console.print(printable(text), markup=False)


def swept(request: Request, results: Path, quiet: bool) -> Sweep:
    """Sweep with a bar, and say what the table will not; exit with 2 where records cannot be kept."""
    from spectralbench import sweep
    from spectralbench.journal import JournalError
    from spectralbench.worker import WorkerBroken

    watch = Bar(quiet)
    surroundings = _surroundings(request)
    if not quiet:
        _talk_of_others(request)
        for doubt in (busy(surroundings), without_commit(surroundings), shallow(surroundings), foreign(surroundings)):
            if doubt:
                terminal.say(doubt)
    try:
        with watch.bar:
            done = sweep.run(request, results, surroundings, watch)
    except (JournalError, WorkerBroken) as error:
        raise terminal.fail(str(error), 2) from None
    if not quiet:
        _talk_about(done, dry_run=False)
        _talk_about_pins(request, done)
    return done


def busy(surroundings: Mapping[str, Any]) -> str | None:
    """A warning if other work already occupies a core of this machine, or None."""
    load, cores = surroundings.get("load"), surroundings.get("cores")
    if load is None or cores is None or load < 0.5:
        return None
    return (
        f"this machine is busy: load {load:g} on {cores} cores before the start. Times will scatter, and threads that "
        "wait for each other make it worse; stop other work for numbers to keep"
    )


def without_commit(surroundings: Mapping[str, Any]) -> str | None:
    """Why the records name no commit, or None if they do."""
    if surroundings["commit"] is not None:
        return None
    return (
        f"the records name no commit, but the digest {surroundings['source']} of the code: {surroundings['no_commit']}"
    )


def shallow(surroundings: Mapping[str, Any]) -> str | None:
    """A warning if older commits are missing here, or None."""
    if not surroundings.get("shallow"):
        return None
    return "this clone is shallow: `alert` will know no order of older commits; `git fetch --unshallow` gets them"


def foreign(surroundings: Mapping[str, Any]) -> str | None:
    """That the records name more code than a commit has, or None."""
    if not surroundings.get("plugins"):
        return None
    return "code of plug-ins is measured, which no commit of ours names: the records are marked dirty, no baseline"


def _dry_run(request: Request, results: Path, quiet: bool) -> Sweep:
    from spectralbench import sweep

    done = sweep.preview(request, results, _surroundings(request))
    if not quiet:
        _talk_of_others(request)
        _talk_about(done, dry_run=True)
        _talk_about_pins(request, done)
    return done


def _surroundings(request: Request) -> dict[str, Any]:
    """The environment of the records; `only`: what nobody asked for has not vanished. Selections say nothing."""
    from spectralbench import sweep

    facts = sweep.surroundings(request.device, request.pin, _outside(request))
    return {**facts, "only": request.implementations} if request.select is list else facts


def _outside(request: Request) -> str | None:
    """The digest of the plug-ins if the request names an operation of theirs."""
    from spectralbench import plugins
    from spectralbench.workloads import outside

    return plugins.digest() if outside().operations.keys() & set(request.operations) else None


def _talk_of_others(request: Request) -> None:
    """Plug-ins that are broken, and those that a request without names leaves out."""
    from spectralbench.workloads import outside

    terminal.say_broken(outside().broken)
    if outside().operations and not request.operations:
        terminal.say(f"not among all, operations of plug-ins are run by name: {', '.join(outside().operations)}")


def _talk_about(done: Sweep, dry_run: bool) -> None:
    """What a reader of the table must know and the table does not say."""
    for damage in done.damage:
        terminal.say(f"damaged record skipped: {damage}")
    skipped = Counter(
        (record.operation, record.implementation, record.reason)
        for record in done.records
        if record.status == "skipped"
    )
    for (operation, implementation, reason), count in skipped.items():
        terminal.say(f"skipped: {operation} {implementation} in {count} cases: {reason}")
    for note in dict.fromkeys(
        record.reason for record in done.records if record.status == "measured" and record.reason
    ):
        terminal.say(f"note: {note}")
    if done.reused:
        terminal.say(f"{done.reused} records were stored already by an earlier run at this commit")
    for other, count in done.elsewhere.items():
        verb = "to be measured" if dry_run else "measured"
        terminal.say(
            f"{verb} again: {count} records of this commit come from other conditions and do not serve: {other}"
        )
    if done.path is not None:
        terminal.say(f"records: {done.path}")
    if done.left and not dry_run:
        first = ", ".join(names.of_case(item.case, item.pass_) for item in done.left[:3]) + (
            ", ..." if len(done.left) > 3 else ""
        )
        terminal.say(f"stopped by the {done.stopped}; {len(done.left)} cases are left: {first}")
        terminal.say(f"resume with the same command: {shlex.join(['spectralbench', *sys.argv[1:]])}")


def _talk_about_pins(request: Request, done: Sweep) -> None:
    """Pins that no launch took, which a slip of the pen looks like."""
    taken = {
        label for record in done.records for label, tile in (record.tiles or {}).items() if tile["source"] == "pin"
    }
    for pin in request.pin:
        if not any(label == pin or label.startswith(f"{pin}[") for label in taken):
            known = sorted({label for record in done.records for label in record.tiles or {}})
            terminal.say(f"no launch took the pin {pin!r}; these chose a tile: {', '.join(known) or 'none'}")


def _print_plan(done: Sweep, as_json: bool) -> None:
    """One line per case that would be measured, in order."""
    for item in done.left:
        if as_json:
            entry = {
                "operation": item.operation.name,
                "case": dict(item.case.params),
                "dtype": item.case.dtype,
                "pass": item.pass_,
                "seed": item.case.seed,
                "replicate": item.replicate,
                "implementations": item.implementations,
            }
            terminal.out(json.dumps(entry))
        else:
            terminal.out(f"{item.label} process {item.replicate}: {', '.join(item.implementations)}")
    if not as_json:
        terminal.out(f"{len(done.left)} cases to measure, {done.reused} records stored already")


def assignments(texts: list[str] | None) -> dict[str, str]:
    """`name=v1,v2` texts by name."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise terminal.fail(f"--set takes NAME=VALUE[,VALUE]..., got {text!r}; e.g. --set compression=0.5,0.8", 2)
        known = found.get(name.strip())
        found[name.strip()] = f"{known},{values}" if known else values
    return found


def _pins(text: str | None) -> dict[str, dict[str, int]]:
    """Tiles by label or site from JSON, without the note of who chose them."""
    if text is None:
        return {}
    try:
        given = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
        return {
            label: {name: int(value) for name, value in tile.items() if name != "source"}
            for label, tile in given.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise terminal.fail(
            f"--pin takes a record's `tiles` as JSON, or @FILE, such as "
            f'\'{{"dft_triton.contract": {{"m": 64}}}}\'; got {text!r}: {error}',
            2,
        ) from None
