"""The history is shown as it is stored, and another name for a machine never rewrites a record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from test_environment import git
from test_order import Repository
from test_record import MEASURED, record
from typer.testing import CliRunner, Result

from spectralbench import rekey
from spectralbench.cli import app
from spectralbench.record import read_file


def run(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["history", *arguments, "--results", str(results)])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two commits of two CPUs under one name; the second file has a byte order mark, a damaged and an empty line."""
    for index, flags in enumerate(("AVX2", "AVX512")):
        facts = synthetic.environment("cpu-epyc-2c", commit=index, cpu_capability=flags, note="ein Zeichen: µ")
        found = [synthetic.record({"device_time": (1.0, 2.0)}, day=index, replicate=process) for process in range(2)]
        path = synthetic.write(tmp_path, f"f{index}", facts, found)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b'\n{"cut')
    return tmp_path


def contents(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*.jsonl"))}


def test_a_copy_differs_in_its_first_line_only_and_the_original_stays(results: Path) -> None:
    before = contents(results)
    done = run(results, "rekey", "cpu-epyc-2c", "cpu-epyc-2c-8d59")
    assert done.exit_code == 0, done.output
    assert {name: found for name, found in contents(results).items() if "8d59" not in name} == before
    for name in ("f0.jsonl", "f1.jsonl"):
        old, new = (results / "records" / machine / name for machine in ("cpu-epyc-2c", "cpu-epyc-2c-8d59"))
        assert old.read_bytes().split(b"\n")[1:] == new.read_bytes().split(b"\n")[1:]
        first, second = read_file(old), read_file(new)
        assert second.environment == {
            **(first.environment or {}),
            "machine": new.parent.name,
            "rekeyed_from": "cpu-epyc-2c",
        }
        assert second.records == first.records != () and len(second.damage) == len(first.damage)
    assert f"git rm {old.parent / 'f0.jsonl'} {old}" in done.output
    again = run(results, "rekey", "cpu-epyc-2c", "cpu-epyc-2c-8d59")
    assert again.exit_code == 3 and again.output.count("it is there already") == 2


def test_only_files_of_one_cpu_are_copied_and_a_dry_run_writes_nothing(results: Path) -> None:
    before = contents(results)
    done = run(results, "rekey", "cpu-epyc-2c", "cpu-a", "--where", "cpu_capability=AVX2", "--dry-run")
    assert done.exit_code == 0 and "f0.jsonl" in done.output and contents(results) == before
    assert "not copied: f1.jsonl: cpu_capability is AVX512" in done.output
    assert run(results, "rekey", "cpu-epyc-2c", "cpu-a", "--where", "cpu_capability=AVX2").exit_code == 0
    assert set(contents(results)) == {*before, "records/cpu-a/f0.jsonl"}
    (results / "records" / "cpu-a" / "f0.jsonl").write_text("somebody else's")
    done = run(results, "rekey", "cpu-epyc-2c", "cpu-a", "--where", "cpu_capability=AVX2")
    assert done.exit_code == 3 and "another file of that name is there" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu-epyc-2c", "../elsewhere"), "a machine is a name of at most 100 letters"),
        (("../cpu-epyc-2c", "a"), "a machine is a name"),
        (("cpu-epyc-2c", "cpu-epyc-2c"), "already has that name"),
        (("cpu-xeon", "a"), "no records of machine 'cpu-xeon'; known: cpu-epyc-2c"),
        (("cpu-epyc-2c", "a", "--where", "cpu"), "--where takes FACT=VALUE, got 'cpu'"),
        (("cpu-epyc-2c", "a", "--where", "speed=1"), "no file tells 'speed'; known: "),
    ],
)
def test_a_wrong_request_says_what_there_is(results: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(results, "rekey", *arguments)
    assert done.exit_code == 2 and message in done.output.replace("\n", " ")


def test_a_file_that_does_not_say_where_it_belongs_is_left_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "records" / "m"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("{broken\n")
    synthetic.write(tmp_path, "b", {"machine": "m", "commit": None}, [record(MEASURED)])
    other = (folder / "b.jsonl").read_text().replace('"machine":"m"', '"machine":"n"')
    (folder / "c.jsonl").write_text(other)
    found = {copy.old.name: copy.left for copy in rekey.rekey(tmp_path, "m", "k", {})}
    assert found == {
        "a.jsonl": "its first line is damaged", "b.jsonl": None, "c.jsonl": "its first line names the machine n",
    }  # fmt: skip


def test_a_torn_first_line_before_the_whole_one_stays_as_it_is(results: Path) -> None:
    path = results / "records" / "cpu-epyc-2c" / "f0.jsonl"
    path.write_bytes(b'{"schema":1,"kind":"environment","machine":"cpu-e\n' + path.read_bytes())
    assert run(results, "rekey", "cpu-epyc-2c", "cpu-a").exit_code == 0
    copy = read_file(results / "records" / "cpu-a" / "f0.jsonl")
    assert (len(copy.records), [damage.line for damage in copy.damage]) == (2, [1])


def test_a_disk_that_is_full_leaves_no_half_copy(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rekey.os, "fsync", full)
    done = run(results, "rekey", "cpu-epyc-2c", "cpu-a")
    assert done.exit_code == 2 and "No space left" in done.output
    assert list((results / "records" / "cpu-a").iterdir()) == []


def test_the_list_and_a_series_show_what_is_stored(results: Path) -> None:
    done = run(results, "list", "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["machine"], row["commit"], row["values"], row["processes"]) for row in rows] == [
        ("cpu-epyc-2c", synthetic.commit_hash(index), 1, 2) for index in range(2)
    ]
    assert "what was measured" in run(results, "list").output
    rows = [
        json.loads(line) for line in run(results, "show", "masked_multiply*device_time", "--json").stdout.splitlines()
    ]
    assert [(row["value"], row["samples"], row["conditions"]) for row in rows] == [
        (1.5, 4, ""), (1.5, 4, "cpu_capability AVX2 -> AVX512"),
    ]  # fmt: skip
    assert "cpu_capability" in run(results, "show", "device_time").output
    missing = run(results, "show", "nothing")
    assert missing.exit_code == 3 and "metrics: device_time" in missing.output
    assert run(results / "nowhere", "list").exit_code == 2


def test_every_damaged_or_misplaced_file_is_named_and_nothing_is_written(results: Path) -> None:
    before = contents(results)
    done = run(results, "check", "--json")
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 1 and row["file"] == "records/cpu-epyc-2c/f1.jsonl" and row["line"] == 5
    assert "2 record files with 4 records, 0 of asv: 1 faults" in done.output and contents(results) == before
    path = results / row["file"]
    path.write_bytes(path.read_bytes().removesuffix(b'{"cut'))
    done = run(results, "check")
    assert done.exit_code == 0 and "no faults" in done.output and done.stdout == ""
    (results / "records" / "elsewhere").mkdir()
    (results / "records" / "elsewhere" / "f0.jsonl").write_bytes(before["records/cpu-epyc-2c/f0.jsonl"])
    done = run(results, "check")
    assert done.exit_code == 1 and "of machine 'cpu-epyc-2c'" in done.stdout
    assert run(results, "check", "--machine", "cpu-epyc-2c").exit_code == 0
    (results / "asv" / "m").mkdir(parents=True)
    (results / "asv" / "m" / "1.json").write_text("[]")
    assert "asv/m/1.json" in run(results, "check", "--json").stdout
    assert run(results, "check", "--machine", "nobody").exit_code == 3
    assert run(results / "nowhere", "check").exit_code == 2


def test_the_commit_in_the_middle_is_what_to_measure_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    made = Repository(tmp_path / "clone")
    (made.root / "kernels").mkdir()
    line = []
    for number in range(10):
        (made.root / "kernels" / "code.py").write_text(f"x = {number}\n")
        git(made.root, "add", "-A")
        line.append(made.commit())
    for day, index in enumerate((0, 1, 2, 3, 9)):
        made.measure(line[index], 1.5 if index == 9 else 1.0, day)
    done = run(made.root / "results", "bisect", "--json")
    (row,) = [json.loads(text) for text in done.stdout.splitlines()]
    assert (row["last before"], row["changed at"], row["between"]) == (line[3][:8], line[9][:8], 5)
    assert row["measure next"] == line[6] and row["most"].startswith("1.50x slower: ") and line[6] in done.stderr
    for day, (index, time) in enumerate(((6, 1.5), (4, 1.0), (5, 1.0)), start=5):
        made.measure(line[index], time, day)
    done = run(made.root / "results", "bisect", "device_time", "--json")
    row = json.loads(done.stdout)
    assert (row["last before"], row["changed at"], row["measure next"]) == (line[5][:8], line[6][:8], "")
    assert done.exit_code == 0 and "worktree" not in done.stderr
    assert run(made.root / "results", "bisect", "saved_bytes").exit_code == 3


@pytest.mark.parametrize("command", [("report",), ("history", "export", "points.csv")])
def test_results_that_may_not_be_written_are_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    asked = []

    def denied(self: Path, *_: object, **__: object) -> None:
        asked.append(self)
        raise PermissionError(13, "Permission denied", str(self))

    for name in ("write_text", "open", "mkdir"):
        monkeypatch.setattr(Path, name, denied if name != "open" else _read_only(Path.open, denied))
    done = CliRunner().invoke(app, [*command, "--results", str(results)])
    assert done.exit_code == 2, done.output
    words = " ".join(done.output.split())
    assert f"error: cannot write {asked[-1]}: Permission denied; name a place where you may" in words


def _read_only(opened: Callable[..., Any], denied: Callable[..., None]) -> Callable[..., Any]:
    return lambda self, mode="r", *rest, **named: opened(self, mode, *rest, **named) if "r" in mode else denied(self)
