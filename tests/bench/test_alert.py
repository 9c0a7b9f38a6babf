"""The gate: a planted regression is named, noise is not, and what cannot be judged says why."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

from spectralbench import alert, history, simulate
from spectralbench.alert import Finding, Verdict
from spectralbench.alert.control import Controls
from spectralbench.alert.evidence import weigh


def judged(results: Path, metric: str = "device_time", implementation: str = "triton") -> Finding:
    """The finding of one metric of one implementation."""
    findings = alert.judge(history.load(results))
    return next(
        one for one in findings if one.key.metric == metric and one.key.subject.implementation == implementation
    )


def write_points(results: Path, metric: str, values: list[float], processes: int = 1) -> None:
    for index, value in enumerate(values):
        records = [synthetic.record({metric: value}, day=index, replicate=replicate) for replicate in range(processes)]
        synthetic.write(results, f"f{index:03d}", synthetic.environment(commit=index), records)


def test_planted_regression_is_caught_and_an_unchanged_copy_is_silent(tmp_path: Path, seed: int) -> None:
    original, planted = tmp_path / "original", tmp_path / "planted"
    synthetic.history(original, 12, random.Random(seed), noise=0.005)
    assert alert.exit_code(alert.judge(history.load(original))) == 0
    shutil.copytree(original, planted)
    newest = sorted(planted.glob("records/*/*.jsonl"))[-1]
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    for line in lines:
        if line.get("implementation") == "triton":
            time = line["measurements"]["device_time"]
            time["samples"] = [1.25 * sample for sample in time["samples"]]
    newest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    findings = alert.judge(history.load(planted))
    assert alert.exit_code(findings) == 1
    (found,) = [one for one in findings if one.verdict is Verdict.SLOWER]
    assert found.key.subject.implementation == "triton" and found.key.metric == "device_time"
    assert found.ratio == pytest.approx(1.25, rel=0.03)
    assert found.new == pytest.approx(1.25 * (found.old or 0), rel=0.03)
    assert found.commit == synthetic.commit_hash(11)[:8] and found.since == synthetic.commit_hash(10)[:8]
    markdown = alert.to_markdown(findings)
    assert "## Regressions" in markdown and "x slower" in markdown and synthetic.commit_hash(11)[:8] in markdown
    stored = json.loads(alert.to_json(findings))
    assert stored["exit_code"] == 1
    (row,) = [one for one in stored["findings"] if one["verdict"] == "SLOWER"]
    assert row["old"] == found.old and row["new"] == found.new and row["commit"] == found.commit


def test_improvement_is_faster_and_fine(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0, 1.01, 0.99, 1.0, 0.5])
    found = judged(tmp_path)
    assert found.verdict is Verdict.FASTER and found.words == "2.00x faster"
    assert alert.exit_code([found]) == 0


def series_of_values(values: list[float]) -> history.History:
    """A history of one time series, without files, for simulations."""
    subject = history.Subject("o", 1, "i", "c", "float32", "forward", (8,), "warm", "eager", 0, "m", "records")
    points = tuple(
        history.Point(f"{index:08d}", None, f"2026-01-{index:04d}", value, (("p", value),), value, value, 1, ())
        for index, value in enumerate(values)
    )
    return history.History((history.Series(history.Key(subject, "device_time", 1, "second"), points, "kernel", {}),))


@pytest.mark.parametrize("back", [1, 11, 30])
def test_the_commit_of_an_old_step_is_named(back: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [float(x) for x in 1 + 0.01 * rng.standard_normal(40)]
    values[-back:] = [1.3 * value for value in values[-back:]]
    (found,) = alert.judge(series_of_values(values))
    assert found.verdict is Verdict.SLOWER
    assert abs(int(str(found.changed_at)) - (40 - back)) <= 1


def test_a_slow_drift_is_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [1.01**index * (1 + 0.005 * float(rng.standard_normal())) for index in range(40)]
    assert alert.judge(series_of_values(values))[0].verdict is Verdict.SLOWER


@pytest.mark.parametrize("until", [0, 150])
def test_a_drift_slower_than_the_window_is_seen_from_the_anchor(until: int, seed: int) -> None:
    """0.03 % a commit is 1.8 % over the window, within the practical percent, and 6 % since the beginning."""
    rng = np.random.default_rng(seed)
    values = [1.0003**index * (1 + 0.002 * float(rng.standard_normal())) for index in range(200)]
    later = None if not until else {f"{index:08d}" for index in range(until, 200)}
    (found,) = alert.judge(series_of_values(values), since=later)
    assert found.verdict is (Verdict.SAME if until else Verdict.SLOWER)
    if not until:
        assert "between the anchor at 00000004 and there" in found.reason


def test_an_old_step_is_taken_back_by_a_later_release(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [(1.2 if index >= 20 else 1.0) * (1 + 0.002 * float(rng.standard_normal())) for index in range(40)]
    assert alert.judge(series_of_values(values))[0].verdict is Verdict.SLOWER
    (found,) = alert.judge(series_of_values(values), since={f"{index:08d}" for index in range(26, 40)})
    assert found.verdict is Verdict.SAME
    (found,) = alert.judge(series_of_values([*values, 1.5]), since=set())
    assert found.verdict is Verdict.SLOWER and found.earlier == 5, "a release at HEAD leaves its anchor"


def test_an_outlier_among_the_processes_is_not_the_noise_of_a_series(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = simulate.run(rng, "gaussian", 0.02, 8, 5, False)
    values[: simulate.CHANGED, -1] += np.log(1.10)
    values[: simulate.CHANGED, 2, 1] += 1.0
    values[simulate.CHANGED :, 3, 1] += 1.0
    assert simulate.found_alone(weigh(values)).mean() >= 0.9


def test_other_numbers_of_processes_are_no_change(seed: int) -> None:
    """The mean of the fastest of one process is higher than that of the fastest of five."""
    rng = np.random.default_rng(seed)
    values = simulate.run(rng, "exponential", 0.04, 8, 5, False)
    values[:, -1, 1:] = np.nan
    assert simulate.alarms(weigh(values)).sum() <= 1


def test_what_it_takes_to_see_ten_percent_is_said() -> None:
    """Half the noise, a quarter of the processes."""
    (found,) = alert.judge(series_of_values([1.0, 1.01, 0.99, 1.0, 1.0]))
    needed = []
    for resolution in (1.0999**2 - 1, 1.0999**4 - 1):
        text = alert.to_markdown([replace(found, resolution=resolution, processes=3)])
        needed.append(text.partition("% takes about ")[2].split()[0])
    assert needed == ["12", "48"]
    text = alert.to_markdown([replace(found, resolution=0.05, processes=3)])
    assert "could show is 5 % (median).\n" in text


def test_a_spike_that_is_over_is_the_same() -> None:
    steady = [1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0]
    assert alert.judge(series_of_values([*steady, 1.5, 1.0]))[0].verdict is Verdict.SAME


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_time_of_zero_or_less_is_never_faster(bad: float) -> None:
    (found,) = alert.judge(series_of_values([1.0, 1.01, 0.99, 1.0, bad]))
    assert found.verdict is Verdict.CANNOT_TELL and "no measurement" in found.reason
    assert alert.exit_code([found]) == 1
    (found,) = alert.judge(series_of_values([1.0, 1.01, bad, 1.0, 1.0]))
    assert found.verdict is Verdict.CANNOT_TELL and alert.exit_code([found]) == 0, "an old one only cannot be judged by"


def write_sittings(results: Path, factors: list[float], kernel: float, rng: random.Random) -> None:
    """Six kernels and four baselines; each factor slows a sitting, `kernel` slows the kernels of the newest."""
    for index, factor in enumerate(factors):
        records = []
        for number in range(10):
            name, role = ("triton", "kernel") if number < 6 else ("einsum", "baseline")
            own = kernel if role == "kernel" and index == len(factors) - 1 else 1.0
            for replicate in range(5):
                time = 1e-3 * factor * own * (1 + 0.01 * rng.gauss(0, 1))
                case = {"batch": number}
                records.append(
                    synthetic.record({"device_time": time}, implementation=name, role=role, case=case,
                                     day=index, replicate=replicate)
                )  # fmt: skip
        synthetic.write(results, f"f{index:03d}", synthetic.environment(commit=index), records)


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3])
def test_a_host_that_is_slower_for_a_day_is_no_regression(tmp_path: Path, seed: int, factor: float) -> None:
    write_sittings(tmp_path, [1.0] * 8 + [factor], 1.0, random.Random(seed))
    findings = alert.judge(history.load(tmp_path))
    assert alert.exit_code(findings) == 0
    assert all("the sitting moved its" in found.reason for found in findings if "mean" not in str(found.key))


def test_a_regression_on_a_slow_day_is_found_beside_it(tmp_path: Path, seed: int) -> None:
    write_sittings(tmp_path, [1.0] * 16 + [1.3], 1.25, random.Random(seed))
    slower = [one for one in alert.judge(history.load(tmp_path)) if one.verdict is Verdict.SLOWER]
    assert {one.key.subject.implementation for one in slower} == {"triton"} and len(slower) == 7
    assert all(one.ratio == pytest.approx(1.25, rel=0.05) for one in slower)


def test_a_little_everywhere_is_seen_in_the_geometric_mean(tmp_path: Path, seed: int) -> None:
    write_sittings(tmp_path, [1.0] * 24, 1.04, random.Random(seed))
    slower = [one for one in alert.judge(history.load(tmp_path)) if one.verdict is Verdict.SLOWER]
    assert any(one.key.subject.case == "geometric mean of 6 cases" for one in slower)


def test_a_rule_from_the_command_line_is_for_its_series_only() -> None:
    values = [1.0, 1.0001, 0.9999, 1.0, 1.0001, 1.05]
    assert alert.judge(series_of_values(values))[0].verdict is Verdict.SLOWER
    for text, verdict in (("device_time:o*=10%", Verdict.SAME), ("device_time:other*=10%", Verdict.SLOWER)):
        assert alert.judge(series_of_values(values), overrides=[alert.parse(text)])[0].verdict is verdict
    with pytest.raises(ValueError, match=r"expected METRIC\[:SERIES\]=PERCENT%"):
        alert.parse("device_time")
    with pytest.raises(ValueError, match="unknown metric 'speed'"):
        alert.parse("speed=3%")


def test_a_terminal_gets_an_answer_first_and_twenty_lines_at_most() -> None:
    (one,) = alert.judge(series_of_values([1.0] * 5 + [2.0]))
    lines = alert.to_terminal([one] * 100).splitlines()
    assert len(lines) == 20 and lines[0].startswith("100 series got worse") and "82 more" in lines[-1]
    assert alert.to_terminal([]).startswith("Not enough history")


def test_both_gates_must_agree() -> None:
    steady = [1.0, 1.0001, 0.9999, 1.0, 1.0001]
    assert alert.judge(series_of_values([*steady, 1.02]))[0].verdict is Verdict.SAME  # far from noise, but small
    noisy = [1.0, 1.2, 0.8, 1.1, 0.9]
    (found,) = alert.judge(series_of_values([*noisy, 1.3]))
    assert found.verdict is Verdict.CANNOT_TELL and "noise allows" in found.reason  # large, but within noise
    assert alert.exit_code([found]) == 0, "it was judged, and no regression is shown"


def test_equal_earlier_points_are_judged_by_the_practical_percent_and_say_so() -> None:
    assert alert.judge(series_of_values([1.0] * 6))[0].verdict is Verdict.SAME
    (found,) = alert.judge(series_of_values([1.0] * 5 + [1.06]))
    assert found.verdict is Verdict.SLOWER and "no noise seen" in found.reason
    # More than half are equal, so the MAD is zero although there is noise.
    (found,) = alert.judge(series_of_values([1.0] * 4 + [1.3, 0.7, 1.1]))
    assert found.verdict is Verdict.CANNOT_TELL


def test_disagreeing_processes_of_the_newest_point_count_as_noise(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0] * 5)
    for values, verdict in (((0.9, 1.08, 1.5), Verdict.CANNOT_TELL), ((1.08, 1.08, 1.081), Verdict.SLOWER)):
        records = [synthetic.record({"device_time": x}, day=9, replicate=index) for index, x in enumerate(values)]
        synthetic.write(tmp_path, "newest", synthetic.environment(commit=9), records)
        assert judged(tmp_path).verdict is verdict


@pytest.mark.parametrize(
    ("metric", "values", "verdict"),
    [
        ("saved_bytes", [1000.0, 1002.0], Verdict.SLOWER),
        ("saved_bytes", [1000.0, 1000.9], Verdict.SAME),
        ("saved_bytes", [1000.0, 900.0], Verdict.FASTER),
        ("saved_bytes", [0.0, 8.0], Verdict.SLOWER),
        ("saved_bytes", [0.0, 0.0], Verdict.SAME),
        ("kept_fraction", [0.5, 0.0], Verdict.SLOWER),
        ("achieved_compression", [0.5, 0.51], Verdict.SLOWER),
    ],
)
def test_exact_metrics_need_one_point_and_no_noise(
    tmp_path: Path, metric: str, values: list[float], verdict: Verdict
) -> None:
    write_points(tmp_path, metric, values)
    found = judged(tmp_path, metric)
    assert found.verdict is verdict
    json.loads(alert.to_json([found]))
    alert.to_markdown([found])


def test_too_little_history_is_exit_3(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0, 1.0, 9.0])
    found = judged(tmp_path)
    assert found.verdict is Verdict.CANNOT_TELL
    assert found.reason == "2 earlier clean points in this environment, 3 needed"
    assert alert.exit_code([found]) == alert.exit_code([]) == 3
    assert "Not enough history" in alert.to_markdown([found])


def test_a_new_environment_is_no_regression_and_is_named(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0] * 5)
    facts = synthetic.environment(commit=9, torch="2.14.0")
    synthetic.write(tmp_path, "newest", facts, [synthetic.record({"device_time": 2.0}, day=9)])
    found = judged(tmp_path)
    assert found.verdict is Verdict.CANNOT_TELL and "torch 2.13.0 -> 2.14.0" in found.reason
    assert found.ratio == 2.0


def test_dirty_points_are_judged_but_are_no_baseline(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0] * 4)
    for index in range(4):
        facts = synthetic.environment(commit=9, dirty=f"d{index}")
        record = synthetic.record({"device_time": 2.0}, day=9 + index)
        synthetic.write(tmp_path, f"z{index}", facts, [record])
    found = judged(tmp_path)
    assert found.verdict is Verdict.SLOWER and found.old == 1.0 and found.earlier == 4
    assert str(found.commit).endswith("-dirty")


def test_the_newest_change_is_the_one_that_is_named() -> None:
    """Twenty points used to be all that counted, and what lay before them was forgotten."""
    wave = [0.01, 0.0, -0.01, 0.0]
    values = [base + base * wave[index % 4] for index, base in enumerate([5.0] * 20 + [1.0] * 15 + [1.3] * 5)]
    (found,) = alert.judge(series_of_values(values))
    assert found.verdict is Verdict.SLOWER and found.changed_at == "00000035" and found.earlier == 35


def test_a_case_that_fails_now_is_exit_1(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0] * 5)
    failed = synthetic.record(None, day=9, status="failed", failure="wrong", reason="rounding error 0.3 over 1e-05")
    synthetic.write(tmp_path, "newest", synthetic.environment(commit=9), [failed])
    found = judged(tmp_path)
    assert found.verdict is Verdict.NO_DATA and found.failed
    assert found.reason == "failed (wrong): rounding error 0.3 over 1e-05"
    assert alert.exit_code([found]) == 1
    assert "Failing or gone now" in alert.to_markdown([found])


def test_a_matrix_of_environments_is_judged_one_by_one(tmp_path: Path) -> None:
    for index in range(6):
        for python in ("3.11", "3.12"):
            value = 2.0 if (index, python) == (5, "3.11") else 1.0
            facts = synthetic.environment(commit=index, python=python)
            record = synthetic.record({"device_time": value}, day=index + 0.1 * (python == "3.12"))
            synthetic.write(tmp_path, f"{index}-{python}", facts, [record])
    verdicts = sorted(one.verdict.value for one in alert.judge(history.load(tmp_path)))
    assert verdicts == ["SAME", "SLOWER"]


def test_nonsense_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 < rate < 1 and minimum >= 1, got rate = 0"):
        alert.judge(history.History(()), rate=0)


@pytest.mark.parametrize("others", [0, 1, 2, 3, 6, 7])
def test_the_shift_of_a_sitting_is_the_median_of_the_other_baselines(others: int, seed: int) -> None:
    """A baseline is no control of itself; equal deviations count as often as they come."""
    chance = random.Random(seed)
    keys = [one.key.subject for one in series_of_values([1.0, 1.0]).series]
    subject, stranger = keys[0], replace(keys[0], implementation="kernel")
    controls = Controls()
    known = [chance.choice((-0.5, 0.0, 0.25, chance.random())) for _ in range(others)]
    mine = chance.choice((*known, chance.random()))
    controls.sorted["a"] = sorted((*known, mine))
    controls.own[subject]["a"] = mine
    shift, count = controls.shifts(subject)("a")
    assert count == others
    assert shift == statistics.median(known) if others else math.isnan(shift)
    assert controls.shifts(stranger)("a") == (statistics.median((*known, mine)), others + 1)
    assert controls.shifts(subject)("b")[1] == 0
