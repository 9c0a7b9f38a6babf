"""`python3 -m spectralbench.gpu`: options to a run. Plain argparse, because nothing but torch may be installed."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from spectralbench.gpu import packing
from spectralbench.gpu.talk import say

DESCRIPTION = """\
Check and measure everything on this machine's CUDA device, without installing anything.

Stages, in this order:
  ceilings     copy and L2 bandwidth, matrix products in bf16, fp16, TF32 and fp32, the empty launch
  targets      the rows with targets in CUDA graphs, warm and cold L2 cache; each case is checked once and then timed
  memory       saved bytes, peak allocated and reserved, and what the driver sees, in processes of their own
  correctness  every implementation against its float64 reference on small cases, several processes at once
  replicates   the targets again, in two more processes
  breadth      everything else, eager launches, torch.compile, more replicates
  tests        with --tests: the tests marked cuda, where pytest is installed
  summary      every target: our best in its accuracy class, each rival, ratio, met or not; the rows we lose

Every stage leaves its files in the folder the moment it is done, and none goes beyond its share of the time. Run the
same command again to go on: what is stored is not measured again. A kernel of ours that gives a wrong answer is
not timed; the summary says why. Records lie in records/<machine>/ and can be copied to results/records/.

On a rented machine: --kernels takes what `python3 -m spectralbench.gpu.precompile` has compiled elsewhere, --pack
leaves everything in one file, and --resume-from goes on from it on the next machine.
"""

EPILOG = """\
Exit codes: 0 fine, 1 a check or a test failed, 2 usage, 130 interrupted.
On a machine without a CUDA device, `--device cpu` runs the same stages over small cases, as a rehearsal.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python3 -m spectralbench.gpu",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    made.add_argument(
        "--time-budget", type=float, default=540.0, metavar="SECONDS", help="for all stages together (default 540)"
    )
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a rehearsal (default cuda)")
    made.add_argument(
        "--commit", metavar="SHA", help="the commit of this tree, where git is not at hand to say; marked as given"
    )
    made.add_argument("--only", nargs="+", default=(), metavar="OPERATION", help="only these operations (default all)")
    made.add_argument(
        "--resume-from", type=Path, metavar="FILE", help="unpack this file of --pack first, if it is there"
    )
    made.add_argument(
        "--kernels", nargs="+", type=Path, default=(), metavar="FILE", help="compiled kernels for Triton's cache"
    )
    made.add_argument("--pack", type=Path, metavar="FILE", help="pack the folder into this file at the end")
    made.add_argument(
        "--pack-kernels", type=Path, metavar="FILE", help="pack the kernels that were compiled here into this file"
    )
    made.add_argument("--tests", action="store_true", help="run the tests marked cuda, too, last")
    made.add_argument("--processes", type=int, metavar="N", help="how many processes check at once (default by device)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print the summary to stdout; talk goes to stderr. Returns: the exit code."""
    given = parser().parse_args(arguments)
    cache = Path(os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "spectralbench-kernels")))
    # Measuring processes share the machine with each other; what they time runs on the device.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    out = given.out.resolve()
    notes = []
    for archive in (given.resume_from, *given.kernels):
        if archive and archive.is_file():
            try:
                if archive == given.resume_from:
                    packing.unpack(archive, out)
                else:
                    say(f"{packing.unpack_kernels(archive, cache)} compiled kernels of {archive} in {cache}")
            except (packing.Damaged, OSError) as error:
                # A machine that is paid by the minute goes on with what it has.
                notes.append(f"{archive} is not used further: {error}")
        elif archive:
            notes.append(f"there is no {archive}")
    known = packing.entries(cache)
    code = 1
    try:
        code = _measure(given, out, notes)
    finally:
        code = max(code, _packed(given, out, cache, known))
    return code


def _packed(given: argparse.Namespace, out: Path, cache: Path, known: set[str]) -> int:
    """Leave the files that were asked for. Returns: 1 if one could not be written."""
    archive = given.pack
    try:
        if archive:
            packing.pack(out, archive)
        archive = given.pack_kernels
        if archive:
            say(f"{packing.pack_kernels(cache, archive, known)} kernels were compiled here: {archive}")
    except OSError as error:
        print(f"error: cannot write {archive}: {error.strerror or error}; {out} has the records", file=sys.stderr)
        return 1
    return 0


def _measure(given: argparse.Namespace, out: Path, notes: list[str]) -> int:
    from spectralbench import sweep
    from spectralbench.gpu.budget import StageBudget
    from spectralbench.gpu.pipeline import Stages
    from spectralbench.journal import JournalError
    from spectralkernels.errors import RangeError

    try:
        run = Stages(
            out=out,
            device=sweep.choose_device(given.device),
            budget=StageBudget(given.time_budget),
            operations=tuple(given.only),
            commit=given.commit,
            processes=given.processes,
            tests=given.tests,
            notes=notes,
        )
        text, failed = run.all_stages()
    except RangeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JournalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or out
        print(f"error: {where}: {error.strerror or error}; what was stored is whole, run again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on: {out}", file=sys.stderr)
        return 130
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
