"""Compile the C++ of `dft_native` for the processor at hand, once, into torch's cache of extensions.

The library has a C interface and one torch header (at::parallel_for), so that it compiles in seconds, without ninja and
Python headers. It is found again by a key over its sources, the compiler and its flags, the instructions of the
processor, and the version of torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from spectralkernels.errors import Unsupported

_SOURCE = Path(__file__).with_name("dft_native.cpp")
_LAST_LINES = 12
_LOCK = threading.Lock()

# Asked once, as for triton: torch.compile cannot trace the questions.
_NAME = os.environ.get("CXX") or "c++"
COMPILER = shutil.which(_NAME)


def unavailable(device: str) -> str | None:
    """The reason why the library cannot run on `device` ("cpu" or "cuda"), or None; compiles nothing."""
    if device != "cpu":
        return "it runs on a CPU only"
    if COMPILER is None:
        return f"no C++ compiler: {_NAME!r} is not on the path (install g++ or clang++, or set CXX)"
    return None


def library() -> ctypes.CDLL:
    """The library, compiled if it is not in the cache; from then on `READY` is true.

    Raises: Unsupported with the last lines of the compiler where there is none or it fails.
    """
    global READY
    with _LOCK:
        found = _load()
        READY = True
        return found


@functools.cache
def _load() -> ctypes.CDLL:
    if COMPILER is None:
        raise Unsupported(f"dft_native: {unavailable('cpu')}")
    path = _path(COMPILER)
    if not path.exists():
        _compile(COMPILER, path)
    return ctypes.CDLL(str(path))


def _flags() -> list[str]:
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    return ["-std=c++20", "-O3", native, "-ffp-contract=fast", "-fno-strict-aliasing", "-fopenmp", "-fPIC", "-shared"]


def _compile(compiler: str, path: Path) -> None:
    """One process at a time, and to a file of its own first: another finds the whole library or none."""
    home = Path(torch.__file__).parent
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise Unsupported(f"dft_native: no folder to compile in ({error}); set TORCH_EXTENSIONS_DIR") from error
    with lock, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        made = Path(folder) / path.name
        command = [compiler, *_flags(), f"-isystem{home / 'include'}", str(_SOURCE), "-o", str(made)]
        command += [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()[-_LAST_LINES:]
            raise Unsupported("\n".join([f"dft_native: the C++ compiler failed: {' '.join(command)}", *lines]))
        made.replace(path)


def _path(compiler: str) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions"
    file = Path(compiler).resolve()
    facts = file.stat()
    sources = [path.read_text() for path in (*sorted(_SOURCE.parent.glob("*.h")), _SOURCE)]
    identity = f"{file} {facts.st_size} {facts.st_mtime_ns}"
    parts = [torch.__version__, identity, *_flags(), _instructions(), *sources]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return Path(root) / f"spectralkernels_dft_native_{key}" / "dft_native.so"


def _instructions() -> str:
    """What the processor can do, so that a cache may be shared between unlike machines."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):  # no Linux
        return platform.processor()


READY = COMPILER is not None and _path(COMPILER).exists()
"""Whether a call compiles nothing: the library was in the cache when this was imported, or is loaded by now."""
