"""The C modules that Triton builds where it launches, built where no driver is, so that they travel with the kernels.

Triton before 3.7 compiles one for every signature of a kernel, and each version one for the driver's own calls. They
are linked against libcuda, which only a machine with a GPU has: here an empty one of its name stands in.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

STAND_IN = "libcuda.so.1"
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE, in case that anyone asks the stand-in after all."""


@cache
def stand_in(folder: Path) -> None:
    """Build and load an empty libcuda in `folder`, once for this process.

    Raises: OSError, CalledProcessError without a C compiler.
    """
    from triton.backends.nvidia import driver

    # What is never called must be found all the same, or the linker leaves the library's name out.
    sources = (Path(driver.__file__), Path(driver.__file__).with_name("driver.c"))
    names = {name for path in sources for name in re.findall(r"\bcu[A-Z]\w+", path.read_text(encoding="utf-8"))}
    folder.mkdir(parents=True, exist_ok=True)
    library, code = folder / STAND_IN, folder / "libcuda.c"
    if not library.exists():
        code.write_text(
            "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(names)), encoding="utf-8"
        )
        draft = folder / f"{STAND_IN}.{os.getpid()}"
        compiler = os.environ.get("CC", "gcc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{STAND_IN}", "-o", draft, code],
            check=True,
            capture_output=True,
        )
        draft.replace(library)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    driver.CudaUtils()


def build(compiled: Any) -> None:
    """Put the module that launches a compiled kernel into Triton's cache, where this Triton builds one."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        driver.CudaLauncher(compiled.src, compiled.metadata)
