"""`spectralbench history export`: what comes out is what was stored, and asv takes it."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_records as synthetic
from typer.testing import CliRunner

from spectralbench import asv_files, export, history
from spectralbench.cli import app


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """A repository of ten commits, and their hashes."""
    folder = tmp_path / "a project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(10):
        (folder / "code").write_text(str(number))
        git(folder, "add", "code")
        git(folder, "commit", "-q", "-m", f"Commit {number}")
    return folder, git(folder, "rev-list", "--reverse", "HEAD").split()


def measured(folder: Path, commits: list[str]) -> history.History:
    """`triton` becomes 1.5 times slower at the sixth commit; a commit has three processes."""
    for index, commit in enumerate(commits):
        records = [
            synthetic.record(
                {"device_time": time * (1 + 0.001 * replicate), "saved_bytes": 64.0},
                implementation=name,
                role=role,
                replicate=replicate,
                day=index,
            )
            for replicate in range(3)
            for name, role, time in (("triton", "kernel", 1.5 if index >= 5 else 1.0), ("einsum", "baseline", 4.0))
        ]
        facts = synthetic.environment(commit=None, **{"machine": "box"}) | {"commit": commit}
        synthetic.write(folder / "results", commit[:8], facts, records)
    return history.load(folder / "results")


def test_a_table_has_a_row_for_every_point(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = repository
    stored = measured(folder, commits)
    path = tmp_path / "history.csv"
    assert export.write_table(stored, path) == 40
    with path.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    times = [row for row in read if row["metric"] == "device_time" and row["implementation"] == "triton"]
    assert [row["commit"] for row in times] == commits
    assert [float(row["value"]) for row in times] == pytest.approx([1.001] * 5 + [1.5015] * 5)
    assert {row["processes"] for row in times} == {"3"} and times[0]["unit"] == "second"
    assert "torch 2.13.0" in times[0]["conditions"]


def test_parquet_is_the_same_table_or_what_it_needs_is_named(
    repository: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commits = repository
    stored = measured(folder, commits[:2])
    if importlib.util.find_spec("pyarrow"):
        pd = pytest.importorskip("pandas")
        assert export.write_table(stored, tmp_path / "history.parquet") == 8
        assert pd.read_parquet(tmp_path / "history.parquet").to_dict("records") == list(export.rows(stored))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=r"^Parquet needs \w+: pip install 'spectralbench\[parquet\]', or write FILE.csv$"
    ):
        export.write_table(stored, tmp_path / "history.parquet")


def test_what_asv_gets_reads_back_as_it_was(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = repository
    stored = measured(folder, commits)
    assert export.write_asv(stored, tmp_path / "asv", folder) == 10
    found, damage = asv_files.read_tree(tmp_path / "asv" / "results")
    assert damage == ()
    want = {
        (series.key.subject.implementation, series.key.metric, point.commit): point
        for series in stored.series
        for point in series.points
    }
    assert {(one.implementation, one.metric, one.commit) for one in found} == set(want)
    for one in found:
        point = want[one.implementation, one.metric, one.commit]
        assert (one.value, one.quartiles, one.count) == (point.value, (point.q25, point.q75), 3)
        assert one.unit == ("second" if one.metric == "device_time" else "byte")


def test_dirty_and_wrong_points_stay_out_and_other_conditions_apart(
    repository: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, commits = repository
    for index, (commit, changes) in enumerate(
        [(commits[0], {}), (commits[0], {"torch": "2.14.0"}), (commits[1], {"dirty": "0a0b0c0d"}), (None, {})]
    ):
        facts = synthetic.environment(commit=None) | {"commit": commit, **changes}
        synthetic.write(
            folder / "results", str(index), facts, [synthetic.record({"device_time": 1.0 + index}, day=index)]
        )
    stored = history.load(folder / "results")
    assert export.write_asv(stored, tmp_path / "asv", folder) == 1
    files = [json.loads(file.read_text()) for file in (tmp_path / "asv" / "results").glob(f"*/{commits[0][:8]}-*.json")]
    values = {file["params"]["conditions"]: file["results"]["masked_multiply.track_device_time"][0] for file in files}
    assert values == {"torch 2.13.0": [1.0], "torch 2.14.0": [2.0]}
    assert len(list(export.rows(stored))) == 4


@pytest.mark.slow
def test_asv_publishes_it_and_sees_a_planted_regression(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    pytest.importorskip("asv")
    folder, commits = repository
    target = tmp_path / "asv"
    export.write_asv(measured(folder, commits), target, folder)
    command = [sys.executable, "-m", "asv", "--config", str(target / "asv.conf.json"), "publish"]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    regressions = json.loads((target / "html" / "regressions.json").read_text())["regressions"]
    (name,) = (name for name, *_ in regressions)
    assert name.startswith("masked_multiply.track_device_time('triton'")
    shown = json.loads((target / "html" / "index.json").read_text())
    assert len(shown["revision_to_hash"]) >= 10


@pytest.mark.parametrize(
    ("target", "said"),
    [("table.xlsx", "FILE.csv, FILE.parquet or a folder"), ("full", "holds something else already")],
)
def test_what_cannot_be_written_is_said(
    repository: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    folder, commits = repository
    measured(folder, commits[:1])
    monkeypatch.chdir(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    done = CliRunner().invoke(app, ["history", "export", str(tmp_path / target), "--results", str(folder / "results")])
    assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"


def test_asv_needs_the_repository(repository: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, commits = repository
    measured(folder, commits[:1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    done = CliRunner().invoke(app, ["history", "export", str(tmp_path / "asv"), "--results", str(folder / "results")])
    assert done.exit_code == 2 and "run this inside it" in " ".join(done.output.split()), done.output


def test_the_committed_history_names_no_place_and_has_ten_commits() -> None:
    folder = Path(__file__).parents[2] / "results" / "asv-history"
    project = json.loads((folder / "asv.conf.json").read_text())
    assert (project["repo"], project["branches"], project["results_dir"]) == ("../..", ["main"], "results")
    found, damage = asv_files.read_tree(folder / "results")
    assert damage == () and len({one.commit for one in found}) >= 10
    assert {one.metric for one in found} == {"device_time", "saved_bytes", "stored_bytes"}
