"""The parts of README.md that are facts: claims from the records of one commit, and who computes what where.

    python -m spectralbench.readme [COMMIT]      writes both again; default: the commit that the README names

A test renders the README from the records and the declarations, and compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spectralbench.contest import CaseRows, Versus, cases, times, title
from spectralbench.history import History, current, load
from spectralbench.names import number
from spectralbench.quantity import amount
from spectralbench.report.costs import percent, saved, share
from spectralbench.settings import VIEWS, ours
from spectralbench.text import table
from spectralkernels.declare import Operation

CLAIMED = "band_limited_conv2d"
PART = re.compile(r"(<!-- (?P<name>claims|support)(?: at (?P<commit>[0-9a-f]{8}))? -->\n).*?(<!-- end -->)", re.DOTALL)
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
    """The finding in two sentences, and the table behind it. ValueError if no convolution was measured there."""
    at = tuple(
        replace(one, points=kept)
        for one in current(history).series
        if (kept := tuple(point for point in one.points if point.mark == mark))
    )
    rows = [row for case in cases(replace(history, series=at)).get(CLAIMED, ()) if (row := _claim(case)) is not None]
    if not rows:
        raise ValueError(f"no band-limited convolution was measured beside its rivals at {mark}")
    compressions = {case.params["compression"] for case, _, _ in rows}
    processes = {len(versus.row.time.processes) for _, versus, _ in rows if versus.row.time is not None}
    machines = " and ".join(sorted({case.subject.machine for case, _, _ in rows}))
    dense = [row for row in rows if row[0].params["groups"] == 1 and row[0].subject.pass_ == "forward"]
    slowest, fastest = (pick(dense, key=lambda row: row[1].faster) for pick in (min, max))
    errors = [versus.row.value("approximation_error") or 0.0 for _, versus, _ in rows]
    behinds = [behind for case, versus, _ in rows if (behind := saved(case, versus.row, versus.other)[1]) is not None]
    doubt = "" if all(versus.ratio.judged for _, versus, _ in rows) else ", in too few processes to be sure"
    rates = ", ".join(map(number, sorted(map(float, compressions))))
    lines = [
        f"**What we found.** On `{machines}`, at c = {rates}, a dense layer runs {times(slowest[1].faster)} "
        f"(K = {slowest[0].params['kernel_size']}) to {times(fastest[1].faster)}",
        f"(K = {fastest[0].params['kernel_size']}) as fast as the torch convolution in its best layout{doubt}.",
        f"**Its price:** before any retraining the answer is off by {percent(min(errors))} to {percent(max(errors))}, "
        "and behind a ReLU",
        f"a layer keeps {share(min(behinds, default=None))} to {share(max(behinds, default=None))} of the bytes that "
        "the torch convolution keeps for backward.",
        "",
    ]
    cells: list[tuple[str, ...]] = []
    for case, versus, fft in rows:
        alone, behind = saved(case, versus.row, versus.other)
        time = versus.row.time
        assert time is not None, "a ratio was taken of it"
        facts = {name: value for name, value in case.facts.items() if name != "compression"}
        name = title(facts, CLAIMED).removeprefix("conv2d ")
        error = percent(versus.row.value("approximation_error"))
        over_fft = "-" if fft is None else fft.text
        cells.append((name, amount(time.value, "second"), versus.text, over_fft, error, share(alone), share(behind)))
    heads = ("layer", "time", "x over torch conv", "x over torch.fft", "error", "saved alone", "saved behind ReLU")
    lines += table(heads, cells, range(1, 7))
    names = ", ".join(sorted({versus.row.name for _, versus, _ in rows}))
    count = " or ".join(map(str, sorted(processes)))
    lines += [
        "",
        f"Ours is `{names}`; medians of {count} process{'' if count == '1' else 'es'} at {mark}. x over: how many "
        "times faster, against the rival's best",
        "layout or N. saved: bytes kept for backward over the torch convolution's. `~`: fewer than three processes, so",
        "not judged. `°`: one layout, or one N, was measured.",
    ]
    return "\n".join(lines)


def _claim(case: CaseRows) -> tuple[CaseRows, Versus, Versus | None] | None:
    """A case with our fastest against the library convolution; None where a row of this table would be empty."""
    row = ours(case, VIEWS[CLAIMED])
    against = None if row is None else case.against(row, "conv")
    if row is None or against is None or not case.params.get("compression"):
        return None
    return case, against, case.against(row, "torch.fft")


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
    from spectralkernels.ops import load_operations

    path = Path("README.md")
    commit = arguments[0][:8] if arguments else None
    text = render(path.read_text(encoding="utf-8"), load(Path("results")), load_operations(), commit)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
