"""A git clone of the project with operations of our own planted in it, for tests that run real front ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PLANTED = '''"""Doubling, an operation that is over at once."""

import torch

from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Tolerance


def _inputs(case: Case, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    return {"x": torch.randn(case["size"], generator=generator).to(device).requires_grad_()}


def _times(factor: float):
    return lambda x: x * factor


OPERATION = Operation(
    name="NAME",
    summary="twice its input",
    version=3,
    source="nowhere",
    profiles={
        "asv": (Block({"size": (64, 1024), "scale": (1.0,)}, implementations=("product", "twin", "needs_gpu")),),
        "quick": (Block({"size": (64,), "scale": (1.0,)}),),
    },
    make_inputs=_inputs,
    reference=lambda x: 2 * x.double(),
    ideal=lambda x: 2.5 * x.double(),
    cost=lambda case: Cost(4 * case["size"], 4 * case["size"], case["size"]),
    fft_size=lambda case: (case["size"],),
    tolerance=Tolerance({"float32": 1e-6}, "one rounding"),
    implementations=(
        Implementation("product", "baseline", _times(2.0), "here"),
        Implementation("twin", "baseline", _times(FACTOR), "here"),
        Implementation("needs_gpu", "kernel", _times(2.0), "here", available=lambda device: "no GPU here"),
    ),
    auto=lambda **inputs: Decision("product", "it is the only one"),
    gradients=("x",),
)
'''


@dataclass(frozen=True, slots=True)
class Clone:
    """A checkout of its own, with a home of its own so that no tool writes into the user's."""

    path: Path
    home: Path
    commit: str

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m <command>` in the clone, on the clone's own packages."""
        paths = f"{self.path / 'kernels'}{os.pathsep}{self.path / 'bench'}"
        environment = {**os.environ, "HOME": str(self.home), "PYTHONPATH": paths, "ASV_PYTHONPATH": paths, **variables}
        for leaked in ("PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS", "TRITON_INTERPRET"):
            environment.pop(leaked, None)
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.path,
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
        )


def make_clone(folder: Path) -> Clone:
    """Copy what the front ends need into a new repository with one commit.

    Beside the real operations it has `doubling`, which is right, and `doubling_wrong`, whose `twin` is wrong.
    """
    path, home = folder / "clone", folder / "home"
    home.mkdir(parents=True)
    forget = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("kernels", "bench"):
        shutil.copytree(ROOT / name, path / name, ignore=forget)
    for name in ("asv.conf.json", "pyproject.toml"):
        shutil.copy(ROOT / name, path)
    operations = path / "kernels/spectralkernels/ops"
    (operations / "doubling.py").write_text(PLANTED.replace("NAME", "doubling").replace("FACTOR", "2.0"))
    (operations / "doubling_wrong.py").write_text(PLANTED.replace("NAME", "doubling_wrong").replace("FACTOR", "3.0"))
    git(path, "init", "--quiet", "--initial-branch=main")
    return Clone(path, home, commit(path, "Plant two operations"))


def commit(path: Path, message: str) -> str:
    """Commit everything, even nothing, and return the hash."""
    git(path, "add", "--all")
    author = ("-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    git(path, *author, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", message)
    return git(path, "rev-parse", "HEAD").strip()


def git(path: Path, *arguments: str) -> str:
    """Run git in `path` and return what it says."""
    return subprocess.run(["git", *arguments], cwd=path, check=True, text=True, capture_output=True).stdout
