"""The command line parses, prints and exits as it says: data on stdout, talk on stderr, 0 / 1 / 2 / 3 / 130."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from command_line import FACTS, Cli, one_line
from test_cli_tables import measured

from spectralbench import __version__, choices, environment, peaks, workloads
from spectralbench.ceilings import Ceilings
from spectralbench.cli import listing, main, sweeping, terminal
from spectralbench.cli.machine import asv_machine, write_asv_machine
from spectralbench.cli.terminal import check_operations
from spectralbench.record import environment_line, record_line


@pytest.mark.slow
def test_ascii_streams_get_words(tmp_path: Path) -> None:
    history(tmp_path / "results", [1.5e-6, 1.5e-6, 1.5e-6, 1.5e-6, 3e-6])
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-m", "spectralbench", "alert", "--all"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert b"| 3 us |" in done.stdout, done.stdout
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)


@pytest.mark.slow
def test_a_stdout_that_is_closed_or_full_is_no_regression(tmp_path: Path) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for stream, code, said in (
        (">&-", 0, ""),
        ("2>&- >&-", 0, ""),
        (">/dev/full", 2, "error: stdout is not all there"),
    ):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m spectralbench --version {stream}', sys.executable],
            env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert said in one_line(done.stderr)


def test_the_version_is_the_packages(cli: Cli) -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert cli("--version")[:2] == (0, f"spectralbench {project['version']}\n")
    assert __version__ == project["version"]


@pytest.mark.slow
def test_misspelt_names_are_answered_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    listing.known(None)  # where what there is was found out once
    for arguments, meant in (
        (("run", "masked_multiplie"), "'masked_multiply'? known: band_limited_conv1d"),
        (("run", "--profile", "quik"), "'quick'? known: smoke, quick, study"),
        (("run", "masked_multiply", "--impl", "einsums"), "'einsum'? known: triton"),
        (("profile", "masked_multiply", "--set", "batc=1"), "'batch'? known: batch"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        assert f"did you mean {meant}" in one_line(done.stderr)
    with pytest.raises(typer.Exit):
        check_operations(["conv1d"])
    assert "unknown operation 'conv1d', did you mean 'band_limited_conv1d'?" in capsys.readouterr().err


# list and machine


def test_list_names_everything_and_why_it_is_not_available(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("list", "steady")
    assert (code, err) == (0, "")
    for word in ("plain", "baseline", "needs CUDA", "size [times] rate", "smoke 4", "study 4"):
        assert word in out
    _, out, _ = cli("list")
    (line,) = [line for line in out.splitlines() if "steady" in line]
    assert "2 of 3" in line and "size [times] rate" in line
    assert "device_time" in out and "second" in out
    monkeypatch.setattr(terminal, "PIPE_WIDTH", 30)
    _, out, _ = cli("list")
    (line,) = [line for line in out.splitlines() if "steady" in line]
    assert "2 of 3" in line and len(line) <= 30
    code, out, _ = cli("list", "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    steady = next(entry for entry in entries if entry["name"] == "steady")
    assert steady["parameters"] == ["size", "rate", "exact", "grid"]
    assert {"name": "gpu_only", "role": "kernel", "source": "here", "unavailable": "needs CUDA"} in steady[
        "implementations"
    ]
    assert {entry["kind"] for entry in entries} == {"operation", "metric"}


def test_a_second_list_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds out again once anything that it depends on has changed, or its file was cut off."""
    asked: list[str | None] = []

    def found_out(device: str | None) -> listing.Found:
        asked.append(device)
        steady = {"name": "steady", "summary": "it holds", "implementations": []}
        return [steady], [{"name": "time", "unit": "second"}], ("a plug-in",)

    monkeypatch.setattr(listing, "found_out", found_out)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(3):
        listing.known(None)
    assert asked == [None]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "list"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "it holds" in done.stdout and "time (second)" in done.stdout, done.stderr
    (file,) = (tmp_path / "cache" / "spectralbench").glob("list-*.json")
    file.write_text(file.read_text()[:40])
    listing.known(None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    listing.known(None)
    listing.known("cpu")
    assert asked == [None, None, None, "cpu"]

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)  # another user's cache
    monkeypatch.setattr(Path, "is_file", denied)
    listing.known("cpu")
    assert asked[4:] == ["cpu"]


def test_machine_prints_its_name_and_facts(cli: Cli) -> None:
    code, out, _ = cli("machine")
    assert code == 0
    assert "cpu-test-2c" in out and "Test CPU" in out
    assert json.loads(cli("machine", "--json")[1])["machine"] == "cpu-test-2c"


