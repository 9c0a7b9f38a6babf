"""`spectralbench profile OPERATION`: where the time and the memory of one case go."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectralbench.cli import listing, terminal
from spectralbench.cli.sweeping import assignments
from spectralbench.quantity import amount
from spectralbench.rates import FORWARD_PASSES

if TYPE_CHECKING:
    from spectralbench.ceilings import Ceilings
    from spectralbench.profiling import CaseProfile, Profile
    from spectralbench.sweep import Item

NOTHING = 3
SHOWN_OPERATIONS, LEAST_SHARE = 3, 0.01


def profile(
    operation: Annotated[str, typer.Argument(metavar="OPERATION", help="One operation; see `spectralbench list`.")],
    impl: Annotated[list[str] | None, typer.Option("--impl", help="Only these implementations (a,b).")] = None,
    profile: Annotated[str, typer.Option(help="Whose cases; see `spectralbench run`.")] = "quick",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=V1,V2")] = None,
    case: Annotated[int, typer.Option(min=1, help="Which of the cases that are left, counted from 1.")] = 1,
    every: Annotated[
        bool,
        typer.Option("--every", help="All cases that are left, e.g. of some --set compression: stages in one figure."),
    ] = False,
    both: Annotated[bool, typer.Option("--both", help="Trace forward and backward, not forward alone.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for Chrome traces, figures and profile.json; none without.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Only call --impl once, warm: for ncu, nsys and perf.")] = False,
    proton: Annotated[
        bool, typer.Option("--proton", help="Only the GPU's kernels of --impl, by Triton's proton.")
    ] = False,
    as_json: terminal.Json = False,
) -> None:
    """Stages, torch operations, percent of the roofline, and memory over one training step, of one case."""
    terminal.check_operations([operation])
    listing.check_names(device, [operation], profile, terminal.split(impl), assignments(overrides), None)
    if every and (once or case != 1):
        raise terminal.fail("--every is of all cases; leave --once and --case out", 2)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds of torch talk about every start and stop
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise terminal.fail(f"--out: {error}", 2) from None
    with terminal.usage_errors():
        from spectralbench import profiling, sweep
        from spectralbench.ceilings import ceilings_here
        from spectralbench.clock import clock_for

        where = sweep.choose_device(device)
        items = _left(operation, profile, terminal.split(impl), overrides, where)
        passes: Any = "both" if both else "forward"
        if every:
            _profile_every(items, passes, where, out, as_json)
            return
        item = _chosen(items, case)
        if once:
            _call_once(item, passes, where)
            return
        if proton:
            _print_kernels(item, passes, where, as_json)
            return
        clock = clock_for(where)
        found = profiling.profile_case(
            item.operation, item.case, item.implementations, device=where, pass_=passes, clock=clock, folder=out
        )
    for name, reason in found.refused.items():
        terminal.say(f"{name}: {reason}")
    if not found.profiles:
        raise terminal.fail("nothing was profiled: no implementation serves this case here", NOTHING)
    ceilings = ceilings_here(where)
    if as_json:
        terminal.out(json.dumps(as_dict(found, ceilings)))
    else:
        terminal.out("\n".join(lines(found, ceilings)))
    if out is not None:
        from spectralbench.profiling.draw import draw

        (out / "profile.json").write_text(json.dumps(as_dict(found, ceilings), indent=1) + "\n", encoding="utf-8")
        paths = draw(found, ceilings, f"{item.label}, {passes} on {where}", out)
        terminal.say(f"traces, profile.json and {', '.join(path.name for path in paths)} are in {out}")
    terminal.say(deeper(item, passes, where))


def _profile_every(items: Sequence[Item], passes: Any, where: str, out: Path | None, as_json: bool) -> None:
    """Profile case after case, without traces, and draw the stages of all in one figure."""
    from spectralbench import names, profiling
    from spectralbench.ceilings import ceilings_here
    from spectralbench.clock import clock_for

    clock = clock_for(where)
    every = []
    for item in items:
        found = profiling.profile_case(
            item.operation, item.case, item.implementations, device=where, pass_=passes, clock=clock
        )
        for name, reason in found.refused.items():
            terminal.say(f"{names.of_case(item.case, passes)}, {name}: {reason}")
        if found.profiles:
            every.append(found)
    if not every:
        raise terminal.fail("nothing was profiled: no implementation serves these cases here", NOTHING)
    ceilings = ceilings_here(where)
    told = [as_dict(found, ceilings) for found in every]
    for found, facts in zip(every, told, strict=True):
        title = names.of_case(found.case, passes)
        terminal.out(json.dumps(facts) if as_json else "\n".join((f"# {title}", *lines(found, ceilings), "")))
    if out is not None:
        from spectralbench.profiling.draw import draw_stages

        (out / "profile.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        same = {name: value for name, value in every[0].case.params if all(one.case[name] == value for one in every)}
        what = f"{names.operation(items[0].operation.name)} {names.short(same)}".strip()
        path = draw_stages(every, f"Stages of {what}, {passes} on {where}", out / "stages.png")
        terminal.say(f"profile.json and {path.name} are in {out}")


def lines(found: CaseProfile, ceilings: Ceilings) -> Iterator[str]:
    """What was found, at most 80 columns wide: the fastest first."""
    floor = floor_seconds(found, ceilings)
    yield (
        f"ceilings here: {ceilings.flops_per_second / 1e9:.4g} GFLOP/s (float32), "
        f"{ceilings.bytes_per_second / 1e9:.3g} GB/s; floor {amount(floor, 'second')}"
    )
    for each in found.profiles:
        yield ""
        percent = f"{100 * floor / each.seconds:.0f} % of the floor's speed"
        yield f"{each.implementation}: {amount(each.seconds, 'second')} a call, {percent}"
        for part in each.stages:
            share = part.seconds / each.traced_seconds
            yield f"  {part.name[:34]:34} {share:6.1%} {amount(share * each.seconds, 'second'):>9}  x{part.calls:g}"
        shown = [(part.name, part.seconds / each.traced_seconds) for part in each.operations[:SHOWN_OPERATIONS]]
        slow = ", ".join(f"{name} {share:.0%}" for name, share in shown if share >= LEAST_SHARE)
        yield f"  most time: {slow or 'in no operation of torch'}"
        yield f"  memory of a step: {_memory(each)}"
        yield f"  {each.slowdown:.2f}x slower under the profiler"
    yield from utilisation(found)


def utilisation(found: CaseProfile) -> Iterator[str]:
    """A table of how busy host and device were, mean and largest in percent, and why what is missing is."""
    names = list(dict.fromkeys(name for each in found.profiles for name in each.busy))
    if not names:
        return
    yield ""
    yield f"{'utilisation, % mean / max':26}" + "".join(f"{name:>13}" for name in names)
    for each in found.profiles:
        values = [each.busy.get(name, "-") for name in names]
        cells = ["-" if isinstance(value, str) else f"{value[0]:.0f} / {value[1]:.0f}" for value in values]
        yield f"  {each.implementation[:24]:24}" + "".join(f"{cell:>13}" for cell in cells)
    for why in dict.fromkeys(
        value for each in found.profiles for value in each.busy.values() if isinstance(value, str)
    ):
        yield from textwrap.wrap(f"not known: {why}", 80, initial_indent="  ", subsequent_indent="  ")


def _print_kernels(item: Item, pass_: Any, device: str, as_json: bool) -> None:
    from spectralbench.profiling import proton
    from spectralkernels.errors import Unsupported

    name = _only(item, "--proton")
    try:
        parts = proton(item.operation, item.case, name, device, pass_)
    except Unsupported as error:
        raise terminal.fail(f"{name}: {error}", NOTHING) from None
    if as_json:
        terminal.out(json.dumps([dataclasses.asdict(part) for part in parts]))
        return
    whole = sum(part.seconds for part in parts)
    for part in parts:
        terminal.out(f"{part.seconds / whole:6.1%} {amount(part.seconds, 'second'):>9}  x{part.calls:<5g} {part.name}")


def _memory(each: Profile) -> str:
    held = each.timeline.at_end("forward")
    text = f"peak {amount(each.timeline.peak, 'byte')}"
    return text if held is None else f"{text}, {amount(held, 'byte')} after forward"


def floor_seconds(found: CaseProfile, ceilings: Ceilings) -> float:
    """Seconds of the pass's arithmetic or of its bytes at the measured ceilings, whichever is longer."""
    moved, computed = found.cost.bytes / ceilings.bytes_per_second, found.cost.flops / ceilings.flops_per_second
    return FORWARD_PASSES[found.pass_] * max(moved, computed)


