"""`spectralbench history`: what is stored, point by point, whether it is whole, and another name for a machine.

None of it needs torch.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spectralbench.cli import terminal
from spectralbench.text import meant, printable

if TYPE_CHECKING:
    from spectralbench.alert import Finding
    from spectralbench.history import History, Point, Series

NOTHING = 3
MOST_SERIES = 20

app = typer.Typer(name="history", no_args_is_help=True, help="Show what is stored; it is never rewritten.")


@app.command("list")
def list_(
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """List the commits that were measured on each machine, oldest first in the order of git."""
    loaded = _load(results, machine)
    points: dict[tuple[str, str, str | None, str | None], list[Point]] = {}
    for series in loaded.series:
        subject = series.key.subject
        for point in (*series.points, *series.aside):
            points.setdefault((subject.machine, subject.via, point.commit, point.dirty), []).append(point)
    rows = []
    for (name, via, commit, dirty), found in points.items():
        first = min(point.recorded_at for point in found)
        place = loaded.order.place(commit, first)
        rows.append(
            {
                "machine": name,
                "via": via,
                "place": place or (2, 0, first),
                "commit": commit,
                "dirty": dirty,
                "first": first[:19],
                "values": len(found),
                "processes": max(len(point.processes) for point in found),
                "wrong": sum(point.wrong for point in found),
                "note": "aside" if place is None else "",
            }
        )
    rows.sort(key=lambda row: (row["machine"], row["via"], row.pop("place")))
    _print(rows, "what was measured", as_json)


@app.command()
def show(
    series: Annotated[str, typer.Argument(help="Part of a series' name, or a pattern such as 'conv2d*device_time'.")],
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help=f"More than {MOST_SERIES} series too.")] = False,
    as_json: terminal.Json = False,
) -> None:
    """Show the points of the series whose name holds a text: values, processes and what changed around them."""
    loaded = _load(results, machine)
    found = [one for one in loaded.series if series in str(one.key) or fnmatchcase(str(one.key), f"*{series}*")]
    if not found:
        metrics = ", ".join(sorted({one.key.metric for one in loaded.series})) or "none"
        raise terminal.fail(f"no series is named like {series!r}; metrics: {metrics}", NOTHING)
    for one in found if everything or as_json else found[:MOST_SERIES]:
        _print(list(_points(one)), f"{one.key} [{one.key.subject.machine}], {one.key.unit}", as_json)
    if len(found) > MOST_SERIES and not (everything or as_json):
        terminal.say(f"{len(found) - MOST_SERIES} more series; --all shows them")


@app.command()
def crossovers(
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Show from which kernel size, compression, beta or density on each kernel pays, commit by commit."""
    from spectralbench import contest
    from spectralbench.crossings import crossings
    from spectralbench.history import current, only_machine
    from spectralbench.settings import VIEWS, settings

    for name in operations or ():
        if name not in VIEWS:
            raise terminal.fail(f"no crossovers of {name!r}; operations that have them: {', '.join(VIEWS)}", 2)
    loaded = current(_load(results, machine))
    nothing = (-1, 0, "")
    rows = []
    for one in loaded.machines:
        cases = contest.cases(only_machine(loaded, one))
        for operation in operations or VIEWS:
            for setting in settings(operation, cases.get(operation, [])):
                for found in crossings(
                    setting, lambda point: loaded.order.place(point.commit, point.recorded_at) or nothing
                ):
                    rows.append({"machine": one, **found.as_dict()})
    if not rows:
        raise terminal.fail("no kernel and rival were measured at three places by one process", NOTHING)
    hidden = () if as_json else ("recorded_at", "value", "low", "high", "processes", "judged", "axis")
    _print([{name: value for name, value in row.items() if name not in hidden} for row in rows],
           "from where on it pays", as_json)  # fmt: skip


