"""Commits follow each other as git says: side branches, rebases, late measurements, wrong clocks, unknown commits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from test_environment import git

from spectralbench import alert, history
from spectralbench.alert import Verdict
from spectralbench.history.ancestry import order


class Repository:
    """A git repository whose results/ hold one time per measured commit."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0
        root.mkdir()
        git(root, "init", "-q", "-b", "main")
        (root / "results").mkdir()

    def commit(self, *more: str) -> str:
        self.made += 1  # two equal commits of one second would be one
        git(self.root, "commit", "-q", "--allow-empty", "-m", f"change {self.made}", *more)
        return git(self.root, "rev-parse", "HEAD")

    def measure(self, commit: str | None, time: float, day: float, **facts: Any) -> None:
        name = f"{len(list((self.root / 'results').rglob('*.jsonl'))):03d}"
        environment = {**synthetic.environment(), "commit": commit, **facts}
        synthetic.write(self.root / "results", name, environment, [synthetic.record({"device_time": time}, day=day)])

    def series(self) -> history.Series:
        (found,) = history.load(self.root / "results").series
        return found

    def judged(self) -> alert.Finding:
        (found,) = alert.judge(history.load(self.root / "results"))
        return found


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return Repository(tmp_path / "clone")


def commits(series: history.Series) -> list[str | None]:
    return [point.commit for point in series.points]


def test_an_old_commit_that_is_measured_late_stands_where_it_belongs(repository: Repository) -> None:
    line = [repository.commit() for _ in range(6)]
    for day, index in enumerate((1, 2, 3, 4, 5, 0)):
        repository.measure(line[index], 3.0 if index == 5 else 1.0, day)
    assert commits(repository.series()) == line
    found = repository.judged()
    assert found.verdict is Verdict.SLOWER and found.changed_at == line[5][:8]


def test_a_clock_that_is_a_year_ahead_moves_nothing(repository: Repository) -> None:
    line = [repository.commit() for _ in range(6)]
    for index, commit in enumerate(line):
        repository.measure(commit, 1.0 + 0.001 * (index % 2), index + 365 * (index == 2))
    assert commits(repository.series()) == line
    assert repository.judged().verdict is Verdict.SAME


def test_bisect_points_fill_the_gap_and_are_not_the_newest(repository: Repository) -> None:
    line = [repository.commit() for _ in range(9)]
    for day, index in enumerate((0, 1, 2, 3, 7, 8)):
        repository.measure(line[index], 1.0 if index < 5 else 2.0, day)
    for day, index in ((20, 5), (21, 4)):
        repository.measure(line[index], 1.0 if index < 5 else 2.0, day)
    assert commits(repository.series()) == [line[index] for index in (0, 1, 2, 3, 4, 5, 7, 8)]
    found = repository.judged()
    assert found.verdict is Verdict.SLOWER and found.changed_at == line[5][:8]


def test_a_side_branch_is_no_baseline_of_the_main_line(repository: Repository) -> None:
    line = [repository.commit() for _ in range(5)]
    git(repository.root, "checkout", "-q", "-b", "side", line[2])
    side = [repository.commit() for _ in range(3)]
    git(repository.root, "checkout", "-q", "main")
    for day, commit in enumerate(line[:4]):
        repository.measure(commit, 1.0, day)
    for day, commit in enumerate(side, start=4):
        repository.measure(commit, 1.9, day)
    repository.measure(line[4], 1.9, 9)
    series = repository.series()
    assert commits(series) == line and [point.commit for point in series.aside] == side
    assert repository.judged().verdict is Verdict.SLOWER
    (note,) = history.load(repository.root / "results").order.notes
    assert note.startswith("set aside: 3 measured commits (") and "first-parent line of HEAD" in note
    git(repository.root, "merge", "-q", "--no-ff", "-m", "merge", "side")
    assert commits(repository.series()) == line, "merged, it is still not a first parent"
    git(repository.root, "checkout", "-q", "side")
    assert commits(repository.series()) == [*line[:3], *side], "on the branch itself, main is aside"


