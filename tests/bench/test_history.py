"""Stored results become series: values over processes, order, segments, asv's files, and damage that is named."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_records as synthetic

from spectralbench import asv_files, history
from spectralbench.collector import others_froze
from spectralbench.identity import changes

ROOT = Path(__file__).resolve().parents[2]


def series_of(loaded: history.History, metric: str, implementation: str = "triton") -> history.Series:
    return next(
        one for one in loaded.series if one.key.metric == metric and one.key.subject.implementation == implementation
    )


def test_value_is_the_median_over_processes_of_their_medians(tmp_path: Path) -> None:
    per_process = [(1.0, 1.1, 9.0), (2.0, 2.0, 2.1), (5.0, 1.0, 3.0)]
    records = [synthetic.record({"device_time": found}, replicate=index) for index, found in enumerate(per_process)]
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    point = series_of(history.load(tmp_path), "device_time").newest
    medians = [statistics.median(found) for found in per_process]
    assert point.value == statistics.median(medians) == 2.0
    assert [value for _, value in point.processes] == medians
    assert (point.q25, point.q75, point.n) == (1.55, 2.5, 9)


def test_one_process_has_the_quartiles_of_its_samples(tmp_path: Path) -> None:
    synthetic.write(tmp_path, "a", synthetic.environment(), [synthetic.record({"device_time": (1.0, 2.0, 3.0)})])
    point = series_of(history.load(tmp_path), "device_time").newest
    assert (point.value, point.q25, point.q75, point.n) == (2.0, 1.5, 2.5, 3)


def test_points_are_ordered_by_time_and_a_resumed_run_is_one_point(tmp_path: Path) -> None:
    for name, commit, day, value in (("c", 2, 2, 3.0), ("a", 1, 1, 1.0), ("b", 1, 1.5, 2.0)):
        record = synthetic.record({"device_time": value}, day=day)
        synthetic.write(tmp_path, name, synthetic.environment(commit=commit), [record])
    points = series_of(history.load(tmp_path), "device_time").points
    assert [(point.commit, point.value) for point in points] == [
        (synthetic.commit_hash(1), 1.5),
        (synthetic.commit_hash(2), 3.0),
    ]
    assert len(points[0].processes) == 2


@pytest.mark.parametrize("name", ["torch", "triton", "python", "driver"])
def test_a_changed_version_starts_a_segment(tmp_path: Path, name: str) -> None:
    for index, version in enumerate(("1.0", "1.0", "2.0")):
        facts = synthetic.environment(commit=index, **{name: version})
        synthetic.write(tmp_path, f"f{index}", facts, [synthetic.record({"device_time": 1.0}, day=index)])
    series = series_of(history.load(tmp_path), "device_time")
    assert len(series.points) == 3
    assert series.segment(series.newest) == (series.newest,)
    assert len(series.segment(series.points[0])) == 2
    changed = changes(series.points[0].environment, series.newest.environment)
    assert changed == f"{name} 1.0 -> 2.0"


def test_dirty_and_unknown_commits_are_never_clean(tmp_path: Path) -> None:
    cases = ((synthetic.environment(), True), (synthetic.environment(dirty="abcd1234"), False),
             (synthetic.environment(commit=None), False))  # fmt: skip
    for index, (facts, _) in enumerate(cases):
        synthetic.write(tmp_path, f"f{index}", facts, [synthetic.record({"device_time": 1.0}, day=index)])
    points = series_of(history.load(tmp_path), "device_time").points
    assert [point.clean for point in points] == [clean for _, clean in cases]
    commit = synthetic.commit_hash(0)[:8]
    assert [point.mark for point in points] == [commit, f"{commit}-dirty", "no commit"]


def test_every_part_of_the_identity_splits_the_series(tmp_path: Path) -> None:
    changes = [{}, {"dtype": "float16"}, {"pass_": "both"}, {"fft_size": (64, 64)}, {"cache": "cold"},
               {"launch": "graph"}, {"seed": 1}, {"operation_version": 2}, {"implementation": "einsum"},
               {"case": {"batch": 4}}]  # fmt: skip
    records = [synthetic.record({"device_time": 1.0}, **change) for change in changes]
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    loaded = history.load(tmp_path)
    assert len(loaded.series) == len(changes)
    assert len(history.current(loaded).series) == 1  # version 2 supersedes the others of that operation


def test_damage_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = synthetic.record({"device_time": 1.0})
    path = synthetic.write(tmp_path, "a", synthetic.environment(), [good])
    with path.open("a") as file:
        file.write('{"schema": 1, "kind": "outcome", "cut off')
    headless = synthetic.write(tmp_path, "b", synthetic.environment(), [good, good])
    headless.write_text(headless.read_text().split("\n", 1)[1])
    odd = synthetic.write(tmp_path, "c", synthetic.environment(), [good])
    odd.write_text(odd.read_text().replace('"samples":[1]', '"samples":["fast"]'))
    loaded = history.load(tmp_path)
    assert len(loaded.series) == 1
    said = [str(damage) for damage in loaded.damage]
    assert any(f"{path}:3: not a whole JSON line" in text for text in said)
    assert any("2 records without environment not used" in text for text in said)
    assert any(f"{odd}:2: in the metric device_time: samples must be finite numbers" in text for text in said)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of results"):
        history.load(tmp_path / "nothing")


def test_an_absence_lasts_until_the_next_measurement(tmp_path: Path) -> None:
    failed = {"status": "failed", "failure": "oom", "reason": "asked for 9 GiB"}
    synthetic.write(tmp_path, "a", synthetic.environment(), [synthetic.record(None, day=1, **failed)])
    assert [absence.failure for absence in history.load(tmp_path).absences] == ["oom"]
    synthetic.write(tmp_path, "b", synthetic.environment(), [synthetic.record({"device_time": 1.0}, day=2)])
    assert history.load(tmp_path).absences == ()


def test_ratio_is_taken_process_by_process(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    records = []
    for replicate in range(5):
        drift = rng.uniform(1, 3)  # the machine's speed in this process, shared because the two are interleaved
        for name, time in (("triton", 1.0), ("einsum", 2.0)):
            records.append(synthetic.record({"device_time": time * drift}, implementation=name, replicate=replicate))
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    loaded = history.load(tmp_path)
    found = history.ratio(series_of(loaded, "device_time").newest, series_of(loaded, "device_time", "einsum").newest)
    assert found is not None and found.paired
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), rel=1e-5)  # six digits are stored


def test_only_machine_names_the_known_ones(tmp_path: Path) -> None:
    synthetic.write(tmp_path, "a", synthetic.environment("cpu-a"), [synthetic.record({"device_time": 1.0})])
    loaded = history.load(tmp_path)
    assert history.only_machine(loaded, "cpu-a").series == loaded.series
    with pytest.raises(ValueError, match=r"no results of machine 'cpu-b', did you mean 'cpu-a'\? known: cpu-a"):
        history.only_machine(loaded, "cpu-b")


def test_series_of_different_machines_stay_apart(tmp_path: Path) -> None:
    for machine in ("cpu-a", "cpu-b"):
        synthetic.write(tmp_path, "a", synthetic.environment(machine), [synthetic.record({"device_time": 1.0})])
    assert history.load(tmp_path).machines == ("cpu-a", "cpu-b")


ASV_SUITE = """
class MaskedMultiply:
    params = [["triton", "einsum"], [1, 2], [0.0, 0.5]]
    param_names = ["implementation", "batch", "compression"]

    def setup(self, implementation, batch, compression):
        if (implementation, batch, compression) == ("triton", 2, 0.5):
            raise NotImplementedError("not here")

    def track_device_time(self, implementation, batch, compression):
        if (implementation, batch, compression) == ("einsum", 2, 0.5):
            raise RuntimeError("broken")
        return {"samples": [0.1 * batch, 0.2 * batch, 0.3 * batch], "number": 1}

    def track_saved_bytes(self, implementation, batch, compression):
        return 1024 * batch

    track_device_time.unit, track_device_time.version = "seconds", "1"
    track_saved_bytes.unit, track_saved_bytes.version = "bytes", "3"
