"""`spectralbench tune`: search the tiles of the Triton kernels on this GPU and store the winners."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from spectralbench.cli import terminal


def tune(
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    profile: Annotated[str, typer.Option(help="Whose cases to tune for.")] = "gpu",
    impl: Annotated[list[str] | None, typer.Option("--impl", help="Only these implementations (a,b).")] = None,
    time_budget: Annotated[float, typer.Option(min=0, help="Start no search after this many seconds.")] = 600.0,
    table: Annotated[
        Path | None, typer.Option(help="Folder of the tables; default: the one that launches read.")
    ] = None,
) -> None:
    """Measure neighbouring tiles of every kernel, case by case, and keep what is faster; needs a CUDA device."""
    import torch

    from spectralbench import sweep
    from spectralbench.clock import clock_for
    from spectralbench.tune import store, tune_case
    from spectralkernels.errors import Unsupported
    from spectralkernels.tuning import TABLES

    with terminal.usage_errors():
        request = sweep.Request(
            operations=tuple(operations or ()),
            profile=profile,
            implementations=terminal.split(impl),
            processes=1,
            device=sweep.choose_device(None),
            sources=sweep.SOURCES,
        )
        items = sweep.plan(request)
        if request.device != "cuda":
            raise terminal.fail("tiles are tuned on a CUDA device, and torch finds none here", 2)
    facts = sweep.surroundings("cuda")
    major, minor = torch.cuda.get_device_capability()
    path = (table or TABLES) / f"sm_{10 * major + minor}.json"
    clock = clock_for("cuda", cache="cold", launch="graph")
    done: set[str] = set()
    began = time.monotonic()
    for item in items:
        for name in item.implementations:
            if item.operation.subject(name).role != "kernel":
                continue
            if time.monotonic() - began > time_budget:
                terminal.say(f"stopped by the time budget at {item.label} {name}; {len(done)} tiles searched: {path}")
                return
            evidence: dict[str, Any] = {
                "implementation": name,
                "case": item.label,
                **{key: facts[key] for key in ("machine", "gpu", "commit", "dirty", "torch", "triton")},
                "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            try:
                found = tune_case(
                    item.operation,
                    item.case,
                    item.operation.subject(name),
                    item.pass_,
                    device="cuda",
                    clock=clock,
                    skip=done,
                )
                for winner in found:
                    done.add(winner.start.label)
                    store(path, {winner.start.label: winner}, evidence)
                    gain = winner.start_seconds / winner.seconds
                    terminal.say(f"{winner.start.label}: {dict(winner.tile)} {gain:.2f}x, {winner.tried} tried")
            except (Unsupported, ValueError, torch.OutOfMemoryError) as error:
                terminal.say(f"{item.label} {name}: {error}")
    terminal.say(f"{len(done)} tiles searched: {path}")
