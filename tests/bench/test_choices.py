"""What auto takes is judged against its equals only: as exact, for the same inputs, measured at the same commit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import commit_hash, environment, record, write
from toy_operation import TOLERANCE, implementation, toy

from spectralbench.choices import JudgedChoice, as_markdown, judged_choices
from spectralbench.history import load
from spectralkernels.declare import Block, Decision, Tolerance

COARSE = Tolerance({"float32": 10 * TOLERANCE}, "a test")
OPERATION = toy(
    implementation("plain"),
    implementation("quick"),
    implementation("coarse", tolerance=COARSE),
    implementation("prepared", prepare=lambda **inputs: inputs),
    implementation("picky", supports=lambda **inputs: "it takes nothing"),
    rivals=(implementation("rival"),),
    profiles={"smoke": (Block({"size": (8, 16)}),)},
    auto=lambda **inputs: Decision("plain", f"{inputs['x'].shape[-1]} is small"),
)


def judged(results: Path, times: dict[str, float], **changes: Any) -> list[JudgedChoice]:
    """Verdicts on one case of the toy operation with these times."""
    facts = environment(commit=0)
    records = [
        record({"device_time": [seconds]}, operation="toy", implementation=name, case={"size": 24}, **changes)
        for name, seconds in times.items()
    ]
    write(results, f"2026-01-05-{commit_hash(0)[:8]}", facts, records)
    return list(judged_choices(load(results), "cpu-test-2c", {"toy": OPERATION}, "cpu"))


def test_regret_is_the_choice_over_the_fastest_equal(tmp_path: Path):
    (found,) = judged(tmp_path, {"plain": 3.0, "quick": 2.0})
    assert (found.chosen, found.best, found.regret) == ("plain", "quick", 1.5)
    assert found.because == "24 is small"


@pytest.mark.parametrize("other", ["coarse", "prepared", "picky", "rival"])
def test_who_is_no_equal_is_left_out(tmp_path: Path, other: str):
    (found,) = judged(tmp_path, {"plain": 3.0, "quick": 4.0, other: 1.0})
    assert (found.best, found.regret) == ("plain", 1.0)


def test_a_choice_without_an_equal_or_a_time_is_not_judged(tmp_path: Path):
    assert judged(tmp_path, {"plain": 3.0, "coarse": 1.0}) == []
    assert judged(tmp_path, {"quick": 3.0, "coarse": 1.0}) == []


def test_another_commit_does_not_count(tmp_path: Path):
    judged(tmp_path, {"plain": 3.0, "quick": 4.0})
    later = [record({"device_time": [1.0]}, operation="toy", implementation="quick", case={"size": 24}, day=1)]
    write(tmp_path, "later", environment(commit=1), later)
    assert list(judged_choices(load(tmp_path), "cpu-test-2c", {"toy": OPERATION}, "cpu")) == []


def test_the_page_has_a_row_for_what_costs_most():
    def one(chosen: str, seconds: float) -> JudgedChoice:
        return JudgedChoice("toy", "size=24,rate=1", "float32", "forward", chosen, "small", seconds, "quick", 2.0)

    found = {"here": [one("quick", 2.0), one("plain", 2.1), one("plain", 5.0)], "there": [one("quick", 2.0)]}
    page = as_markdown(found, "here")
    here, there = page.split("## ")[1:]
    assert "on `here`" not in here and "what auto takes on `here`" in there
    assert "1.1 and more: 0 of 1." in there
    assert "| toy | time | 3 | 1 | 1.05 | 2.50 |" in page
    assert "1.1 and more: 1 of 3" in page
    assert "| toy | size=24 rate=1 | forward | time | plain | quick | 2.50 | small |" in page


@pytest.mark.parametrize(
    ("case", "why"),
    [({"size": "24"}, "has no parameter 'size' that can be '24'"), ({"size": 0}, "size must be positive"),
     ({"size": 2**40}, "no larger than memory"), ({"length": 24}, "has no parameter 'length'"),
     ({"size": 2**31}, "GiB that are made again")],
)  # fmt: skip
def test_a_case_that_cannot_be_made_again_is_refused_with_the_reason(tmp_path: Path, case: dict[str, Any], why: str):
    records = [
        record({"device_time": [1.0]}, operation="toy", implementation=name, case=case) for name in ("plain", "quick")
    ]
    write(tmp_path, "a", environment(commit=0), records)
    refused: list[str] = []
    assert list(judged_choices(load(tmp_path), "cpu-test-2c", {"toy": OPERATION}, "cpu", refused)) == []
    assert len(refused) == 1 and why in refused[0]


def by_aim(x: Any, optimise: str, **_: Any) -> Decision:
    return Decision("quick", "it takes the least time") if optimise == "time" else Decision("plain", "it keeps least")


def test_where_there_are_aims_each_is_judged_by_what_it_looks_for(tmp_path: Path):
    """Plain is three times slower and keeps a tenth: each aim is right about its own cost."""
    aims = replace(OPERATION, auto=by_aim, aims=("memory", "time"))
    records = [
        record({"device_time": [time], "stored_bytes": [stored], "saved_bytes": [saved]}, operation="toy",
               implementation=name, case={"size": 24}, pass_=pass_)
        for name, time, stored, saved in (("plain", 3.0, 10.0, 400.0), ("quick", 1.0, 100.0, 200.0))
        for pass_ in ("forward", "both")
    ]  # fmt: skip
    write(tmp_path, "a", environment(commit=0), records)
    found = list(judged_choices(load(tmp_path), "cpu-test-2c", {"toy": aims}, "cpu"))
    told = {(one.pass_, one.aim, one.default): (one.chosen, one.best, one.regret) for one in found}
    assert told == {
        ("forward", "memory", True): ("plain", "plain", 1.0),
        ("forward", "time", False): ("quick", "quick", 1.0),
        ("both", "memory", True): ("plain", "quick", 2.0),
        ("both", "time", False): ("quick", "quick", 1.0),
    }
    page = as_markdown({"here": found}, "here")
    assert "| toy | memory | 2 | 1 | 1.50 | 2.00 |" in page
    assert "| toy | time, if asked | 2 | 2 | 1.00 | 1.00 |" in page
