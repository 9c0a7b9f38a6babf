"""What became of a series at its newest commit: other conditions, a wrong answer, a loss or damage is never "same"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from typer.testing import CliRunner

from spectralbench import alert, history, report
from spectralbench.alert import Verdict
from spectralbench.cli import app
from spectralbench.identity import NAMES, Conditions, changes
from spectralbench.metrics import load_metrics, moving

HERE = {"device": "cpu", "os": "Linux 6.1", "cpu": "Test CPU", "cpu_flags": "avx avx2 f16c fma", "cores": 2,
        "threads": 2, "heap": "kept", "torch": "2.13.0", "onednn": "3.12.0", "only": None}  # fmt: skip
METRICS = {"device_time": 1.0, "saved_bytes": 1024.0, "kept_fraction": 0.5}


def write(results: Path, commit: int, *records: Any, **facts: Any) -> Path:
    return synthetic.write(
        results, f"f{commit:03d}", synthetic.environment(commit=commit, **{**HERE, **facts}), records
    )


def steady(results: Path, commits: int = 5, *, metrics: dict[str, float] = METRICS, **changes: Any) -> None:
    for index in range(commits):
        write(results, index, synthetic.record(metrics, day=index), **changes)


def judged(results: Path) -> dict[str, alert.Finding]:
    return {found.key.metric: found for found in alert.judge(history.load(results))}


def failed(day: float, failure: str = "wrong", **changes: Any) -> Any:
    return synthetic.record(None, day=day, status="failed", failure=failure, reason="0.3 over 1e-05", **changes)


def skipped(day: float, **changes: Any) -> Any:
    return synthetic.record(None, day=day, status="skipped", reason="needs CUDA", **changes)


# Another environment


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 1}, "threads 2 -> 1"),
        ({"cores": 1}, "cores 2 -> 1"),
        ({"cpu": "Other CPU"}, "cpu Test CPU -> Other CPU"),
        ({"cpu_flags": "avx avx2 avx512f f16c fma"}, "cpu_flags +avx512f"),
        ({"os": "Linux 6.2"}, "os Linux 6.1 -> Linux 6.2"),
        ({"heap": None}, "heap kept -> none"),
    ],
    ids=["threads", "cores", "cpu", "flags", "os", "heap"],
)
def test_three_times_slower_in_other_conditions_is_another_segment_and_said(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    steady(tmp_path)
    write(tmp_path, 9, synthetic.record({**METRICS, "device_time": 3.0}, day=9), **change)
    found = judged(tmp_path)
    assert found["device_time"].verdict is Verdict.CANNOT_TELL
    assert (
        found["device_time"].reason
        == f"environment changed ({words}): 0 earlier clean points in this environment, 3 needed"
    )
    assert found["saved_bytes"].verdict is found["kept_fraction"].verdict is Verdict.SAME, "these are not moved by it"


def test_a_power_limit_and_a_card_are_segments_of_a_time_only(tmp_path: Path) -> None:
    card = {"device": "cuda", "gpu": "H200", "gpu_uuid": "GPU-1", "gpu_power_limit_mw": 700000}
    steady(tmp_path, **card)
    for day, change in ((7, {"gpu_power_limit_mw": 350000}), (8, {"gpu_uuid": "GPU-2"})):
        slower = synthetic.record({**METRICS, "device_time": 2.0}, day=day)
        write(tmp_path, day, slower, **{**card, **change})
        found = judged(tmp_path)
        assert found["device_time"].verdict is Verdict.CANNOT_TELL and next(iter(change)) in found["device_time"].reason
        assert found["saved_bytes"].verdict is Verdict.SAME


def test_bytes_that_follow_an_upgrade_are_unclear_and_a_fraction_that_does_is_news(tmp_path: Path) -> None:
    steady(tmp_path)
    write(
        tmp_path, 9, synthetic.record({**METRICS, "saved_bytes": 2048.0, "kept_fraction": 0.6}, day=9), torch="2.14.0"
    )
    found = judged(tmp_path)
    assert (
        found["saved_bytes"].verdict is Verdict.CANNOT_TELL and "torch 2.13.0 -> 2.14.0" in found["saved_bytes"].reason
    )
    assert found["kept_fraction"].verdict is Verdict.SLOWER


def test_one_commit_in_two_conditions_is_one_point_of_what_they_do_not_move(tmp_path: Path) -> None:
    write(tmp_path, 0, synthetic.record(METRICS))
    facts = synthetic.environment(commit=0, **{**HERE, "threads": 1})
    synthetic.write(tmp_path, "other", facts, [synthetic.record(METRICS)])
    points = {one.key.metric: one.points for one in history.load(tmp_path).series}
    assert [len(points[name]) for name in ("device_time", "saved_bytes")] == [2, 1]
    assert len(points["saved_bytes"][0].processes) == 2


def test_what_moves_a_metric_is_a_condition() -> None:
    moved_by = {name: metric.moved_by for name, metric in load_metrics().items()}
    assert moved_by["device_time"] == moved_by["energy"] == NAMES, "everything moves a time"
    assert moved_by["kept_fraction"] == (), "a fraction follows from the case"
    assert all(set(names) <= set(NAMES) and len(set(names)) == len(names) for names in moved_by.values())
    known = Conditions.of({name: "x" for name in NAMES} | {"gpu_uuid": "MIG-1", "load": 3})
    assert known.gpu_class == "MIG"
    assert len(moving("a metric of tomorrow", known)) == len(NAMES)
    on_a_cpu = Conditions.of({"device": "cpu", "gpu": "H200", "gpu_uuid": "GPU-1", "driver": "1", "threads": 0})
    assert on_a_cpu == Conditions(device="cpu", threads="0")
    assert changes([("a", "1"), ("b", "2")], [("b", "2"), ("c", "3")]) == "a 1 -> none, c none -> 3"


# A wrong answer


@pytest.mark.parametrize("process", [0, 1, 2])
def test_a_wrong_answer_in_any_process_fails_its_commit(tmp_path: Path, process: int) -> None:
    steady(tmp_path)
    records = [synthetic.record(METRICS, day=9 + 0.1 * index, replicate=index) for index in range(3)]
    records[process] = failed(9 + 0.1 * process, replicate=process)
    write(tmp_path, 9, *records)
    findings = alert.judge(history.load(tmp_path))
    assert all(found.failed and found.reason == "failed (wrong): 0.3 over 1e-05" for found in findings)
    assert alert.exit_code(findings) == 1
    page = report.write(tmp_path, tmp_path).read_text()
    assert "| 1 | failed: wrong | masked multiply | triton | 0.3 over 1e-05 |" in page
    assert f"`{synthetic.commit_hash(9)[:8]}`" not in page, "no number of a commit that gave a wrong answer is shown"


def test_a_wrong_commit_fails_even_if_it_is_the_first_and_is_no_baseline_later(tmp_path: Path) -> None:
    write(tmp_path, 0, synthetic.record(METRICS), failed(0.1, replicate=1))
    assert alert.exit_code(alert.judge(history.load(tmp_path))) == 1
    write(tmp_path, 1, synthetic.record({**METRICS, "kept_fraction": 0.9}, day=1))
    found = judged(tmp_path)["kept_fraction"]
    assert found.verdict is Verdict.CANNOT_TELL and found.too_few


def test_a_process_that_is_run_again_clears_its_crash_and_not_its_wrong_answer(tmp_path: Path) -> None:
    steady(tmp_path)
    for failure, code in (("timeout", 0), ("crash", 0), ("wrong", 1)):
        write(tmp_path, 9, failed(9, failure), synthetic.record(METRICS, day=9.5))
        assert alert.exit_code(alert.judge(history.load(tmp_path))) == code
    for other in ({"replicate": 1}, {"profile": "quick"}, {"day": 8.5}):
        write(tmp_path, 9, failed(9, "crash"), synthetic.record(METRICS, **{"day": 9.5, **other}))
        assert alert.exit_code(alert.judge(history.load(tmp_path))) == 1, "that process did not run again"


def test_a_failure_at_an_older_commit_is_over(tmp_path: Path) -> None:
    write(tmp_path, 0, failed(0))
    for index in range(1, 7):
        write(tmp_path, index, synthetic.record(METRICS, day=index))
    assert history.load(tmp_path).absences == ()
    assert alert.exit_code(alert.judge(history.load(tmp_path))) == 0


# A loss


def both(day: float, *names: str, **changes: Any) -> list[Any]:
    return [synthetic.record(METRICS, day=day, implementation=name, **changes) for name in names]


def test_an_implementation_that_vanished_is_no_success(tmp_path: Path) -> None:
    for index in range(5):
        write(tmp_path, index, *both(index, "triton", "einsum"))
    write(tmp_path, 9, *both(9, "einsum"))
    findings = alert.judge(history.load(tmp_path))
    gone = [found for found in findings if found.failed]
    assert {found.key.subject.implementation for found in gone} == {"triton"} and len(gone) == len(METRICS)
    assert gone[0].reason.startswith("vanished: measured at ") and alert.exit_code(findings) == 1
    assert "NO NUMBER" in alert.to_terminal(findings)
    write(tmp_path, 10, *both(10, "einsum"))
    assert alert.exit_code(alert.judge(history.load(tmp_path))) == 0, "it is news once"


@pytest.mark.parametrize(
    ("facts", "changes"),
    [({"only": ["einsum"]}, {}), ({}, {"profile": "smoke"}), ({}, {"case": {"batch": 7}}), ({}, {"cache": "cold"})],
    ids=["narrowed", "profile", "case", "setting"],
)
def test_what_nobody_asked_for_has_not_vanished(tmp_path: Path, facts: dict[str, Any], changes: dict[str, Any]) -> None:
    for index in range(5):
        write(tmp_path, index, *both(index, "triton", "einsum"))
    write(tmp_path, 9, *both(9, "einsum", **changes), **facts)
    assert not [found for found in alert.judge(history.load(tmp_path)) if found.failed]


def test_old_files_that_do_not_say_whom_they_asked_accuse_nobody(tmp_path: Path) -> None:
    facts = {name: value for name, value in HERE.items() if name != "only"}
    for index in range(6):
        names = ("einsum",) if index == 5 else ("triton", "einsum")
        synthetic.write(tmp_path, f"f{index}", synthetic.environment(commit=index, **facts), both(index, *names))
    assert not [found for found in alert.judge(history.load(tmp_path)) if found.failed]


def test_a_skip_where_there_was_a_number_is_a_loss_and_a_structural_one_is_not(tmp_path: Path) -> None:
    for index in range(5):
        write(tmp_path, index, *both(index, "triton"), skipped(index, implementation="gpu_only"))
    assert alert.exit_code(alert.judge(history.load(tmp_path))) == 0
    write(tmp_path, 9, skipped(9), skipped(9, implementation="gpu_only"))
    findings = alert.judge(history.load(tmp_path))
    assert {found.reason for found in findings} == {"skipped: needs CUDA"} and alert.exit_code(findings) == 1
    write(tmp_path, 10, skipped(10))
    assert alert.exit_code(alert.judge(history.load(tmp_path))) == 3, "known by then, and nothing is left to judge"


def test_who_only_ever_skipped_and_is_not_asked_any_more_is_no_absence(tmp_path: Path) -> None:
    """A catalogue dropped it; a later run that asks others of the case says so, a narrowed one says nothing."""
    write(tmp_path, 0, *both(0, "einsum"), skipped(0, implementation="for_maps"))
    assert [one.subject.implementation for one in history.load(tmp_path).absences] == ["for_maps"]
    write(tmp_path, 1, *both(1, "einsum"), only=["einsum"])
    assert [one.subject.implementation for one in history.load(tmp_path).absences] == ["for_maps"]
    write(tmp_path, 2, *both(2, "einsum"))
    assert history.load(tmp_path).absences == ()
    write(tmp_path, 3, *both(3, "einsum"), skipped(3, implementation="for_maps"))
    assert [one.subject.implementation for one in history.load(tmp_path).absences] == ["for_maps"]


# Damage


def test_damage_in_the_newest_results_is_no_success(tmp_path: Path) -> None:
    steady(tmp_path)
    old = write(tmp_path, 2, synthetic.record(METRICS, day=2))
    with old.open("a") as file:
        file.write('{"schema": 1, "kind": "outcome", "cut')
    loaded = history.load(tmp_path)
    assert len(loaded.damage) == 1 and loaded.doubtful == ()
    assert alert.exit_code(alert.judge(loaded), loaded.doubtful) == 0
    newest = write(tmp_path, 4, synthetic.record(METRICS, day=4))
    with newest.open("a") as file:
        file.write('{"schema": 1, "kind": "outcome", "cut')
    loaded = history.load(tmp_path)
    findings = alert.judge(loaded)
    assert [found.path for found in loaded.doubtful] == [newest]
    assert alert.exit_code(findings, loaded.doubtful) == 1
    assert "The newest results are damaged in 1 places" in alert.to_terminal(findings, loaded.doubtful)
    assert "The newest results are damaged" in alert.to_markdown(findings, loaded.doubtful)
    assert json.loads(alert.to_json(findings, loaded.doubtful))["exit_code"] == 1


def test_the_command_says_why_and_exits_1(tmp_path: Path) -> None:
    steady(tmp_path, commits=1)
    facts = synthetic.environment(commit=None, no_commit="git is not installed", **HERE)
    path = synthetic.write(tmp_path, "newest", facts, [synthetic.record(METRICS, day=9)])
    done = CliRunner().invoke(app, ["alert", "--results", str(tmp_path)])
    assert done.exit_code == 0, "the fractions and bytes of the first commit are its baseline"
    assert done.output.count("cpu-test-2c: its newest results name no commit") == 1
    assert "git is not installed" in done.output.replace("\n", " ")
    with path.open("a") as file:
        file.write("{broken")
    done = CliRunner().invoke(app, ["alert", "--results", str(tmp_path)])
    assert done.exit_code == 1 and "The newest results are damaged in 1 places" in done.output


@pytest.mark.parametrize("content", ["", "\x00\x00", '{"schema":1,"kind":"envir'], ids=["empty", "zeros", "cut"])
def test_a_file_that_does_not_say_where_it_belongs_may_be_the_newest(tmp_path: Path, content: str) -> None:
    steady(tmp_path)
    (tmp_path / "records" / "cpu-test-2c" / "a.jsonl").write_text(content)
    loaded = history.load(tmp_path)
    assert loaded.doubtful and alert.exit_code(alert.judge(loaded), loaded.doubtful) == 1


def test_a_newest_file_whose_records_are_all_damaged_is_the_newest_still(tmp_path: Path) -> None:
    steady(tmp_path)
    path = write(tmp_path, 9, started_at="2026-01-20T00:00:00+00:00")
    with path.open("a") as file:
        file.write("{broken\n")
    assert [found.path for found in history.load(tmp_path).doubtful] == [path]
