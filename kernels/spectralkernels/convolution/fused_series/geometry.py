"""Sizes of a fused convolution of series, and how its DFT is done: by one matrix, or in two stages with N = N1 N2.

Every split of N that fits a program is costed, with its padding, and so is the one matrix; the least cost wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.spectra import next_pow2
from spectralkernels.target import SHARED_LIMITS


@dataclass(frozen=True, slots=True)
class SeriesGeometry:
    """A stride-1 correlation on a circle: lengths of series, output and kernel, its first tap, N and k."""

    size: int
    out: int
    taps: int
    start: int
    n: int
    kept: int


@dataclass(frozen=True, slots=True)
class Digits:
    """The two stages of a DFT of N = n1 n2 samples, radix n1 and then radix n2, and powers of two that hold them.

    Sample l = n2 l1 + l2 is row l1 and column l2 of a matrix [n1, n2]. Frequency k = j + n1 q is found from a product
    over the rows l1, which leaves j, twiddle factors, and a product over the columns l2, which leaves q. The digits are
    chosen around zero, so that a real series needs one sign of each: 0 <= j <= n1 / 2 and q > 0 an odd multiple of 1/2.
    So that k stays whole, j is whole where n1 is even, else an odd multiple of 1/2 as well.

    lows, highs: how many j and how many q > 0 reach every kept frequency or its negative.
    j, u: tiles of `lows` and `highs`. rows_in, rows_out, rows_taps: tiles of the rows of series, output and kernel.
    block: columns that a program holds at once; chunks: how many blocks make a row.
    """

    n1: int
    n2: int
    lows: int
    highs: int
    j: int
    u: int
    rows_in: int
    rows_out: int
    rows_taps: int
    block: int
    chunks: int

    @property
    def width(self) -> int:
        """Columns of a row with its padding."""
        return self.block * self.chunks

    @property
    def warps(self) -> int:
        """One per 16 rows of a product, so that each finds the rows that it continues with in its own registers."""
        return min(8, 2 * self.j // 16)

    @property
    def kept_reals(self) -> int:
        """Reals that hold the kept spectrum of a series: four quadrants; 2 k and the rims of both digits."""
        return 4 * self.lows * self.highs

    @property
    def flops(self) -> int:
        """Arithmetic of one series there and back, padding included."""
        return 2 * 2 * self.j * self.width * (self.rows_in + self.rows_out + 4 * self.u)


@dataclass(frozen=True, slots=True)
class Whole:
    """A dense transform: kept frequencies in blocks of `f`, positions in blocks of `block`.

    kept_reals: reals that hold the kept spectrum of a series. frequencies: k up to the next block.
    """

    kept_reals: int
    frequencies: int
    f: int
    block: int

    def width(self, length: int) -> int:
        """Positions up to the next block."""
        return -(-length // self.block) * self.block


LARGEST_DENSE = 1024
"""Samples of series or output up to which one matrix is weighed: a longer one has megabytes, which every 64 series
read again."""


def whole(geometry: SeriesGeometry, precision: Precision) -> Whole | None:
    """The blocks of a dense transform, or None where its matrices are too large."""
    longest = max(geometry.size, geometry.out)
    if longest > LARGEST_DENSE:
        return None
    half = precision.operand.itemsize == 2
    f = 32 if half else 16
    return Whole(2 * geometry.kept, -(-geometry.kept // f) * f, f, 64 if half and longest > 32 else 32)


Form = Digits | Whole


def form(geometry: SeriesGeometry, precision: Precision) -> Form | None:
    """The cheaper of the two transforms that a program can hold, or None."""
    split, dense = digits(geometry, precision), whole(geometry, precision)
    if split is None or dense is None:
        return split or dense
    return dense if _dense_work(geometry, dense, precision) < _work(split, precision) else split


def chosen_form(geometry: SeriesGeometry, precision: Precision) -> Form:
    """The same where `supports` has found one."""
    found = form(geometry, precision)
    assert found is not None
    return found


@lru_cache(maxsize=256)
def digits(geometry: SeriesGeometry, precision: Precision) -> Digits | None:
    """The cheapest split of the circle that a program can hold, or None."""
    n = geometry.n
    splits = (_split(geometry, n1, n // n1, precision) for n1 in range(2, n // 2 + 1) if n % n1 == 0)
    found = [split for split in splits if split is not None]
    return min(found, key=lambda split: _work(split, precision), default=None)


LARGEST_ROWS = 128
"""Rows of a series, an output or a kernel: the inner side of a product."""

REGISTERS = 64
"""Registers per thread that a tile of 32-bit numbers may take: a product's, or the twiddles' where they are kept from
one series to the next."""

EASY_REGISTERS = 150
"""Registers per thread that the kernel's spectrum, one product with it and that product's split operands may take
together before the compiler moves some to memory."""

ROOM = min(SHARED_LIMITS.values())
"""Bytes of shared memory that a program may take, for all matrices and the next series, or for one matrix where not all
fit. Every GPU has as many; a large one has more than twice, so that two programs share a multiprocessor."""

CACHE_BYTE = 64
"""Half-precision operations in the time of a byte from the second-level cache. On an H200: 790 TFLOP/s at half of their
peak, over 5.5 TB/s."""


def _split(geometry: SeriesGeometry, n1: int, n2: int, precision: Precision) -> Digits | None:
    lows = n1 // 2 + 1
    # An even N keeps N/2 once, as a positive frequency.
    highs = -(-min(geometry.kept, (geometry.n + 1) // 2) // n1)
    j, u = max(8, next_pow2(lows)), max(8, next_pow2(highs))
    rows_in, rows_out, rows_taps = (
        max(16, next_pow2(-(-length // n2))) for length in (geometry.size, geometry.out, geometry.taps)
    )
    threads = 32 * min(8, 2 * j // 16)
    spectrum = 4 * j * u // threads
    if spectrum > (REGISTERS // 2 if wide(precision) else REGISTERS) or (wide(precision) and j > 64):
        # Beyond that, the parts of split operands also leave the tensor memory of sm_100.
        return None
    if max(rows_in, rows_out, rows_taps) > LARGEST_ROWS:
        return None
    whole = max(16, next_pow2(n2))
    size = precision.pieces * precision.piece_size
    low, series = 2 * j * (rows_in + rows_out), (rows_in + 2 * j) * whole
    twiddles = REGISTERS if precision.operand.itemsize == 2 else REGISTERS // 2
    if 2 * j * whole <= twiddles * threads and size * (low + 4 * u * whole + series) <= ROOM:
        return Digits(n1, n2, lows, highs, j, u, rows_in, rows_out, rows_taps, whole, 1)
    block = 16 if spectrum > REGISTERS // 2 or precision.mode == "ieee" or whole == 32 else 32
    if n2 <= block or 2 * j * block > REGISTERS * threads or size * 2 * j * max(rows_in, rows_out, rows_taps) > ROOM:
        return None
    return Digits(n1, n2, lows, highs, j, u, rows_in, rows_out, rows_taps, block, -(-n2 // block))


def wide(precision: Precision) -> bool:
    """Whether products take more registers than their operands: split ones do, and those without tensor cores."""
    return precision.pieces > 1 or precision.mode == "ieee"


def _passes(precision: Precision) -> int:
    """The time of a product, in half-precision ones."""
    if precision.operand.itemsize == 2:
        return 1
    return {"tf32": 2, "bf16x3": 3, "bf16x6": 6, "tf32x3": 6, "ieee": 12}[precision.mode]


def _work(split: Digits, precision: Precision) -> float:
    """What a series costs, in half-precision operations."""
    itemsize = precision.operand.itemsize
    # Rows that do not begin on 16 bytes are loaded in narrower pieces.
    work = split.flops * _passes(precision) * (1.0 if split.n2 % 8 == 0 else 1.15)
    if split.chunks > 1:
        low, high = 2 * split.j * (split.rows_in + split.rows_out), 4 * split.u * split.width
        work += CACHE_BYTE * (itemsize * (low + high) + 4 * 4 * split.j * split.width)
    spectrum = 4 * split.j * split.u // (32 * split.warps)
    left = 2 * split.j * split.rows_out // (32 * min(split.warps, split.rows_out // 16)) * itemsize // 4
    return work * max(1.0, (spectrum * (1 + precision.pieces) + left * precision.pieces) / EASY_REGISTERS)


SHARING = 64
"""Series that share a pass over dense matrices."""


def _dense_work(geometry: SeriesGeometry, tile: Whole, precision: Precision) -> float:
    """What a series costs, in half-precision operations; the matrices come from the cache once per program."""
    lengths = tile.width(geometry.size) + tile.width(geometry.taps) + tile.width(geometry.out)
    reals = 2 * tile.frequencies * lengths
    return 2 * reals * _passes(precision) + CACHE_BYTE * precision.operand.itemsize * reals / SHARING
