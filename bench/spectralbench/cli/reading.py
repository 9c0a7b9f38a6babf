"""The verbs that read the stored history: `plot`, `report`, `alert`. None needs torch or a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spectralbench.cli import terminal
from spectralbench.record import Damage
from spectralbench.text import meant

if TYPE_CHECKING:
    from spectralbench.alert import Finding
    from spectralbench.history import History

NOTHING_TO_JUDGE = 3
EVERY = "all"
Form = Literal["text", "github"]


def plot(
    figures: Annotated[list[str] | None, typer.Argument(metavar="FIGURE", help="Default: all.")] = None,
    results: terminal.Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Default: figures/ in the results folder.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
    why: Annotated[bool, typer.Option("--why", help="Say of everything that was not drawn why not.")] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Not results, but what operations do to photographs; needs torch.")
    ] = False,
    as_json: terminal.Json = False,
) -> None:
    """Draw the figures from the stored results, or pictures of the mathematics."""
    os.environ["MPLBACKEND"] = "agg"  # files are written: a notebook's backend may not even exist here
    if pictures:
        if machine is not None:
            raise terminal.fail("--pictures are of no machine; leave --machine out", 2)
        _draw_pictures(out or results / "figures" / "pictures", figures or (), as_json)
        return
    from spectralbench.plot import FIGURES, draw_all

    try:
        gallery = draw_all(results, out or results / "figures", machine, only=tuple(figures or FIGURES))
    except (ModuleNotFoundError, OSError, ValueError) as error:
        raise terminal.fail(terminal.spoken(error), 2) from None
    if why:
        for name, figure, reason in gallery.skipped:
            terminal.say(f"not drawn: {figure} of {name}: {reason}")
    elif gallery.skipped:
        terminal.say(f"not drawn: {len(gallery.skipped)} more, for want of data or of room; `--why` says what and why")
    for path in gallery.removed:
        terminal.say(f"removed, the results no longer give it: {path}")
    for path in gallery:
        terminal.out(json.dumps({"path": str(path)}) if as_json else str(path))
    if not len(gallery):
        raise typer.Exit(NOTHING_TO_JUDGE)


def _draw_pictures(out: Path, only: Sequence[str], as_json: bool) -> None:
    from spectralbench.pictures import draw_all, names

    for name in only:
        if name not in names():
            raise terminal.fail(f"unknown picture {name!r}{meant(name, names())}", 2)
    from spectralkernels.errors import Unsupported

    try:
        for path in draw_all(out, only):
            terminal.out(json.dumps({"path": str(path)}) if as_json else str(path))
    except (OSError, Unsupported) as error:
        raise terminal.fail(str(error), 2) from None
    except ModuleNotFoundError as missing:
        raise terminal.fail(f"pictures need {missing.name}: pip install 'spectralbench[plots,images]'", 2) from None


def report(
    results: terminal.Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Default: REPORT.md in the results folder.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all.")] = None,
) -> None:
    """Write REPORT.md and index.html: what won where, from where on, at what price, what changed, where we lose."""
    from spectralbench import report as reporting

    try:
        path = reporting.write(results, out or results / "REPORT.md", machine)
    except (OSError, ValueError) as error:
        raise terminal.fail(terminal.spoken(error), 2) from None
    terminal.out(str(path))
    terminal.out(str(path.with_name("index.html")))


def alert(
    results: terminal.Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Also write alert.md and alert.json into this folder.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[:SERIES]=PERCENT%[!]",
            help="A practical limit, e.g. device_time:conv2d*=3%; with ! better fails too. After those of "
            "[tool.spectralbench.alert] rules in the pyproject.toml beside the results; the last that matches counts.",
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="REF", help="A release that slow drift is held against; default: the first.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(metavar="NAME|all", help="Which machine; default: this one, or all where it has no results."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole page instead of at most 20 lines.")] = False,
    form: Annotated[Form, typer.Option("--format", help="text, or github: annotations of a workflow.")] = "text",
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit file: worse series are failures.")] = None,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Time again what is slower, at this commit, before it counts.")
    ] = False,
    processes: Annotated[int, typer.Option(min=3, help="Fresh processes of --remeasure.")] = 5,
    time_budget: Annotated[float | None, typer.Option(min=0, help="Seconds of --remeasure.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Judge the newest commit of every series on this machine; exit 1 on a regression, 3 on too little history."""
    from spectralbench import alert as alerting
    from spectralbench import history

    try:
        loaded = history.load(results)
        _say_damage(loaded.damage)  # of a machine that is unknown because nothing of it can be read, too
        names, scope = _scope(loaded, machine)
        loaded = history.only_machines(loaded, names)
        overrides = alerting.configured(results.resolve().parent / "pyproject.toml")
        overrides += [alerting.parse(text) for text in rule or ()]
        later = None if since is None else _commits_since(since, (results, Path(__file__).parent))
    except (FileNotFoundError, ValueError) as error:
        raise terminal.fail(str(error), 2) from None
    for note in loaded.order.notes:
        terminal.say(note)
    for name, facts in loaded.environments.items():
        if facts.get("commit") is None:
            why = facts.get("no_commit", "git did not say why")
            terminal.say(f"{name}: its newest results name no commit and are a baseline for none: {why}")

    def judged(known: History) -> list[Finding]:
        try:
            return alerting.findings(known, (results, Path(__file__).parent), overrides=overrides, since=later)
        except ValueError as error:
            raise terminal.fail(str(error), 2) from None

    def read() -> History:
        return history.only_machines(history.load(results), names)

    findings = judged(loaded)
    if remeasure:
        findings = _again(loaded, findings, results, processes, time_budget, read, judged)
    doubtful = loaded.doubtful
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "alert.md").write_text(alerting.to_markdown(findings, doubtful, scope), encoding="utf-8")
            (out / "alert.json").write_text(alerting.to_json(findings, doubtful, scope), encoding="utf-8")
        if junit is not None:
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_text(alerting.to_junit(findings, doubtful), encoding="utf-8")
    except OSError as error:
        raise terminal.fail(f"cannot write the alert: {error}", 2) from None
    write = alerting.to_markdown if everything else alerting.to_terminal
    if form == "github":
        write = alerting.to_github
    if as_json:
        write = alerting.to_json
    terminal.out(write(findings, doubtful, scope).rstrip("\n"))
    raise typer.Exit(alerting.exit_code(findings, doubtful))


