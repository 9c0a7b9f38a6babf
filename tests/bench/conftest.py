"""The command line over operations without mathematics, in an empty folder; quick starts of measuring processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import FACTS, Answer, Cli
from fake_operations import SOURCES, load_operations

from spectralbench import environment, sweep, worker
from spectralbench.cli import listing, main, terminal

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["spectralbench.measure", "spectralbench.ceilings", "spectralkernels.ops"])


def in_environment(values: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What a spawned process finds by itself."""
    os.environ.clear()
    os.environ.update(values)
    target(*arguments)


def forked(*, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> Any:
    return FORKED.Process(target=in_environment, args=(dict(os.environ), target, args), **options)


@pytest.fixture(autouse=True)
def _measuring_processes_start_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a process of its own, forked from one that has imported torch already: a hundred are started here.

    Sweeps in processes of their own, such as the ones that are killed, spawn theirs as users' sweeps do.
    """
    forking = SimpleNamespace(Pipe=FORKED.Pipe, Process=forked)
    stand_in = SimpleNamespace(get_context=lambda method: forking, parent_process=multiprocessing.parent_process)
    monkeypatch.setattr(worker, "multiprocessing", stand_in)


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
