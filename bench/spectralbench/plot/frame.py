"""The newest point of every series as one table: a row per implementation, case and process, a column per metric."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectralbench import rivals
from spectralbench.history import History, Subject
from spectralbench.metrics import load_metrics

TIMES = "\N{MULTIPLICATION SIGN}"
# Not part of what was measured: where each number came from.
PROVENANCE = ("process", "mark", "torch", "role")
COLUMNS = ("subject", "operation", "implementation", "role", "dtype", "pass", "fft_size", "cache", "launch", "seed",
           "process", "mark", "torch")  # fmt: skip
CONVOLUTIONS = ("band_limited_conv2d", "band_limited_conv1d")
"""One band-limited operation in two and in one dimension, whose figures are the same."""
SIZES = ("batch", "in_channels", "out_channels", "channels", "height", "width", "kernel_size", "groups")
NUMBERS = ("compression", "beta")
USUAL = ("float32", "warm cache")
"""What a title need not say."""
WORDS = ("grid", "input", "selection")
"""Parameters that the figures compute with or sort by: positive integers, numbers and text."""


def measurements(history: History, *, every: bool = False) -> pd.DataFrame:
    """One row per subject and process of the newest point (every: of all); parameters and metrics are columns.

    Times and energies keep one value per process. A metric that only some processes took (errors, bytes) is filled in
    for the others of the same subject, because it does not depend on the process.
    """
    subjects: dict[Subject, int | None] = {}
    facts: list[dict[str, Any]] = []
    rows: list[dict[str, int]] = []
    numbers: list[int] = []
    processes: list[str] = []
    marks: list[str] = []
    torch: list[str] = []
    versions: dict[int, str | None] = {}
    metrics = sorted({series.key.metric for series in history.series} - {*COLUMNS})
    values: dict[str, dict[int, float]] = {metric: {} for metric in metrics}
    for series in history.series:
        subject, own = series.key.subject, values.get(series.key.metric)
        if subject not in subjects:
            subjects[subject] = None if misfit(series.params) else len(facts)
            if subjects[subject] is not None:
                # A parameter cannot take the place of another column.
                params = {name: item for name, item in series.params.items() if name not in (*COLUMNS, *metrics)}
                facts.append({**params, **_facts(subject), "role": series.role, "subject": subjects[subject]})
                rows.append({})
        number = subjects[subject]
        if number is None or own is None:
            continue
        here = rows[number]
        for point in series.points if every else series.points[-1:]:
            # Of the history, which outlives this: no two of them have one id.
            if id(point.environment) not in versions:
                versions[id(point.environment)] = dict(point.environment).get("torch")
            version = versions[id(point.environment)]
            for process, value in point.processes:
                row = here.setdefault(process, len(marks))
                if row == len(marks):
                    numbers.append(number)
                    processes.append(process)
                    marks.append(point.mark)
                    torch.append("unknown")
                # What torch cannot move, such as a fraction, does not tell its version; the others of the row do.
                torch[row] = version or torch[row]
                own[row] = value
    # Parameters stay Python objects: an operation without one must not turn the others' integers into floats.
    frame = pd.DataFrame(facts, dtype=object).take(numbers).reset_index(drop=True)
    told = {"process": processes, "mark": marks, "torch": torch}
    frame = frame.assign(**{name: pd.Series(column, dtype=object) for name, column in told.items()})
    frame = frame.reindex(columns=[*COLUMNS, *(name for name in frame.columns if name not in COLUMNS)])
    metrics = [metric for metric in metrics if values[metric]]
    for metric in metrics:
        frame[metric] = pd.Series(values[metric], dtype=float)
        known = load_metrics().get(metric)
        if known is None or not known.per_process:
            frame[metric] = frame[metric].fillna(frame.groupby("subject")[metric].transform("median"))
    frame.attrs["metrics"] = tuple(metrics)
    return frame


def _facts(subject: Subject) -> dict[str, Any]:
    """What every row of a subject says besides its parameters."""
    return {
        "operation": subject.operation,
        "implementation": subject.implementation,
        "dtype": subject.dtype,
        "pass": subject.pass_,
        "fft_size": "x".join(str(size) for size in subject.fft_size),
        "cache": subject.cache,
        "launch": subject.launch,
        "seed": subject.seed,
    }


def misfit(params: Mapping[str, Any]) -> str | None:
    """Why no figure can show a case with these parameters, or None."""
    for name, value in params.items():
        if name in SIZES and not (type(value) is int and value > 0):
            return f"{name} must be a positive integer, got {value!r}"
        if name in NUMBERS and type(value) not in (int, float):
            return f"{name} must be a number, got {value!r}"
        if name in WORDS and type(value) is not str:
            return f"{name} must be text, got {value!r}"
    return None


def operation(frame: pd.DataFrame, names: Collection[str], needed: Sequence[str]) -> pd.DataFrame:
    """The rows of some operations that have every needed column, without columns that are empty there."""
    rows = frame[frame["operation"].isin(names)].dropna(axis="columns", how="all")
    if rows.empty or not set(needed) <= set(rows.columns):
        return frame.iloc[0:0]
    rows = rows.dropna(subset=list(needed)).infer_objects()
    if "input" not in rows:
        rows = rows.assign(input="")
    rows.attrs["metrics"] = frame.attrs["metrics"]
    return rows


def one_commit(rows: pd.DataFrame, by: Sequence[str], over: str) -> pd.DataFrame:
    """Of every group the rows of one commit: that with the most values of `over`, the newest of equals.

    Times of two commits are times of two days, which a line must not join.
    """
    if rows.empty:
        return rows
    keys = [*by, "mark"]
    found = rows.groupby(keys, dropna=False).agg(places=(over, "nunique"), newest=("process", "max")).reset_index()
    found = found.sort_values(["places", "newest"])
    best = found.drop_duplicates(list(by), keep="last") if by else found.tail(1)
    return rows[pd.MultiIndex.from_frame(rows[keys]).isin(pd.MultiIndex.from_frame(best[keys]))]


def best_of_families(rows: pd.DataFrame) -> pd.DataFrame:
    """The library convolution in its best layout and torch.fft at its best N, one line each; no frozen weights."""
    rows = rows[~rows["implementation"].isin(rivals.FROZEN)]
    kinds = rows["implementation"].map(lambda name: rivals.WORDS.get(rivals.family(name) or "", name))
    rows = rows.assign(implementation=kinds)
    case = [name for name in ("kernel_size", "compression", "process", "implementation", "grid") if name in rows]
    best = rows[rows["grid"].isin(("tight",))] if "grid" in rows and "tight" in set(rows["grid"]) else rows
    return best.loc[best.groupby(case)["device_time"].idxmin()]


def relative_to_dense(rows: pd.DataFrame, metric: str, keys: list[str]) -> pd.DataFrame:
    """The sparse rows with a column `relative`: the metric over that of the dense implementation of the same case."""
    if metric not in rows or rows[metric].isna().all():
        return rows.iloc[0:0]
    whole = rows["implementation"].isin(rivals.FAMILIES["dense"])
    dense = rows[whole].groupby(keys)[metric].median().rename("of_dense")
    paired = rows[~whole].join(dense, on=keys).dropna(subset=["of_dense", metric])
    return paired.assign(relative=paired[metric] / paired["of_dense"])


@dataclass(frozen=True, slots=True)
class DrawnSetting:
    """The rows that differ only along a figure's own axes; `label` says what they share, `suffix` is for a file."""

    label: str
    suffix: str
    rows: pd.DataFrame


