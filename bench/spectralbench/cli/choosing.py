"""`spectralbench choices`: what `impl="auto"` takes, judged by the records of every machine."""

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
    machine: Annotated[str | None, typer.Option(help="Only this machine; default: all that have records.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Compare the choice of `auto` with the fastest equal, case by case, and write CHOICES.md beside the records.

    The report reads what auto takes from choices/MACHINE.json, which is written with it.
    """
    from spectralbench.choices import JudgedChoice, as_markdown, judged_choices
    from spectralbench.environment import device_kind, machine_name
    from spectralbench.history import load, only_machine
    from spectralkernels.ops import load_operations

    try:
        history = only_machine(load(results), machine)
    except (FileNotFoundError, ValueError) as error:
        raise terminal.fail(str(error), 2) from None
    judged: dict[str, list[JudgedChoice]] = {}
    for name in history.machines:
        device = "cpu" if name.startswith("cpu-") else "cuda"
        if device == "cuda" and device_kind() != "cuda":
            terminal.say(f"not judged: {name}: what auto takes on a GPU is asked on one")
            continue
        refused: list[str] = []
        if found := list(judged_choices(history, name, load_operations(), device, refused)):
            judged[name] = found
        for why in refused:
            terminal.say(f"not judged: {name}: {why}")
    if not judged:
        known = ", ".join(history.machines) or "none"
        raise terminal.fail(f"no case has a choice to judge; machines with records: {known}", 3)
    page = as_markdown(judged, machine_name())
    if as_json:
        for name, found in judged.items():
            for choice in found:
                terminal.out(json.dumps({"machine": name, **dataclasses.asdict(choice)}))
    else:
        terminal.out(page)
    path = results / "CHOICES.md"
    try:
        path.write_text(page, encoding="utf-8")
        for name, found in judged.items():
            asked = {
                (one.operation, one.case, one.dtype, one.pass_): (one.chosen, one.because, one.aim)
                for one in found
                if one.default
            }
            chosen.write(results, name, asked)
    except OSError as error:
        raise terminal.fail(f"cannot write {path}: {error.strerror or error}", 2) from None
