"""What CONTRIBUTING says is done in a copy of the tree, and of ours one of each is deleted: nothing else is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n# (?P<path>\S+\.py)(, (?P<place>[^\n]+))?\n(?P<code>.*?)```", re.DOTALL)
GONE = {
    "operation": "kernels/spectralkernels/ops/spectrum_selection.py",
    "metric": "bench/spectralbench/metrics/kept_fraction.py",
    "figure": "bench/spectralbench/plot/figures/sparse_crossover.py",
}
PUBLIC = "kernels/spectralkernels/__init__.py"
"""Where an operation that is called as `sk.<name>` has its two lines."""
BEFORE = {"before OPERATION": "\nOPERATION = ", "in implementations": "Implementation("}
"""Where a recipe puts its code in a file that is there: before the first of this text."""
END = "the end of a verb\n"
SPOKEN = f"""
import sys
from spectralbench.cli import app
for verb in sys.argv[1:]:
    try:
        app(verb.split())
    except SystemExit as end:
        assert not end.code, (verb, end.code)
    print(end={END!r})
"""
"""One process for all verbs, because importing torch is what takes time."""


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def follow(tree: Path) -> set[str]:
    """Do what the recipes say. Returns: the files that they make."""
    made = set()
    for block in blocks():
        path, code = tree / block["path"], block["code"]
        if block["place"] is None:
            assert not path.exists(), f"{block['path']} is ours already"
            path.parent.mkdir(exist_ok=True)
            path.write_text(code, encoding="utf-8")
            made.add(block["path"])
        else:
            assert block["path"] in made, "recipes only change what they made"
            place = BEFORE[block["place"]]
            path.write_text(path.read_text(encoding="utf-8").replace(place, f"\n{code}{place}", 1), encoding="utf-8")
    return made


def files(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*.py")}


def test_every_recipe_is_short() -> None:
    assert len(blocks()) == 6
    for block in blocks():
        lines = [line for line in block["code"].splitlines() if line]
        assert len(lines) < 15, block["path"]


@pytest.mark.slow
def test_one_of_each_is_added_and_deleted_in_its_own_file_alone(tmp_path: Path) -> None:
    pytest.importorskip("seaborn", reason="figures are an optional extra")
    pytest.importorskip("triton", reason="a recipe adds a Triton kernel")
    tree = tmp_path / "tree"
    for folder in ("kernels", "bench"):
        shutil.copytree(ROOT / folder, tree / folder)
    before = files(tree)
    made = follow(tree)
    for path in GONE.values():
        (tree / path).unlink()
    lines = (tree / PUBLIC).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "spectrum_selection" not in line]
    assert len(lines) - len(kept) == 2
    (tree / PUBLIC).write_text("".join(kept), encoding="utf-8")
    after = files(tree)
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert changed == made | {*GONE.values(), PUBLIC}

    environment = {
        **os.environ, "PYTHONPATH": f"{tree / 'kernels'}:{tree / 'bench'}", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }  # fmt: skip

    verbs = [
        "list --json --device cpu",
        "run soft_threshold --profile smoke --json",
        "plot answer_against_size",
        "report",
    ]
    command = [sys.executable, "-c", SPOKEN, *verbs]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed, ran, drawn, *_ = done.stdout.split(END)

    names = {(entry["kind"], entry["name"]) for entry in map(json.loads, listed.splitlines())}
    assert {("operation", "soft_threshold"), ("metric", "answer_bytes")} <= names
    assert not {("operation", "spectrum_selection"), ("metric", "kept_fraction")} & names

    records = [json.loads(line) for line in ran.splitlines()]
    assert sorted((record["implementation"], record["case"]["size"]) for record in records) == [
        ("torch", 7), ("torch", 300), ("triton", 7), ("triton", 300)
    ]  # fmt: skip
    for record in records:
        check(record)

    assert drawn.strip().endswith("answer_against_size.png")
    assert "soft threshold" in (tmp_path / "results" / "REPORT.md").read_text(encoding="utf-8")


def check(record: dict[str, Any]) -> None:
    """The baseline has its time and the new metric; the kernel was right under the interpreter."""
    if record["implementation"] == "triton":
        assert record["status"] == "skipped" and "the answer was checked and is right" in record["reason"]
        return
    assert record["status"] == "measured"
    taken = record["measurements"]
    assert taken["answer_bytes"]["samples"] == [4 * record["case"]["size"]]
    assert "device_time" in taken and "kept_fraction" not in {**taken, **record["unavailable"]}
