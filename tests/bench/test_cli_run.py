"""`spectralbench run`: what it prints, stores and refuses, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import FACTS, Cli, one_line
from fake_operations import SOURCES
from rich.console import Console

from spectralbench import ceilings, checkout, environment, sweep
from spectralbench.ceilings import Ceilings
from spectralbench.cli import sweeping, terminal
from spectralbench.record import environment_line, read_tree
from spectralkernels.declare import PROFILES, Case


def test_run_prints_a_table_and_stores_the_records(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("run", "steady", "--profile", "smoke", "--set", "rate=0.5")
    assert code == 0
    assert "steady size=" in out and "best base" in out and "the same" in out
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setattr(ceilings, "ceilings_here", lambda device: Ceilings(16.0, 1e3, 1e-6))
    _, wide, _ = cli("run", "steady", "--profile", "smoke", "--set", "rate=0.5", "--wide")
    assert "3 s (3 - 4.5)" in wide  # three implementations together, in the fake core's seconds
    assert "everywhere: rate=0.5" in wide
    # 8 bytes read and 8 written in 3 s, where 16 bytes a second are possible
    assert re.search(r"plain .* 5.33e-09 +3.33e-10 +33 %", wide), wide
    (file,) = read_tree(tmp_path / "results" / "records")
    assert file.path.parent.name == "cpu-test-2c"
    assert f"records: {file.path.relative_to(tmp_path)}" in err
    assert "skipped: steady gpu_only in 2 cases: needs CUDA" in err
    assert len(file.records) == 6
    code, again, err = cli("run", "steady", "--profile", "smoke", "--set", "rate=0.5")
    assert (code, again) == (0, out)
    assert "6 records were stored already" in err


def test_json_is_the_stored_lines_and_prints_of_an_implementation_stay_out(cli: Cli) -> None:
    code, out, _ = cli("run", "talking", "--profile", "smoke", "--json", "--quiet")
    assert code == 0
    assert [json.loads(line)["implementation"] for line in out.splitlines()] == ["talks", "talks"]


def test_a_failed_case_exits_1_and_is_named(cli: Cli) -> None:
    code, out, err = cli("run", "raising", "--profile", "smoke", "--set", "rate=0")
    assert code == 1
    assert re.search(r"raises +failed +error", out)
    assert "failed: raising[size=1,rate=0,exact=True,grid=tight] raises: error: ValueError: size does not suit" in err


def test_dry_run_measures_nothing(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("run", "steady", "--profile", "study", "--processes", "2", "--dry-run")
    assert code == 0
    assert "8 cases to measure, 0 records stored already" in out
    assert "steady[size=1,rate=0,exact=True,grid=tight] process 1: plain, twin, gpu_only" in out
    code, out, _ = cli("run", "steady", "--profile", "smoke", "--dry-run", "--json", "--impl", "twin,plain")
    assert [json.loads(line)["implementations"] for line in out.splitlines()] == [["plain", "twin"]] * 4
    assert not (tmp_path / "results").exists()


def test_the_time_budget_says_what_is_left_and_how_to_resume(cli: Cli) -> None:
    code, _, err = cli("run", "steady", "--profile", "smoke", "--time-budget", "0")
    assert code == 0
    assert "stopped by the time budget; 4 cases are left: steady size=1" in err
    assert "resume with the same command: spectralbench run steady --profile smoke --time-budget 0" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "steadi"), "unknown operation 'steadi', did you mean 'steady'? known: steady, crashing"),
        (("run", "fourier"), "unknown operation 'fourier'; known: steady, crashing"),
        (("list", "fourier"), "unknown operation 'fourier'; known: steady"),
        (("run", "--profile", "huge"), f"unknown profile 'huge'; known: {', '.join(PROFILES)}"),
        (("run", "steady", "--profile", "smoke", "--impl", "cudnn"), "unknown implementation 'cudnn'; known: plain"),
        (("run", "steady", "--profile", "smoke", "--set", "beta=1"), "unknown parameter 'beta'"),
        (("run", "steady", "--profile", "smoke", "--set", "size=x"), "size takes integers, such as 1, got 'x'"),
        (("run", "steady", "--profile", "smoke", "--set", "size"), "--set takes NAME=VALUE[,VALUE]..., got 'size'"),
        (("run", "steady", "--profile", "smoke", "--metrics", "speed"), "unknown metric 'speed'; known: "),
        (("run", "steady", "--device", "tpu"), "unknown device 'tpu'; known: cpu, cuda"),
        (("run", "steady", "--device", "cuda"), "no CUDA device here"),
        (("run", "--processes", "0"), "processes"),
        (("run", "--no-such-option"), "no-such-option"),
        (("sprint",), "sprint"),
        (("alert", "--results", "nowhere"), "nowhere"),
        (("plot", "nonsense", "--results", "."), "unknown figure 'nonsense'; known: "),
        (
            ("plot", "kernel_siz", "--results", "."),
            "unknown figure 'kernel_siz', did you mean 'kernel_size_sweep'",
        ),
        (("plot", "--pictures", "pooling_los"), "unknown picture 'pooling_los', did you mean 'pooling_loss'? known: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_exits_2_with_the_known_names_on_stderr(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cli(*arguments)
    assert code == 2
    assert message in one_line(err)
    assert out == ""


def test_results_that_cannot_be_written_are_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = cli("run", "talking", "--profile", "smoke", "--results", "file")
    assert (code, out) == (2, "")
    assert "error: cannot write records to file/records/cpu-test-2c: Not a directory; nothing was measured" in err


def test_damaged_and_newer_lines_are_named_and_the_rest_is_used(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "records" / "cpu-test-2c"
    folder.mkdir(parents=True)
    path = folder / "2026-01-01-abcdef12.jsonl"
    path.write_text(environment_line(FACTS) + '{"schema":1,"kind":"outc\n{"schema":99,"kind":"outcome"}\n')
    code, _, err = cli("run", "talking", "--profile", "smoke")
    assert code == 0
    relative = path.relative_to(tmp_path)
    assert f"damaged record skipped: {relative}:2: not a whole JSON line" in err
    assert f"damaged record skipped: {relative}:3: schema 99 is newer than this spectralbench knows (1)" in err


def test_a_dirty_tree_is_marked_in_the_name_and_the_environment(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "capture", lambda root=None: {**FACTS, "dirty": "0badc0de"})
    assert cli("run", "talking", "--profile", "smoke")[0] == 0
    (file,) = read_tree(tmp_path / "results" / "records")
    assert file.path.name.endswith("-abcdef12-dirty-0badc0de.jsonl")
    assert file.environment is not None and file.environment["dirty"] == "0badc0de"


def test_without_git_a_digest_of_the_sources_stands_in_for_the_commit(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "capture", lambda root=None: {**FACTS, "commit": None, "no_commit": "no git"})
    code, _, err = cli("run", "talking", "--profile", "smoke")
    assert code == 0 and err.count("of the code: no git") == 1
    (file,) = read_tree(tmp_path / "results" / "records")
    source = sweep.surroundings("cpu")["source"]
    assert file.path.name.endswith(f"-nogit-{source}.jsonl")
    monkeypatch.setattr(checkout, "digest", lambda folders: "another0")
    _, out, _ = cli("run", "talking", "--profile", "smoke", "--dry-run")
    assert "2 cases to measure, 0 records stored already" in out


def test_another_thread_count_at_the_same_commit_is_measured_and_said(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", "talking", "--profile", "smoke")[0] == 0
    monkeypatch.setattr(environment, "capture", lambda root=None: {**FACTS, "threads": 7, "shallow": True})
    _, out, err = cli("run", "talking", "--profile", "smoke", "--dry-run")
    assert "2 cases to measure, 0 records stored already" in out
    said = "to be measured again: 2 records of this commit come from other conditions and do not serve: threads "
    assert err.count(said) == 1 and "-> 7" in err and err.count("this clone is shallow") == 0
    _, out, err = cli("run", "talking", "--profile", "smoke", "--remeasure")
    assert "measured again: 2 records" in err and err.count("this clone is shallow") == 1


def test_a_cpu_beside_a_gpu_is_a_machine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRALBENCH_MACHINE", raising=False)
    monkeypatch.setattr(environment, "capture", lambda root=None: {**FACTS, "machine": "nvidia-h200"})
    monkeypatch.setattr(environment, "device_kind", lambda: "cuda")
    assert sweep.surroundings("cuda")["machine"] == "nvidia-h200"
    assert sweep.surroundings("cpu")["machine"] == environment.cpu_machine()


INTERRUPTED = """
from fake_operations import SOURCES
from spectralbench import sweep
from spectralbench.cli import main, terminal