def test_what_a_rebase_left_behind_is_set_aside_and_said(repository: Repository) -> None:
    first, old = repository.commit(), repository.commit()
    repository.measure(first, 1.0, 0)
    repository.measure(old, 1.0, 1)
    new = repository.commit("--amend")
    repository.measure(new, 1.0, 2)
    assert commits(repository.series()) == [first, new]
    git(repository.root, "reflog", "expire", "--expire=now", "--all")
    git(repository.root, "gc", "-q", "--prune=now")
    loaded = history.load(repository.root / "results")
    assert commits(loaded.series[0]) == [first, new]
    assert "1 measured commits" in loaded.order.notes[0] and "not known to git here" in loaded.order.notes[0]


def test_commits_after_head_are_aside_while_an_old_one_is_checked_out(repository: Repository) -> None:
    line = [repository.commit() for _ in range(3)]
    for day, commit in enumerate(line):
        repository.measure(commit, 1.0, day)
    git(repository.root, "checkout", "-q", line[1])
    assert commits(repository.series()) == line[:2]


def test_a_series_that_is_wholly_off_the_line_is_not_judged(repository: Repository) -> None:
    repository.commit()
    git(repository.root, "checkout", "-q", "-b", "side")
    for day in range(6):
        repository.measure(repository.commit(), 1.0 if day < 5 else 9.0, day)
    git(repository.root, "checkout", "-q", "main")
    found = repository.judged()
    assert found.verdict is Verdict.CANNOT_TELL and found.too_few
    assert found.reason == "none of its 6 points is on the first-parent line of HEAD"
    assert alert.exit_code([found]) == 3


def test_a_tree_without_a_commit_is_aside_where_git_orders_the_others(repository: Repository) -> None:
    commit = repository.commit()
    repository.measure(commit, 1.0, 0)
    repository.measure(None, 5.0, 1, source="00c0ffee")
    assert commits(repository.series()) == [commit]


def test_dirty_and_clean_points_of_one_commit_follow_by_the_clock(repository: Repository) -> None:
    commit = repository.commit()
    for day, dirty in enumerate(("aaaa", None, "bbbb")):
        repository.measure(commit, 1.0, day, dirty=dirty)
    assert [point.dirty for point in repository.series().points] == ["aaaa", None, "bbbb"]


def test_a_shallow_clone_sets_nothing_aside_and_says_why(repository: Repository, tmp_path: Path) -> None:
    line = [repository.commit() for _ in range(4)]
    for day, index in enumerate((1, 0, 3, 2)):  # the clock of 2 is ahead of 3, whose place is known
        repository.measure(line[index], 1.0, day)
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository.root}", "shallow")
    (repository.root / "results").rename(tmp_path / "shallow" / "results")
    loaded = history.load(tmp_path / "shallow" / "results")
    assert commits(loaded.series[0]) == [line[index] for index in (1, 0, 2, 3)]
    assert (
        len(loaded.order.notes) == 1
        and "git fetch --unshallow" in loaded.order.notes[0]
        and "3 commits" in loaded.order.notes[0]
    )


def test_without_git_the_clock_orders_and_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    commit = synthetic.commit_hash(0)
    found = order([tmp_path], {commit})
    assert found.by_clock and "not a git repository" in found.notes[0]
    assert found.place(commit, "b") > found.place(synthetic.commit_hash(1), "a")  # type: ignore[operator]
    monkeypatch.setenv("PATH", "")
    assert order([tmp_path], {commit}).notes == (
        "commits are ordered by the time of their measurement: git is not installed",
    )
    assert order([tmp_path], set()).notes == ()


def test_a_commit_that_is_named_like_a_branch_is_not_that_branch(repository: Repository) -> None:
    commit = repository.commit()
    for day, name in enumerate((commit, "main", "HEAD", commit[:8])):
        repository.measure(name, 1.0, day)
    assert commits(repository.series()) == [commit]
    assert "3 measured commits" in history.load(repository.root / "results").order.notes[0]


def test_another_owner_is_said(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository.commit()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "dubious ownership" in order([repository.root], {commit}).notes[0]