def _scope(loaded: History, machine: str | None) -> tuple[tuple[str, ...], str]:
    """The machines that are judged, and how an answer says so. ValueError, with the nearest, for an unknown one."""
    from spectralbench.history import only_machine

    known = loaded.machines
    if machine not in (None, EVERY):
        return only_machine(loaded, machine).machines, f"on {machine}"
    if not known:
        return (), ""
    every = f"on {known[0]}" if len(known) == 1 else f"on all {len(known)} machines"
    if machine == EVERY or len(known) == 1:
        return known, every
    try:
        from spectralbench.environment import names_here
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        return known, f"{every} (without torch nobody says which is this one)"
    names = names_here()
    here = tuple(name for name in known if name in names)
    if not here:
        return known, f"{every} (this one, {names[0]}, has no results)"
    others = len(known) - len(here)
    return here, f"on {' and '.join(here)}, this machine" + f" (of {others} more: --machine {EVERY})" * bool(others)


def _commits_since(reference: str, roots: Sequence[Path]) -> frozenset[str]:
    """The commits after a reference on the first-parent line. ValueError if no repository around `roots` knows it."""
    from spectralbench.history.ancestry import after

    found = after(roots, reference, "HEAD")
    if found is None:
        raise ValueError(f"--since takes a commit, tag or branch that git knows here, got {reference!r}")
    return frozenset(found)


def _again(
    loaded: History,
    findings: list[Finding],
    results: Path,
    processes: int,
    time_budget: float | None,
    read: Callable[[], History],
    judged: Callable[[History], list[Finding]],
) -> list[Finding]:
    """The findings after what is slower was timed again; what could not be is said, and stays as it was."""
    if not any(one.verdict.value == "SLOWER" and one.key.metric == "device_time" for one in findings):
        return findings
    from spectralbench import confirm, sweep
    from spectralbench.cli.sweeping import Bar
    from spectralbench.journal import JournalError
    from spectralbench.worker import WorkerBroken

    with terminal.usage_errors():
        surroundings = sweep.surroundings(sweep.choose_device(None))
        plan = confirm.plan(loaded, findings, surroundings, processes, sweep.SOURCES)
    for why, count in plan.refused.items():
        terminal.say(f"not timed again: {count} slower series, {why}")
    if not plan.items:
        return findings
    terminal.say(f"timing again {len(plan.keys)} slower series in {processes} fresh processes each")
    watch = Bar(quiet=False)
    try:
        with watch.bar:
            done = confirm.measure(plan.items, results, surroundings, sweep.SOURCES, time_budget, watch)
    except (JournalError, WorkerBroken) as error:
        raise terminal.fail(str(error), 2) from None
    known, again = confirm.judged_by(read(), loaded, plan.keys, processes)
    if len(again) < len(plan.keys):
        why = f"stopped by the {done.stopped}" if done.stopped else "a process gave no time"
        terminal.say(f"not timed again: {len(plan.keys) - len(again)} slower series, {why}")
    return confirm.told(judged(known), again, processes)


def _say_damage(damage: Iterable[Damage]) -> None:
    for found in damage:
        terminal.say(f"damaged record skipped: {found}")
