"""The gate: a planted regression is named, noise is not, and what cannot be judged says why."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import synthetic_records as synthetic

from spectralbench import alert, history
from spectralbench.alert import Finding, Verdict


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
    subject = history.Subject("records", "m", "o", 1, "i", "c", "float32", "forward", (8,), "warm", "eager", 0)
    points = tuple(
        history.Point(f"{index:08d}", None, f"2026-01-{index:04d}", value, (("p", value),), value, value, 1, ())
        for index, value in enumerate(values)
    )
    return history.History((history.Series(history.Key(subject, "device_time", 1, "second"), points, "kernel", {}),))


@pytest.mark.parametrize(("earlier", "bound"), [(3, 0.012), (7, 0.006), (20, 0.003)])
def test_false_alarm_rate_at_two_percent_noise(earlier: int, bound: float) -> None:
    rng = random.Random(20260105)
    trials = 4000
    alarms = 0
    for _ in range(trials):
        values = [1 + 0.02 * rng.gauss(0, 1) for _ in range(earlier + 1)]
        alarms += alert.exit_code(alert.judge(series_of_values(values))) == 1
    print(f"{alarms} false alarms in {trials} unchanged series of {earlier} earlier points")
    assert alarms / trials <= bound


def test_power_at_one_percent_noise() -> None:
    rng = random.Random(20260106)
    trials = 1000
    caught = 0
    for _ in range(trials):
        values = [1 + 0.01 * rng.gauss(0, 1) for _ in range(20)] + [1.10 * (1 + 0.01 * rng.gauss(0, 1))]
        caught += alert.judge(series_of_values(values))[0].verdict is Verdict.SLOWER
    assert caught / trials > 0.95


def test_both_gates_must_agree() -> None:
    steady = [1.0, 1.0001, 0.9999, 1.0, 1.0001]
    assert alert.judge(series_of_values([*steady, 1.04]))[0].verdict is Verdict.SAME  # far from noise, but small
    noisy = [1.0, 1.2, 0.8, 1.1, 0.9]
    (found,) = alert.judge(series_of_values([*noisy, 1.3]))
    assert found.verdict is Verdict.CANNOT_TELL and "noise allows" in found.reason  # large, but within noise
    assert alert.exit_code([found]) == 3


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


def test_only_the_last_twenty_points_count() -> None:
    (found,) = alert.judge(series_of_values([5.0] * 30 + [1.0] * 20 + [1.01]))
    assert found.verdict is Verdict.SAME and found.earlier == 20


def test_a_case_that_fails_now_is_exit_1(tmp_path: Path) -> None:
    write_points(tmp_path, "device_time", [1.0] * 5)
    failed = synthetic.record(None, day=9, status="failed", failure="wrong", reason="rounding error 0.3 over 1e-05")
    synthetic.write(tmp_path, "newest", synthetic.environment(commit=9), [failed])
    found = judged(tmp_path)
    assert found.verdict is Verdict.NO_DATA and found.failed
    assert found.reason == "failed (wrong): rounding error 0.3 over 1e-05"
    assert alert.exit_code([found]) == 1
    assert "Failing now" in alert.to_markdown([found])


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
    with pytest.raises(ValueError, match="expected k > 0 and minimum >= 1, got k = 0"):
        alert.judge(history.History(()), k=0)
