"""asv: what the generated classes say, and what a real `asv run` and `asv publish` make of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_operations
import pytest
from asv_spectral import operations
from planted_clone import ROOT, Clone, commit, make_clone

from spectralbench.metrics import load_metrics
from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped
from spectralkernels.declare import Block, Operation
from spectralkernels.ops import load_operations

GRID = Block({"size": (1, 2), "rate": (0, 0.5), "exact": (True,)}, implementations=("plain", "twin", "gpu_only"))


def fake(**changes: Any) -> Operation:
    """The steady fake operation (plain, twin, gpu_only) with an asv profile."""
    return replace(fake_operations.load_operations()["steady"], **{"profiles": {"asv": (GRID,)}, **changes})


# --- what a class says ------------------------------------------------------------------------------------------------


def test_parameters_are_the_implementation_and_what_varies() -> None:
    suite: Any = operations.suite(fake(), load_metrics())
    assert suite.__name__ == "steady"
    assert suite.param_names == ["implementation", "size", "rate"]
    assert suite.params[1:] == [[1, 2], [0, 0.5]]
    assert [[repr(one) for one in axis] for axis in suite.params[1:]] == [["size=1", "size=2"], ["c=0", "c=0.5"]]
    assert suite.timeout == 600


def test_the_axis_is_what_the_profile_names_on_every_machine() -> None:
    """Else a run on a CPU would rewrite benchmarks.json without the kernels, and publish would drop their history."""
    suite: Any = operations.suite(fake(), load_metrics())
    assert suite.params[0] == ["plain", "twin", "gpu_only"]
    narrow = replace(GRID, implementations=("gpu_only",))
    assert operations.suite(fake(profiles={"asv": (narrow,)}), load_metrics()).params[0] == ["gpu_only"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("operation", load_operations().values(), ids=lambda operation: operation.name)
def test_the_asv_profile_names_a_triton_kernel_where_there_is_one(operation: Operation) -> None:
    kernels = {found.name for found in operation.implementations if found.engine == "triton"}
    named = {name for _, block in operation.cases("asv") for name in block.implementations or kernels}
    assert not kernels or kernels & named


def test_version_unit_and_name_are_explicit() -> None:
    suite: Any = operations.suite(fake(version=7), load_metrics())
    assert suite.track_device_time.version == f"7.{load_metrics()['device_time'].version}"
    assert suite.track_device_time.unit == "seconds"
    assert suite.track_saved_bytes.unit == "bytes"
    assert suite.track_device_time.pretty_name == "steady: device time"


def test_only_metrics_that_the_operation_yields() -> None:
    bare = operations.suite(fake(ideal=None), load_metrics())
    lossy = operations.suite(fake(ideal=lambda **inputs: 0.0), load_metrics())
    assert not hasattr(bare, "track_approximation_error")
    assert hasattr(lossy, "track_approximation_error")
    assert not hasattr(bare, "track_stored_bytes")


def test_a_varying_pass_and_dtype_become_axes() -> None:
    block = replace(GRID, passes=("forward", "both"), dtypes=("float32", "float64"))
    suite: Any = operations.suite(fake(profiles={"asv": (block,)}), load_metrics())
    assert suite.param_names == ["implementation", "pass", "dtype", "size", "rate"]
    assert suite.params[1] == ["forward", "both"]


def test_a_grid_with_holes_is_refused() -> None:
    holed = replace(GRID, where=lambda case: case["size"] == 1 or case["rate"] == 0)
    with pytest.raises(ValueError, match=r"steady: the asv profile must be one block .* got 3 cases on a grid of 4"):
        operations.suite(fake(profiles={"asv": (holed,)}), load_metrics())


def test_every_registered_operation_is_here() -> None:
    for name, operation in load_operations().items():
        assert operation.profiles.get("asv"), f"{name} has no asv profile"
        assert isinstance(getattr(operations, name), type)


@pytest.mark.parametrize("name", load_operations())
def test_the_asv_profile_is_legal_on_a_cpu_at_every_point(name: str) -> None:
    operation = load_operations()[name]
    cases = operation.cases("asv")
    assert len(cases) <= 12, "asv starts a process for every point and metric"
    for case, block in cases:
        inputs = operation.make_inputs(case, "cpu")
        names = block.implementations or [known.name for known in operation.implementations]
        runnable = [found for found in map(operation.subject, names) if found.available("cpu") is None]
        assert runnable
        for subject in runnable:
            prepared = subject.prepare(**inputs) if subject.prepare else inputs
            assert subject.supports(**prepared) is None


# --- what a method returns --------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Outcome | int]]:
    """The outcomes that the core is made to return, and how often it was asked, in an empty asv cache folder."""
    answers: dict[str, Any] = {"asked": 0}

    def measure_case(operation: Operation, case: object, implementations: tuple[str, ...], **_: object) -> Any:
        answers["asked"] += 1
        if isinstance(answers.get("raise"), Exception):
            raise answers["raise"]
        return {name: answers[name] for name in implementations}

    monkeypatch.setattr("spectralbench.measure.measure_case", measure_case)
    monkeypatch.chdir(tmp_path)
    times = Measurement("device_time", 1, "second", (2.0, 1.0, 4.0))
    answers["plain"] = Measured(
        (times, Measurement("rounding_error", 1, "1", (0.0,))), (("saved_bytes", "no gradient"),)
    )
    answers["twin"] = Failed("wrong", "the answer has relative L2 error 0.5")
    answers["gpu_only"] = Skipped("needs CUDA")
    yield answers


def instance() -> Any:
    return operations.suite(fake(), load_metrics())()


def test_many_samples_one_sample_none(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    suite = instance()
    assert suite.track_device_time("plain", 1, 0.5) == {"samples": [2.0, 1.0, 4.0], "number": 1}
    assert suite.track_rounding_error("plain", 1, 0.5) == 0.0
    assert math.isnan(suite.track_saved_bytes("plain", 1, 0.5))
    assert "not available: no gradient" in capsys.readouterr().err


def test_skipped_is_nan_and_failed_raises(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    suite = instance()
    assert math.isnan(suite.track_device_time("gpu_only", 1, 0))
    assert "not available: needs CUDA" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"wrong: the answer has relative L2 error 0\.5"):
        suite.track_device_time("twin", 1, 0)


def test_infinity_never_reaches_asv(measured: dict[str, Any]) -> None:
    measured["plain"] = Measured((Measurement("device_time", 1, "second", (1.0, math.inf)),))
    with pytest.raises(ValueError, match="every sample must be finite"):
        instance().track_device_time("plain", 1, 0)


def test_a_case_is_measured_once_for_all_its_methods(measured: dict[str, Any]) -> None:
    for suite in (instance(), instance()):
        suite.track_device_time("plain", 1, 0)
        suite.track_rounding_error("plain", 1, 0)
        suite.track_rounding_error("gpu_only", 1, 0)
    assert measured["asked"] == 1
    instance().track_device_time("plain", 2, 0)
    assert measured["asked"] == 2


def test_a_case_that_broke_its_process_is_not_tried_again(measured: dict[str, Any]) -> None:
    measured["raise"] = MemoryError("first")
    with pytest.raises(MemoryError, match="first"):
        instance().track_device_time("plain", 1, 0)
    with pytest.raises(RuntimeError, match=r"steady at size=1,rate=0,.* read the first failure of this case"):
        instance().track_rounding_error("plain", 1, 0)
    assert measured["asked"] == 1


# --- importing --------------------------------------------------------------------------------------------------------


def import_with(preamble: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys\n{preamble}\nsys.path[:0] = ['kernels', 'bench']\nimport asv_spectral.operations as found\n"
    program += "print(sorted(name for name in vars(found) if isinstance(vars(found)[name], type)))"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120)


def test_imports_where_torch_and_triton_are_absent() -> None:
    done = import_with("sys.modules.update(torch=None, triton=None)")
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stderr
    assert not set(load_operations()) & set(done.stdout.split("'"))


@pytest.mark.slow
def test_imports_where_triton_is_absent_and_never_touches_cuda() -> None:
    refuse = "def refuse(*_): raise AssertionError('CUDA was touched')\n"
    patch = "import torch\ntorch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse\n"
    done = import_with(f"sys.modules['triton'] = None\n{refuse}{patch}")
    assert done.returncode == 0, done.stderr
    assert set(load_operations()) <= set(done.stdout.split("'"))


def test_the_matrix_has_the_pins_of_the_constraints() -> None:
    lines = (line for line in (ROOT / "asv.conf.json").read_text().splitlines() if not line.strip().startswith("//"))
    matrix = json.loads("\n".join(lines))["matrix"]["req"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {"torch", "triton"} <= matrix.keys()
    for name, (version,) in matrix.items():
        assert pins[name].partition("+")[0] == version, name


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    pytest.importorskip("asv")
    return make_clone(tmp_path_factory.mktemp("asv"))


def asv(clone: Clone, *arguments: str) -> subprocess.CompletedProcess[str]:
    return clone.run("asv", *arguments)


@pytest.fixture(scope="module")
def run(clone: Clone) -> subprocess.CompletedProcess[str]:
    """`asv run --quick` of the planted operations: asv imports everything twice before it runs one."""
    done = asv(clone, "machine", "--yes", "--machine", "cpu-test-2c")
    assert done.returncode == 0, done.stdout + done.stderr
    existing = ("-E", "existing", "--set-commit-hash", clone.commit)
    wanted = r"doubling(\.|_wrong\.track_device_time)"
    return asv(clone, "run", "--quick", "--record-samples", "--show-stderr", *existing, "--bench", wanted)


@pytest.fixture(scope="module")
def first_run(clone: Clone, run: subprocess.CompletedProcess[str]) -> Path:
    """The results folder after that."""
    assert "not available: no GPU here" in run.stdout + run.stderr
    return clone.path / "results/asv"


def result_file(results: Path) -> Path:
    (path,) = (path for path in (results / "cpu-test-2c").iterdir() if path.name != "machine.json")
    return path


def column(results: Path, benchmark: str, name: str) -> Any:
    stored = json.loads(result_file(results).read_text())
    row = stored["results"][f"operations.{benchmark}"]
    return dict(zip(stored["result_columns"], row, strict=False)).get(name)


@pytest.mark.slow
def test_run_writes_results_with_units_and_versions(first_run: Path) -> None:
    benchmarks = json.loads((first_run / "benchmarks.json").read_text())
    time = benchmarks["operations.doubling.track_device_time"]
    assert (time["unit"], time["version"], time["timeout"]) == ("seconds", "3.1", 600)
    assert time["param_names"] == ["implementation", "size"]
    assert time["params"] == [["'product'", "'twin'", "'needs_gpu'"], ["size=64", "size=1024"]]
    assert column(first_run, "doubling.track_device_time", "version") == "3.1"
    assert f"operations.{next(iter(load_operations()))}.track_device_time" in benchmarks


@pytest.mark.slow
def test_nothing_else_is_in_the_tracked_folder(first_run: Path) -> None:
    found = {path.relative_to(first_run).as_posix() for path in first_run.rglob("*") if path.is_file()}
    assert found == {"benchmarks.json", "cpu-test-2c/machine.json", f"cpu-test-2c/{result_file(first_run).name}"}


@pytest.mark.slow
def test_asv_understands_samples_from_a_track_method(first_run: Path) -> None:
    """Undocumented in asv: a dictionary of samples gets a median, an interval and a repeat count."""
    samples = column(first_run, "doubling.track_device_time", "samples")
    medians = column(first_run, "doubling.track_device_time", "result")
    assert len(samples) == len(medians) == 6
    for values, median in zip(samples[:4], medians[:4], strict=True):
        assert len(values) >= 5
        assert min(values) <= median <= max(values)
    assert column(first_run, "doubling.track_device_time", "stats_repeat")[0] == len(samples[0])
    assert column(first_run, "doubling.track_device_time", "stats_q_25")[0] <= medians[0]


@pytest.mark.slow
def test_skipped_implementations_are_nan(first_run: Path) -> None:
    values = column(first_run, "doubling.track_device_time", "result")
    assert all(math.isnan(value) for value in values[4:])
    assert all(value > 0 for value in values[:4])
    assert column(first_run, "doubling.track_approximation_error", "result")[0] == pytest.approx(0.2)


@pytest.mark.slow
def test_publish_survives_every_value_that_we_emit(clone: Clone, first_run: Path) -> None:
    original = result_file(first_run)
    planted: list[Path] = []
    for values in ([0.0] * 6, [None] * 6, [math.nan] * 6, [1e-9, 2.0, 0.0, None, math.nan, 1.0]):
        stored = json.loads(original.read_text())
        stored["commit_hash"] = commit(clone.path, f"Plant {values}")
        stored["date"] += 1000 * (len(planted) + 1)
        for row in stored["results"].values():
            row[:] = [values, *row[1:3]]
        planted.append(original.with_name(original.name.replace(clone.commit[:8], stored["commit_hash"][:8])))
        planted[-1].write_text(json.dumps(stored))
    try:
        done = asv(clone, "publish")
    finally:
        for path in planted:
            path.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    page = clone.path / ".asv/html"
    assert (page / "index.html").is_file()
    graphs = [path.as_posix() for path in page.rglob("operations.doubling.track_device_time.json")]
    assert graphs, "publish made no graph"


@pytest.mark.slow
def test_a_wrong_answer_fails_the_run_and_has_no_time(run: subprocess.CompletedProcess[str], first_run: Path) -> None:
    assert run.returncode == 2, run.stdout + run.stderr
    assert "wrong: the answer has relative L2 error" in run.stdout + run.stderr
    right, wrong, absent = zip(
        *[iter(column(first_run, "doubling_wrong.track_device_time", "result"))] * 2, strict=True
    )
    assert all(right) and wrong == (None, None) and all(math.isnan(value) for value in absent)
    assert all(column(first_run, "doubling.track_device_time", "result"))
