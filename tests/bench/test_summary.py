"""Summaries of record files and their cache: the same history with and without, and files stay the truth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import synthetic_records as synthetic

from spectralbench import history
from spectralbench.history import summary
from spectralbench.history.summary import summaries
from spectralbench.journal import file_stem
from spectralbench.record import read_tree


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, in which trees of any size are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(summary, "LEAST_BYTES", 0)
    return tmp_path / "cache" / "spectralbench"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read in full."""
    seen: list[str] = []
    read = summary.record.read_file
    monkeypatch.setattr(summary.record, "read_file", lambda path: seen.append(path.name) or read(path))
    return seen


def tree(folder: Path, seed: int) -> Path:
    results = folder / "results"
    synthetic.history(results, 3, random.Random(seed))
    failed = synthetic.record(None, implementation="einsum", status="failed", failure="wrong", reason="0.3", day=3)
    slow = synthetic.record({"device_time": [1.0, 2.0, 9.0]}, day=3, unavailable={"precision": "missed"})
    path = synthetic.write(results, "last", synthetic.environment(commit=3), [failed, slow])
    path.write_text(path.read_text() + '{"schema":1,"kind":"out')
    return results


def test_a_history_from_the_cache_is_the_history_of_the_files(
    tmp_path: Path, store: Path, reads: list[str], seed: int
) -> None:
    results = tree(tmp_path, seed)
    first = history.load(results)
    assert len(reads) == 4 and len(list(store.iterdir())) == 1
    assert history.load(results) == first and len(reads) == 4
    assert len(first.damage) == 1 and first.absences[0].failure == "wrong"
    point = next(one.newest for one in first.series if one.newest.remarks)
    assert (point.value, point.n, point.remarks) == (2.0, 3, (("precision", "missed"),))
    assert point.q25 < 2.0 < point.q75, "one process: the quartiles are those of its samples"


def test_only_a_file_that_changed_is_read_again(tmp_path: Path, store: Path, reads: list[str], seed: int) -> None:
    results = tree(tmp_path, seed)
    history.load(results)
    reads.clear()
    changed = next(results.rglob("last.jsonl"))
    changed.write_text(changed.read_text().replace("9.0", "8.0").replace("9]", "8]"))
    newest = next(one.newest for one in history.load(results).series if one.newest.remarks)
    assert reads == ["last.jsonl"] and newest.q75 < 9
    changed.unlink()
    history.load(results)
    assert reads == ["last.jsonl"]


@pytest.mark.parametrize(
    "content", [b"", b"not a cache", b"{}\n{}", b"\xff\n\xff"], ids=["empty", "text", "json", "no text"]
)
def test_a_damaged_cache_costs_time_and_nothing_else(
    tmp_path: Path, store: Path, reads: list[str], seed: int, content: bytes
) -> None:
    results = tree(tmp_path, seed)
    first = history.load(results)
    (path,) = store.iterdir()
    whole = path.read_bytes()
    for damaged in (content, whole[:-1], whole.replace(b"triton", b"tritom", 1)):
        path.write_bytes(damaged)
        reads.clear()
        assert history.load(results) == first and len(reads) == 4


def test_a_cache_of_other_code_is_not_used(
    tmp_path: Path, store: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    results = tree(tmp_path, seed)
    history.load(results)
    monkeypatch.setattr(summary, "_code", lambda: "of tomorrow")
    reads.clear()
    history.load(results)
    assert len(reads) == 4


def test_a_home_that_cannot_be_written_and_a_small_tree_leave_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    results = tree(tmp_path, seed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "small"))
    first = history.load(results)
    assert not (tmp_path / "small").exists()
    monkeypatch.setattr(summary, "LEAST_BYTES", 0)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert history.load(results) == first


def test_a_user_without_a_home_and_a_tree_that_is_a_loop_of_links_have_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LEAST_BYTES", 0)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").symlink_to(tmp_path / "records")
    assert history.load(tmp_path).series == ()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert history.load(tmp_path).series == ()
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_point_of_several_files_has_the_processes_of_all(tmp_path: Path) -> None:
    for name, values in (("a", (1.0, 3.0)), ("b", (2.0, 8.0, 9.0))):
        records = [synthetic.record({"device_time": [v, v, 99.0]}, replicate=at) for at, v in enumerate(values)]
        synthetic.write(tmp_path, name, synthetic.environment(), records)
    (series,) = history.load(tmp_path).series
    (point,) = series.points
    assert point.processes == (("a#0", 1.0), ("a#1", 3.0), ("b#0", 2.0), ("b#1", 8.0), ("b#2", 9.0))
    assert (point.value, point.n) == (3.0, 15)


def test_a_process_stays_one_where_its_run_goes_on_in_the_next_file(tmp_path: Path) -> None:
    facts = {**synthetic.environment(), "started_at": "2026-11-28T22:23:45+00:00"}
    later = {**facts, "started_at": "2026-11-28T23:00:00+00:00"}
    stem = file_stem(facts, "2026-11-28")
    for kernel, number, environment in (("triton", "", facts), ("einsum", "-2", facts), ("einsum", "-3", later)):
        records = [synthetic.record({"device_time": [1.0]}, implementation=kernel, replicate=2)]
        synthetic.write(tmp_path, f"{stem}{number}", environment, records)
    found = {one.key.subject.implementation: one.newest.processes for one in history.load(tmp_path).series}
    (ours,), (same, other) = found["triton"], found["einsum"]
    assert ours[0] in (same[0], other[0]) and same[0] != other[0]


def test_a_summary_counts_what_the_file_holds(tmp_path: Path, seed: int) -> None:
    results = tree(tmp_path, seed)
    files = list(read_tree(results / "records"))
    found = list(summaries(results / "records"))
    assert [one.records for one in found] == [len(file.records) for file in files]
    assert [one.damage for one in found] == [file.damage for file in files]
