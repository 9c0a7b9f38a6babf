"""What an FFT of N takes a library on a CPU, by the primes of N, and the plan of it, which torch makes in every call.

Measured with torch 2.13 and MKL on one core of an AMD EPYC with AVX2, N from 243 to 33,075, of many rows at once: a row
of m = N / 2 complex numbers, or m = N where N is odd, takes 0.2 ns m log2 m where m is even and has no prime above 13,
0.45 where it is odd. A larger prime makes it a convolution on a circle of B >= 2 m - 1, a power of two, at 0.4 to
0.5 ns B log2 B. A plan takes 13 ns N, and 33 ns B beside them for such primes.

Between are the primes p from 17 to 47, that multiply a matrix. On one with AVX-512, m from 17 to 1700: beside 0.27 ns
m log2 m, 0.08 to 0.12 ns p m where 4 divides m, else 0.006 to 0.009 ns p^2 m: 3.0 ns m at 17, 17 ns m at 47.
"""

from __future__ import annotations

import math

from spectralkernels.constants import planned
from spectralkernels.spectra import next_pow2, next_smooth

SMOOTH, ROUGH = 13, 47
"""The largest prime that has a step of its own, and the largest that is multiplied by its matrix."""
ODD, CONVOLVED, CONVOLVED_PLAN = 2.1, 2.1, 2.5
"""Times of m log2 m over that of an even m without large primes; of B log2 B; of a plan's B over its N."""
ROUGH_BY_FOUR, ROUGH_SQUARED = 0.37, 0.028
"""Of p m where 4 divides m, and of p^2 m where it does not."""


def row(n: int, real: bool = True) -> float:
    """What the FFT of one row of N numbers takes, in units of m log2 m of the best kind; complex unless `real`."""
    m = _complex(n, real)
    primes = prime_factors(m)
    if primes[-1] > ROUGH:
        return CONVOLVED * _by_log(_circle(m))
    rough = sum(p * ROUGH_SQUARED * p if m % 4 else p * ROUGH_BY_FOUR for p in primes if p > SMOOTH)
    return (ODD if m % 2 else 1.0) * _by_log(m) + rough * m


def plan(n: int, real: bool = True) -> float:
    """What the plan for N takes, in units of N."""
    m = _complex(n, real)
    return n + (CONVOLVED_PLAN * _circle(m) if prime_factors(m)[-1] > ROUGH else 0.0)


@planned
def filter_circle(n: int, out: int) -> int:
    """Where to filter N real samples of which `out` are wanted: on N, or a circle for every lag, if that is faster."""
    lags = 4 * next_smooth(-(-(n + out - 1) // 4))
    return n if row(n) <= row(lags) else lags


def prime_factors(n: int) -> tuple[int, ...]:
    """The primes of n in order, each as often as it divides n; 1 of 1."""
    rest, prime, found = n, 2, []
    while prime * prime <= rest:
        while rest % prime == 0:
            rest //= prime
            found.append(prime)
        prime += 1
    return (*found, rest) if rest > 1 or not found else tuple(found)


def _complex(n: int, real: bool) -> int:
    return n // 2 if real and n % 2 == 0 else n


def _circle(m: int) -> int:
    return next_pow2(2 * m - 1)


def _by_log(m: int) -> float:
    return m * math.log2(max(2, m))
