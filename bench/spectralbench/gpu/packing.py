"""One file in, one file out: a rented machine keeps nothing, and takes and gives back few files.

Compiled kernels travel as a copy of Triton's cache. Its `__grp__*.json` name their files by absolute path, so the paths
are written anew for the folder that they are unpacked to.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

KERNEL_FILES = (".cubin", ".json", ".so")
"""What Triton loads of a compiled kernel; the texts of its intermediate forms stay behind."""


def pack(folder: Path, archive: Path) -> None:
    """Put everything below `folder` into one compressed file, whole or not at all."""
    _write(archive, [(path, str(path.relative_to(folder))) for path in _files(folder)])


def pack_kernels(cache: Path, archive: Path) -> int:
    """Put the compiled kernels of a Triton cache into one compressed file. Returns: how many kernels they are."""
    files = [path for path in _files(cache) if path.suffix in KERNEL_FILES]
    _write(archive, [(path, str(path.relative_to(cache))) for path in files])
    return sum(path.suffix == ".cubin" for path in files)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a file of `pack` into `folder`; what is there already and not in the archive stays.

    Raises: tarfile.TarError on a file that is none, or that would write outside `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def unpack_kernels(archive: Path, cache: Path) -> int:
    """Unpack a file of `pack_kernels` into a Triton cache. Returns: how many kernels are there now."""
    unpack(archive, cache)
    for path in cache.glob("*/__grp__*.json"):
        group = json.loads(path.read_text(encoding="utf-8"))
        group["child_paths"] = {name: str(path.parent / name) for name in group["child_paths"]}
        path.write_text(json.dumps(group), encoding="utf-8")
    return len(list(cache.glob("*/*.cubin")))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(archive: Path, files: list[tuple[Path, str]]) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_name(f".{archive.name}.{os.getpid()}")
    with tarfile.open(draft, "w:gz", compresslevel=6) as tar:
        for path, name in files:
            tar.add(path, name, recursive=False)
    draft.replace(archive)
