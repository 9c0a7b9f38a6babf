"""What the compiler makes of a Triton kernel for a GPU that is not here: registers, stack, shared memory, instructions.

A kernel is compiled through Triton's own warm-up path, under a driver that only names the architecture. So the launch
arguments are specialised exactly as a launch would specialise them (pointers and integers divisible by 16, integers
equal to 1, None), and the machine code is the one that this Triton would load on that GPU. The numbers are read from
the cubin with the `cuobjdump` that Triton's wheel carries, because Triton itself knows them only after loading.

A module with kernels names the launches that are worth watching in a constant `FINGERPRINTS`.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectralkernels.errors import RangeError, Unsupported
from spectralkernels.launch import HAS_TRITON, interpreted
from spectralkernels.target import SHARED_LIMITS, named_capability

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]+?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_RESOURCE = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel as compiled for one GPU architecture, with the launch options that shaped it.

    capability: 90 for sm_90. registers: per thread. stack, local: bytes per thread; a spill shows as either.
    shared: bytes per block, static and dynamic. shared_limit: what the architecture allows a block.
    instructions: SASS without addresses, in order. triton, ptxas: the compilers' versions.
    tensor_memory: columns per block, of the 512 that an SM of sm_100 has. ptx: hash of the text that ptxas was given,
    without line numbers. compile_seconds: None if it was cached.
    """

    name: str
    capability: int
    triton: str
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    local: int
    shared: int
    instructions: tuple[str, ...]
    ptxas: str = ""
    tensor_memory: int = 0
    ptx: str = ""
    compile_seconds: float | None = field(default=None, compare=False)

    @property
    def shared_limit(self) -> int:
        return SHARED_LIMITS[self.capability]

    @property
    def opcodes(self) -> Counter[str]:
        """How often each opcode with its modifiers occurs, `LDG.E.128` or `FFMA`."""
        return Counter(_PREDICATE.sub("", text).split(maxsplit=1)[0] for text in self.instructions)

    def count(self, opcode: str, *modifiers: str) -> int:
        """Instructions of this opcode that carry all `modifiers`: count("LDG", "128")."""
        return sum(
            number
            for full, number in self.opcodes.items()
            if full.split(".")[0] == opcode and set(modifiers) <= set(full.split(".")[1:])
        )


@dataclass(frozen=True, slots=True)
class NotedLaunch:
    """A launch that was asked for and not made: compile it by `compile_kernel(kernel, arguments, 90, **options)`."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@contextmanager
def noted_launches(capability: int = 90) -> Iterator[list[NotedLaunch]]:
    """Note every Triton launch made inside instead of making it; meta tensors need no memory and no GPU.

    capability: the GPU that the launches are meant for, where tiles depend on it (see `target.target_capability`).
    Raises: Unsupported without triton or under its interpreter.
    """
    need_the_compiler()
    from triton.runtime.jit import JITFunction

    noted: list[NotedLaunch] = []

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        bound = dict(zip(self.arg_names, args, strict=False))
        bound.update((name, value) for name, value in keywords.items() if name in self.arg_names)
        options = {name: value for name, value in keywords.items() if name not in self.arg_names}
        noted.append(NotedLaunch(self, bound, options))

    launch = JITFunction.run
    JITFunction.run = note
    token = named_capability.set(capability)
    try:
        yield noted
    finally:
        named_capability.reset(token)
        JITFunction.run = launch


def compile_kernel(kernel: Any, arguments: Mapping[str, Any], capability: int, **options: Any) -> MachineCode:
    """Compile `kernel` as a launch with these arguments would, for a GPU of this compute capability.

    kernel: a function under `triton.jit`, also one wrapped by autotune or heuristics (the wrapper is left out).
    arguments: by parameter name, constexprs too; a tensor (on any device, "meta" as well: an aligned address) or a
    torch dtype (an aligned pointer) stands for a pointer.
    options: `num_warps`, `num_stages` and other launch options.
    Raises: Unsupported without triton or under its interpreter; RangeError on a capability not in SHARED_LIMITS.
    """
    if capability not in SHARED_LIMITS:
        raise RangeError(f"unknown compute capability {capability}; known: {', '.join(map(str, SHARED_LIMITS))}")
    need_the_compiler()
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    with _timed() as seconds:
        compiled = compiled_kernel(kernel, arguments, capability, **options)
    metadata = compiled.metadata
    usage, instructions = _read_cubin(compiled.asm["cubin"])
    return MachineCode(
        name=metadata.name,
        capability=capability,
        triton=triton.__version__,
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=max(metadata.shared, usage["SHARED"]),
        instructions=instructions,
        ptxas=get_ptxas(capability).version,
        # Triton before 3.7 does not always say; only sm_100 has any
        tensor_memory=getattr(metadata, "tmem_size", 0) or 0,
        ptx=_ptx_digest(compiled.asm["ptx"]),
        compile_seconds=seconds[0] if seconds else None,
    )


def compiled_kernel(kernel: Any, arguments: Mapping[str, Any], capability: int, **options: Any) -> Any:
    """Triton's own compiled kernel; it stays in Triton's cache, where a launch on such a GPU finds it.

    For the rest see `compile_kernel`.
    """
    from triton.runtime.jit import JITFunction, MockTensor

    while not isinstance(kernel, JITFunction):
        kernel = kernel.fn
    arguments = {name: MockTensor.wrap_dtype(value) for name, value in arguments.items()}
    with _pretend(capability):
        return kernel.warmup(**arguments, **options, grid=(1,))


def need_the_compiler() -> None:
    """Raise Unsupported, with the reason, where kernels cannot be compiled."""
    if interpreted():
        raise Unsupported(
            "kernels compile only outside the interpreter; unset TRITON_INTERPRET and start a new process"
        )
    if not HAS_TRITON:
        raise Unsupported("compiling a kernel needs triton (pip install triton)")


class _NamedArchitecture:
    """The part of a Triton driver that compiling asks for: what the target is, and a key for the kernel cache."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        return f"ahead of time, sm_{self.capability}"

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def _pretend(capability: int) -> Iterator[None]:
    from triton.runtime.driver import driver

    driver.set_active(_NamedArchitecture(capability))
    try:
        yield
    finally:
        # None: the real driver, if there is one, is looked up again at the next launch.
        driver.set_active(None)


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Seconds of each compilation inside, by Triton's own clock; one found in the cache took no time worth keeping."""
    from triton import knobs

    seconds: list[float] = []

    def listen(*, times: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            seconds.append(times.total / 1e6)

    before = knobs.compilation.listener
    knobs.compilation.listener = listen
    try:
        yield seconds
    finally:
        knobs.compilation.listener = before


def _read_cubin(cubin: bytes) -> tuple[dict[str, int], tuple[str, ...]]:
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        resources = _run(tool, "--dump-resource-usage", str(path))
        listing = _run(tool, "-sass", str(path))
    usage = {name: int(number) for name, number in _RESOURCE.findall(resources)}
    return usage, tuple(found["text"] for found in _INSTRUCTION.finditer(listing))


def _ptx_digest(text: str) -> str:
    """A hash of the instructions and declarations, which no edit of a comment and no other folder changes."""
    code = text.split(".section\t.debug", 1)[0].split(".section .debug", 1)[0]
    lines = [line.split("//", 1)[0].strip() for line in code.splitlines()]
    kept = [line for line in lines if line and not line.startswith((".loc", ".file", "$L__tmp", "$L__func"))]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _run(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise Unsupported(f"{Path(command[0]).name} exited with {finished.returncode}: {finished.stderr.strip()}")
    return finished.stdout