def test_machine_stores_what_it_reaches_for_the_report(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectralbench.ceilings.ceilings_here", lambda device: Ceilings(1e10, 1e11, 1e-6))
    monkeypatch.setattr(environment, "capture", lambda root=None: {**FACTS, "threads": 2, "started_at": "2026"})
    code, _, err = cli("machine", "--ceilings", "--results", str(tmp_path / "results"))
    assert code == 0 and "results/ceilings/cpu-test-2c.json" in err.replace("\n", "")
    found = peaks.read(tmp_path / "results", "cpu-test-2c")
    assert found == peaks.Peak(1e10, 1e11, 2, "2026")
    (tmp_path / "file").write_text("")
    code, _, err = cli("machine", "--ceilings", "--results", str(tmp_path / "file"))
    assert code == 2 and "cannot store the ceilings" in err


def test_a_machine_name_that_is_no_slug_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SPECTRALBENCH_MACHINE", "My Machine")
    monkeypatch.setattr(sys, "argv", ["spectralbench", "machine"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2


def test_asv_gets_the_same_name_and_fields_that_an_update_does_not_change(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".asv-machine.json"
    assert cli("machine", "--asv")[0] == 0
    stored = json.loads(path.read_text())
    assert stored.keys() == {"cpu-test-2c", "version"}
    assert stored["cpu-test-2c"].keys() == {"machine", "os", "arch", "cpu", "num_cpu", "ram"}
    assert stored["cpu-test-2c"]["ram"] == "24 GiB"
    assert stored["cpu-test-2c"]["os"] == "Linux"
    assert asv_machine({**FACTS, "os": "Linux 9.9", "ram_bytes": FACTS["ram_bytes"] - 4096}) == asv_machine(FACTS)  # type: ignore[operator]
    assert write_asv_machine(path, {**FACTS, "machine": "other"}) == ["cpu-test-2c", "other"]
    _, _, err = cli("machine", "--asv")
    assert "run asv with --machine cpu-test-2c" in err


def test_asv_reads_what_is_written(tmp_path: Path) -> None:
    asv_machines = pytest.importorskip("asv.machine")
    path = tmp_path / "machine.json"
    write_asv_machine(path, FACTS)
    assert asv_machines.MachineCollection.load("cpu-test-2c", _path=str(path)) == asv_machine(FACTS)


@pytest.mark.parametrize("text", ["not json", '{"version": 2}', "[]"])
def test_a_machine_file_that_is_not_understood_is_not_overwritten(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".asv-machine.json"
    path.write_text(text)
    code, _, err = cli("machine", "--asv")
    assert code == 2
    assert f"cannot write asv's machine file {path}" in err
    assert path.read_text() == text


# Reading verbs


def history(results: Path, values: list[float], damage: str = "", machine: str = "cpu-test-2c") -> None:
    """One series, a commit per value."""
    folder = results / "records" / machine
    folder.mkdir(parents=True)
    for index, value in enumerate(values):
        moment = f"2026-01-{index + 1:02d}T00:00:00.000+00:00"
        facts = {**FACTS, "machine": machine, "commit": f"{index:08d}" * 5, "started_at": moment}
        text = environment_line(facts) + record_line(measured(value, recorded_at=moment))
        (folder / f"2026-01-{index + 1:02d}-{index:08d}.jsonl").write_text(text + damage)


WITHOUT_TORCH = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Blocked())
sys.argv = ["spectralbench", *sys.argv[1:]]
from spectralbench.cli import main

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("plot", "--help"), 0), (("run", "--help"), 0), (("alert",), 3), (("report",), 0)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_reading_verbs_work_without_torch(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    history(tmp_path / "results", [1e-3])
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (0.4, False), (0.6, True), (3.2, True), (None, False)])
def test_a_busy_machine_is_doubted(load: float | None, warned: bool) -> None:
    doubt = sweeping.busy({"load": load, "cores": 2})
    assert (doubt is not None) == warned
    assert doubt is None or "this machine is busy: load" in doubt


def test_tiles_are_not_tuned_without_a_gpu(cli: Cli) -> None:
    code, _, err = cli("tune", "tiled", "--profile", "smoke")
    assert (code, "tiles are tuned on a CUDA device" in one_line(err)) == (2, True)


def test_choices_that_cannot_be_written_are_shown_and_the_place_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(tmp_path / "results", [1e-3])
    (tmp_path / "results" / "CHOICES.md").mkdir()
    one = choices.JudgedChoice("toy", "size=24", "float32", "forward", "plain", "small", 2.0, "quick", 1.0)
    monkeypatch.setattr(choices, "judged_choices", lambda *arguments: [one])
    code, out, err = cli("choices", "--machine", "cpu-test-2c")
    assert code == 2
    assert "| toy | time | 1 | 0 | 2.00 | 2.00 |" in out
    assert "cannot write results/CHOICES.md: Is a directory" in one_line(err)


def test_operations_are_known_by_their_files_without_an_import() -> None:
    assert sorted(terminal.operation_names()) == sorted(workloads.load_operations())
