"""`spectralbench choices`: what `impl="auto"` takes on this machine, judged by the records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from spectralbench import chosen
from spectralbench.cli import terminal


def choices(
    results: terminal.Results = Path("results"),
    machine: Annotated[str | None, typer.Option(help="Default: this one.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Compare the choice of `auto` with the fastest equal, case by case, and write CHOICES.md beside the records.

    The report reads what auto takes from choices/MACHINE.json, which is written with it.
    """
    from spectralbench.choices import as_markdown, verdicts
    from spectralbench.environment import machine_name
    from spectralbench.history import load
    from spectralkernels.ops import load_operations

    name = machine or machine_name()
    try:
        history = load(results)
    except FileNotFoundError as error:
        raise terminal.fail(str(error), 2) from None
    refused: list[str] = []
    device = "cpu" if name.startswith("cpu-") else "cuda"
    found = list(verdicts(history, name, load_operations(), device, refused))
    for why in refused:
        terminal.say(f"not judged: {why}")
    if not found:
        known = ", ".join(history.machines) or "none"
        raise terminal.fail(f"no case of machine {name!r} has a choice to judge; machines with records: {known}", 3)
    page = as_markdown(name, found)
    asked = {(one.operation, one.case, one.dtype, one.pass_): (one.chosen, one.because) for one in found}
    if as_json:
        for verdict in found:
            terminal.out(json.dumps(dataclasses.asdict(verdict)))
    else:
        terminal.out(page)
    path = results / "CHOICES.md"
    try:
        path.write_text(page, encoding="utf-8")
        chosen.write(results, name, asked)
    except OSError as error:
        raise terminal.fail(f"cannot write {path}: {error.strerror or error}", 2) from None
