"""The parts of README.md that are facts: five answers from the records of one commit, and who computes what where.

    python -m spectralbench.readme [COMMIT]      writes both again; default: the commit that the README names

A test renders the README from the records and the declarations, and compares.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill, wrap

from spectralbench import alert
from spectralbench.alert import Verdict
from spectralbench.contest import CaseRows, Versus, cases, times, title
from spectralbench.crossings import crossings
from spectralbench.history import History, current, load
from spectralbench.names import number
from spectralbench.quantity import amount
from spectralbench.report.changes import before
from spectralbench.report.costs import percent, saved, share
from spectralbench.settings import VIEWS, Setting, ours, settings
from spectralbench.text import table
from spectralkernels.declare import Operation
from spectralkernels.ops import load_operations

CLAIMED, STEP = "band_limited_conv2d", "model_step"
LOSSES = 4
PART = re.compile(r"(<!-- (?P<name>claims|support)(?: at (?P<commit>[0-9a-f]{8}))? -->\n).*?(<!-- end -->)", re.DOTALL)
Claim = tuple[CaseRows, Versus, Versus | None]
"""A case, our fastest against the torch convolution in its best layout, and against torch.fft at its best N."""
ENGINES = {"native": "C++", "torch": "torch", "library": "library", "triton": "Triton"}


def render(text: str, history: History, operations: Mapping[str, Operation], commit: str | None = None) -> str:
    """README's text with both parts made anew. commit: of the claims, eight digits; None: the one that it names."""

    def part(found: re.Match[str]) -> str:
        if found["name"] == "support":
            return f"<!-- support -->\n{support(operations)}\n{found[4]}"
        mark = commit or found["commit"]
        return f"<!-- claims at {mark} -->\n{claims(history, mark)}\n{found[4]}"

    return PART.sub(part, text)


def claims(history: History, mark: str) -> str:
    """Five answers, and the table behind them. ValueError if no convolution was measured there."""
    now = current(history)
    at = tuple(
        replace(one, points=kept)
        for one in now.series
        if (kept := tuple(point for point in one.points if point.mark == mark))
    )
    found = cases(replace(history, series=at)).get(CLAIMED, ())
    measured = [row for case in found if (row := _claim(case)) is not None]
    claimed = [dict(case.params) for case, *_ in load_operations()[CLAIMED].cases("claims")]
    rows = [row for row in measured if dict(row[0].params) in claimed]
    if not rows:
        raise ValueError(f"no band-limited convolution was measured beside its rivals at {mark}")
    (usual, _), *_ = Counter(case.params["compression"] for case, _, _ in rows).most_common()
    rows = [row for row in rows if row[0].params["compression"] == usual]
    here = {case.subject.machine for case, _, _ in rows}
    pays = _pays(settings(CLAIMED, found)) + _threshold(cases(now).get(STEP, ()), here)
    told = (_won(rows), pays, _price(rows), _changed(now, mark), _lost(measured))
    answers = (fill(answer, 118, subsequent_indent="  ", break_on_hyphens=False) for answer in told)
    return "\n".join([*answers, "", *_table(rows, mark)])


def _claim(case: CaseRows) -> Claim | None:
    """A case with our fastest against the library convolution; None where a row of this table would be empty."""
    row = ours(case, VIEWS[CLAIMED])
    against = None if row is None else case.against(row, "conv")
    return None if row is None or against is None else (case, against, case.against(row, "torch.fft"))


def _won(rows: Sequence[Claim]) -> str:
    dense = [row for row in rows if row[0].params["groups"] == 1 and row[0].subject.pass_ == "forward"] or list(rows)
    slowest, fastest = (pick(dense, key=lambda row: row[1].faster) for pick in (min, max))
    machines = " and ".join(sorted({f"`{case.subject.machine}`" for case, _, _ in rows}))
    doubt = "" if all(versus.ratio.judged for _, versus, _ in rows) else ", in too few processes to be sure"
    return (
        f"- **What won where?** On {machines}, at c = {_rates(rows)}, a dense layer runs {times(slowest[1].faster)} "
        f"(K = {slowest[0].params['kernel_size']}) to {times(fastest[1].faster)} "
        f"(K = {fastest[0].params['kernel_size']}) as fast as the torch convolution in its best layout{doubt}."
    )


