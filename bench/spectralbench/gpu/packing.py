"""One file in, one file out: a rented machine keeps nothing, and takes and gives back few files.

Compiled kernels travel as a copy of Triton's cache. Its `__grp__*.json` name their files by absolute path, so the paths
are written anew for the folder that they are unpacked to. Triton looks a kernel up by its source, the line on which it
begins, its arguments and options, and by what `made_by` tells: a kernel that moved within its file is not found.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import sysconfig
import tarfile
import zlib
from collections.abc import Mapping, Set
from hashlib import sha256
from pathlib import Path

KERNEL_FILES = (".cubin", ".json", ".so")
"""What Triton loads of a compiled kernel; the texts of its intermediate forms stay behind."""

MADE_BY = "made_by.json"


class Damaged(Exception):
    """A packed file that does not serve; the message says why."""


def pack(folder: Path, archive: Path) -> None:
    """Put everything below `folder` into one compressed file, whole or not at all."""
    _write(archive, [(path, str(path.relative_to(folder))) for path in _files(folder)])


def pack_kernels(cache: Path, archive: Path, known: Set[str] = frozenset()) -> int:
    """Put the compiled kernels of a Triton cache into one compressed file. Returns: how many kernels they are.

    known: `entries` to leave out, because another file has them.
    """
    cache.mkdir(parents=True, exist_ok=True)
    (cache / MADE_BY).write_text(json.dumps(made_by()), encoding="utf-8")
    files = [
        path for path in _files(cache) if path.suffix in KERNEL_FILES and path.relative_to(cache).parts[0] not in known
    ]
    _write(archive, [(path, str(path.relative_to(cache))) for path in files])
    return sum(path.suffix == ".cubin" for path in files)


def entries(cache: Path) -> set[str]:
    """The names under which a Triton cache holds kernels and modules."""
    return {path.name for path in cache.iterdir() if path.is_dir()} if cache.is_dir() else set()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a file of `pack` into `folder`; what is there already and not in the archive stays.

    Raises: Damaged on a file that is none, is torn or would write outside `folder`; what came before the damage is
    unpacked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def unpack_kernels(archive: Path, cache: Path) -> int:
    """Unpack a file of `pack_kernels` into a Triton cache, all of it or nothing. Returns: how many kernels it holds.

    Raises: Damaged on a file that is not whole, not of this kind or of another Triton; OSError without room for it.
    """
    draft = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        _read_through(archive)
        unpack(archive, draft)
        _must_serve(draft)
        for path in draft.glob("*/__grp__*.json"):
            group = json.loads(path.read_text(encoding="utf-8"))
            group["child_paths"] = {name: str(cache / path.parent.name / name) for name in group["child_paths"]}
            path.write_text(json.dumps(group), encoding="utf-8")
        cache.mkdir(parents=True, exist_ok=True)
        count = sum(1 for _ in draft.rglob("*.cubin"))
        for folder in draft.iterdir():
            if folder.is_dir() and not (cache / folder.name).exists():
                folder.rename(cache / folder.name)
            elif folder.is_dir():
                shutil.copytree(folder, cache / folder.name, dirs_exist_ok=True)
        return count
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def made_by() -> dict[str, str]:
    """What compiled kernels are looked up by, beside their own facts: the Triton and the Python that made them."""
    if importlib.util.find_spec("triton") is None:
        return {}
    import triton
    from triton.runtime.cache import triton_key

    files = sha256(triton_key().encode()).hexdigest()[:8]
    return {"triton": triton.__version__, "files": files, "modules": str(sysconfig.get_config_var("EXT_SUFFIX"))}


def _read_through(archive: Path) -> None:
    # A flipped bit shows in the checksum at the end alone, and a damaged kernel would be launched.
    try:
        with gzip.open(archive) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _must_serve(cache: Path) -> None:
    try:
        found = json.loads((cache / MADE_BY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise Damaged(f"it does not say which Triton made it ({MADE_BY})")
    if found != made_by():
        raise Damaged(f"it is of {_told(found)}, here is {_told(made_by())}: none of it would be found")


def _told(made: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made.items()) or "no triton"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(archive: Path, files: list[tuple[Path, str]]) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with tarfile.open(draft, "w:gz", compresslevel=6) as tar:
            for path, name in files:
                tar.add(path, name, recursive=False)
        draft.replace(archive)
    finally:
        draft.unlink(missing_ok=True)
