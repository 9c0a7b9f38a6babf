"""`make` sets up in any folder, and benchmarks into a place that git ignores."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

INSTALLER = """#!/bin/sh
# Stands for python3: makes a .venv whose python notes whether pip would find its constraints.
if [ "$1" = -m ] && [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    for it in python ruff mypy; do cp "$0" "$3/bin/$it"; done
fi
case "$0" in *mypy) echo "types at effort $SPECTRAL_EFFORT"; exit "$(cat types)" ;; esac
if [ "$1" = -m ] && [ "$2" = pip ]; then
    for file in $PIP_CONSTRAINT; do test -f "$file" || exit 3; done
    echo installed > installed
fi
if [ "$1" = -m ] && [ "$2" = pytest ]; then
    echo "half ${TRITON_INTERPRET-0}"
    exit "$(cat "status${TRITON_INTERPRET-0}")"
fi
"""


# What a make that runs these tests, and their half, say to those below them.
ABOVE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "TRITON_INTERPRET")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ABOVE}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=environment)


def make(folder: Path, *arguments: str) -> str:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout in a folder with a space in its path, with a python that installs nothing."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "installer").write_text(INSTALLER)
    (folder / "installer").chmod(0o755)
    return folder


def test_a_space_in_the_path_does_not_stop_the_set_up(copy: Path) -> None:
    make(copy, ".venv/ready", "PYTHON=./installer")
    assert (copy / "installed").is_file()


def test_a_benchmark_leaves_the_tracked_results_alone_unless_published(copy: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    measured, published = make(copy, "-n", "bench"), make(copy, "-n", "publish")
    assert measured.count("--results bench-out") == 4 and "bench-out/" in ignored
    assert published.count("--results results") == 4


@pytest.mark.parametrize(("native", "interpreted"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_both_halves_of_the_suite_run_and_one_failure_fails(copy: Path, native: int, interpreted: int) -> None:
    make(copy, ".venv/ready", "PYTHON=./installer")
    (copy / "status0").write_text(f"{native}")
    (copy / "status1").write_text(f"{interpreted}")
    done = run(copy, "-s", "test")
    assert done.stdout.split("\n")[:2] == ["half 0", "half 1"], done
    assert (done.returncode != 0) == bool(native or interpreted)


@pytest.mark.parametrize(("types", "native"), [(1, 0), (0, 1), (0, 0)])
def test_a_check_lints_beside_the_tests_and_either_fails_it(copy: Path, types: int, native: int) -> None:
    make(copy, ".venv/ready", "PYTHON=./installer")
    for name, status in (("types", types), ("status0", native), ("status1", 0)):
        (copy / name).write_text(f"{status}")
    done = run(copy, "check")
    lines = done.stdout.split("\n")
    assert {"half 0", "half 1", "types at effort 0"} <= set(lines), done
    assert (done.returncode != 0) == bool(types or native)
    assert "jobserver" not in done.stderr
