"""`python3 -m spectralbench.gpu`: a rehearsal on the CPU, killed and gone on with; and its stages alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_operations
import pytest
import synthetic_records as synthetic

from spectralbench.ceilings import Roofs
from spectralbench.gpu import correctness, packing, pipeline
from spectralbench.gpu.__main__ import main
from spectralbench.gpu.budget import ENDS, StageBudget
from spectralbench.journal import record_key
from spectralbench.record import Damage, Record, read_tree
from spectralbench.sweep import Request, Sweep
from spectralbench.worker import WorkerBroken
from spectralkernels.errors import RangeError

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = synthetic.environment()


def quiet(text: str) -> None:
    """Talk that nobody reads."""


def rehearsal(code: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command on a copy of the sources, as on a machine without git and without an install."""
    command = [sys.executable, "-m", "spectralbench.gpu", "--out", str(out), "--device", "cpu", "--time-budget", "3000"]
    return subprocess.Popen(
        [*command, "--only", "sparse_multiply", "--commit", COMMIT, *more],
        env={**os.environ, "PYTHONPATH": f"{code / 'kernels'}:{code / 'bench'}", "OMP_NUM_THREADS": "1"},
        cwd=code,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(out: Path, pattern: str) -> list[str]:
    return [line for path in sorted(out.glob(pattern)) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_rehearsal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    code, out = tmp_path / "code", tmp_path / "out"
    for name in ("kernels", "bench"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    first = rehearsal(code, out)
    deadline = time.monotonic() + 120
    while len(lines(out, "records/*/*.jsonl")) < 8:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    stored = lines(out, "records/*/*.jsonl")
    assert "0 met, 0 not met" in (out / "summary.md").read_text(), "a kill after the first stage loses no summary"
    packing.pack(out, tmp_path / "out.tgz")

    # The next machine has nothing but the sources and the packed file.
    out = tmp_path / "elsewhere"
    second = rehearsal(code, out, "--resume-from", str(tmp_path / "out.tgz"), "--pack", str(tmp_path / "back.tgz"))
    text, talk = second.communicate(timeout=600)
    assert second.returncode == 0, talk
    checks = lines(out, "checks/records/*/*.jsonl")
    assert (
        next(out.glob("correctness-*.txt"))
        .read_text()
        .startswith(f"{len(checks) - 1} of {len(checks) - 1} checks made")
    )
    packing.unpack(tmp_path / "back.tgz", tmp_path / "home")
    again = lines(out, "records/*/*.jsonl")
    assert again[: len(stored)] == stored and len(again) > len(stored)
    files = list(read_tree(out / "records"))
    keys = Counter(record_key(record) for file in files for record in file.records)
    assert set(keys.values()) == {1}, "no case is measured twice"
    assert not [harm for file in files for harm in file.damage]
    facts = files[0].environment
    assert facts is not None and (facts["commit"], facts["commit_given"]) == (COMMIT, True)
    assert facts["source"] and facts["no_commit"], "a given commit does not hide what the sources are"
    triton = [record for file in files for record in file.records if record.implementation == "triton"]
    assert triton and {record.status for record in triton} == {"skipped"}
    assert all("need a CUDA device" in str(record.reason) for record in triton)
    weighed = {record.replicate for file in files for record in file.records if record.metric("saved_bytes")}
    timed = {record.replicate for file in files for record in file.records if record.metric("device_time")}
    assert (timed, weighed) == ({0}, {5})
    assert f"everything: {out / 'summary.md'}" in text
    assert "0 failed" in text and "tests marked cuda: not run: not asked for (--tests)" in text
    assert json.loads((out / "summary.json").read_text())["roofs"]["flops_per_second"]["fp32"] > 0

    third = rehearsal(code, out)
    text_again, talk = third.communicate(timeout=600)
    assert third.returncode == 0 and "cases," not in talk, "nothing is left to do"
    assert lines(out, "records/*/*.jsonl") == again == lines(tmp_path / "home", "records/*/*.jsonl")
    assert lines(out, "checks/records/*/*.jsonl") == checks, "no check is made twice"
    assert text_again.split("## Targets")[1] == text.split("## Targets")[1]


def test_a_commit_must_be_whole_and_may_not_contradict_git(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {"commit": COMMIT, "dirty": None}
    monkeypatch.setattr(pipeline.sweep, "surroundings", lambda device: dict(facts))
    assert pipeline.surroundings("cpu", COMMIT) == facts
    assert pipeline.surroundings("cpu", COMMIT[:8]) == facts
    with pytest.raises(RangeError, match="--commit says ffff, but the checkout is at 0123"):
        pipeline.surroundings("cpu", "ffff")
    facts["commit"] = None
    assert pipeline.surroundings("cpu", COMMIT) == {**facts, "commit": COMMIT, "commit_given": True}
    with pytest.raises(RangeError, match="takes the 40 hex digits"):
        pipeline.surroundings("cpu", "main")


@pytest.mark.slow
def test_nothing_but_torch_is_needed(tmp_path: Path) -> None:
    missing = (
        "triton",
        "pytest",
        "pynvml",
        "typer",
        "rich",
        "pandas",
        "seaborn",
        "matplotlib",
        "sklearn",
        "asv",
        "scipy",
    )
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from spectralbench.gpu import correctness, pipeline, summary\n"
        "from spectralbench.gpu.__main__ import main\n"
        "assert not pipeline._installed('triton') and pipeline._l2_reads() is None\n"
        "assert pipeline.roofs_of('cpu').missing['l2']\n"
        "from pathlib import Path\n"
        "from synthetic_records import record\n"
        "from spectralkernels.ops import load_operations\n"
        "records = [record({'device_time': t}, implementation=n, role=r, replicate=at, dtype='complex64')\n"
        "           for n, t, r in (('triton', 2.0, 'kernel'), ('einsum', 1.0, 'baseline')) for at in range(3)]\n"
        "state = summary.SoFar({'machine': 'm'}, records, None, {}, '', [])\n"
        f"assert '0.50x' in summary.write(state, load_operations(), Path({str(tmp_path)!r}))\n"
        "main(['--help'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'kernels'}:{ROOT / 'bench'}:{Path(__file__).parent}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_usage_is_answered_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "what is stored is not measured again" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "out")]
    assert main([*out, "--device", "cpu", "--only", "nonsense"]) == 2
    assert "unknown operation 'nonsense'; known: band_limited_conv1d" in capsys.readouterr().err
    assert main([*out, "--device", "cpu", "--time-budget", "0"]) == 2


def test_without_a_device_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2
    assert "torch finds no CUDA device here; use --device cpu" in capsys.readouterr().err


# The stage of correctness


def fake_checks(out: Path, seconds: float, count: int, *operations: str) -> Sweep:
    request = Request(operations, sources=fake_operations.SOURCES)
    return correctness.check_all(request, out, ENVIRONMENT, StageBudget(seconds), count, quiet)


@pytest.mark.slow
def test_findings_name_the_guilty_and_are_stored_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where less time is left than a check may take, who crashes is found out all the same.
    monkeypatch.setattr(correctness, "LONGEST_CHECK", 1e4)
    done = fake_checks(tmp_path, 2000.0, 2, "steady", "raising", "crashing")
    found = done.records
    files = list(read_tree(tmp_path / "records"))
    assert len(files) == 2, "one per process"
    assert sorted(found, key=repr) == sorted((record for file in files for record in file.records), key=repr)
    assert not done.left
    by_name = {record.implementation: record for record in found}
    assert by_name["plain"].status == "measured"
    assert (by_name["raises"].failure, by_name["segfault"].failure) == ("error", "crash")
    assert by_name["gpu_only"].status == "skipped"
    operations = fake_operations.load_operations()
    assert set(correctness.excluded(found, operations)) == {
        ("raising", "raises", pass_) for pass_ in ("forward", "both", "backward")
    } | {("crashing", "segfault", pass_) for pass_ in ("forward", "both", "backward")}
    text = correctness.report(found, len(found) + 3)
    assert text.startswith(f"{len(found)} of {len(found) + 3} checks made: ") and " 4 failed," in text
    assert "size does not suit me" in text and "SIGSEGV" in text

    first = min((file.path for file in files), key=lambda path: len(path.name))
    torn = first.read_text()[:-30]
    first.write_text(torn)
    again = fake_checks(tmp_path, 600.0, 1, "steady", "raising", "crashing").records
    assert {record.identity for record in again} == {record.identity for record in found}
    assert first.read_text().startswith(torn + "\n"), "the torn line stays alone"


def test_the_end_of_the_stage_is_nobodys_failure(tmp_path: Path) -> None:
    began = time.monotonic()
    # The stage's share of 5 seconds is 3.
    done = fake_checks(tmp_path, 5.0, 1, "hanging")
    assert time.monotonic() - began < 300, "it would sleep twice as long"
    assert not [record for record in done.records if record.implementation == "hang"]
    assert any("hang" in item.implementations for item in done.left)


def test_a_check_that_never_ends_is_a_failure_that_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness, "LONGEST_CHECK", 1.0)
    for times in (1, 2):
        done = fake_checks(tmp_path, 2000.0, 1, "hanging")
        hung = [record for record in done.records if record.implementation == "hang"]
        assert hung and {record.failure for record in hung} == {"timeout"} and not done.left
        assert f" {len(hung)} failed," in correctness.report(done.records, len(done.records))
        made = [record for file in read_tree(tmp_path / "records") for record in file.records]
        assert sum(record.failure == "timeout" for record in made) == times * len(hung)


def test_a_wrong_backward_pass_leaves_the_forward_pass_and_rivals_are_never_left_out() -> None:
    def failed(name: str, pass_: str, kind: str) -> Record:
        return synthetic.record(
            None, status="failed", operation="steady", implementation=name, case={"size": 1}, pass_=pass_,
            failure=kind, reason="0.3",
        )  # fmt: skip

    operations = fake_operations.load_operations()
    excluded = correctness.excluded(
        [failed("twin", "both", "wrong"), failed("plain", "forward", "wrong"), failed("gpu_only", "both", "oom")],
        operations,
    )
    assert set(excluded) == {("steady", "twin", "both")}
    assert "failed its check: steady twin [size=1] float32 both: wrong: 0.3" in excluded.values()


# The stages around each other


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[pipeline.Stages, list[str]]:
    """A run on a CUDA machine that does nothing but write down what it would do."""
    done: list[str] = []

    def phases(stage: str, chosen: Any, request: Request, *rest: Any, **options: Any) -> list[str]:
        done.append(f"{stage} {request.profile} {request.device} {len(chosen)}")
        return [f"{stage}: something not reached"]

    def check_all(*_: Any) -> Sweep:
        done.append("correctness")
        wrong = {"status": "failed", "failure": "wrong", "reason": "relative L2 error 0.3", "pass_": "both"}
        who = {"operation": "band_limited_conv2d", "implementation": "dft_triton", "case": {"K": 3}}
        left: Any = SimpleNamespace(implementations="ab")
        harm = Damage(Path("torn.jsonl"), 3, "not JSON")
        return Sweep([synthetic.record(None, **who, **wrong)], 0, [left], [harm])

    def native(*_: Any) -> dict[str, Any]:
        done.append("tests")
        return {"ran": True, "reason": None, "passed": 4, "failed": 1, "skipped": 0, "failures": ["a::b: assert"]}

    def roofs_of(device: str) -> Roofs:
        done.append("ceilings")
        return Roofs({"memory": 4e12}, {"fp32": 6e13}, {"eager": 2e-6}, 50 << 20, {"l2": "no"})

    facts = {"machine": "nvidia-h200", "commit": COMMIT, "dirty": None, "gpu": "NVIDIA H200"}
    monkeypatch.setattr(pipeline.sweep, "surroundings", lambda device: dict(facts))
    monkeypatch.setattr(pipeline.correctness, "check_all", check_all)
    monkeypatch.setattr(pipeline.correctness, "processes", lambda device: 8)
    monkeypatch.setattr(pipeline.native_tests, "run", native)
    monkeypatch.setattr(pipeline, "roofs_of", roofs_of)
    monkeypatch.setattr(pipeline, "measure_phases", phases)
    return pipeline.Stages(tmp_path / "out", "cuda", StageBudget(540.0), tests=True, say=quiet), done


def test_stages_come_in_order_and_leave_their_files(stages: tuple[pipeline.Stages, list[str]]) -> None:
    run, done = stages
    text, failed = run.all_stages()
    assert failed
    assert [line.split()[0] for line in done] == list(ENDS)
    assert done[1].startswith("targets gpu cuda ")
    names = {path.name for path in run.out.iterdir()}
    state = next(name for name in names if name.startswith("correctness-nvidia-h200-01234567"))
    assert {state, "ceilings-nvidia-h200.json", "summary.md", "summary.json", ".gitignore"} <= names
    for words in (
        "1 of 3 checks made: 0 right, 1 failed, 0 skipped; tests marked cuda: 4 passed, 1 failed",
        "correctness: 2 checks not reached",
        "damaged check: torn.jsonl:3: not JSON",
        "failed test: a::b: assert",
        "targets: something not reached",
        "band_limited_conv2d dft_triton both: failed its check",
        "60 Tflop/s",
    ):
        assert words in text, words

    done.clear()
    pipeline.Stages(run.out, "cuda", StageBudget(540.0), tests=True, say=quiet).all_stages()
    again = [stage for stage in ENDS if stage != "ceilings"]
    assert [line.split()[0] for line in done] == again, "what has a file is not repeated"


def test_a_process_that_does_not_start_or_a_ceiling_that_cannot_be_measured_ends_its_stage_alone(
    stages: tuple[pipeline.Stages, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = stages

    def broken(*_: Any) -> None:
        raise WorkerBroken("the measuring process did not start: no driver")

    def too_large(device: str) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(pipeline.correctness, "check_all", broken)
    monkeypatch.setattr(pipeline, "roofs_of", too_large)
    text, failed = run.all_stages()
    assert failed
    assert [line.split()[0] for line in done] == ["targets", "memory", "replicates", "breadth", "tests"]
    assert "correctness: the measuring process did not start: no driver" in text
    assert "ceilings: RuntimeError: CUDA out of memory" in text


def test_an_interrupt_leaves_a_summary(
    stages: tuple[pipeline.Stages, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stages

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "measure_phases", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.all_stages()
    assert "60 Tflop/s" in (run.out / "summary.md").read_text()


def test_a_full_disk_is_said_and_leaves_the_summary_before(
    stages: tuple[pipeline.Stages, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = stages
    run.all_stages()
    before = (run.out / "summary.md").read_text()

    def full(path: Path, text: str, encoding: str) -> None:
        path.open("w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(pipeline.sweep, "choose_device", lambda name: name)
    assert main(["--out", str(run.out)]) == 1
    assert f"error: {run.out}: No space left on device; what was stored is whole" in capsys.readouterr().err
    assert (run.out / "summary.md").read_text() == before and not list(run.out.glob(".summary*"))


def test_what_is_not_installed_is_said(
    stages: tuple[pipeline.Stages, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stages
    monkeypatch.setattr(pipeline, "_installed", lambda name: name != "pynvml")
    text, _ = run.all_stages()
    assert "pynvml is not installed: no memory as the driver sees it" in text
