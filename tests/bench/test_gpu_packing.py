"""What travels to a rented machine and back: one file of records, one of compiled kernels."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from spectralbench import sweep
from spectralbench.gpu import __main__ as command
from spectralbench.gpu import packing
from spectralkernels.launch import interpreted

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

    known = packing.entries(there)
    (there / "DEF").mkdir()
    (there / "DEF" / "new.cubin").write_text("new")
    assert packing.pack_kernels(there, tmp_path / "new.tgz", known) == 1, "what an archive brought does not travel back"
    assert packing.unpack_kernels(tmp_path / "new.tgz", cache) == 1 and (cache / "DEF" / "new.cubin").is_file()
    assert (entry / "k.ttir").is_file(), "what was there stays"


def test_an_archive_does_not_write_outside_its_folder(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.tgz"
    with tarfile.open(hostile, "w:gz") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(packing.Damaged, match="escaped"):
        packing.unpack(hostile, tmp_path / "inside")
    assert not (tmp_path / "escaped").exists()


def packed_kernel(tmp_path: Path) -> Path:
    """An archive of one kernel that no compressor makes smaller."""
    entry = tmp_path / "packed" / "ABC"
    entry.mkdir(parents=True)
    (entry / "k.cubin").write_bytes(random.Random(0).randbytes(1 << 16))
    packing.pack_kernels(entry.parent, tmp_path / "kernels.tgz")
    return tmp_path / "kernels.tgz"


def torn(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: 1 << 15])


def flipped(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[1 << 15] ^= 1
    archive.write_bytes(data)


def no_archive(archive: Path) -> None:
    archive.write_text("<html>not found</html>")


def of_another_triton(archive: Path) -> None:
    there = archive.parent / "changed"
    packing.unpack(archive, there)
    (there / packing.MADE_BY).write_text(json.dumps({**packing.made_by(), "triton": "3.5.0", "files": "12345678"}))
    packing.pack(there, archive)


def of_before(archive: Path) -> None:
    there = archive.parent / "changed"
    packing.unpack(archive, there)
    (there / packing.MADE_BY).unlink()
    packing.pack(there, archive)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (torn, "Compressed file ended|EOFError"),
        (flipped, "CRC|invalid|Error -3"),
        (no_archive, "Not a gzipped file"),
        (of_another_triton, r"of triton 3\.5\.0, files 12345678.*here is triton"),
        (of_before, "does not say which Triton made it"),
    ],
)
def test_kernels_that_would_not_serve_are_left_out_whole(harm: Any, words: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    archive, cache = packed_kernel(tmp_path), tmp_path / "cache"
    harm(archive)
    with pytest.raises(packing.Damaged, match=words):
        packing.unpack_kernels(archive, cache)
    assert not cache.exists() and not list(tmp_path.glob(".cache*")), "no half of a kernel is left to be launched"


def test_a_run_goes_on_without_what_does_not_serve_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out.tgz", "kernels.tgz"):
        (tmp_path / name).write_text("torn")
    noted: list[str] = []
    monkeypatch.setattr(command, "_measure", lambda given, out, notes: noted.extend(notes) or 0)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    resume = ["--resume-from", str(tmp_path / "out.tgz"), "--kernels", str(tmp_path / "kernels.tgz")]
    # A folder that is a file cannot be written to.
    assert command.main(["--out", str(tmp_path / "o"), *resume, "--pack", str(tmp_path / "out.tgz" / "x.tgz")]) == 1
    assert [note.split(" is not used further: ")[0] for note in noted] == [
        str(tmp_path / name) for name in ("out.tgz", "kernels.tgz")
    ]
    assert os.environ["OMP_NUM_THREADS"] == "2", "not as many threads in every process as there are cores"
    assert "ReadError" in noted[0] and "error: cannot write" in capsys.readouterr().err
    noted.clear()
    assert command.main(["--out", str(tmp_path / "o"), "--kernels", str(tmp_path / "nowhere.tgz")]) == 0
    assert noted == [f"there is no {tmp_path / 'nowhere.tgz'}"]


@pytest.mark.skipif(interpreted(), reason="compiles")
def test_a_launch_is_found_again_until_its_kernel_moves_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from spectralbench.gpu import kernels, precompile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = kernels.read_kernel

    def new(line: int) -> int:
        monkeypatch.setattr(kernel, "starting_line_number", line)
        kernel.hash = None
        kernel.device_caches.clear()
        done = precompile.compile_launches("ceilings", precompile.ceiling(90), 90)
        assert done.asked == 1 and not done.failed
        return done.new

    request = sweep.Request(operations=("spec_block",), device="cpu", processes=1)
    item = next(item for item in precompile.items(request) if item.pass_ == "both")
    found = {launch.kernel.fn.__name__ for launch in precompile.launches(item, 90)}
    wanted = {"threshold_kernel", "block_counts_kernel", "move_kernel", "expand_kernel", "collect_kernel"}
    assert wanted <= found, "those, too, that a GPU's tensors take inside other operations, and the check of the answer"

    before = kernel.starting_line_number
    assert [new(before), new(before), new(before + 1)] == [1, 0, 1]
    monkeypatch.undo()
    kernel.hash = None
    kernel.device_caches.clear()


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
    assert {"tiled_kernel.cubin", "planewise_kernel.cubin", "read_kernel.cubin"} <= made
    assert list((tmp_path / "cache").glob("*/cuda_utils*.so")), "what Triton builds where it launches travels, too"
    assert f"{packing.unpack_kernels(tmp_path / 'kernels.tgz', tmp_path / 'there')} kernels of" in done.stdout
