"""The shape of the project: arrows of the imports, names that must not be shadowed, files that stay readable."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS, BENCH = ROOT / "kernels" / "spectralkernels", ROOT / "bench" / "spectralbench"
READERS = ("outcome", "record", "history", "alert", "report", "plot", "asv_files", "quantity", "fields", "text",
           "contest", "settings", "rivals", "crossings", "crossover", "interval", "chosen", "names", "steps",
           "identity", "rekey", "checkout", "rates", "peaks", "collector")  # fmt: skip
SOURCES = sorted([*(ROOT / "kernels").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def imports(path: Path, *, at_the_top: bool = False) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def starts(modules: set[str], *prefixes: str) -> list[str]:
    return sorted(m for m in modules if any(m == p or m.startswith(p + ".") for p in prefixes))


def test_folders_above_the_packages_have_no_init():
    """`kernels` and `bench` are import names of other people's packages."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "bench" / "__init__.py").exists()


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_never_import_the_harness(path: Path):
    assert not starts(imports(path), "spectralbench", "asv", "pandas", "matplotlib", "seaborn", "typer", "rich")


def test_the_library_runs_without_the_ahead_of_time_tool():
    """Kernels are compiled ahead of time by whoever asks `aot`; what a call needs of a GPU is in `target`."""
    needing = [str(path.relative_to(ROOT)) for path in KERNELS.rglob("*.py") if starts(imports(path), AOT)]
    assert needing == []


AOT = "spectralkernels.aot"


@pytest.mark.parametrize("name", ["declare.py", "errors.py"])
def test_the_vocabulary_is_standard_library_only(name: str):
    outside = (
        {m.split(".")[0] for m in imports(KERNELS / name)} - set(sys.stdlib_module_names) - {"spectralkernels", ""}
    )
    assert not outside


def readers() -> list[Path]:
    return [path for name in READERS for path in [*BENCH.glob(f"{name}.py"), *(BENCH / name).rglob("*.py")]]


@pytest.mark.parametrize("path", readers(), ids=lambda path: path.name)
def test_readers_need_neither_torch_nor_kernels(path: Path):
    measuring = ("measure", "clock", "sweep", "worker", "environment", "profiling")
    assert not starts(
        imports(path), "torch", "triton", "spectralkernels", *(f"spectralbench.{name}" for name in measuring)
    )