def _rates(rows: Sequence[Claim]) -> str:
    return ", ".join(map(number, sorted({float(case.params["compression"]) for case, _, _ in rows})))


def _pays(found: Sequence[Setting]) -> str:
    """From which K our fastest pays, by compression, in the setting with the most cases."""
    start = "- **From where on does it pay?** "
    for setting in found:
        names = Counter(row.name for case in setting.cases if (row := ours(case, setting.view)) is not None)
        best = max(names, key=lambda name: names[name], default=None)
        words = [
            f"at c = {one.fixed.removeprefix('c')} {one.words}"
            for one in crossings(setting)
            if one.axis == setting.view.down and one.family == "conv" and one.ours == best
        ]
        if words:
            return f"{start}`{best}` over the torch convolution, {setting.name}: {', '.join(words)}."
    return f"{start}Not known: it was measured at fewer than three K."


def _threshold(measured: Sequence[CaseRows], here: set[str]) -> str:
    """A training step with SpecNet's layers over one with native ones, in the newest records; empty without both.

    here: the machines of the table; others, which are named, serve where these have measured no network.
    """
    found = [case for case in measured if case.subject.machine in here] or list(measured)
    machines = " and ".join(sorted({f"`{case.subject.machine}`" for case in found} - {f"`{one}`" for one in here}))
    where = f" on {machines}" if machines else ""
    steps = {
        (str(case.params["network"]), float(case.params["beta"])): specnet.time.value / native.time.value
        for case in found
        if case.subject.pass_ == "both"
        and (specnet := case.rows.get("specnet")) is not None
        and (native := case.rows.get("native")) is not None
        and specnet.time is not None
        and native.time is not None
    }
    if not steps:
        return ""
    networks = ", ".join(sorted({network for network, _ in steps}))
    betas = sorted({beta for _, beta in steps})
    between = number(betas[0]) if len(betas) == 1 else f"{number(betas[0])} to {number(betas[-1])}"
    taken = f"{times(min(steps.values()))} to {times(max(steps.values()))} the time of native layers"
    return f" By beta: with SpecNet's layers a training step of {networks} takes {taken}, at beta = {between}{where}."


def _price(rows: Sequence[Claim]) -> str:
    errors = [one for _, versus, _ in rows if (one := versus.row.value("approximation_error")) is not None]
    behinds = [behind for case, versus, _ in rows if (behind := saved(case, versus.row, versus.other)[1]) is not None]
    off = f"is off by {percent(min(errors))} to {percent(max(errors))}" if errors else "was not compared"
    kept = (
        f"{share(min(behinds))} to {share(max(behinds))} of the bytes that the torch convolution keeps for backward"
        if behinds
        else "bytes that were not counted"
    )
    return (
        f"- **What does it cost?** At c = {_rates(rows)}, before any retraining, the answer {off}, and behind a ReLU, "
        f"which keeps its map too, a layer keeps {kept}."
    )


def _changed(now: History, mark: str) -> str:
    """Against the commit that was measured before in the same environment, kernels beside all others."""
    of_claims = [one for one in now.series if (one.key.metric, one.key.subject.operation) == ("device_time", CLAIMED)]
    logs: dict[bool, list[float]] = {True: [], False: []}
    marks: Counter[str] = Counter()
    for one in of_claims:
        newest = next((point for point in reversed(one.points) if point.mark == mark), None)
        if newest is not None and (past := before(one, newest)) is not None:
            logs[one.role == "kernel"].append(math.log(past.value / newest.value))
            marks[past.mark] += 1
    start = "- **What changed since the commit before?**"
    ask = "Of an edit of yours: `spectralbench compare main .`; of every series: `spectralbench alert`."
    if not logs[True]:
        return f"{start} This is the first commit that was measured in its environment. {ask}"
    kernels, others = (times(math.exp(statistics.fmean(logs[one]))) if logs[one] else "not" for one in (True, False))
    judged = alert.judge(replace(now, series=tuple(one for one in of_claims if one.newest.mark == mark)))
    slower, faster = (sum(one.verdict is each for one in judged) for each in (Verdict.SLOWER, Verdict.FASTER))
    return (
        f"{start} Since {marks.most_common(1)[0][0]} our kernels are {kernels} as fast, and everything else, which "
        f"nobody changed, {others}: {len(logs[True])} and {len(logs[False])} series, geometric means. The alert calls "
        f"{slower or 'none'} of them slower and {faster or 'none'} faster. {ask}"
    )


