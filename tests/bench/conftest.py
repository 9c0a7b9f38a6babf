"""The command line over operations without mathematics, in an empty folder; quick starts of measuring processes."""

from __future__ import annotations

import sys
from pathlib import Path

import forking
import pytest
from command_line import FACTS, Answer, Cli
from fake_operations import SOURCES, load_operations

from spectralbench import environment, sweep, worker
from spectralbench.cli import listing, main, terminal


@pytest.fixture(autouse=True)
def _measuring_processes_start_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a process of its own, forked from one that has imported torch already: a hundred are started here.

    Sweeps in processes of their own, such as the ones that are killed, spawn theirs as users' sweeps do.
    """
    monkeypatch.setattr(worker, "multiprocessing", forking.STAND_IN)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command line over the fake operations, in an empty folder."""
    monkeypatch.setattr(sweep, "SOURCES", SOURCES)
    monkeypatch.setattr(listing, "known", listing.found_out)
    monkeypatch.setattr(terminal, "operation_names", lambda: list(load_operations()))
    monkeypatch.setattr(environment, "capture", lambda root=None: dict(FACTS))
    monkeypatch.setattr(environment, "device_kind", lambda: "cpu")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["spectralbench", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return int(left.value.code or 0), streams.out, streams.err

    return call