@pytest.mark.parametrize("path", sorted((BENCH / "metrics").glob("*.py")), ids=lambda path: path.name)
def test_the_facts_of_a_metric_are_read_without_what_it_measures_with(path: Path):
    """Readers of records take unit, rule and axis from the file that measures."""
    ours = {"spectralbench.identity", "spectralbench.metrics"}
    found = imports(path, at_the_top=True)
    assert {name for name in found if name.startswith("spectral") and not starts({name}, *ours)} == set()
    assert {name.split(".")[0] for name in found} <= {*sys.stdlib_module_names, "spectralbench"}


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*_spectral/*.py")), ids=lambda path: path.parent.name)
def test_front_ends_hold_no_clock_and_no_tolerance(path: Path):
    assert not starts(imports(path), "time", "statistics", "timeit", "numpy")
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"perf_counter", "perf_counter_ns", "tolerance", "synchronize"}


def test_operations_import_each_other_only_by_their_public_function():
    operations = [path for path in (KERNELS / "ops").iterdir() if path.name not in ("__init__.py", "__pycache__")]
    for operation in operations:
        files = [operation] if operation.is_file() else list(operation.rglob("*.py"))
        others = {f"spectralkernels.ops.{other.stem}": other.stem for other in operations if other != operation}
        for path in files:
            for module in starts(imports(path), *others):
                assert module in others or module.rsplit(".", 1)[-1] == module.split(".")[2], f"{path.name}: {module}"


def parts_below() -> dict[str, set[str]]:
    """For every module or folder of the library, the others that it imports, anywhere in its files."""
    found: dict[str, set[str]] = {}
    for path in KERNELS.rglob("*.py"):
        part = path.relative_to(KERNELS).parts[0].removesuffix(".py")
        modules = imports(path) - COMPOSED.get(str(path.relative_to(KERNELS)), set())
        others = {module.split(".")[1] for module in starts(modules, "spectralkernels") if "." in module}
        if part != "__init__":
            found.setdefault(part, set()).update(others - {part})
    names = set(found)
    return {part: others & names for part, others in found.items()}


COMPOSED = {
    "convolution/baselines.py": {
        "spectralkernels.ops.masked_multiply",
        "spectralkernels.ops.masked_multiply.masked_multiply",
        "spectralkernels.ops.masked_multiply.planned",
    }
}
"""A baseline that is composed of another operation, through its public functions."""


def circle(below: dict[str, set[str]]) -> list[str]:
    """Parts that import each other in a circle; none is left once what imports nothing else is taken away."""
    left = dict(below)
    while done := [part for part, others in left.items() if not others & left.keys()]:
        for part in done:
            del left[part]
    return sorted(left)


def test_no_part_of_the_library_imports_in_a_circle():
    assert circle(parts_below()) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_modules_stay_readable():
    long = [f"{path.relative_to(ROOT)}: {n}" for path in SOURCES if (n := len(path.read_text().splitlines())) > 400]
    assert not long, "split it into a package of the same name"


def test_a_class_has_a_name_of_its_own():
    """Whoever looks for `Precision` finds one, and not the other one."""
    names = Counter(name for path in SOURCES for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE))
    assert len(names) > 200
    assert [name for name, count in names.items() if count > 1] == []


def test_no_drawer_for_odds_and_ends():
    assert not [path for path in SOURCES if path.stem in ("utils", "common", "base", "helpers", "misc")]


OPTIONAL = ("triton", "sklearn", "pynvml", "matplotlib", "pandas", "asv", "fft_conv_pytorch")


@pytest.mark.slow
@pytest.mark.parametrize("missing", [("triton",), OPTIONAL], ids=["triton", "everything optional"])
def test_the_library_imports_without(missing: tuple[str, ...]):
    """A fresh interpreter in which packages cannot be imported; the list of implementations says what is missing."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "import spectralkernels as sk, torch\n"
        "y = sk.band_limited_conv2d(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), compression=0.5)\n"
        "assert y.shape == (1, 3, 5, 5)\n"
        "print(*[a.reason for a in sk.implementations('masked_multiply') if a.name == 'triton'])\n"
        "from spectralkernels.convolution.dft_triton import IMPLEMENTATIONS\n"
        "print(*{each.available('cuda') for each in IMPLEMENTATIONS}, sep='; ')\n"
        "x = torch.randn(1, 2, 3, 2, dtype=torch.complex64)\n"
        "sk.masked_multiply(x, x)\n"
        "try: sk.masked_multiply(x, x, impl='triton')\n"
        "except sk.Unsupported as error: print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed, available, refused = done.stdout.splitlines()
    for said in (listed, available, refused.removeprefix("masked_multiply with impl='triton': ")):
        assert said.startswith("triton is not installed") and ";" not in said, done.stdout


def _environment() -> dict[str, str]:
    paths = f"{ROOT / 'kernels'}:{ROOT / 'bench'}"
    return {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "PYTHONPATH": paths}


@pytest.mark.slow
def test_an_import_takes_neither_a_compiler_nor_triton():
    """torch._dynamo alone takes as long as torch: every command and every worker would pay for it."""
    code = "import sys, torch; before = set(sys.modules); import spectralkernels; print(*set(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", code], env=_environment(), check=True, capture_output=True, text=True)
    modules = found.stdout.split()
    assert "spectralkernels" in modules
    assert not starts(set(modules), "torch._dynamo", "torch._inductor", "torch.export", "triton", "sympy", "statistics")
