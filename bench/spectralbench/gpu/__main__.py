"""`python3 -m spectralbench.gpu`: options to a run. Plain argparse, because nothing but torch may be installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Check and measure everything on this machine's CUDA device, without installing anything.

Five stages, in this order:
  correctness  every implementation against its float64 reference, on the device, several processes at once
  ceilings     copy and L2 bandwidth, matrix products in bf16, fp16, TF32 and fp32, the empty launch; after it
               the tests marked cuda, where pytest is installed
  timing       the gpu profile: the rows with targets first, CUDA graphs before eager launches, warm and cold L2 cache
  memory       saved bytes, peak allocated and reserved, and what the driver sees, in processes of their own
  summary      every target: our best in its accuracy class, each rival, ratio, met or not; the rows we lose

Every stage leaves its files in the folder the moment it is done, and none goes beyond its share of the time. Run the
same command again to go on: what is stored is not measured again. A kernel of ours that gives a wrong answer is
not timed; the summary says why. Records lie in records/<machine>/ and can be copied to results/records/.
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
    made.add_argument("--processes", type=int, metavar="N", help="how many processes check at once (default by device)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print the summary to stdout; talk goes to stderr. Returns: the exit code."""
    given = parser().parse_args(arguments)
    from spectralbench import sweep
    from spectralbench.gpu.budget import Budget
    from spectralbench.gpu.pipeline import Run
    from spectralbench.journal import JournalError
    from spectralkernels.errors import RangeError

    try:
        run = Run(
            out=given.out.resolve(),
            device=sweep.choose_device(given.device),
            budget=Budget(given.time_budget),
            operations=tuple(given.only),
            commit=given.commit,
            processes=given.processes,
        )
        text, failed = run.all_stages()
    except RangeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JournalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on: {given.out}", file=sys.stderr)
        return 130
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
