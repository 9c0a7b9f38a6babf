"""Compile what the kernel modules declare and read the fingerprints off the machine code (torch, triton; no GPU)."""

from __future__ import annotations

import importlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import spectralkernels
from spectralbench.fingerprint import sass
from spectralbench.fingerprint.occupancy import LIMITS, occupancy
from spectralbench.fingerprint.stored import Fingerprint
from spectralkernels.aot import MachineCode, NotedLaunch, compile_kernel, need_the_compiler, noted_launches
from spectralkernels.errors import RangeError
from spectralkernels.launch import NamedLaunch

CAPABILITIES = tuple(LIMITS)
_DECLARES = re.compile(r"^FINGERPRINTS\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Watched:
    """One launch of one kernel, ready to compile: `kernel` is its name in results, `launch` the declared one.

    noted: the launch by the compute capability that it is made for; tiles and kernels may depend on it.
    """

    kernel: str
    launch: str
    noted: Mapping[int, NotedLaunch]


def declaring_modules(package: ModuleType) -> list[ModuleType]:
    """The modules of `package` that assign FINGERPRINTS, wherever they are; no other module is imported for it."""
    found = []
    for folder in map(Path, package.__path__):
        for path in sorted(folder.rglob("*.py")):
            if _DECLARES.search(path.read_text(encoding="utf-8")):
                parts = path.relative_to(folder).with_suffix("").parts
                dotted = ".".join((package.__name__, *parts)).removesuffix(".__init__")
                found.append(importlib.import_module(dotted))
    return found


def watched_launches(package: ModuleType = spectralkernels) -> list[Watched]:
    """Every declared launch of every kernel, by kernel and name; a declared call may launch several kernels.

    Raises: RangeError if two declarations give one kernel the same launch name; Unsupported without a compiler.
    """
    need_the_compiler()
    found: dict[tuple[str, str], dict[int, NotedLaunch]] = {}
    for module in declaring_modules(package):
        declared: tuple[NamedLaunch, ...] = module.FINGERPRINTS
        for named, capability in itertools.product(declared, CAPABILITIES):
            with noted_launches(capability) as noted:
                named.call()
            times: dict[str, int] = {}
            for launch in noted:
                kernel = kernel_name(launch, package)
                times[kernel] = times.get(kernel, 0) + 1
                name = named.name if times[kernel] == 1 else f"{named.name} ({times[kernel]})"
                launches = found.setdefault((kernel, name), {})
                if capability in launches:
                    raise RangeError(f"{module.__name__} names a second launch of {kernel} {name!r}; rename one")
                launches[capability] = launch
    return [Watched(*key, found[key]) for key in sorted(found)]


def kernel_name(launch: NotedLaunch, package: ModuleType) -> str:
    """`spectralkernels.ops.masked_multiply.kernels.tiled_kernel` is known as `masked_multiply.tiled_kernel`."""
    function = launch.kernel.fn
    parts = function.__module__.removeprefix(f"{package.__name__}.").split(".")
    return ".".join([*(part for part in parts if part not in ("ops", "kernels")), function.__name__])


def choose(launches: Collection[Watched], kernels: Collection[str]) -> list[Watched]:
    """The launches of these kernels (none named: all). A name may stop short: `masked_multiply` means all of its.

    Raises: RangeError on a name that fits nothing, with the known ones.
    """
    known = sorted({watched.kernel for watched in launches})
    chosen: set[str] = set()
    for name in kernels:
        fitting = {kernel for kernel in known if kernel == name or kernel.startswith(f"{name}.")}
        if not fitting:
            raise RangeError(f"unknown kernel {name!r}; known: {', '.join(known)}")
        chosen |= fitting
    return [watched for watched in launches if not kernels or watched.kernel in chosen]


def check_capabilities(capabilities: Collection[int]) -> None:
    """RangeError if one of them has no known limits."""
    for capability in capabilities:
        if capability not in LIMITS:
            raise RangeError(f"unknown architecture {capability}; known: {', '.join(map(str, LIMITS))}")


def fingerprints(
    launches: Collection[Watched], capabilities: Collection[int], *, afresh: bool = False
) -> Iterator[Fingerprint]:
    """Compile each launch for each architecture, one at a time: 0.2 to 3 s each, less if Triton's cache has it.

    afresh: without that cache, so that compile_seconds are known.
    """
    check_capabilities(capabilities)
    for watched in launches:
        for capability in sorted({*capabilities} & {*watched.noted}):
            try:
                code = _compile(watched.noted[capability], capability, afresh)
            except Exception as error:
                error.add_note(f"while compiling {watched.kernel} ({watched.launch}) for sm_{capability}")
                raise
            yield fingerprint(watched.kernel, watched.launch, code)


def _compile(noted: NotedLaunch, capability: int, afresh: bool) -> MachineCode:
    from triton import knobs

    with knobs.compilation.scope() if afresh else nullcontext():
        if afresh:
            knobs.compilation.always_compile = True
        return compile_kernel(noted.kernel, noted.arguments, capability, **noted.options)


def fingerprint(kernel: str, launch: str, code: MachineCode) -> Fingerprint:
    """The fingerprint of machine code that is already there."""
    order = sass.sequence(code.instructions)
    opcodes = Counter(order)
    bound = occupancy(
        code.capability,
        num_warps=code.num_warps,
        registers=code.registers,
        shared=code.shared,
        tensor_memory=code.tensor_memory,
    )
    return Fingerprint(
        kernel=kernel,
        launch=launch,
        capability=code.capability,
        triton=code.triton,
        ptxas=code.ptxas,
        num_warps=code.num_warps,
        num_stages=code.num_stages,
        registers=code.registers,
        stack=code.stack,
        local=code.local,
        shared=code.shared,
        tensor_memory=code.tensor_memory,
        instructions=len(order),
        widest_load=max(sass.widths(opcodes, sass.GLOBAL_LOADS), default=0),
        widest_store=max(sass.widths(opcodes, sass.GLOBAL_STORES), default=0),
        resident_warps=bound.warps,
        limited_by=bound.limited_by,
        sass=sass.digest(sass.normalised(code.instructions)),
        order=sass.digest(order),
        opcodes=dict(sorted(opcodes.items())),
        ptx=code.ptx or None,
        compile_seconds=None if code.compile_seconds is None else round(code.compile_seconds, 2),
    )
