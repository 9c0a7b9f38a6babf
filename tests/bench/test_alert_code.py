"""What an alert says beside the number: the host, the machine code, the price in exactness; expectations; exports."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import synthetic_records as synthetic
from test_alert import series_of_values
from test_environment import git

from spectralbench import alert, history
from spectralbench.alert import Finding, Verdict
from spectralbench.fingerprint import stored

STEADY = [1.0, 1.0001, 0.9999, 1.0, 1.0001]


def fingerprint(instructions: int) -> stored.Fingerprint:
    return stored.Fingerprint("o.tiled_kernel", "B2", 90, "3.7.1", "13.1", 4, 2, 64, 0, 0, 1024, 0, instructions, 128,
                              128, 32, "registers", f"s{instructions}", "order", {"FFMA": instructions})  # fmt: skip


class Project:
    """A repository with kernels, a harness and fingerprints, whose newest commit is 1.5 times slower."""

    def __init__(self, root: Path, changes: tuple[str, ...]) -> None:
        self.root = root
        root.mkdir()
        git(root, "init", "-q", "-b", "main")
        for folder in ("kernels", "bench"):
            (root / folder).mkdir()
            (root / folder / "code.py").write_text("x = 0\n")
        stored.save(root / "results" / "fingerprints", [fingerprint(100)])
        for index in range(6):
            if index == 5 and "kernels" in changes:
                (root / "kernels" / "code.py").write_text("x = 1\n")
            if index == 5 and "fingerprints" in changes:
                stored.save(root / "results" / "fingerprints", [fingerprint(140)])
            git(root, "add", "-A")
            git(root, "commit", "-q", "--allow-empty", "-m", f"change {index}")
            facts = {**synthetic.environment(), "commit": git(root, "rev-parse", "HEAD")}
            time = 1.5 if index == 5 else 1.0
            synthetic.write(
                root / "results", f"{index:03d}", facts, [synthetic.record({"device_time": time}, day=index)]
            )

    def told(self) -> Finding:
        (found,) = alert.judge(history.load(self.root / "results"))
        assert found.verdict is Verdict.SLOWER
        (found,) = alert.explain([found], (self.root / "results",))
        return found


@pytest.fixture(autouse=True)
def _nobodys_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def test_a_time_that_rose_with_the_same_code_is_the_hosts(tmp_path: Path) -> None:
    found = Project(tmp_path / "clone", ()).told()
    assert found.verdict is Verdict.CANNOT_TELL and found.reason.startswith("host, not code")
    assert alert.exit_code([found]) == 0


def test_the_kernels_whose_machine_code_changed_are_named_with_their_instructions(tmp_path: Path) -> None:
    found = Project(tmp_path / "clone", ("kernels", "fingerprints")).told()
    assert found.verdict is Verdict.SLOWER
    assert "machine code changed: o.tiled_kernel in 1 (sm_90, B2: instructions 100 -> 140 (+40 %)" in found.reason
    assert "+40 FFMA" in found.reason


def test_other_sources_with_the_same_machine_code_are_said_and_still_slower(tmp_path: Path) -> None:
    found = Project(tmp_path / "clone", ("kernels",)).told()
    assert found.verdict is Verdict.SLOWER and found.reason.endswith("sources did, but no stored fingerprint changed")


def test_commits_that_git_does_not_know_say_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path / "clone", ())
    (found,) = alert.judge(series_of_values([*STEADY, 1.5]))
    assert alert.explain([found], (project.root, tmp_path / "nowhere")) == [found]


def test_a_damaged_file_of_fingerprints_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path / "clone", ("kernels",))
    (project.root / "results" / "fingerprints" / "o.tiled_kernel.json").write_text("{")
    git(project.root, "commit", "-q", "-a", "--amend", "-m", "damaged")
    commit = git(project.root, "rev-parse", "HEAD")
    facts = {**synthetic.environment(), "commit": commit}
    next(project.root.glob("results/records/*/005.jsonl")).unlink()
    synthetic.write(project.root / "results", "005", facts, [synthetic.record({"device_time": 1.5}, day=5)])
    with pytest.raises(ValueError, match=r"o\.tiled_kernel\.json at .* is not a file of fingerprints"):
        project.told()


@pytest.mark.parametrize(("error", "verdict"), [(1e-3, Verdict.LESS_EXACT), (1e-7, Verdict.FASTER)])
def test_faster_by_being_less_exact_is_called_that(tmp_path: Path, seed: int, error: float, verdict: Verdict) -> None:
    rng = random.Random(seed)
    for index in range(7):
        time = (0.5 if index == 6 else 1.0) * (1 + 0.001 * rng.random())
        metrics = {"device_time": time, "rounding_error": error if index == 6 else 1e-7}
        synthetic.write(
            tmp_path, f"{index}", synthetic.environment(commit=index), [synthetic.record(metrics, day=index)]
        )
    found = next(one for one in alert.judge(history.load(tmp_path)) if one.key.metric == "device_time")
    assert found.verdict is verdict
    text = alert.to_terminal([found])
    assert ("LESS EXACT 2.00x faster" in text and "rounding_error is 1e+04 times" in text) == (error > 1e-7)
    assert ("## Faster by being less exact" in alert.to_markdown([found])) == (error > 1e-7)


def test_what_measuring_said_of_a_time_is_told_with_its_change(tmp_path: Path) -> None:
    for index in range(6):
        said = {"launch_bound": "near an empty launch", "energy": "no counter"} if index == 5 else None
        time = synthetic.record({"device_time": 1.5 if index == 5 else 1.0}, day=index, unavailable=said)
        synthetic.write(tmp_path, f"{index}", synthetic.environment(commit=index), [time])
    (found,) = alert.judge(history.load(tmp_path))
    assert found.reason.endswith("; launch_bound: near an empty launch")


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_a_pinned_expectation_fails_in_either_direction(value: float) -> None:
    (found,) = alert.judge(series_of_values([*STEADY, value]), overrides=[alert.parse("device_time:o=3%!")])
    assert alert.exit_code([found]) == 1 and found.unexpected == (value < 1)
    assert ("1 are better than a rule expects" in alert.to_terminal([found])) == (value < 1)
    (found,) = alert.judge(series_of_values([*STEADY, 1.0]), overrides=[alert.parse("device_time:o=3%!")])
    assert alert.exit_code([found]) == 0


def test_rules_come_from_a_file_and_its_errors_name_it(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    assert alert.configured(file) == []
    file.write_text('[tool.spectralbench.alert]\nrules = ["device_time=5%", "energy:o*=7%!"]\n')
    assert alert.configured(file) == [
        alert.Override("device_time", "*", 0.05),
        alert.Override("energy", "o*", 0.07, True),
    ]
    for text, why in (
        ("[", "pyproject.toml"), ("[tool.spectralbench.alert]\nrule = []\n", "unknown rule; known: rules"),
        ("[tool.spectralbench.alert]\nrules = 3\n", "expected a list of texts as rules, got 3"),
        ('[tool.spectralbench.alert]\nrules = ["x=3%"]\n', "unknown metric 'x'"),
        ("[tool]\nspectralbench = 3\n", "alert"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=why):
            alert.configured(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"cannot read .*pyproject\.toml"):
        alert.configured(file)


def hostile(found: Finding) -> Finding:
    subject = replace(found.key.subject, operation="a<b>&%\x1b[31m\ud800", case="x=1,y::error::z")
    return replace(found, key=replace(found.key, subject=subject), reason="100 % worse\n::error::\x00")


def test_annotations_and_junit_hold_whatever_a_record_holds() -> None:
    (slower,) = alert.judge(series_of_values([*STEADY, 2.0]))
    (faster,) = alert.judge(series_of_values([*STEADY, 0.5]))
    (unclear,) = alert.judge(series_of_values([1.0, 1.2, 0.8, 1.1, 0.9, 1.3]))
    findings = [hostile(slower), faster, unclear]
    lines = alert.to_github(findings).splitlines()
    assert lines[0].startswith("1 series got worse") and len(lines) == 3
    assert lines[1].startswith("::error title=SLOWER 2.00x slower at 00000005%3A a<b>&%25") and "\x1b" not in lines[1]
    assert "y%3A%3Aerror" in lines[1] and "\x00" not in lines[1] and "%0A::error::" not in lines[1].split("::")[1]
    assert lines[2].startswith("::notice title=FASTER 2.00x faster")
    assert sum(line.startswith("::error") for line in alert.to_github([slower] * 30).splitlines()) == 10
    (suite,) = ElementTree.fromstring(alert.to_junit(findings))
    assert {**suite.attrib, "name": ""} == {"name": "", "tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    assert [[child.tag for child in case] for case in suite] == [["failure"], [], ["skipped"]]
    (empty,) = ElementTree.fromstring(alert.to_junit([]))
    assert empty.get("tests") == "0"
