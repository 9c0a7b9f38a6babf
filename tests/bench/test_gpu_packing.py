"""What travels to a rented machine and back: one file of records, one of compiled kernels."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from spectralbench.gpu import packing

ROOT = Path(__file__).parents[2]


def test_a_folder_comes_back_as_it_was_and_leaves_alone_what_is_new(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "records" / "m").mkdir(parents=True)
    (out / "records" / "m" / "a.jsonl").write_text("one\n")
    (out / ".gitignore").write_text("*\n")
    packing.pack(out, tmp_path / "result" / "out.tgz")
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["out.tgz"], "no draft is left"

    other = tmp_path / "other"
    other.mkdir()
    (other / "newer").write_text("kept")
    packing.unpack(tmp_path / "result" / "out.tgz", other)
    assert (other / "records" / "m" / "a.jsonl").read_text() == "one\n"
    assert (other / ".gitignore").exists() and (other / "newer").read_text() == "kept"


def test_compiled_kernels_move_to_a_cache_of_another_name(tmp_path: Path) -> None:
    cache, entry = tmp_path / "here", tmp_path / "here" / "ABC"
    entry.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ttir", "cuda_utils.so"):
        (entry / name).write_text(name)
    group = {"child_paths": {name: str(entry / name) for name in ("k.cubin", "k.json")}}
    (entry / "__grp__k.json").write_text(json.dumps(group))
    assert packing.pack_kernels(cache, tmp_path / "kernels.tgz") == 1
    there = tmp_path / "there"
    assert packing.unpack_kernels(tmp_path / "kernels.tgz", there) == 1
    assert sorted(path.name for path in (there / "ABC").iterdir()) == [
        "__grp__k.json",
        "cuda_utils.so",
        "k.cubin",
        "k.json",
    ]
    paths = json.loads((there / "ABC" / "__grp__k.json").read_text())["child_paths"]
    assert {Path(path).read_text() for path in paths.values()} == {"k.cubin", "k.json"}


def test_an_archive_does_not_write_outside_its_folder(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.tgz"
    with tarfile.open(hostile, "w:gz") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(tarfile.TarError):
        packing.unpack(hostile, tmp_path / "inside")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_a_launch_would_look_for(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "spectralbench.gpu.precompile", "--out", str(tmp_path / "kernels.tgz")]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'kernels'}:{ROOT / 'bench'}",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*command, "--only", "masked_multiply", "--jobs", "1", "--limit", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "cache").glob("*/*.cubin")}
    assert {"tiled_kernel.cubin", "planewise_kernel.cubin"} <= made
    assert f"{packing.unpack_kernels(tmp_path / 'kernels.tgz', tmp_path / 'there')} kernels of" in done.stdout