@app.command()
def check(
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Read every stored file anew and say what is damaged in it, or not where it belongs; exit 1 if anything is."""
    from spectralbench import asv_files
    from spectralbench.record import read_tree

    if not results.is_dir():
        raise terminal.fail(f"expected a folder of results, got {results}", 2)
    files = [found for found in read_tree(results / "records") if machine in (None, found.path.parent.name)]
    rows = [
        {"file": str(found.path.relative_to(results)), "line": damage.line, "fault": damage.why}
        for found in files for damage in found.damage
    ]  # fmt: skip
    for found in files:
        told = None if found.environment is None else found.environment.get("machine")
        if told is not None and told != found.path.parent.name:
            rows.append({"file": str(found.path.relative_to(results)), "line": 1, "fault": f"of machine {told!r}"})
    asv, damages = asv_files.read_tree(results / "asv") if machine is None else ((), ())
    rows += [{"file": str(one.path.relative_to(results)), "line": one.line, "fault": one.why} for one in damages]
    if not files and not asv and not rows:
        raise terminal.fail(
            f"nothing is stored in {results}" + f" of machine {machine!r}" * (machine is not None), NOTHING
        )
    _print(rows, "what cannot be used", as_json)
    count = sum(len(found.records) for found in files)
    terminal.say(f"{len(files)} record files with {count} records, {len(asv)} of asv: {len(rows) or 'no'} faults")
    raise typer.Exit(1 if rows else 0)


@app.command()
def bisect(
    series: Annotated[str, typer.Argument(help="Part of a series' name, or a pattern; default: all.")] = "",
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Say between which measured commits series changed, and which of those between to measure next."""
    from spectralbench import alert
    from spectralbench.history.ancestry import after

    loaded = _load(results, machine)
    roots = (results, Path(__file__).parent)
    changed: dict[tuple[str, str], list[Finding]] = {}
    for found in alert.findings(loaded, roots):
        named = series in str(found.key) or fnmatchcase(str(found.key), f"*{series}*")
        if named and found.since and found.changed_at and found.verdict is not alert.Verdict.CANNOT_TELL:
            changed.setdefault((found.since, found.changed_at), []).append(found)
    if not changed:
        raise terminal.fail("no series changed between two commits, so there is nothing to look for", NOTHING)
    rows = []
    for (since, until), findings in changed.items():
        between = (after(roots, since, until) or [])[:-1]
        widest = max(findings, key=lambda one: abs(math.log(one.ratio)) if one.ratio and one.ratio > 0 else 0.0)
        rows.append(
            {
                "last before": since[:8],
                "changed at": until[:8],
                "between": len(between),
                "measure next": between[len(between) // 2] if between else "",
                "series": len(findings),
                "most": f"{widest.words}: {widest.key}",
            }
        )
        if between:
            terminal.say(_how(between[len(between) // 2], findings, results))
    _print(rows, "where to look", as_json)


@app.command()
def rekey(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The machine's name in the files.")],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The name that it shall have; see `spectralbench machine`.")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FACT=VALUE", help="Only files whose first line says so, e.g. cpu_capability=AVX2."),
    ] = None,
    results: terminal.Results = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
) -> None:
    """Copy a machine's files to another name; only the first line of a copy differs, and the originals stay."""
    from spectralbench import rekey as rekeying

    wanted = {}
    for text in where or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise terminal.fail(f"--where takes FACT=VALUE, got {text!r}", 2)
        wanted[name] = value
    made = []
    try:
        for copy in rekeying.rekey(results, old, new, wanted, write=not dry_run):
            if copy.left is None:
                made.append(copy)
                terminal.out(str(copy.new))
            else:
                terminal.say(f"not copied: {copy.old.name}: {copy.left}")
    except (rekeying.RekeyError, OSError) as error:
        raise terminal.fail(str(error), 2) from None
    if not made:
        raise terminal.fail("nothing to copy; the reasons are above", NOTHING)
    if not dry_run:
        terminal.say(
            f"{len(made)} files are below {new} now; the originals stay in the history too until you remove them:"
        )
        terminal.say(f"git rm {' '.join(str(copy.old) for copy in made)}")


@app.command()
def export(
    target: Annotated[
        Path, typer.Argument(help="FILE.csv, FILE.parquet, or a folder for asv; see there how to publish.")
    ],
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metrics", help="Only these metrics (a,b).")] = None,
) -> None:
    """Write the points of the records as a table, or as what `asv publish` makes its page of."""
    from spectralbench import export as exporting

    loaded = _load(results, machine)
    if wanted := terminal.split(metrics):
        known = sorted({series.key.metric for series in loaded.series})
        for name in wanted:
            if name not in known:
                raise terminal.fail(f"no points of metric {name!r}{meant(name, known)}", 2)
        loaded = replace(loaded, series=tuple(one for one in loaded.series if one.key.metric in wanted))
    try:
        if target.suffix:
            count = exporting.write_table(loaded, target)
            terminal.say(f"{count} points: {target}")
            return
        count = exporting.write_asv(loaded, target, Path.cwd())
    except exporting.GIT_ERRORS as error:
        raise terminal.fail(f"asv needs the repository of the commits, run this inside it: {error}", 2) from None
    except (ValueError, ImportError, OSError) as error:
        raise terminal.fail(terminal.spoken(error), 2) from None
    terminal.say(f"{count} commits: asv --config {target / 'asv.conf.json'} publish")
    terminal.say(f"for a page that needs no network, then: spectralbench history offline {target / 'html'}")


@app.command()
def offline(
    page: Annotated[Path, typer.Argument(help="The folder that `asv publish` wrote, with index.html.")],
    packages: Annotated[
        Path | None, typer.Option(help="A folder of `npm pack` archives; default: npm is asked for them.")
    ] = None,
) -> None:
    """Put the scripts that asv's page loads from a network beside it, so that it opens without one."""
    from spectralbench import offline as vendoring

    try:
        count = vendoring.vendor(page, packages)
    except (vendoring.OfflineError, OSError, UnicodeError) as error:
        raise terminal.fail(str(error), 2) from None
    terminal.say(f"{count} files are in {page / vendoring.FOLDER} now; look: python -m http.server -d {page}")


def _how(commit: str, findings: Sequence[Finding], results: Path) -> str:
    """The commands that measure a commit without leaving the one that is checked out."""
    subjects = [one.key.subject for one in findings]
    operations = sorted({subject.operation for subject in subjects})
    names = ",".join(sorted({subject.implementation for subject in subjects}))
    run = ["run", *operations, "--impl", names, "--processes", "3", "--results", str(results.resolve())]
    return (
        f"git worktree add --detach TREE {commit} && PYTHONPATH=TREE/kernels:TREE/bench "
        f"python -m spectralbench {shlex.join(run)}"
    )


def _load(results: Path, machine: str | None) -> History:
    from spectralbench import history

    try:
        loaded = history.only_machine(history.load(results), machine)
    except (FileNotFoundError, ValueError) as error:
        raise terminal.fail(str(error), 2) from None
    for damage in loaded.damage:
        terminal.say(f"damaged record skipped: {damage}")
    for note in loaded.order.notes:
        terminal.say(note)
    return loaded


def _points(series: Series) -> Any:
    from spectralbench.identity import changes

    before = None
    for point in (*series.points, *series.aside):
        yield {
            "commit": point.mark,
            "first": point.recorded_at[:19],
            "value": point.value,
            "q25": point.q25,
            "q75": point.q75,
            "processes": len(point.processes),
            "samples": point.n,
            "conditions": "" if before is None else changes(before.environment, point.environment),
            "note": "wrong" if point.wrong else "aside" if point in series.aside or not series.placed else "",
        }
        before = point


def _print(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    if as_json:
        for row in rows:
            terminal.out(json.dumps({**row, "title": title}))
        return
    if not rows:
        return
    shown = [name for name in rows[0] if any(row[name] not in (None, "", 0) for row in rows)]
    table = Table(title=escape(printable(title)), title_justify="left")
    for name in shown:
        table.add_column(name, no_wrap=name in ("commit", "machine"))
    for row in rows:
        table.add_row(*(escape(printable(_cell(row[name]))) for name in shown))
    terminal.data().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