sweep.SOURCES = SOURCES
terminal.operation_names = lambda: ["slow"]

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_ctrl_c_exits_130_says_how_to_resume_and_leaves_whole_records(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    path = os.pathsep.join(entry for entry in (*sys.path, str(Path(__file__).parent)) if entry)
    running = subprocess.Popen(
        [sys.executable, str(script), "run", "slow", "--profile", "smoke", "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("results/records/*/*.jsonl")) < 5:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does it
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "stopped by the interrupt" in err
    assert "resume with the same command: spectralbench run slow" in err
    assert "Traceback" not in err
    assert "sleeps" in out  # what was measured is shown
    (file,) = read_tree(tmp_path / "results" / "records")
    assert file.damage == ()
    assert file.records


def test_a_named_implementation_that_the_profile_lacks_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have been left out without a word beside another that runs."""
    monkeypatch.setattr(sweep, "SOURCES", replace(SOURCES, operations="fake_operations:load_narrow_operations"))
    code, out, err = cli("run", "steady", "--profile", "smoke", "--impl", "plain,twin", "--dry-run")
    assert (code, out) == (2, "")
    assert "implementation 'twin' has no case in profile 'smoke'" in one_line(err)
    assert "profiles that run it: study" in one_line(err)
    assert cli("run", "steady", "--profile", "study", "--impl", "plain,twin", "--dry-run")[0] == 0


def test_nothing_measured_is_no_success(cli: Cli) -> None:
    for _ in range(2):  # measured now, and served from the records
        code, _, err = cli("run", "steady", "--profile", "smoke", "--impl", "gpu_only")
        assert code == 3
        assert "nothing was measured: every case was skipped here" in one_line(err)


def test_progress_off_a_terminal_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter([0.0, 4.0, 12.0, 15.0, 22.0])
    watch = sweeping.Bar(False, lambda: next(moments))
    for done in range(4):
        watch.start(item("steady", {"size": done}), done, 8)
    assert capsys.readouterr().err.splitlines() == [
        "1/8 0:01:24 left, steady size=1",
        "3/8 0:00:37 left, steady size=3",
    ]


CONV = {"batch": 8, "in_channels": 64, "out_channels": 64, "height": 32, "width": 32, "kernel_size": 7, "groups": 1,
        "compression": 0.5, "grid": "tight", "input": "photo"}  # fmt: skip


def item(operation: str, params: dict[str, Any]) -> Any:
    """What a sweep tells of the case that it starts."""
    case = Case(operation, tuple(params.items()))
    return SimpleNamespace(operation=SimpleNamespace(name=operation), case=case, pass_="forward", label=case.id)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_progress_fits_a_window_with_count_time_left_and_case(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(terminal, "talk", lambda: console)
    watch = sweeping.Bar(False)
    watch.start(item("band_limited_conv2d", CONV), 3, 57)
    console.print(watch.bar)
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.startswith(" 3/57 ") and "-:--:-- left, conv2d 8x64->64" in line
    assert ("K7 c.5" in line) == (width >= 80)


def test_a_pin_replays_the_tiles_of_a_record(cli: Cli) -> None:
    _, out, _ = cli("run", "tiled", "--profile", "smoke", "--json")
    tiles = json.loads(out.splitlines()[0])["tiles"]
    assert tiles == {"fake.site[size=1]": {"warps": 4, "source": "rule"}}
    Path("pin.json").write_text(json.dumps(tiles))
    code, out, err = cli("run", "tiled", "--profile", "smoke", "--json", "--pin", "@pin.json")
    assert (code, "no launch took" in err) == (0, False)
    assert json.loads(out.splitlines()[0])["tiles"] == {"fake.site[size=1]": {"warps": 4, "source": "pin"}}


def test_a_pin_that_nothing_takes_is_said(cli: Cli) -> None:
    _, _, err = cli("run", "tiled", "--profile", "smoke", "--pin", '{"fake.sight": {"warps": 2}}')
    assert "no launch took the pin 'fake.sight'; these chose a tile: fake.site[size=1]" in one_line(err)


@pytest.mark.parametrize("text", ["{", "[1]", '{"fake.site": 4}', "@missing.json"])
def test_a_pin_that_is_no_tile_is_refused(cli: Cli, text: str) -> None:
    code, _, err = cli("run", "tiled", "--profile", "smoke", "--pin", text)
    assert code == 2
    assert "--pin takes a record's `tiles` as JSON" in one_line(err)
