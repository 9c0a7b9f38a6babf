"""`spectralbench fingerprint`: what the compiler makes of every kernel, stored or compared with what is stored.

It needs triton but no GPU. The numbers are evidence of change, not times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spectralbench.cli import terminal
from spectralbench.fingerprint import compare, sass, stored
from spectralbench.fingerprint.compare import Change
from spectralbench.fingerprint.stored import Fingerprint

if TYPE_CHECKING:
    from spectralbench.fingerprint.collect import Watched

CAVEAT = "fingerprints are evidence of change in the machine code, not times"
STYLES = {"worse": "bold red", "changed": "yellow", "segment": "cyan", "new": "cyan", "gone": "cyan"}


def fingerprint(
    kernels: Annotated[list[str] | None, typer.Argument(metavar="KERNEL", help="Default: all.")] = None,
    arch: Annotated[list[str] | None, typer.Option(help="Compute capabilities; default 80,90,100.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what is stored and store nothing; exit 1 if worse.")
    ] = False,
    because: Annotated[str | None, typer.Option(help="Reason, stored with whatever changed.")] = None,
    as_stored: Annotated[
        bool, typer.Option("--stored", help="Print what is stored, compile nothing: the figures of results/KERNELS.md.")
    ] = False,
    results: terminal.Results = Path("results"),
    as_json: terminal.Json = False,
) -> None:
    """Compile the kernels for GPUs that need not be here, and store or check what came of it: no times."""
    if check and because is not None:
        raise terminal.fail("--because is for storing; leave it out with --check", 2)
    if as_stored and (check or because is not None):
        raise terminal.fail("--stored compiles nothing; leave out --check and --because", 2)
    folder = results / "fingerprints"
    try:
        old = stored.load(folder)
    except ValueError as error:
        raise terminal.fail(str(error), 2) from None
    if as_stored:
        _print(_chosen(old.values(), kernels or (), _capabilities(arch)), as_json)
        return
    with terminal.usage_errors():
        from spectralbench.fingerprint import collect
        from spectralkernels.errors import Unsupported

        capabilities = _capabilities(arch) or collect.CAPABILITIES
        collect.check_capabilities(capabilities)
        try:
            declared = collect.watched_launches()
            chosen = collect.choose(declared, kernels or ())
            fresh = _compile(chosen, capabilities, afresh=not check)
        except Unsupported as error:
            raise terminal.fail(str(error), 2) from None
        except OSError as error:
            why = f"the kernels cannot be compiled: {error}; set TRITON_CACHE_DIR to a folder that can be written"
            raise terminal.fail(why, 2) from None
    names = {watched.kernel for watched in chosen}
    if check:
        expected = names if kernels else names | {kernel for kernel, _, _ in old}
        _report(compare.compare(old, fresh, expected), as_json)
        return
    launches = {kernel: [watched.launch for watched in declared if watched.kernel == kernel] for kernel in names}
    try:
        removed = [] if kernels else stored.prune(folder, names)
        written = stored.save(folder, _of_kernels(stored.merged(old, fresh, launches, because), names))
    except OSError as error:
        raise terminal.fail(f"cannot write the fingerprints to {folder}: {error}", 2) from None
    _print(fresh, as_json)
    for path in written:
        terminal.say(f"written: {path}")
    for path in removed:
        terminal.say(f"removed, its kernel is gone: {path}")
    if not written and not removed:
        terminal.say(f"nothing changed in {folder}")


def _capabilities(arch: list[str] | None) -> tuple[int, ...]:
    names = terminal.split(arch) or ()
    try:
        return tuple(int(name.removeprefix("sm_")) for name in names)
    except ValueError:
        raise terminal.fail(f"--arch takes numbers such as 80,90,100, got {','.join(names)}", 2) from None


def _chosen(old: Iterable[Fingerprint], kernels: Sequence[str], capabilities: Sequence[int]) -> list[Fingerprint]:
    """Those of these kernels and architectures, of all where none is named; a name may stop short."""
    found = list(old)
    known = sorted({fingerprint.kernel for fingerprint in found})
    for name in kernels:
        if not any(f"{kernel}.".startswith(f"{name}.") for kernel in known):
            raise terminal.fail(f"nothing is stored of a kernel {name!r}; known: {', '.join(known) or 'none'}", 2)
    for capability in {*capabilities} - {fingerprint.capability for fingerprint in found}:
        raise terminal.fail(f"nothing is stored for sm_{capability}; leave out --arch to see what is", 2)
    return [
        fingerprint
        for fingerprint in found
        if (not kernels or any(f"{fingerprint.kernel}.".startswith(f"{name}.") for name in kernels))
        and (not capabilities or fingerprint.capability in capabilities)
    ]


def _of_kernels(found: Iterable[Fingerprint], kernels: set[str]) -> list[Fingerprint]:
    return [fingerprint for fingerprint in found if fingerprint.kernel in kernels]


def _compile(chosen: Sequence[Watched], capabilities: Sequence[int], *, afresh: bool) -> list[Fingerprint]:
    from spectralbench.fingerprint import collect

    console = terminal.talk()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=len(chosen) * len(capabilities))
        for fingerprint in collect.fingerprints(chosen, capabilities, afresh=afresh):
            found.append(fingerprint)
            bar.update(task, advance=1, description=f"compiling {fingerprint.kernel}")
    return found


def _print(found: Sequence[Fingerprint], as_json: bool) -> None:
    if as_json:
        for fingerprint in found:
            terminal.out(json.dumps(asdict(fingerprint), sort_keys=True))
        return
    console = terminal.data()
    for kernel in dict.fromkeys(fingerprint.kernel for fingerprint in found):
        console.print(_table(kernel, [fingerprint for fingerprint in found if fingerprint.kernel == kernel]))
    terminal.say(CAVEAT)


def _table(kernel: str, found: Sequence[Fingerprint]) -> Table:
    table = Table(title=escape(kernel), title_justify="left")
    table.add_column("launch")
    titles = ("sm", "registers", "spilled B", "shared B", "instructions", "FFMA", "matrix", "load", "store", "warps/SM")
    for title in (*titles, "limited by", "compile s"):
        table.add_column(title, justify="right", no_wrap=title != "limited by")
    launch = None
    for fingerprint in found:
        multiply_adds = fingerprint.opcodes.get("FFMA", 0) + 2 * fingerprint.opcodes.get("FFMA2", 0)
        products = sass.tensor_cores(fingerprint.opcodes)
        numbers = (
            fingerprint.capability,
            fingerprint.registers,
            fingerprint.spills,
            fingerprint.shared,
            fingerprint.instructions,
            multiply_adds,
            compare.matrix_words(products) if products else "-",
            f"{fingerprint.widest_load} bit",
            f"{fingerprint.widest_store} bit",
            fingerprint.resident_warps,
            fingerprint.limited_by,
            "cached" if fingerprint.compile_seconds is None else fingerprint.compile_seconds,
        )
        table.add_row(escape(fingerprint.launch) if fingerprint.launch != launch else "", *map(str, numbers))
        launch = fingerprint.launch
    return table


def _report(changes: Sequence[Change], as_json: bool) -> None:
    different = [change for change in changes if change.verdict != "same"]
    if as_json:
        for change in changes:
            terminal.out(json.dumps({**asdict(change), "words": change.words}, sort_keys=True))
    elif different:
        table = Table(title="machine code against what is stored", title_justify="left")
        for title in ("verdict", "kernel", "launch", "sm", "what changed"):
            table.add_column(title)
        for change in different:
            cells = (change.verdict, change.kernel, change.launch, str(change.capability), change.words)
            table.add_row(*map(escape, cells), style=STYLES[change.verdict])
        terminal.data().print(table)
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("same", *STYLES)}
    terminal.say(", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number) or "nothing compiled")
    if different:
        terminal.say("meant? store it with `spectralbench fingerprint --because REASON`, and commit it")
    terminal.say(CAVEAT)
    raise typer.Exit(compare.exit_code(changes))