def settings(
    frame: pd.DataFrame,
    along: Collection[str],
    over: Collection[str],
    *,
    least: int = 3,
    first: tuple[str, str] | None = None,
) -> list[DrawnSetting]:
    """Split rows by everything that is neither along an axis nor a metric; the setting with the most points first.

    Settings with fewer than `least` different values of a column in `over` have no curve and are left out. `first`
    (column, value) puts those settings before the others. The first setting has no suffix, so that its file keeps a
    name that a README can link to.
    """
    if frame.empty:
        return []
    free = {*along, *frame.attrs["metrics"], *PROVENANCE, "subject"}
    fixed = [column for column in frame.columns if column not in free]
    groups = [rows for _, rows in frame.groupby(fixed, dropna=False, sort=False)]
    groups = [rows for rows in groups if all(rows[column].nunique() >= least for column in over)]
    groups.sort(key=lambda rows: (first is not None and rows[first[0]].iloc[0] != first[1], -len(rows)))
    varying = [column for column in fixed if frame[column].nunique(dropna=False) > 1]
    return [
        DrawnSetting(_label(rows.iloc[0], fixed), "" if index == 0 else _suffix(rows.iloc[0], varying), rows)
        for index, rows in enumerate(groups)
    ]


def spread_over(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the sorted values: first and last, and the rest evenly between them."""
    ordered = sorted(values)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]


def _label(row: pd.Series, fixed: Sequence[str]) -> str:
    return ", ".join(word for word in _words(row, fixed) if word not in USUAL)


def _suffix(row: pd.Series, varying: Sequence[str]) -> str:
    text = (
        "-".join(_words(row, varying))
        .replace("→", "to")
        .replace("'", "")
        .replace(TIMES, "x")
        .replace(" + ", "-")
        .replace(" = ", "")
    )
    return "".join(letter if letter.isalnum() or letter in "-._=" else "_" for letter in text)


def _words(row: pd.Series, columns: Sequence[str]) -> Iterator[str]:
    """`band_limited_conv2d`, `B8`, `64→64 channels`, `32x32`, then what else there is as name=value."""
    left = [column for column in columns if pd.notna(row[column]) and row[column] != ""]

    def take(*names: str) -> bool:
        found = all(name in left for name in names)
        if found:
            left[:] = [name for name in left if name not in names]
        return found

    if take("operation"):
        yield str(row["operation"])
    if take("batch"):
        yield f"B{row['batch']:g}"
    depthwise = "groups" in left and row["groups"] > 1 and row["groups"] == row.get("in_channels")
    if take("in_channels", "out_channels"):
        yield f"{row['in_channels']:g}→{row['out_channels']:g} channels"
    if take("groups") and row["groups"] > 1:
        yield "depthwise" if depthwise else f"{row['groups']:g} groups"
    if take("channels"):
        yield f"{row['channels']:g} channels"
    if take("height", "width"):
        yield f"{row['height']:g}{TIMES}{row['width']:g}"
    if take("input"):
        yield f"{row['input']} input"
    if take("fft_size"):
        yield f"N = {str(row['fft_size']).replace('x', TIMES)}"
    if take("dtype"):
        yield str(row["dtype"])
    if take("pass"):
        yield "forward + backward" if row["pass"] == "both" else f"{row['pass']} pass"
    if take("cache"):
        yield f"{row['cache']} cache"
    if take("launch") and row["launch"] != "eager":
        yield f"{row['launch']} launch"
    if take("seed") and row["seed"] != 0:
        yield f"seed {row['seed']}"
    if take("relative"):
        yield "beta in units of the map's rms" if row["relative"] else "beta as a magnitude"
    if take("grid") and row["grid"] != "tight":
        yield f"{row['grid']} N"
    if take("kernel_size"):
        yield f"K = {row['kernel_size']}"
    for name in left:
        value = row[name]
        yield f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
