"""The journal loses nothing that was stored: not to a kill, a full disk, or a second run."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from test_record import MEASURED, record

from spectralbench.journal import Journal, JournalError, file_stem, kept, record_key
from spectralbench.outcome import Failed
from spectralbench.record import read_file

ENVIRONMENT: dict[str, Any] = {"machine": "m", "commit": "abcdef1234567890", "dirty": None, "torch": "2.13.0"}


def write(folder: Path, *records: Any, environment: dict[str, Any] = ENVIRONMENT) -> Path:
    with Journal.open(folder, environment) as journal:
        journal.append(records)
        return journal.path


@pytest.mark.parametrize(
    ("commit", "dirty", "stem"),
    [
        ("abcdef1234567890", None, "2026-11-20-abcdef12"),
        ("abcdef1234567890", "0123456789", "2026-11-20-abcdef12-dirty-01234567"),
        (None, None, "2026-11-20-nogit-00c0ffee"),
    ],
)
def test_a_file_is_named_by_day_commit_and_dirt(commit: str | None, dirty: str | None, stem: str) -> None:
    assert file_stem({"commit": commit, "dirty": dirty, "source": "00c0ffee"}, "2026-11-20") == stem


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "m", record(MEASURED), record(Failed("crash", "gone"), implementation="bmm"))
    file = read_file(path)
    assert file.environment == ENVIRONMENT
    assert [found.implementation for found in file.records] == ["einsum", "bmm"]
    assert file.damage == ()


def test_the_same_environment_continues_its_file_and_another_gets_a_new_one(tmp_path: Path) -> None:
    first = write(tmp_path, record(MEASURED))
    assert write(tmp_path, record(MEASURED, seed=4)) == first
    assert len(read_file(first).records) == 2
    second = write(tmp_path, record(MEASURED), environment={**ENVIRONMENT, "torch": "2.14.0"})
    assert second.name == first.name.replace(".jsonl", "-2.jsonl")


def test_a_large_file_is_left_for_the_next_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectralbench.journal.LARGEST_BYTES", 1500)
    with Journal.open(tmp_path, ENVIRONMENT) as journal:
        for seed in range(12):
            journal.append([record(MEASURED, seed=seed), record(MEASURED, seed=seed, implementation="bmm")])
    files = [read_file(path) for path in sorted(tmp_path.glob("*.jsonl"))]
    assert len(files) > 2
    assert all(file.environment == ENVIRONMENT and len(file.records) % 2 == 0 and not file.damage for file in files)
    assert len(kept(tmp_path, ENVIRONMENT).by(record_key).records) == 24


def test_facts_that_do_not_survive_json_unchanged_still_continue_the_file(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "capability": (9, 0)}
    assert write(tmp_path, environment=environment) == write(tmp_path, environment=environment)


def test_a_file_that_another_run_holds_is_left_alone(tmp_path: Path) -> None:
    with Journal.open(tmp_path, ENVIRONMENT) as first, Journal.open(tmp_path, ENVIRONMENT) as second:
        assert first.path != second.path
        first.append([record(MEASURED)])
        second.append([record(MEASURED, seed=4)])
    assert [len(read_file(path).records) for path in (first.path, second.path)] == [1, 1]
    with Journal.open(tmp_path, ENVIRONMENT) as third:
        assert third.path == first.path


def test_a_line_cut_off_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path, record(MEASURED), record(MEASURED, seed=4))
    path.write_bytes(path.read_bytes()[:-40])
    assert write(tmp_path, record(MEASURED, seed=5)) == path
    file = read_file(path)
    assert [found.seed for found in file.records] == [3, 5]
    assert [damage.line for damage in file.damage] == [3]


def test_a_file_killed_inside_its_first_line_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text('{"schema":1,"kind":"envir')
    assert write(tmp_path, record(MEASURED)) != path
    assert "environment" in str(read_file(path).damage[0])


def full_disk(room: int) -> Any:
    """An `os.write` that has room for so many bytes and then no more."""
    real, left = os.write, room

    def fake(descriptor: int, block: bytes) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, block[:left])
        left -= written
        return written

    return fake


@pytest.mark.parametrize("room", [0, 25])
def test_a_full_disk_is_named_and_earlier_records_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    with Journal.open(tmp_path, ENVIRONMENT) as journal:
        journal.append([record(MEASURED)])
        before = journal.path.read_bytes()
        monkeypatch.setattr(os, "write", full_disk(room))
        with pytest.raises(JournalError, match="No space left on device") as caught:
            journal.append([record(MEASURED, seed=4)])
        assert str(journal.path) in str(caught.value)
        assert "intact" in str(caught.value)
    assert journal.path.read_bytes() == before


def test_a_disk_that_is_full_from_the_start_is_named_and_its_file_stays_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk(10))
        with pytest.raises(JournalError, match="nothing was measured"):
            Journal.open(tmp_path, ENVIRONMENT)
    assert read_file(write(tmp_path, record(MEASURED))).damage == ()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder is wanted")
    with pytest.raises(JournalError, match=r"cannot write records to .*results/records/m.*--results"):
        Journal.open(tmp_path / "results" / "records" / "m", ENVIRONMENT)


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JournalError, match="Read-only file system"):
        Journal.open(tmp_path, ENVIRONMENT)


def test_stored_finds_the_newest_record_of_the_same_code_state(tmp_path: Path) -> None:
    old = record(Failed("timeout", "slow"), recorded_at="2026-11-20T10:00:00.000+00:00")
    new = record(MEASURED, recorded_at="2026-11-20T11:00:00.000+00:00")
    write(tmp_path, new, old)
    write(tmp_path, record(MEASURED, seed=9), environment={**ENVIRONMENT, "commit": "another"})
    write(tmp_path, record(MEASURED, seed=9), environment={**ENVIRONMENT, "dirty": "0123"})
    write(tmp_path, record(MEASURED, seed=9), environment={**ENVIRONMENT, "source": "00c0ffee"})
    found = kept(tmp_path, ENVIRONMENT).by(record_key)
    assert found.records == {record_key(new): new}
    assert (found.damage, found.elsewhere) == ([], {})


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float16"}, {"pass_": "both"}, {"replicate": 2}, {"profile": "study"}, {"case": {"size": 8}}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_identity_tells_records_apart(change: dict[str, Any]) -> None:
    assert record_key(record(MEASURED)) != record_key(record(MEASURED, **change))
    assert record_key(record(MEASURED)) == record_key(record(Failed("oom", "big"), recorded_at="later"))


def test_damage_anywhere_in_the_folder_is_handed_on(tmp_path: Path) -> None:
    path = write(tmp_path, record(MEASURED))
    with path.open("a") as file:
        file.write("{broken\n")
    damage = kept(tmp_path, ENVIRONMENT).by(record_key).damage
    assert [(found.path, found.line) for found in damage] == [(path, 3)]
