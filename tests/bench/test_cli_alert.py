"""`spectralbench alert` exits by what it finds, judges the machine asked for, and times again what would page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import FACTS, Cli
from test_cli import history
from test_cli_tables import measured

from spectralbench import confirm, sweep
from spectralbench.record import environment_line, read_tree, record_line


def test_alert_judges_the_machine_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    steady = [1e-3, 1.001e-3, 0.999e-3, 1.002e-3, 0.998e-3, 1e-3]
    history(tmp_path / "results", steady)
    history(tmp_path / "results", [*steady, 2e-3], machine="cpu-other-4c")
    found = {name: cli("alert", "--machine", name) for name in ("cpu-test-2c", "cpu-other-4c", "cpu-none-1c")}
    assert [code for code, _, _ in found.values()] == [0, 1, 2]
    assert "known: cpu-other-4c, cpu-test-2c" in found["cpu-none-1c"][2]
    assert cli("alert")[0] == 1


def test_alert_judges_this_machine_and_says_so(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = [1e-3, 1.001e-3, 0.999e-3, 1.002e-3, 0.998e-3, 1e-3]
    history(tmp_path / "results", steady)
    monkeypatch.setenv("SPECTRALBENCH_MACHINE", "cpu-this-8c")
    said = cli("alert")[1].splitlines()[0]
    assert said == "No regression. On cpu-test-2c: 1 SAME.", "there is no other"
    history(tmp_path / "results", [*steady, 2e-3], machine="cpu-other-4c")
    code, out, _ = cli("alert")
    assert code == 1 and "On all 2 machines (this one, cpu-this-8c, has no results): 1 SAME, 1 SLOWER." in out
    monkeypatch.setenv("SPECTRALBENCH_MACHINE", "cpu-test-2c")
    code, out, _ = cli("alert", "--out", "told")
    scope = "On cpu-test-2c, this machine (of 1 more: --machine all): 1 SAME."
    assert code == 0 and out.splitlines()[0] == f"No regression. {scope}"
    assert scope in (tmp_path / "told" / "alert.md").read_text()
    assert json.loads(cli("alert", "--json")[1])["scope"].startswith("on cpu-test-2c, this machine")
    assert cli("alert", "--format", "github")[1].splitlines()[0].endswith(scope)
    code, out, _ = cli("alert", "--machine", "all")
    assert code == 1 and "On all 2 machines: 1 SAME, 1 SLOWER." in out.splitlines()[0]
    code, _, err = cli("alert", "--machine", "cpu-tset-2c")
    assert code == 2 and "did you mean 'cpu-test-2c'? known: cpu-other-4c, cpu-test-2c" in err
    monkeypatch.setenv("SPECTRALBENCH_MACHINE", "No Slug")
    code, _, err = cli("alert")
    assert code == 2 and "SPECTRALBENCH_MACHINE must be lower-case letters" in err


def test_alert_of_nothing_and_of_one_point(cli: Cli, tmp_path: Path) -> None:
    assert cli("alert")[0] == 2, "no folder"
    (tmp_path / "results").mkdir()
    code, out, _ = cli("alert")
    assert (code, out) == (3, "Not enough history to judge anything. no series.\n")
    code, _, err = cli("alert", "--machine", "cpu-test-2c")
    assert code == 2 and "no results of machine 'cpu-test-2c'; known: none yet" in err
    history(tmp_path / "results", [1e-3])
    code, out, _ = cli("alert", "--machine", "cpu-test-2c")
    assert code == 3 and out.startswith("Not enough history to judge anything. On cpu-test-2c: 1 CANNOT TELL.")


def test_alert_exits_by_what_it_finds(cli: Cli, tmp_path: Path) -> None:
    steady = [1e-3, 1.001e-3, 0.999e-3, 1.002e-3, 0.998e-3, 1e-3]
    history(tmp_path / "silent", steady)
    history(tmp_path / "slower", [*steady, 2e-3])
    history(tmp_path / "young", steady[:1])
    assert cli("alert", "--results", "silent")[0] == 0
    code, out, _ = cli("alert", "--results", "slower", "--out", "told")
    assert code == 1
    assert "2.00x slower" in out
    _, whole, _ = cli("alert", "--results", "slower", "--all")
    assert (tmp_path / "told" / "alert.md").read_text().strip() == whole.strip()
    assert cli("alert", "--results", "slower", "--rule", "device_time=150%")[0] == 0
    assert cli("alert", "--results", "slower", "--rule", "device_time")[0] == 2
    assert json.loads((tmp_path / "told" / "alert.json").read_text())["exit_code"] == 1
    code, out, _ = cli("alert", "--results", "slower", "--json")
    assert (code, json.loads(out)["exit_code"]) == (1, 1)
    assert cli("alert", "--results", "young")[0] == 3
    code, out, _ = cli("alert", "--results", "slower", "--format", "github", "--junit", "told/junit.xml")
    assert code == 1 and "::error title=SLOWER" in out
    assert 'failures="1"' in (tmp_path / "told" / "junit.xml").read_text()
    (tmp_path / "pyproject.toml").write_text('[tool.spectralbench.alert]\nrules = ["device_time=150%"]\n')
    assert cli("alert", "--results", "slower")[0] == 0
    assert cli("alert", "--results", "slower", "--rule", "device_time=3%")[0] == 1, "the command line comes last"
    (tmp_path / "pyproject.toml").write_text("[tool.spectralbench.alert]\nrule = 1\n")
    assert cli("alert", "--results", "slower")[0] == 2


def steady_history(results: Path, twin: list[float], newest: str = str(FACTS["commit"])) -> None:
    """`twin` beside the baseline `plain`, which takes 2 s as a fresh process of the two does; a commit per value."""
    for index, value in enumerate(twin):
        moment = f"2026-01-{index + 1:02d}T00:00:00.000+00:00"
        commit = newest if index == len(twin) - 1 else f"{index:08d}" * 5
        facts = {**FACTS, "commit": commit, "started_at": moment, "device": "cpu"}
        records = [
            measured(time + 1e-4 * ((index + replicate) % 3), operation="steady", operation_version=3,
                     implementation=name, role=role, fft_size=(1,), dtype="float32", pass_="forward", seed=0,
                     case={"size": 1, "rate": 0, "exact": True, "grid": "tight"}, cache="warm", launch="eager",
                     replicate=replicate, recorded_at=moment)
            for replicate in range(3) for name, role, time in (("plain", "baseline", 2.0), ("twin", "kernel", value))
        ]  # fmt: skip
        folder = results / "records" / "cpu-test-2c"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:03d}.jsonl").write_text(environment_line(facts) + "".join(map(record_line, records)))


@pytest.mark.slow
def test_what_would_page_is_timed_again_and_forgotten_if_it_went_away(cli: Cli, tmp_path: Path) -> None:
    steady_history(tmp_path / "results", [2.0] * 6 + [3.0])
    assert cli("alert")[0] == 1
    code, out, err = cli("alert", "--remeasure", "--processes", "3")
    assert code == 0 and out.startswith("No regression.")
    assert "timing again 1 slower series in 3 fresh processes each" in err
    stored = [one for file in read_tree(tmp_path / "results" / "records") for one in file.records]
    assert len(stored) == 7 * 6 + 3 * 2, "kept beside the others"


def test_what_is_still_slower_when_timed_again_pages_and_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady_history(tmp_path / "results", [1.0] * 6 + [2.0])

    def at_once(items: list[sweep.Item], results: Path, facts: dict[str, Any], *_: object) -> sweep.Sweep:
        path = results / "records" / "cpu-test-2c" / "again.jsonl"
        assert [(item.replicate, item.implementations) for item in items] == [(n, ("plain", "twin")) for n in (3, 4, 5)]
        lines = (results / "records" / "cpu-test-2c" / "006.jsonl").read_text().splitlines(keepends=True)
        path.write_text("".join(lines))
        return sweep.Sweep([], 0, [], [])

    monkeypatch.setattr(confirm, "measure", at_once)
    code, out, _ = cli("alert", "--remeasure", "--processes", "3")
    assert code == 1 and "SLOWER 2.00x slower" in out and "timed again in 3 fresh processes: +100 %" in out


def test_what_cannot_be_timed_again_is_said_and_stays_slower(cli: Cli, tmp_path: Path) -> None:
    steady_history(tmp_path / "other", [2.0] * 6 + [3.0], newest="f" * 40)
    code, _, err = cli("alert", "--results", "other", "--remeasure")
    assert code == 1 and "not timed again: 1 slower series, measured at ffffffff, checked out is abcdef12" in err
    steady_history(tmp_path / "late", [2.0] * 6 + [3.0])
    code, _, err = cli("alert", "--results", "late", "--remeasure", "--time-budget", "0")
    assert code == 1 and "not timed again: 1 slower series, stopped by the time budget" in err
    code, _, err = cli("alert", "--results", "late", "--since", "--no-such")
    assert code == 2 and "--since takes a commit, tag or branch that git knows here, got '--no-such'" in err
    steady_history(tmp_path / "fine", [2.0] * 7)
    assert cli("alert", "--results", "fine", "--remeasure")[0] == 0


def test_alert_of_a_machine_of_which_nothing_can_be_read(cli: Cli, tmp_path: Path) -> None:
    """It is answered as an unknown one, and the damage says why."""
    (tmp_path / "results" / "records" / "cpu-lost-2c").mkdir(parents=True)
    (tmp_path / "results" / "records" / "cpu-lost-2c" / "a.jsonl").write_text("{cut\n")
    code, out, _ = cli("alert")
    assert code == 1 and out.startswith("Nothing is shown to be worse. The newest results are damaged in 2 places")
    code, _, err = cli("alert", "--machine", "cpu-lost-2c")
    assert code == 2 and "cpu-lost-2c/a.jsonl:1: not a whole" in err and "no results of machine 'cpu-lost-2c'" in err


def test_alert_names_damage_on_stderr(cli: Cli, tmp_path: Path) -> None:
    history(tmp_path / "results", [1e-3], damage="{cut")
    _, _, err = cli("alert")
    assert "damaged record skipped: results/records/cpu-test-2c/2026-01-01-00000000.jsonl:3: not a whole" in err
