"""Compile here what a rented GPU will launch, so that its minutes are spent on measuring.

Every kernel of ours is called as the sweep calls it, on CPU tensors, with its launches noted in the place of made; then
each different launch is compiled through Triton's own path for the other machine's architecture. The cubins serve
there under the same version of triton and python, whose files are part of the key of Triton's cache.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from spectralbench import calls, sweep
from spectralbench.gpu import correctness
from spectralbench.gpu.packing import pack_kernels
from spectralbench.gpu.targets import TARGETS, rank
from spectralkernels.aot import NotedLaunch, compiled_kernel, noted_launches
from spectralkernels.errors import Unsupported


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
        with noted_launches(capability) as noted, torch.set_grad_enabled(item.pass_ != "forward"):
            try:
                calls.rehearse(item.operation, item.case, implementation, inputs, item.pass_)
            except Unsupported:
                continue
        yield from noted


def compile_item(item: sweep.Item, capability: int) -> tuple[int, list[str]]:
    """Compile the launches of an item. Returns: how many there were, and the errors of those that do not compile."""
    failed = []
    count = 0
    try:
        for launch in launches(item, capability):
            count += 1
            try:
                compiled_kernel(launch.kernel, launch.arguments, capability, **launch.options)
            except Exception as error:
                failed.append(f"{item.label}: {launch.kernel.fn.__name__}: {type(error).__name__}: {error}"[:400])
    except Exception as error:
        failed.append(f"{item.label}: {type(error).__name__}: {error}"[:400])
    return count, failed


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
    total = 0
    failures: list[str] = []
    # A process per core: Triton compiles on one.
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for number, (count, failed) in enumerate(
            pool.map(_work, [(at, request, given.arch) for at in range(len(chosen))], chunksize=1), start=1
        ):
            total += count
            failures += failed
            print(f"{number}/{len(chosen)} {total} launches", *failed, sep="\n  ", file=sys.stderr, flush=True)
    kernels = pack_kernels(cache, given.out)
    print(f"{kernels} kernels of {total} launches: {given.out} ({given.out.stat().st_size} bytes)")
    return 1 if failures else 0


def _work(job: tuple[int, sweep.Request, int]) -> tuple[int, list[str]]:
    # Items hold functions, which do not travel between processes: each process plans for itself.
    at, request, capability = job
    torch.set_num_threads(1)
    return compile_item(_planned(request)[at], capability)


_PLANS: list[list[sweep.Item]] = []


def _planned(request: sweep.Request) -> list[sweep.Item]:
    if not _PLANS:
        _PLANS.append(items(request))
    return _PLANS[0]


if __name__ == "__main__":
    sys.exit(main())
