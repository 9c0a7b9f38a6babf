"""`spectralbench list`: what there is to run, and why some of it cannot run here.

Finding out imports torch, which takes seconds. What was found is therefore kept in the user's cache, under the digest
of all that it depends on: the sources, what is installed, and what the environment says of devices and compilers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spectralbench import plugins
from spectralbench.cli import terminal
from spectralbench.text import meant

if TYPE_CHECKING:
    from spectralkernels.declare import Operation

Described = list[dict[str, Any]]
Found = tuple[Described, Described, Sequence[str]]

SURROUNDINGS = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "CXX", "CC", "PATH", "CUDA_HOME")
DRIVER = Path("/proc/driver/nvidia/version")


def list_(
    operations: Annotated[list[str] | None, typer.Argument(metavar="OPERATION", help="Default: all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """List the operations, a line each, and the metrics; `list OPERATION` shows all there is to know of one."""
    terminal.check_operations(operations)
    described, metrics, broken = known(device)
    terminal.say_broken(broken)
    chosen = [entry for entry in described if not operations or entry["name"] in operations]
    if as_json:
        for entry in (*chosen, *metrics):
            terminal.out(json.dumps(entry))
        return
    console = terminal.data()
    if operations:
        for entry in chosen:
            console.print(_operation_table(entry))
        return
    console.print(_overview(chosen))
    console.print("metrics: " + ", ".join(f"{one['name']} ({one['unit']})" for one in metrics), markup=False)


def known(device: str | None) -> Found:
    """Every operation, every metric and every broken plug-in, from the cache where nothing has changed since."""
    remembered = _remembered(device)
    if remembered is not None:
        return remembered
    path, found = _cache(device), found_out(device)
    with contextlib.suppress(OSError):  # a home that cannot be written costs seconds, not an answer
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("list-*.json"):
            old.unlink()
        path.write_text(json.dumps(found), encoding="utf-8")
    return found


def check_names(
    device: str | None,
    operations: Sequence[str] | None,
    profile: str,
    implementations: Sequence[str] | None,
    parameters: Iterable[str],
    metrics: Sequence[str] | None,
) -> None:
    """Answer what no operation has at once: to import torch first would take seconds. The request checks the rest,
    and all where what there is was not found out since the last edit."""
    remembered = _remembered(device)
    if remembered is None:
        return
    parameters = list(parameters)
    described, measured, _ = remembered
    candidates = [one for one in described if not operations or one["name"] in operations]
    offered = {
        "profile": ([profile], [name for one in described for name in one["profiles"]]),
        "implementation": (implementations, [found["name"] for one in candidates for found in one["implementations"]]),
        "parameter": (parameters, [name for one in candidates for name in one["parameters"]]),
        "metric": (metrics, [one["name"] for one in measured]),
    }
    for what, (asked, there) in offered.items():
        for name in asked or ():
            if name not in there:
                raise terminal.fail(f"unknown {what} {name!r}{meant(name, dict.fromkeys(there))}", 2)


def _remembered(device: str | None) -> Found | None:
    """What was found out since the last edit; None if it is not there, another user's, or was cut off."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        described, metrics, broken = json.loads(_cache(device).read_text(encoding="utf-8"))
        return described, metrics, broken
    return None


def _cache(device: str | None) -> Path:
    digest = hashlib.sha256(f"{sys.version} {device} {DRIVER.exists()} {shutil.which('c++')}".encode())
    for name in SURROUNDINGS:
        digest.update(f"{name}={os.environ.get(name)}".encode())
    installed = sorted(found.name for entry in sys.path for found in Path(entry).glob("*.dist-info"))
    digest.update(repr(installed).encode())
    digest.update(f"{plugins.found()} {plugins.digest()}".encode())
    for package in ("spectralkernels", "spectralbench"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, "both are installed together"
        for folder in map(Path, spec.submodule_search_locations):
            for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp"), *folder.rglob("*.h")]):
                facts = path.stat()
                digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "spectralbench" / f"list-{digest.hexdigest()[:16]}.json"


def found_out(device: str | None) -> Found:
    """The same without a cache: every operation is imported and asked what it needs."""
    from spectralbench import sweep, workloads
    from spectralbench.metrics import load_metrics
    from spectralbench.worker import resolve

    with terminal.usage_errors():
        where = sweep.choose_device(device)
        operations = sweep.choose_operations((), resolve(sweep.SOURCES.operations)())
    described = [_describe(one, where) for one in operations]
    metrics: Described = [
        {"kind": "metric", "name": one.name, "unit": one.unit, "version": one.version, "devices": one.devices}
        for one in load_metrics().values()
    ]
    return described, metrics, workloads.outside().broken


def _describe(operation: Operation, device: str) -> dict[str, Any]:
    from spectralkernels.declare import PROFILES

    declared: dict[str, None] = {}
    counts = {}
    for profile in PROFILES:
        declared.update(dict.fromkeys(name for block in operation.profiles.get(profile, ()) for name in block.axes))
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
    table = Table(title="operations", title_justify="left", caption="more: spectralbench list OPERATION", box=None)
    table.add_column("operation", no_wrap=True)
    table.add_column("what")
    table.add_column("works here", no_wrap=True)
    for entry in described:
        works = sum(found["unavailable"] is None for found in entry["implementations"])
        # The one column that may be narrower, so that a small window cuts off words and never a name or a count.
        what = Text(entry["summary"], no_wrap=True, overflow="ellipsis")
        table.add_row(escape(entry["name"]), what, f"{works} of {len(entry['implementations'])}")
    return table


def _operation_table(operation: dict[str, Any]) -> Table:
    """Its implementations; what cannot run here for one and the same reason is one line."""
    cases = ", ".join(f"{profile} {count}" for profile, count in operation["profiles"].items() if count)
    table = Table(
        title=escape(f"{operation['name']} (version {operation['version']}): {operation['summary']}"),
        caption=f"from: {escape(operation['source'])}\nparameters: {', '.join(operation['parameters'])}\n"
        f"cases by profile: {cases}",
        title_justify="left",
        caption_justify="left",
    )
    for title in ("implementation", "role", "here", "source"):
        table.add_column(title)
    absent: dict[str, list[str]] = {}
    for implementation in operation["implementations"]:
        if (reason := implementation["unavailable"]) is not None:
            absent.setdefault(reason, []).append(implementation["name"])
            continue
        table.add_row(*map(escape, (implementation["name"], implementation["role"], "yes", implementation["source"])))
    for reason, members in absent.items():
        table.add_row(*map(escape, (", ".join(members), "", reason, "")))
    return table
