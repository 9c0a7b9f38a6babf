"""`spectralbench list`: what there is to run, and why some of it cannot run here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spectralbench.cli import terminal

if TYPE_CHECKING:
    from spectralkernels.declare import Operation


def list_(
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """List the operations, a line each, and the metrics; `list OPERATION` shows all there is to know of one."""
    terminal.check_operations(operations)
    with terminal.usage_errors():
        from spectralbench import sweep
        from spectralbench.metrics import load_metrics
        from spectralbench.worker import resolve

        chosen = sweep.choose_operations(operations or (), resolve(sweep.SOURCES.operations)())
        described = [_describe(operation, sweep.choose_device(device)) for operation in chosen]
        metrics: list[dict[str, Any]] = [
            {
                "kind": "metric",
                "name": found.name,
                "unit": found.unit,
                "version": found.version,
                "devices": found.devices,
            }
            for found in load_metrics().values()
        ]
    if as_json:
        for entry in (*described, *metrics):
            terminal.out(json.dumps(entry))
        return
    console = terminal.data()
    if operations:
        for entry in described:
            console.print(_operation_table(entry))
        return
    console.print(_overview(described))
    table = Table(title="metrics", title_justify="left")
    for title in ("metric", "unit", "version", "on"):
        table.add_column(title)
    for metric in metrics:
        table.add_row(metric["name"], metric["unit"], str(metric["version"]), ", ".join(metric["devices"]))
    console.print(table)


def _describe(operation: Operation, device: str) -> dict[str, Any]:
    declared: dict[str, None] = {}
    counts = {}
    for profile, blocks in operation.profiles.items():
        declared.update(dict.fromkeys(name for block in blocks for name in block.axes))
        counts[profile] = len({case for case, _ in operation.cases(profile)})
    return {
        "kind": "operation",
        "name": operation.name,
        "version": operation.version,
        "summary": operation.summary,
        "source": operation.source,
        "parameters": list(declared),
        "profiles": counts,
        "implementations": [
            {
                "name": implementation.name,
                "role": implementation.role,
                "source": implementation.source,
                "unavailable": implementation.available(device),
            }
            for implementation in operation.subjects
        ],
    }


def _overview(described: Sequence[dict[str, Any]]) -> Table:
    """A line per operation: what it is, and how many of its implementations work here."""
    table = Table(title="operations", title_justify="left", caption="more: spectralbench list OPERATION")
    for title in ("operation", "what", "works here"):
        table.add_column(title, no_wrap=title != "what")
    for entry in described:
        works = sum(found["unavailable"] is None for found in entry["implementations"])
        cells = (entry["name"], entry["summary"], f"{works} of {len(entry['implementations'])}")
        table.add_row(*map(escape, cells))
    return table


def _operation_table(operation: dict[str, Any]) -> Table:
    cases = ", ".join(f"{profile} {count}" for profile, count in operation["profiles"].items())
    table = Table(
        title=escape(f"{operation['name']} (version {operation['version']}): {operation['summary']}"),
        caption=f"parameters: {', '.join(operation['parameters'])}\ncases by profile: {cases}",
        title_justify="left",
        caption_justify="left",
    )
    for title in ("implementation", "role", "here", "source"):
        table.add_column(title)
    for implementation in operation["implementations"]:
        reason = implementation["unavailable"]
        cells = (implementation["name"], implementation["role"], reason or "yes", implementation["source"])
        table.add_row(*map(escape, cells))
    return table
