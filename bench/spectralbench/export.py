"""The history in other tools' formats: a table (CSV, Parquet), and a folder that `asv publish` turns into its page.

    FOLDER/asv.conf.json                     asv --config FOLDER/asv.conf.json publish, then preview
    FOLDER/results/benchmarks.json           a benchmark per operation and metric: implementations x cases
    FOLDER/results/<machine>/<hash8>-records.json    a commit; -2, -3 in other conditions

asv gets the clean points of our records: what was measured in a dirty tree, without a commit, or was wrong has no place
on its axis. A change of conditions, such as another processor, begins another line, or asv would call it a regression.
A folder inside the repository names no place outside it, so that it can be committed: results/asv-history is.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from spectralbench import checkout, names
from spectralbench.asv_files import API_VERSION, UNITS
from spectralbench.history import History, Point, Series

Conditions = tuple[tuple[str, str], ...]
ENVIRONMENT = "records"
LONGEST = 80
"""Characters of what is said of conditions: asv makes a folder of that name."""
REGRESSIONS = {".*track_device_time": 0.2, ".*track_rounding_error.*": 0.2}
"""asv looks at one number per commit and not at how it scatters: on a shared machine by a sixth. `alert` does look."""
COLUMNS = ("result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
           "stats_q_75", "stats_number", "stats_repeat", "samples", "profile")  # fmt: skip


def rows(history: History) -> Iterator[dict[str, Any]]:
    """A flat row per point of our records: its identity, its commit, its value over processes, its conditions."""
    for series in _ours(history):
        subject = series.key.subject
        for point in (*series.points, *series.aside):
            yield {
                "machine": subject.machine,
                "commit": point.commit,
                "dirty": point.dirty,
                "recorded_at": point.recorded_at,
                "operation": subject.operation,
                "operation_version": subject.operation_version,
                "implementation": subject.implementation,
                "role": series.role,
                "case": subject.case,
                "dtype": subject.dtype,
                "pass": subject.pass_,
                "fft_size": "x".join(map(str, subject.fft_size)),
                "cache": subject.cache,
                "launch": subject.launch,
                "seed": subject.seed,
                "metric": series.key.metric,
                "unit": series.key.unit,
                "value": point.value,
                "q25": point.q25,
                "q75": point.q75,
                "processes": len(point.processes),
                "samples": point.n,
                "wrong": point.wrong,
                "placed": series.placed and point not in series.aside,
                "conditions": "; ".join(f"{name} {value}" for name, value in point.environment),
            }


def write_table(history: History, path: Path) -> int:
    """Write `rows` as CSV, or as Parquet where the name ends so; how many there are.

    Raises: ValueError on another ending; ImportError that names pandas or pyarrow where one is missing; OSError.
    """
    found = list(rows(history))
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(found[0]) if found else ["machine"])
            writer.writeheader()
            writer.writerows(found)
    elif path.suffix == ".parquet":
        try:
            import pandas as pd
            import pyarrow  # noqa: F401  (pandas tells of its absence in six lines)
        except ImportError as missing:
            advice = f"Parquet needs {missing.name}: pip install 'spectralbench[parquet]', or write FILE.csv"
            raise ImportError(advice) from None
        pd.DataFrame(found).to_parquet(path)
    else:
        raise ValueError(f"the ending says what to write: FILE.csv, FILE.parquet or a folder, got {path.name!r}")
    return len(found)


def write_asv(history: History, folder: Path, repository: Path) -> int:
    """Write everything that `asv publish` needs into a folder; how many commits it holds.

    repository: the checkout whose commits were measured. Raises: ValueError if the folder holds something else;
    OSError; subprocess.CalledProcessError where there is no repository.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "asv.conf.json").is_file():
        raise ValueError(f"{folder} holds something else already")
    top = Path(checkout.git(repository, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    place = folder.resolve()
    repo = os.path.relpath(top, place) if place.is_relative_to(top) else str(top)
    project = {"version": 1, "project": "spectralbench", "project_url": "#", "repo": repo, "branches": [_branch(top)],
               "dvcs": "git", "benchmark_dir": f"{repo}/bench/asv_spectral", "results_dir": "results",
               "html_dir": "html", "env_dir": "env", "show_commit_url": "#",
               "regressions_thresholds": REGRESSIONS}  # fmt: skip
    benchmarks: dict[str, Any] = {"version": API_VERSION}
    files: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, members in _by_benchmark(history).items():
        declared = _benchmark(name, members)
        benchmarks[name] = declared
        for (machine, commit, conditions), points in _by_commit(members).items():
            facts = history.environments.get(machine, {})
            file = files.setdefault((machine, commit, conditions), _file(machine, commit, conditions, facts))
            file["results"][name] = _row(declared, points)
            newest = max(_milliseconds(point) for point in points.values())
            file["date"] = max(file["date"], newest)
    shutil.rmtree(folder / "results", ignore_errors=True)  # of an earlier export, whose benchmarks may be gone
    _write(folder / "asv.conf.json", project)
    _write(folder / ".gitignore", "html/\nenv/\n")
    _write(folder / "results" / "benchmarks.json", benchmarks)
    written: Counter[tuple[str, str]] = Counter()
    for (machine, commit, _), file in files.items():
        others = written[machine, commit[:8]]
        written[machine, commit[:8]] += 1
        name = f"{commit[:8]}-{ENVIRONMENT}{f'-{others + 1}' if others else ''}.json"
        _write(folder / "results" / machine / name, file)
        about = {name: file["params"][name] for name in ("arch", "cpu", "machine", "num_cpu", "os", "ram")}
        _write(folder / "results" / machine / "machine.json", {**about, "version": 1})
    return len({commit for _, commit, _ in files})


def _branch(top: Path) -> str:
    """main, or what is checked out where there is none."""
    try:
        checkout.git(top, "rev-parse", "--verify", "--quiet", "main")
    except subprocess.CalledProcessError:
        return checkout.git(top, "rev-parse", "--abbrev-ref", "HEAD").decode().strip()
    return "main"


def _ours(history: History) -> Iterator[Series]:
    return (series for series in history.series if series.key.subject.via == "records")


def _by_benchmark(history: History) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for series in _ours(history):
        if any(point.clean for point in series.points):
            found.setdefault(f"{series.key.subject.operation}.track_{series.key.metric}", []).append(series)
    return dict(sorted(found.items()))


def _benchmark(name: str, members: Sequence[Series]) -> dict[str, Any]:
    """What asv must know of a benchmark: its unit, its version, and the implementations and cases along its axes."""
    key = members[0].key
    newest = max((series.key for series in members), key=lambda key: str(key.subject.operation_version))
    return {
        "code": f"{key.metric} of {key.subject.operation}",
        "name": name,
        "param_names": ["implementation", "case"],
        "params": [
            sorted({repr(series.key.subject.implementation) for series in members}),
            sorted({repr(_label(series)) for series in members}),
        ],
        "pretty_name": f"{names.operation(key.subject.operation)}: {key.metric.replace('_', ' ')}",
        "timeout": 600.0,
        "type": "track",
        "unit": UNITS.get(key.unit, key.unit),
        "version": f"{newest.subject.operation_version}.{newest.metric_version}",
    }


def _label(series: Series) -> str:
    """A case in short words; N always, since two grids may be the only difference."""
    subject = series.key.subject
    facts = {**series.params, "dtype": subject.dtype, "pass": subject.pass_, "cache": subject.cache,
             "launch": subject.launch, "seed": subject.seed}  # fmt: skip
    version = "" if subject.operation_version == 1 else f" v{subject.operation_version}"
    return f"{names.short(facts)} N{'x'.join(map(str, subject.fft_size))}{version}"


def _conditions(members: Sequence[Series]) -> dict[tuple[str, Conditions], str]:
    """What is said of each machine's conditions: the facts that are not the same in all of them."""
    seen: dict[str, dict[Conditions, None]] = {}
    for series in members:
        for point in series.points:
            if point.clean:
                seen.setdefault(series.key.subject.machine, {})[point.environment] = None
    told = {}
    for machine, there in seen.items():
        always = set.intersection(*map(set, there))
        for conditions in there:
            changing = [f"{name} {value}" for name, value in conditions if (name, value) not in always]
            told[machine, conditions] = ", ".join(changing)[:LONGEST] or "the same throughout"
    return told


def _by_commit(members: Sequence[Series]) -> dict[tuple[str, str, str], dict[tuple[str, str], Point]]:
    """Machine, commit and conditions -> implementation and case -> the newest clean point."""
    told = _conditions(members)
    found: dict[tuple[str, str, str], dict[tuple[str, str], Point]] = {}
    for series in members:
        subject = series.key.subject
        place = repr(subject.implementation), repr(_label(series))
        for point in series.points:
            if point.clean and point.commit is not None:
                conditions = told[subject.machine, point.environment]
                points = found.setdefault((subject.machine, point.commit, conditions), {})
                if place not in points or points[place].recorded_at < point.recorded_at:
                    points[place] = point
    return found


def _row(declared: Mapping[str, Any], points: Mapping[tuple[str, str], Point]) -> list[Any]:
    """One benchmark at one commit, in the order of asv's columns, over what was measured there; NaN is what was not."""
    measured = [{place[axis] for place in points} for axis in (0, 1)]
    axes = [[one for one in axis if one in here] for axis, here in zip(declared["params"], measured, strict=True)]
    here = [points.get((name, case)) for name in axes[0] for case in axes[1]]
    started = max(_milliseconds(point) for point in points.values())

    def column(value: str) -> list[float | None]:
        return [None if point is None else getattr(point, value) for point in here]

    return [
        [math.nan if point is None else point.value for point in here],
        axes,
        declared["version"],
        started,
        0.0,
        None,  # quartiles are no interval of confidence
        None,
        column("q25"),
        column("q75"),
        [None if point is None else 1 for point in here],
        [None if point is None else len(point.processes) for point in here],
        [None if point is None else [value for _, value in point.processes] for point in here],
    ]


def _file(machine: str, commit: str, conditions: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: str(environment.get(name) or "") for name in ("cpu", "cores", "os", "python")}
    known = {"arch": "", "cpu": told["cpu"], "machine": machine, "num_cpu": told["cores"], "os": told["os"], "ram": ""}
    params = {**known, "python": told["python"], "conditions": conditions}
    return {"commit_hash": commit, "env_name": ENVIRONMENT, "date": 0, "params": params, "python": told["python"],
            "requirements": {}, "env_vars": {}, "result_columns": list(COLUMNS), "results": {}, "durations": {},
            "version": API_VERSION}  # fmt: skip


def _milliseconds(point: Point) -> int:
    return round(datetime.fromisoformat(point.recorded_at).timestamp() * 1000)


def _write(path: Path, content: Mapping[str, Any] | str) -> None:
    """As JSON with a line for each benchmark or fact, so that a change of one is a line in git."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        content = _lines(content) + "\n"
    path.write_text(content, encoding="utf-8")


def _lines(content: Mapping[str, Any]) -> str:
    held = (
        f"{json.dumps(name)}: {_lines(value) if name == 'results' else json.dumps(value, separators=(',', ':'))}"
        for name, value in content.items()
    )
    return "{\n" + ",\n".join(held) + "\n}"


GIT_ERRORS = (subprocess.CalledProcessError, FileNotFoundError)
"""What `write_asv` raises where there is no repository, or no git."""
