"""Fingerprints from the compiler on: the command line names planted faults, and what is declared is what is stored."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from guarded_interpreter import compiler

from spectralbench.cli import main
from spectralbench.fingerprint import collect, stored
from spectralbench.fingerprint.compare import compare
from spectralkernels import aot
from spectralkernels.errors import RangeError, Unsupported
from spectralkernels.launch import NamedLaunch
from spectralkernels.target import target_capability

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "fingerprints"

KERNELS = """
import torch
import triton
import triton.language as tl

from spectralkernels.launch import NamedLaunch


@triton.jit
def scale_kernel(x_ptr, y_ptr, a, n_cells, n_columns, BLOCK: tl.constexpr):
    {comment}
    offs = tl.program_id(0){wide} * BLOCK + tl.arange(0, BLOCK){wide}
    cell = {cell}
    inside = offs < n_cells
    tl.store(y_ptr + offs, a * tl.load(x_ptr + cell, mask=inside) + offs % n_columns, mask=inside)


def launch(cells):
    x = torch.empty(cells, device="meta")
    scale_kernel[(triton.cdiv(cells, 1024),)](x, torch.empty_like(x), 0.5, cells, 17, BLOCK=1024, num_warps=4)


FINGERPRINTS = (NamedLaunch("{size} cells", lambda: launch({size})),)
"""

WALK = collect.watched_launches
Plant = Callable[..., ModuleType]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Writes a package with one kernel, deep inside; called again, it edits the kernel. The library stays out of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "planted"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(**edits: object) -> ModuleType:
        forget()
        module = tmp_path / "planted" / "ops" / "scale" / "kernels.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        for folder in (module.parent, module.parent.parent, module.parent.parent.parent):
            (folder / "__init__.py").touch()
        (module.parent / "broken.py").write_text("raise AssertionError('declares nothing, so nobody imports it')\n")
        text = {"comment": "", "wide": "", "cell": "offs", "size": 4096, **edits}
        # an edit within a second and of equal length would be taken from the bytecode of the last one
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        module.write_text(KERNELS.format(**text))
        package = importlib.import_module("planted")
        monkeypatch.setattr(collect, "watched_launches", lambda: WALK(package))
        return package

    yield write
    forget()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `spectralbench fingerprint`; the two streams come back without their line breaks."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spectralbench", "fingerprint", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return int(left.value.code or 0), " ".join(streams.out.split()), " ".join(streams.err.split())

    return call


@pytest.mark.slow
@compiler
def test_planted_faults_exit_1_with_words(plant: Plant, cli: Cli, tmp_path: Path) -> None:
    plant()
    code, out, err = cli("--arch", "90")
    assert code == 0
    assert "scale.scale_kernel" in out and "4096 cells" in out and "128 bit" in out
    assert "written: results/fingerprints/scale.scale_kernel.json" in err and "not times" in err
    path = tmp_path / "results" / "fingerprints" / "scale.scale_kernel.json"
    before = path.read_text()
    for names in ((), ("scale",), ("scale.scale_kernel",)):
        code, out, err = cli("--stored", *names, "--arch", "90", "--json")
        assert code == 0 and json.loads(out)["launch"] == "4096 cells" and "written" not in err
    assert 0 < json.loads(before)["launches"]["4096 cells"]["sm_90"]["compile_seconds"] < 60

    plant(comment="# a comment changes every line number and no instruction")
    assert cli("--check", "--arch", "90")[:2] == (0, "")
    assert "nothing changed" in cli("--arch", "90")[2]
    assert path.read_text() == before

    plant(wide=".to(tl.int64)")
    code, out, err = cli("--check", "--arch", "90", "--json")
    (change,) = map(json.loads, out.splitlines())
    assert (code, change["verdict"]) == (1, "worse")
    assert "registers" in change["words"] and "instructions" in change["words"] and " IMAD" in change["words"]

    plant(cell="offs * n_columns // 17")
    code, out, err = cli("--check", "--arch", "90")
    assert code == 1
    assert "worse" in out and "global loads narrower" in out and "-> 8 x 32 bit" in out
    assert "1 worse" in err and "--because REASON" in err
    assert path.read_text() == before

    assert cli("--arch", "90", "--because", "columns are gathered now")[0] == 0
    assert "columns are gathered now" in path.read_text()
    assert cli("--check", "--arch", "90")[0] == 0


@compiler
def test_a_deleted_kernel_is_gone_everywhere(plant: Plant, cli: Cli, tmp_path: Path) -> None:
    package = plant()
    assert [watched.kernel for watched in collect.watched_launches()] == ["scale.scale_kernel"]
    cli("--arch", "90")
    (tmp_path / "planted" / "ops" / "scale" / "kernels.py").unlink()
    assert collect.declaring_modules(package) == []
    code, out, _ = cli("--check", "--arch", "90")
    assert code == 3 and "gone" in out and "not declared any more" in out
    code, _, err = cli("--arch", "90")
    assert code == 0 and "removed, its kernel is gone: results/fingerprints/scale.scale_kernel.json" in err
    assert not list((tmp_path / "results" / "fingerprints").iterdir())


@pytest.mark.slow
@compiler
def test_another_compiler_exits_3_where_nothing_compares(plant: Plant, cli: Cli, tmp_path: Path) -> None:
    plant()
    cli("--arch", "90")
    path = tmp_path / "results" / "fingerprints" / "scale.scale_kernel.json"
    document = json.loads(path.read_text())
    document["launches"]["4096 cells"]["sm_90"]["triton"] = "3.5.0"
    path.write_text(json.dumps(document))
    code, out, err = cli("--check", "--arch", "90")
    assert code == 3 and "compiler changed from triton 3.5.0" in out and "1 segment" in err


@pytest.mark.slow
@compiler
def test_bad_input(plant: Plant, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant()
    code, _, err = cli("tiled")
    assert code == 2 and "unknown kernel 'tiled'; known: scale.scale_kernel" in err
    code, _, err = cli("--arch", "42")
    assert code == 2 and "unknown architecture 42; known: 80, 90, 100" in err
    code, _, err = cli("--arch", "hopper")
    assert code == 2 and "--arch takes numbers such as 80,90,100, got hopper" in err
    code, _, err = cli("--check", "--because", "of this")
    assert code == 2 and "--because is for storing" in err
    code, _, err = cli("--stored", "--check")
    assert code == 2 and "--stored compiles nothing; leave out --check" in err
    code, _, err = cli("--stored", "scal")
    assert code == 2 and "nothing is stored of a kernel 'scal'; known: none" in err
    code, _, err = cli("--stored", "--arch", "42")
    assert code == 2 and "nothing is stored for sm_42" in err
    folder = tmp_path / "results" / "fingerprints"
    folder.mkdir(parents=True)
    (folder / "torn.json").write_text("{")
    code, _, err = cli("--check")
    assert code == 2 and "torn.json is not a file of fingerprints" in err
    (folder / "torn.json").unlink()
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    code, _, err = cli("--arch", "90")
    assert code == 2 and "cannot write the fingerprints to results/fingerprints" in err
    monkeypatch.setattr(aot, "HAS_TRITON", False)
    code, _, err = cli("--check")
    assert code == 2 and err == "error: compiling a kernel needs triton (pip install triton)"


def test_the_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(Unsupported, match="unset TRITON_INTERPRET"):
        collect.watched_launches()


@compiler
def test_two_launches_of_one_name_are_refused(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    package = plant()
    module = importlib.import_module("planted.ops.scale.kernels")
    monkeypatch.setattr(module, "FINGERPRINTS", vars(module)["FINGERPRINTS"] * 2)
    with pytest.raises(RangeError, match=r"a second launch of scale\.scale_kernel '4096 cells'; rename one"):
        WALK(package)


@compiler
def test_launches_follow_the_architecture(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    """Tiles that a launch chooses by the GPU it is for are chosen for the GPU that is compiled for."""
    package = plant()
    module = importlib.import_module("planted.ops.scale.kernels")

    def launch() -> None:
        cells = 100 * target_capability(torch.device("cuda"))
        vars(module)["launch"](cells)
        if cells == 8000:
            vars(module)["launch"](cells)

    monkeypatch.setattr(module, "FINGERPRINTS", (NamedLaunch("by target", launch),))
    first, second = WALK(package)
    assert {at: noted.arguments["n_cells"] for at, noted in first.noted.items()} == {80: 8000, 90: 9000, 100: 10000}
    assert second.launch == "by target (2)" and set(second.noted) == {80}
    assert [found.capability for found in collect.fingerprints([second], [80, 90])] == [80]
    assert target_capability(torch.device("cpu")) == target_capability(torch.device("meta")) == 90


@compiler
def test_noted_launches_are_the_ones_asked_for() -> None:
    import triton
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run
    tuned = triton.heuristics({"BLOCK": lambda arguments: 256})(_copy_kernel())
    x = torch.empty(512, device="meta")
    with pytest.raises(ZeroDivisionError), aot.noted_launches() as noted:
        tuned[(2,)](x, x, n=512, num_warps=2)
        raise ZeroDivisionError
    assert JITFunction.run is launch
    (found,) = noted
    assert found.arguments["BLOCK"] == 256 and found.arguments["n"] == 512 and found.arguments["x_ptr"] is x
    assert found.options == {"num_warps": 2}


def _copy_kernel() -> object:
    import triton
    import triton.language as tl

    @triton.jit
    def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)

    return copy_kernel


# The committed expectations


STORE = "meant? run `spectralbench fingerprint --because REASON` and commit results/fingerprints"
FAST = ("sparse.expand_kernel", "sparse.word_slots_kernel", "masked_multiply.planewise_kernel")


@compiler
def test_every_declared_launch_is_stored_and_nothing_else() -> None:
    declared = {
        (watched.kernel, watched.launch, capability)
        for watched in collect.watched_launches()
        for capability in watched.noted
    }
    assert set(stored.load(COMMITTED)) == declared, STORE


@pytest.mark.slow
@compiler
def test_fast_kernels_compile_to_what_is_committed() -> None:
    """Three quick ones; `spectralbench fingerprint --check` compares all."""
    chosen = collect.choose(collect.watched_launches(), FAST)
    changes = compare(stored.load(COMMITTED), collect.fingerprints(chosen, [90]))
    for change in changes:
        if change.verdict == "segment":
            pytest.skip(change.words)
    assert not [
        f"{change.kernel} ({change.launch}): {change.words}" for change in changes if change.verdict != "same"
    ], STORE
