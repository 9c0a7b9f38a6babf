"""`spectralbench profile`: stages and memory of things whose stages and memory are known."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from matplotlib import pyplot
from typer.testing import CliRunner

from spectralbench import nvml
from spectralbench.ceilings import Ceilings
from spectralbench.cli import app
from spectralbench.cli.profiling import deeper, floor_seconds, lines, utilisation
from spectralbench.clock import clock_for
from spectralbench.profiling import CaseProfile, draw, profile_case
from spectralbench.profiling.draw import intensity, progress
from spectralbench.profiling.kernels import kernels_of, leaves
from spectralbench.profiling.memory import Mark, over_a_step, read
from spectralbench.profiling.trace import OUTSIDE, Busy, trace
from spectralbench.report import pictures
from spectralbench.sweep import Request, plan
from spectralbench.timing import Budget
from spectralkernels.declare import Operation
from spectralkernels.errors import Unsupported
from spectralkernels.ops import load_operation
from spectralkernels.stages import stage, staged

QUICK = Budget(min_rounds=2, max_rounds=2, seconds=0.01)


@staged("outer")
def staged_work() -> None:
    time.sleep(0.02)
    with stage("inner"):
        time.sleep(0.04)


def work() -> None:
    time.sleep(0.01)
    staged_work()


def test_a_stage_has_its_own_time_and_not_that_of_a_stage_inside_it() -> None:
    found = trace(work, 0.07, "cpu")
    seconds = {part.name: part.seconds for part in found.stages}
    assert list(seconds) == ["outer", "inner", OUTSIDE]
    # Sleeps are never shorter; on a busy machine they are longer.
    assert seconds["outer"] >= 0.02 and seconds["inner"] >= 0.04 and seconds[OUTSIDE] >= 0.009
    assert sum(seconds.values()) == pytest.approx(found.seconds)
    assert all(part.calls == 1 for part in found.stages)


def test_without_a_profiler_a_stage_is_nothing() -> None:
    assert stage("one") is stage("two")
    assert staged("any")(lambda a, b=2: (a, b))(1, b=3) == (1, 3)


def test_stages_vanish_from_a_compiled_graph() -> None:
    @staged("double")
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    x = torch.randn(3)
    assert torch.equal(torch.compile(double, backend="eager", fullgraph=True)(x), 2 * x)


@pytest.mark.parametrize("readings", [[10.0, 70.0, 40.0], [55.0]], ids=["refreshed", "stale"])
def test_t37_a_gpu_is_as_busy_as_nvml_says_where_it_was_asked_in_time(
    readings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(readings)

    def utilisation() -> tuple[float, float, float]:
        gpu = next(left, readings[-1])
        return gpu, gpu / 2, 25.0

    monkeypatch.setattr(nvml.Device, "current", lambda: SimpleNamespace(utilisation=utilisation))
    with Busy("cuda") as busy:
        time.sleep(0.05)
    if len(readings) > 1:
        assert busy.percent["gpu"][1] == 70.0 and busy.percent["gpu bus"][1] == 35.0
        assert busy.percent["gpu memory"] == (25.0, 25.0) and 10 <= busy.percent["gpu"][0] <= 70
    else:
        assert "refreshed its reading once" in busy.percent["gpu"] and "gpu bus" not in busy.percent
    monkeypatch.undo()
    with Busy("cuda") as busy:
        pass
    assert isinstance(busy.percent["gpu"], str) or torch.cuda.is_available()


@pytest.mark.slow
def test_how_busy_everything_was_is_a_table_and_what_is_missing_has_a_reason() -> None:
    found = profiled(load_operation("band_limited_conv2d"), ("torch_fft", "dft_gemm"))
    one, two = found.profiles
    known = replace(one, busy={"cpu": (98.7, 98.7), "gpu": (41.0, 87.6), "gpu bus": (3.0, 9.0)})
    blind = replace(two, busy={"cpu": (100.0, 100.0), "gpu": "no NVML: nobody there"})
    text = list(utilisation(replace(found, profiles=(known, blind))))
    assert [line.split() for line in text[1:]] == [
        ["utilisation,", "%", "mean", "/", "max", "cpu", "gpu", "gpu", "bus"],
        [one.implementation, "99", "/", "99", "41", "/", "88", "3", "/", "9"],
        [two.implementation, "100", "/", "100", "-", "-"],
        ["not", "known:", "no", "NVML:", "nobody", "there"],
    ]
    assert max(map(len, text)) <= 80


# --- proton ---------------------------------------------------------------------------------------------------------

TREE = [
    {
        "frame": {"name": "ROOT"},
        "metrics": {},
        "children": [
            {"frame": {"name": "analyse"}, "metrics": {"count": 4, "time (ns)": 8000}, "children": []},
            {
                "frame": {"name": "scope"},
                "metrics": {"time (ns)": 99999},
                "children": [
                    {"frame": {"name": "product"}, "metrics": {"count": 2, "time (ns)": 20000}, "children": []},
                    {"frame": {"name": "analyse"}, "metrics": {"count": 2, "time (ns)": 2000}, "children": []},
                ],
            },
        ],
    },
    {"CUDA": {"0": {"arch": "90"}}},
]


def proton_that_writes(tree: Any) -> SimpleNamespace:
    started: list[str] = []

    def start(path: str, hook: str) -> int:
        assert hook == "triton"
        started.append(path)
        return 0

    return SimpleNamespace(
        start=start, finalize=lambda session: Path(f"{started[0]}.hatchet").write_text(json.dumps(tree))
    )


def test_kernels_are_the_leaves_of_protons_tree_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(triton, "profiler", proton_that_writes(TREE), raising=False)
    calls: list[int] = []
    found = kernels_of(lambda: calls.append(1), "cuda", calls=2)
    assert len(calls) == 2
    assert [(part.name, part.calls) for part in found] == [("product", 1.0), ("analyse", 3.0)]
    assert [part.seconds for part in found] == pytest.approx([1e-5, 5e-6])
    monkeypatch.setattr(triton, "profiler", proton_that_writes([{"frame": {"name": "ROOT"}, "children": []}]))
    with pytest.raises(Unsupported, match="saw no kernel"):
        kernels_of(lambda: None, "cuda")


def test_a_tree_that_protons_own_writer_wrote(tmp_path: Path) -> None:
    """Without a GPU proton watches no kernel, but what it stores for one can be told to it."""
    proton = pytest.importorskip("triton._C.libproton", reason="this triton has no proton").proton

    def node(name: str, count: float = 0, nanoseconds: float = 0) -> tuple[int, str]:
        scope = proton.record_scope(), name
        proton.enter_scope(*scope)
        if count:
            proton.add_metrics(scope[0], {"count": count, "time (ns)": nanoseconds})
        return scope

    def written(name: str, *scopes: tuple[str, float, float]) -> list[tuple[str, float, float]]:
        session = proton.start(str(tmp_path / name), "shadow", "tree", "instrumentation", "cuda")
        outer = node("outer")
        for scope in scopes:
            proton.exit_scope(*node(*scope))
        proton.exit_scope(*outer)
        proton.finalize(session, "hatchet")
        return sorted(leaves(json.loads((tmp_path / f"{name}.hatchet").read_text())))

    found = written("some", ("product", 1.0, 20000.0), ("analyse", 1.0, 2000.0), ("analyse", 1.0, 1000.0))
    assert found == [("analyse", 2.0, pytest.approx(3e-6)), ("product", 1.0, pytest.approx(2e-5))]
    assert written("none") == []
    assert list(leaves([{"frame": {"name": "ROOT"}, "metrics": {"count": 0, "time (ns)": 0}, "children": []}])) == []


def test_where_proton_cannot_be_it_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="watches kernels on a GPU, and this is a CPU"):
        kernels_of(lambda: None, "cpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(Unsupported, match="proton is not here"):
        kernels_of(lambda: None, "cuda")


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(ts: float, size: int, device: int = 0) -> dict[str, Any]:
    return {"name": "[memory]", "ts": ts, "args": {"Bytes": size, "Device Type": device}}


def test_a_timeline_is_the_running_sum_of_one_device() -> None:
    events = [
        {"name": "backward", "cat": "user_annotation", "ts": 6e6, "dur": 4e6},
        {"name": "forward", "cat": "user_annotation", "ts": 1e6, "dur": 4e6},
        {"name": "aten::mm", "cat": "cpu_op", "ts": 2e6, "dur": 1e6},
        memory(3e6, -60),
        memory(2e6, 100),
        memory(2.5e6, 10_000, device=1),
        memory(7e6, 200),
        memory(8e6, -240),
    ]
    found = read(events, "cpu")
    assert found.points == ((1.0, 100.0), (2.0, 40.0), (6.0, 240.0), (7.0, 0.0))
    assert found.marks == (Mark("forward", 0.0, 4.0), Mark("backward", 5.0, 9.0))
    assert found.peak == 240 and found.at_end("forward") == 40 and found.at_end("other") is None
    assert [progress(when, found) for when in (0.0, 2.0, 4.5, 7.0, 9.5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert read(events, "cuda").peak == 10_000


def test_memory_of_a_step_is_what_torch_allocates(seed: int) -> None:
    """y = x tanh(x) saves tanh(x): two maps after forward; gradients are let go at the end."""
    x = torch.randn(1000, 256, requires_grad=True)
    found = over_a_step(lambda: x * x.tanh(), "cpu", backward=True)
    assert found.at_end("forward") == pytest.approx(2 * x.nbytes, rel=0.01)
    assert found.peak >= 3 * x.nbytes
    alone = over_a_step(lambda: x * x.tanh(), "cpu", backward=False)
    assert [mark.name for mark in alone.marks] == ["forward"] and alone.at_end("backward") is None


# --- a case ---------------------------------------------------------------------------------------------------------


def profiled(operation: Operation, names: tuple[str, ...], folder: Path | None = None) -> CaseProfile:
    case = next(case for case, _ in operation.cases("smoke") if case["compression"] == 0.5)
    return profile_case(
        operation, case, names, device="cpu", pass_="forward", clock=clock_for("cpu"), budget=QUICK, folder=folder
    )


@pytest.mark.slow
def test_torch_fft_has_the_stages_of_the_paper_and_who_cannot_run_has_a_reason(tmp_path: Path) -> None:
    operation = load_operation("band_limited_conv2d")
    found = profiled(operation, ("torch_fft", "dft_gemm", "direct"), tmp_path)
    by_name = {each.implementation: each for each in found.profiles}
    assert set(by_name) == {"torch_fft", "dft_gemm"}
    stages = [part.name for part in by_name["torch_fft"].stages]
    assert stages == ["pad", "transform", "crop", "multiply", "restore", "inverse", OUTSIDE]
    assert {part.name: part.calls for part in by_name["torch_fft"].stages}["transform"] == 2
    assert [part.name for part in by_name["dft_gemm"].stages] == [
        "transform",
        "transform weight, multiply",
        "inverse",
        OUTSIDE,
    ]
    assert "it needs compression=0" in found.refused["direct"]
    assert list(found.profiles) == sorted(found.profiles, key=lambda each: each.seconds)
    assert any(part.name == "aten::_fft_r2c" for part in by_name["torch_fft"].operations)
    trace_of = json.loads((tmp_path / "torch_fft.trace.json").read_text())
    assert any(event.get("name") == "stage: crop" for event in trace_of["traceEvents"])


@pytest.mark.slow
def test_a_wrong_answer_is_refused_and_not_timed() -> None:
    operation = load_operation("band_limited_conv2d")
    honest = operation.subject("dft_gemm")
    wrong = replace(honest, name="wrong", call=lambda **inputs: honest.call(**inputs) * 1.01)
    broken = replace(honest, name="broken", call=lambda **inputs: 1 / 0)
    operation = replace(operation, implementations=(*operation.implementations, wrong, broken))
    found = profiled(operation, ("wrong", "broken", "dft_gemm"))
    assert [each.implementation for each in found.profiles] == ["dft_gemm"]
    assert found.refused["wrong"].startswith("wrong: ") and "ZeroDivisionError" in found.refused["broken"]


@pytest.mark.slow
def test_lines_fit_a_terminal_and_the_floor_is_the_longer_of_two() -> None:
    found = profiled(load_operation("band_limited_conv2d"), ("torch_fft",))
    cost = found.cost
    arithmetic, bytes_ = Ceilings(1e30, 1.0, 0.0), Ceilings(1.0, 1e30, 0.0)
    assert floor_seconds(found, arithmetic) == cost.flops and floor_seconds(found, bytes_) == cost.bytes
    assert floor_seconds(replace(found, pass_="both"), bytes_) == 2 * cost.bytes
    assert intensity(cost) == cost.flops / (cost.bytes_read + cost.bytes_written)
    text = list(lines(found, Ceilings(1e10, 1e11, 1e-6)))
    assert max(map(len, text)) <= 80 and sum("transform" in line for line in text) == 1


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr("spectralbench.ceilings.measure_ceilings", lambda *_, **__: Ceilings(1e10, 1e11, 1e-6))
    return CliRunner()


SMALL = ("profile", "band_limited_conv2d", "--profile", "smoke", "--set", "kernel_size=3", "--set", "compression=0.5")


@pytest.mark.slow
def test_the_command_prints_json_and_leaves_figures(runner: CliRunner, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    done = runner.invoke(app, [*SMALL, "--impl", "dft_gemm,torch_fft", "--both", "--out", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed == json.loads((folder / "profile.json").read_text())
    assert printed["pass"] == "both" and {each["implementation"] for each in printed["profiles"]} == {
        "dft_gemm",
        "torch_fft",
    }
    for name in ("stages", "roofline", "memory", "utilisation"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert re.fullmatch(
        r"\w+ comes nearest, at \d+ % of what this device can do at the least work\.",
        pictures.finding(folder / "roofline.png") or "",
    )


def test_bars_of_utilisation_end_at_means_and_their_lines_at_the_largest() -> None:
    """Plot P08; what is not known has no bar, and says so where nobody knows it."""
    busy = {"ours": {"cpu": (40.0, 40.0), "gpu": (74.0, 92.0)}, "theirs": {"cpu": (98.0, 98.0), "gpu": "one reading"}}
    unknown = {name: {**values, "gpu bus": "one reading"} for name, values in busy.items()}
    found = SimpleNamespace(
        profiles=[SimpleNamespace(implementation=name, busy=each) for name, each in unknown.items()]
    )
    figure, ax = pyplot.subplots()
    draw._utilisation(ax, found, None)
    assert [bar.get_width() for bar in ax.patches] == [40.0, 98.0, 74.0]
    ends = [[(float(line[0, 0]), float(line[1, 0])) for line in lines.get_segments()] for lines in ax.collections]
    assert ends == [[(40.0, 40.0), (98.0, 98.0)], [(74.0, 92.0)], []]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["ours", "theirs"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "cpu, of one core",
        "gpu",
        "gpu bus: not known",
    ]
    pyplot.close(figure)


@pytest.mark.slow
def test_the_stages_of_every_case_are_in_one_figure(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    bars = draw._bars
    monkeypatch.setattr(draw, "_bars", lambda ax, shown: (labels.extend(name for name, _ in shown), bars(ax, shown)))
    arguments = (*SMALL[:-1], "compression=0.5,0.7", "--set", "batch=1", "--set", "groups=1", "--impl", "dft_gemm")
    done = runner.invoke(app, [*arguments, "--every", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "profile.json").read_text())
    assert {one["case"]["compression"] for one in told} == {0.5, 0.7}
    assert len(labels) == len(told) and sum("c.5" in label for label in labels) == len(told) / 2
    assert all(label.startswith("dft_gemm") for label in labels)
    assert re.fullmatch(
        r"Of \d+ calls the fastest, .+, spends \d+ % of its time in: .+; the slowest, .+",
        pictures.finding(tmp_path / "stages.png") or "",
    )


def test_the_command_for_counters_runs(runner: CliRunner) -> None:
    item = plan(Request(operations=("band_limited_conv2d",), profile="smoke", implementations=("dft_gemm",)))[0]
    assert "ncu --profile-from-start off" in deeper(item, "forward", "cuda")
    command = shlex.split(deeper(item, "both", "cpu").partition("spectralbench ")[2])
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*SMALL, "--case", "99"), 2, "there are"),
        ((*SMALL, "--once"), 2, "--once needs one --impl of: "),
        ((*SMALL, "--proton"), 2, "--proton needs one --impl of: "),
        ((*SMALL, "--impl", "dft_gemm", "--proton"), 3, "proton watches kernels on a GPU, and this is a CPU"),
        ((*SMALL, "--impl", "direct"), 3, "no implementation serves this case here"),
        ((*SMALL, "--impl", "direct", "--once"), 3, "it needs compression=0"),
        ((*SMALL, "--impl", "cudnn"), 2, "unknown implementation 'cudnn'"),
        (("profile", "band_limited_conv3d"), 2, "did you mean 'band_limited_conv2d'?"),
        ((*SMALL, "--out", __file__), 2, "--out: "),
        ((*SMALL, "--every", "--once"), 2, "--every is of all cases; leave --once and --case out"),
        ((*SMALL, "--every", "--case", "2"), 2, "--every is of all cases"),
    ],
)
def test_what_cannot_be_profiled_is_said(runner: CliRunner, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == code and said in " ".join(done.output.split()), done.output