def _lost(measured: Sequence[Claim]) -> str:
    """Layers in which the torch convolution is faster, by the compressions at which it is, the worst first."""
    losses = [one for one in measured if one[1].faster < 1]
    start = (
        f"- **Where do we lose?** The torch convolution is faster in {len(losses) or 'none'} of {len(measured)} cases"
    )
    if not losses:
        return f"{start} measured."
    groups: dict[str, list[Claim]] = defaultdict(list)
    for one in sorted(losses, key=lambda one: one[1].faster):
        groups[_layer(one[0])].append(one)
    words = []
    for layer, own in list(groups.items())[:LOSSES]:
        rates = sorted(float(case.params["compression"]) for case, _, _ in own)
        where = number(rates[0]) if len(rates) == 1 else f"{number(rates[0])} to {number(rates[-1])}"
        words.append(f"{layer} at c = {where} ({times(own[0][1].faster)} at worst)")
    more = "" if len(groups) <= LOSSES else f", and {len(groups) - LOSSES} more layers"
    return f"{start}: {'; '.join(words)}{more}."


def _layer(case: CaseRows) -> str:
    return title({name: value for name, value in case.facts.items() if name != "compression"}, CLAIMED).split(" ", 1)[1]


def _table(rows: Sequence[Claim], mark: str) -> Iterator[str]:
    cells: list[tuple[str, ...]] = []
    for case, versus, fft in rows:
        alone, behind = saved(case, versus.row, versus.other)
        assert versus.row.time is not None, "a ratio was taken of it"
        time, error = amount(versus.row.time.value, "second"), percent(versus.row.value("approximation_error"))
        over_fft = "-" if fft is None else fft.text
        cells.append((_layer(case), time, versus.text, over_fft, error, share(alone), share(behind)))
    heads = ("layer", "time", "x over torch conv", "x over torch.fft", "error", "saved alone", "saved behind ReLU")
    yield from table(heads, cells, range(1, 7))
    names = ", ".join(sorted({versus.row.name for _, versus, _ in rows}))
    processes = sorted({len(versus.row.time.processes) for _, versus, _ in rows if versus.row.time is not None})
    count = " or ".join(map(str, processes))
    yield ""
    yield from wrap(
        f"Ours is `{names}`; medians of {count} process{'' if count == '1' else 'es'} at {mark}. x over: how many "
        "times faster, against the rival's best layout or N. saved: bytes kept for backward over the torch "
        "convolution's. `~`: fewer than three processes, so not judged. `°`: one layout, or one N, was measured.",
        118,
    )


def support(operations: Mapping[str, Operation]) -> str:
    """A row per operation: what computes it on a CPU and on CUDA, what it can be differentiated by, in which types."""
    rows = []
    for operation in operations.values():
        engines: set[str] = {one.engine for one in operation.implementations}
        on = (_engines(engines - {"triton"}), _engines(engines - {"native"}))
        types = ", ".join(operation.tolerance.relative)
        rows.append((f"`{operation.name}`", *on, ", ".join(operation.gradients) or "-", types))
    return "\n".join(table(("operation", "CPU", "CUDA", "backward to", "types"), rows))


def _engines(found: Collection[str]) -> str:
    return ", ".join(words for engine, words in ENGINES.items() if engine in found)


def main(arguments: Sequence[str]) -> None:
    """Write README.md in the current folder again."""
    path = Path("README.md")
    commit = arguments[0][:8] if arguments else None
    text = render(path.read_text(encoding="utf-8"), load(Path("results")), load_operations(), commit)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
