"""Compile here what a rented GPU will launch, so that its minutes are spent on measuring.

Every kernel of ours is called as the sweep calls it, on CPU tensors, with its launches noted in the place of made; then
each different launch is compiled through Triton's own path for the other machine's architecture. The cubins serve
there under the same version of triton and python (see `packing`). Run it again with the same TRITON_CACHE_DIR to see
what an edit has moved: the last line says how many launches were not in the cache yet.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from spectralbench import calls, sweep
from spectralbench.gpu import correctness, kernels, launchers
from spectralbench.gpu.packing import pack_kernels
from spectralbench.gpu.targets import TARGETS, rank
from spectralkernels.aot import NotedLaunch, compiled_kernel, noted_launches
from spectralkernels.errors import Unsupported
from spectralkernels.launch import cpu_stands_for_gpu


def items(request: sweep.Request) -> list[sweep.Item]:
    """What is launched in the first minutes: the rows with targets, then the small cases of the correctness stage."""
    promised = [
        item
        for item in sweep.plan(replace(request, profile="gpu", processes=1))
        if rank(item.operation.name, item.case, item.pass_) < len(TARGETS)
    ]
    return [*promised, *sweep.plan(correctness.checks(request))]


def launches(item: sweep.Item, capability: int) -> Iterator[NotedLaunch]:
    """Every launch that the kernels of an item make on a GPU of this capability, gradients too."""
    inputs = item.operation.make_inputs(item.case, "cpu")
    for name in item.implementations:
        implementation = item.operation.subject(name)
        if implementation.engine != "triton":
            continue
        with noted_launches(capability) as noted, _as_on_a_gpu(), torch.set_grad_enabled(item.pass_ != "forward"):
            try:
                calls.rehearse(item.operation, item.case, implementation, inputs, item.pass_)
            except Unsupported:
                continue
        yield from noted


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Tensors on the CPU take the kernels; new memory is zero, because what no launch fills may be read as a size."""
    empty = torch.empty
    torch.empty = lambda *size, **options: empty(*size, **options).zero_()
    cpu_stands_for_gpu[0] = True
    try:
        yield
    finally:
        cpu_stands_for_gpu[0] = False
        torch.empty = empty


@dataclass(slots=True)
class Compiled:
    """What became of launches. asked: how many there were. new: how many of them the cache did not hold. failed: the
    errors of those that do not compile."""

    asked: int = 0
    new: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, other: Compiled) -> None:
        self.asked += other.asked
        self.new += other.new
        self.failed += other.failed


def compile_launches(label: str, wanted: Iterable[NotedLaunch], capability: int) -> Compiled:
    """Compile launches, and what Triton builds to make them."""
    from triton import knobs

    done = Compiled()

    def listen(*, cache_hit: bool, **rest: Any) -> None:
        done.new += not cache_hit

    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        for launch in wanted:
            done.asked += 1
            try:
                kernel = compiled_kernel(launch.kernel, launch.arguments, capability, **launch.options)
                launchers.build(kernel)
            except Exception as error:
                done.failed.append(f"{label}: {launch.kernel.fn.__name__}: {type(error).__name__}: {error}"[:400])
    except Exception as error:
        done.failed.append(f"{label}: {type(error).__name__}: {error}"[:400])
    finally:
        knobs.compilation.listener = before
    return done


def ceiling(capability: int) -> list[NotedLaunch]:
    """The launch by which the bandwidth of the L2 cache is measured."""
    with noted_launches(capability) as noted:
        kernels.read(torch.empty(kernels.BLOCK * 16), torch.empty(16))
    return noted


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and pack. Returns: the exit code, 1 if something did not compile."""
    options = argparse.ArgumentParser(prog="python3 -m spectralbench.gpu.precompile", description=__doc__)
    options.add_argument("--out", type=Path, required=True, metavar="FILE", help="packed kernels (.tgz)")
    options.add_argument("--arch", type=int, default=90, help="compute capability, 90 for sm_90 (default)")
    options.add_argument("--only", nargs="+", default=(), metavar="OPERATION", help="only these operations")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options.add_argument("--limit", type=int, metavar="N", help="only the first N cases (default all)")
    given = options.parse_args(arguments)
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="kernels-")
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    request = sweep.Request(operations=tuple(given.only), device="cpu", processes=1)
    chosen = items(request)[: given.limit]
    launchers.stand_in(cache / "libcuda")
    done = compile_launches("ceilings", ceiling(given.arch), given.arch)
    # A process per core: Triton compiles on one.
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [(at, request, given.arch, cache) for at in range(len(chosen))]
        for number, one in enumerate(pool.map(_work, jobs, chunksize=1), start=1):
            done.add(one)
            text = f"{number}/{len(chosen)} {done.asked} launches, {done.new} compiled now"
            print(text, *one.failed, sep="\n  ", file=sys.stderr, flush=True)
    packed = pack_kernels(cache, given.out)
    size = given.out.stat().st_size
    print(f"{packed} kernels of {done.asked} launches, {done.new} compiled now: {given.out} ({size} bytes)")
    return 1 if done.failed else 0


def _work(job: tuple[int, sweep.Request, int, Path]) -> Compiled:
    # Items hold functions, which do not travel between processes: each process plans for itself.
    at, request, capability, cache = job
    torch.set_num_threads(1)
    launchers.stand_in(cache / "libcuda")
    item = _planned(request)[at]
    return compile_launches(item.label, launches(item, capability), capability)


_PLANS: list[list[sweep.Item]] = []


def _planned(request: sweep.Request) -> list[sweep.Item]:
    if not _PLANS:
        _PLANS.append(items(request))
    return _PLANS[0]


if __name__ == "__main__":
    sys.exit(main())
