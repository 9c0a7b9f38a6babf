"""`spectralbench machine`: the stable name of this machine, its facts, and the same name for asv."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from spectralbench.cli import terminal

ASV_VERSION = 1
"""asv's number for the layout of its machine file."""


def machine(
    asv: Annotated[bool, typer.Option("--asv", help="Write this machine to ~/.asv-machine.json, for asv.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    ceilings: Annotated[
        bool, typer.Option("--ceilings", help="Measure a large copy and product, and store them for the report.")
    ] = False,
    results: terminal.Results = Path("results"),
    as_json: terminal.Json = False,
) -> None:
    """Show the name under which this machine's results are kept; SPECTRALBENCH_MACHINE chooses another."""
    with terminal.usage_errors():
        from spectralbench import sweep

        chosen = sweep.choose_device(device)
        facts = sweep.surroundings(chosen)
    if ceilings:
        try:
            terminal.say(f"written: {_measure(results, facts, chosen)}")
        except OSError as error:
            raise terminal.fail(f"cannot store the ceilings: {error.strerror or error}", 2) from None
    if asv:
        path = Path.home() / ".asv-machine.json"
        try:
            known = write_asv_machine(path, facts)
        except (OSError, ValueError) as error:
            raise terminal.fail(f"cannot write asv's machine file {path}: {error}", 2) from None
        terminal.say(f"written: {path}")
        if len(known) > 1:
            terminal.say(f"{path} names {len(known)} machines, so run asv with --machine {facts['machine']}")
    if as_json:
        terminal.out(json.dumps(facts))
        return
    table = Table(title=str(facts["machine"]), title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name, "-" if value is None else str(value))
    terminal.data().print(table)


def _measure(results: Path, facts: Mapping[str, Any], device: str) -> Path:
    from spectralbench import peaks
    from spectralbench.ceilings import ceilings_here

    found = ceilings_here(device)
    peak = peaks.Peak(found.bytes_per_second, found.flops_per_second, facts["threads"], facts["started_at"])
    return peaks.write(results, str(facts["machine"]), peak)


def asv_machine(facts: Mapping[str, Any]) -> dict[str, str]:
    """The fields by which asv tells machines apart, without what an update changes (kernel release, a byte of RAM)."""
    ram = facts.get("ram_bytes")
    return {
        "machine": str(facts["machine"]),
        "os": platform.system(),
        "arch": platform.machine(),
        "cpu": str(facts["cpu"]),
        "num_cpu": str(facts["cores"]),
        "ram": f"{round(ram / 2**30)} GiB" if ram else "",
    }


def write_asv_machine(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """Add this machine to asv's file, keep the others there, and return all names.

    Raises: ValueError if the file is not asv's or is newer than the layout known here; OSError.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    version = stored.pop("version", ASV_VERSION) if isinstance(stored, dict) else None
    if version != ASV_VERSION:
        raise ValueError(f"expected asv machine file version {ASV_VERSION}, got {version}; move the file away")
    entry = asv_machine(facts)
    stored[entry["machine"]] = entry
    path.write_text(json.dumps({**stored, "version": ASV_VERSION}, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    return list(stored)