"""


@pytest.fixture(scope="module")
def asv_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real asv run writes: two commits of a tiny suite, in the interpreter of this test."""
    pytest.importorskip("asv", reason="asv is an optional front end")
    if shutil.which("git") is None:
        pytest.skip("asv needs git")
    root = tmp_path_factory.mktemp("asv")
    (root / "suite").mkdir()
    (root / "suite" / "__init__.py").touch()
    (root / "suite" / "multiply.py").write_text(ASV_SUITE)
    config = {"version": 1, "project": "tiny", "repo": ".", "branches": ["main"], "benchmark_dir": "suite",
              "environment_type": "existing", "results_dir": "results/asv", "launch_method": "forkserver"}  # fmt: skip
    (root / "asv.conf.json").write_text(json.dumps(config))
    environment = {**os.environ, "HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1", "PYTHONPATH": ""}

    def run(*command: str, fine: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode in fine, done.stdout + done.stderr
        return done.stdout.strip()

    asv = (sys.executable, "-m", "asv")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    run("git", "init", "-q", "-b", "main")
    run(*asv, "machine", "--yes", "--machine", "laptop")
    for day in ("01", "02"):
        (root / "change").write_text(day)
        run("git", "add", "suite", "change", "asv.conf.json")
        environment["GIT_COMMITTER_DATE"] = environment["GIT_AUTHOR_DATE"] = f"2026-03-{day}T12:00:00Z"
        run("git", *identity, "commit", "-q", "-m", day)
        commit = run("git", "rev-parse", "HEAD")
        # asv answers 2 where a benchmark fails, and one is meant to.
        run(*asv, "run", "-E", f"existing:{sys.executable}", "--set-commit-hash", commit, "--record-samples", fine=(2,))
    return root / "results"


@pytest.mark.slow
def test_reads_what_a_real_asv_run_wrote(asv_results: Path) -> None:
    loaded = history.load(asv_results)
    assert loaded.damage == ()
    assert {series.key.subject.via for series in loaded.series} == {"asv"}
    assert len(loaded.series) == 6 + 7
    one = next(
        series
        for series in loaded.series
        if series.key.metric == "device_time"
        and series.params == {"batch": 2, "compression": 0.0}
        and series.key.subject.implementation == "einsum"
    )
    assert one.key.unit == "second" and one.key.metric_version == "1"
    assert one.key.subject.machine == "laptop" and one.key.subject.operation == "multiply.MaskedMultiply"
    assert [point.recorded_at[:10] for point in one.points] == ["2026-03-01", "2026-03-02"]
    point = one.newest
    assert point.value == pytest.approx(0.4) and point.n == 3
    assert (point.q25, point.q75) == pytest.approx((0.3, 0.5))
    size = next(
        series for series in loaded.series if series.key.metric == "saved_bytes" and series.params["batch"] == 2
    )
    assert size.key.unit == "byte" and size.newest.value == 2048
    statuses = sorted((absence.status, absence.metric) for absence in loaded.absences)
    assert statuses == [("failed", "device_time"), ("skipped", "device_time"), ("skipped", "saved_bytes")]


@pytest.mark.slow
def test_moving_the_interpreter_does_not_split_an_asv_series(asv_results: Path, tmp_path: Path) -> None:
    shutil.copytree(asv_results, tmp_path / "results")
    newest = sorted((tmp_path / "results" / "asv" / "laptop").glob("*-existing*.json"))[-1]
    newest.write_text(newest.read_text().replace(sys.executable, "/elsewhere/bin/python"))
    loaded = history.load(tmp_path / "results")
    assert all(len(series.segment(series.newest)) == 2 for series in loaded.series)


@pytest.mark.slow
def test_asv_damage_is_named(asv_results: Path, tmp_path: Path) -> None:
    shutil.copytree(asv_results, tmp_path / "results")
    folder = tmp_path / "results" / "asv" / "laptop"
    (folder / "00000000-cut.json").write_text('{"commit_hash": "0')
    (folder / "00000001-old.json").write_text('{"version": 1}')
    (tmp_path / "results" / "asv" / "benchmarks.json").unlink()
    results, damage = asv_files.read_tree(tmp_path / "results" / "asv")
    said = "\n".join(str(found) for found in damage)
    assert "00000000-cut.json:1: not whole JSON" in said
    assert "expected asv results of api version 2, got 1; run `asv update`" in said
    assert "benchmarks.json" in said and "units" in said
    assert len(results) == 2 * 16  # the readable files are still read, without names of parameters


@pytest.mark.slow
def test_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    synthetic.study(tmp_path, random.Random(0), processes=1)
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton", "spectralkernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from pathlib import Path
from spectralbench import alert, history, plot, report
loaded = history.load(Path({str(tmp_path)!r}))
alert.to_markdown(alert.judge(loaded))
assert len(plot.draw_all(loaded, Path({str(tmp_path / "figures")!r}), only=("kept_vs_beta",))) == 1
report.write(loaded, Path({str(tmp_path)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_was_read_is_old_for_the_collector_and_still_collected(tmp_path: Path) -> None:
    """In the oldest generation, not frozen: the first collections of young objects do not look through a history."""
    gc.unfreeze()  # what the run set aside
    synthetic.history(tmp_path, 3, random.Random(1))
    gc.collect()
    assert gc.isenabled() and not others_froze()
    loaded = history.load(tmp_path)
    assert gc.isenabled() and not others_froze()
    assert any(one is loaded.series[0] for one in gc.get_objects(generation=2))
    gc.freeze()  # to the end of the run, again
    frozen = gc.get_freeze_count()
    history.load(tmp_path)
    assert gc.get_freeze_count() >= frozen, "what a caller froze stays frozen"


def test_what_the_interpreter_froze_is_nobody_elses(tmp_path: Path) -> None:
    """Python 3.12 begins with 375 frozen objects, and then nothing that was read was set aside."""
    synthetic.history(tmp_path, 3, random.Random(1))
    script = f"""
import gc
gc.freeze()
from pathlib import Path
from spectralbench import history
from spectralbench.collector import others_froze, short_collections
assert gc.get_freeze_count() and not others_froze()
with short_collections():
    assert others_froze()
assert not others_froze()
loaded = history.load(Path({str(tmp_path)!r}))
assert any(one is loaded.series[0] for one in gc.get_objects(generation=2))
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