def as_dict(found: CaseProfile, ceilings: Ceilings) -> dict[str, Any]:
    """The same as JSON: seconds and bytes."""
    return {
        "operation": found.operation.name,
        "case": dict(found.case.params),
        "dtype": found.case.dtype,
        "pass": found.pass_,
        "device": found.device,
        "cost": dataclasses.asdict(found.cost),
        "ceilings": dataclasses.asdict(ceilings),
        "refused": found.refused,
        "profiles": [
            {**dataclasses.asdict(each), "trace": None if each.trace is None else each.trace.name}
            for each in found.profiles
        ],
    }


def deeper(item: Item, pass_: str, device: str) -> str:
    """The command that looks below torch: hardware counters."""
    name = next((name for name in item.implementations if item.operation.subject(name).role == "kernel"), "NAME")
    command = ["spectralbench", "profile", item.operation.name, "--impl", name, "--once"]
    command += [part for key, value in item.case.params for part in ("--set", f"{key}={value}")]
    command += ["--both"] if pass_ == "both" else []
    tool = "ncu --profile-from-start off --set full -o counters" if device == "cuda" else "perf stat -d"
    return f"for hardware counters: {tool} {shlex.join(command)}"


def _left(
    operation: str, profile: str, impl: Sequence[str] | None, overrides: Sequence[str] | None, device: str
) -> list[Item]:
    """The cases that are left, each with the implementations that this profile races."""
    from spectralbench import sweep

    request = sweep.Request(
        operations=(operation,),
        profile=profile,
        implementations=tuple(impl) if impl else None,
        overrides=assignments(list(overrides or ())),
        processes=1,
        device=device,
    )
    return [item for item in sweep.plan(request) if item.pass_ == "forward"]


def _chosen(items: Sequence[Item], number: int) -> Item:
    """The case of that number."""
    if number > len(items):
        raise terminal.fail(f"--case {number}: there are {len(items)} cases", 2)
    terminal.say(f"case {number} of {len(items)} (others by --case or --set): {items[number - 1].label}")
    return items[number - 1]


def _call_once(item: Item, pass_: Any, device: str) -> None:
    from spectralbench.profiling import call_once
    from spectralkernels.errors import Unsupported

    name = _only(item, "--once")
    try:
        call_once(item.operation, item.case, name, device, pass_)
    except Unsupported as error:
        raise terminal.fail(f"{name}: {error}", NOTHING) from None


def _only(item: Item, option: str) -> str:
    if len(item.implementations) != 1:
        raise terminal.fail(f"{option} needs one --impl of: {', '.join(item.implementations)}", 2)
    return item.implementations[0]
