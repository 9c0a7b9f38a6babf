"""The accuracy classes of the fused convolution of series, emulated in torch, and the digits of its circles.

Each stated bound holds and is not loose; every kept frequency is reached once.
"""

from __future__ import annotations

import random

import pytest
import torch
from guarded_interpreter import relative_error
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.fused.precision import PRECISIONS, UNSCALED, Precision, precision
from spectralkernels.convolution.fused_series import geometry_of
from spectralkernels.convolution.fused_series.dense import matrices as dense
from spectralkernels.convolution.fused_series.geometry import Digits, SeriesGeometry, Whole, digits, form, whole
from spectralkernels.convolution.fused_series.two_level import matrices as two_level
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.tf32 import round_to_tf32

CPU = torch.device("cpu")


def split_of(geometry: SeriesGeometry, name: str) -> Digits | None:
    return digits(geometry, precision(name))


# --- what the tensor cores compute, written in torch ----------------------------------------------------------------


def pieces(operand: Tensor, chosen: Precision) -> list[Tensor]:
    """An operand as the sum of numbers that the class multiplies, the largest first."""
    if chosen.mode == "ieee":
        return [operand]
    found, rest = [], operand
    for _ in range(chosen.pieces):
        if chosen.operand != torch.float32:
            piece = rest.to(chosen.operand).float()
        else:
            piece = rest.bfloat16().float() if chosen.mode.startswith("bf16") else round_to_tf32(rest)
        found.append(piece)
        rest = rest - piece
    return found


def product(a: Tensor, b: Tensor, chosen: Precision) -> Tensor:
    """A matrix product on operands rounded as the class rounds them, summed without error, rounded to float32."""
    left, right = pieces(a.float(), chosen), pieces(b.float(), chosen)
    terms = (x.double() @ y.double() for i, x in enumerate(left) for j, y in enumerate(right) if i + j < chosen.pieces)
    return sum(terms, torch.zeros((), dtype=torch.float64)).float()


def rows_of(series: Tensor, split: Digits, rows: int) -> Tensor:
    """[..., length] -> [..., rows, width], zeros around it."""
    filled = torch.nn.functional.pad(series, (0, rows * split.n2 - series.shape[-1]))
    return torch.nn.functional.pad(filled.unflatten(-1, (rows, split.n2)), (0, split.width - split.n2))


def twiddled(rows: Tensor, twiddle: Tensor, split: Digits, back: bool) -> Tensor:
    parts = rows.unflatten(-2, (split.j // 8, 2, 8))
    numbers = torch.complex(parts[..., 0, :, :], parts[..., 1, :, :])
    wheel = torch.complex(twiddle[0], twiddle[1]).unflatten(0, (split.j // 8, 8))
    numbers = numbers * (wheel if back else wheel.conj())
    return torch.stack([numbers.real, numbers.imag], -3).flatten(-4, -2)


def signed(z: Tensor, split: Digits) -> Tensor:
    """z [..., 2 J, 2 U] -> complex [..., 2, J, U]: the frequencies j + n1 q and j - n1 q."""
    parts = z.unflatten(-2, (split.j // 8, 2, 8)).unflatten(-1, (2, split.u))
    parts = parts.movedim(-4, 0).movedim(-2, 0).flatten(-3, -2)  # [cos or sin, re or im, ..., J, U]
    (cc, sc), (cs, ss) = parts
    return torch.stack([torch.complex(cc + ss, sc - cs), torch.complex(cc - ss, sc + cs)], -3)


def stacked(numbers: Tensor, split: Digits) -> Tensor:
    """The inverse of `signed`."""
    plus, minus = numbers.unbind(-3)
    both, differ = (plus + minus) / 2, (plus - minus) / 2
    quadrants = torch.stack([torch.stack([both.real, both.imag]), torch.stack([-differ.imag, differ.real])])
    parts = quadrants.unflatten(-2, (split.j // 8, 8)).movedim(1, -3).movedim(0, -2)
    return parts.flatten(-2, -1).flatten(-4, -2)


def band_mask(geometry: SeriesGeometry, split: Digits) -> Tensor:
    """Bool [2, J, U], from the frequencies themselves."""
    j = torch.arange(split.j) + (0.5 if split.n1 % 2 else 0.0)
    q = torch.arange(split.u) + 0.5
    reach = split.n1 * q
    frequency = torch.stack([j[:, None] + reach, j[:, None] - reach])
    return (frequency.abs() < geometry.kept) & (2 * frequency != -geometry.n)


def emulated_in_digits(x: Tensor, weight: Tensor, geometry: SeriesGeometry, split: Digits, chosen: Precision) -> Tensor:
    made = two_level.matrices(geometry, split, chosen, CPU)

    def analysed(rows: Tensor, low: Tensor, high: Tensor, twiddle: Tensor) -> Tensor:
        return product(twiddled(product(low, rows, chosen), twiddle, split, False), high.mT, chosen)

    z = analysed(rows_of(x, split, split.rows_in), made.low_in, made.high, made.twiddle)
    w = analysed(rows_of(weight[:, 0], split, split.rows_taps), made.low_taps, made.high_taps, made.twiddle_taps)
    y = stacked(signed(z, split) * signed(w, split).conj() * band_mask(geometry, split), split)
    rows = twiddled(product(y, made.high_back.mT, chosen), made.twiddle, split, True)
    out = product(made.low_out_back, rows, chosen)[..., : split.n2].flatten(-2, -1)
    return out[..., : geometry.out]


def emulated_whole(x: Tensor, weight: Tensor, geometry: SeriesGeometry, tile: Whole, chosen: Precision) -> Tensor:
    made = dense.matrices(geometry, tile, chosen, CPU)

    def analysed(series: Tensor, matrix: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(series, (0, matrix.shape[1] - series.shape[-1]))
        return torch.view_as_complex(product(padded, matrix.mT, chosen).unflatten(-1, (-1, 2)))

    y = analysed(x, made.analyse_in) * analysed(weight[:, 0], made.analyse_taps).conj()
    return product(torch.view_as_real(y).flatten(-2, -1), made.synthesise_out.mT, chosen)[..., : geometry.out]


@pytest.mark.parametrize("name", UNSCALED)
@pytest.mark.parametrize(
    ("length", "taps", "compression", "grid"),
    [
        (270, 5, 0.5, "tight"),
        (1024, 31, 0.5, "fast"),
        (1024, 31, 0.0, 1088),
        (4096, 5, 0.5, 4160),
        (13, 3, 0.0, "tight"),
    ],
)
def test_emulated_rounding_is_within_the_class(
    seed: int, name: str, length: int, taps: int, compression: float, grid: str | int
):
    geometry = geometry_of(band := conv_band((length,), (taps,), compression=compression, grid=grid))
    # Channels enough that a kernel which the band cancels does not decide alone.
    x = feature_map(random.Random(seed).choice(("white", "pink")), (1, 16, length), seed)
    weight, chosen = he_kernel((16, 1, taps), seed), PRECISIONS[name]
    wanted = reference(x, weight, None, band, 16)
    split, tile = split_of(geometry, name), whole(geometry, chosen)
    found = [emulated_in_digits(x, weight, geometry, split, chosen)] if split else []
    found += [emulated_whole(x, weight, geometry, tile, chosen)] if tile else []
    assert found
    for y in found:
        error = relative_error(y, wanted)
        assert error <= PRECISIONS[name].error / 1.5
        # The class is the one it is named after and not, by mistake, a finer one.
        coarse = {"tf32": 1e-4, "fp16": 1e-4, "bf16": 1e-3, "bf16x3": 5e-7}
        assert error > coarse.get(name, 1e-8)


def test_half_precision_does_not_overflow_at_the_mean():
    """The mean's mode is sqrt(N) times the mean, 6450 here, and the kernel's sum times that."""
    geometry = geometry_of(band := conv_band((4096,), (5,), compression=0.5, grid=4160))
    x, weight, chosen = 100 + torch.randn(1, 2, 4096), 0.8 + 0.1 * torch.randn(2, 1, 5), PRECISIONS["fp16"]
    split = split_of(geometry, "fp16")
    assert split is not None
    y = emulated_in_digits(x, weight, geometry, split, chosen)
    assert relative_error(y, reference(x, weight, None, band, 2)) <= chosen.error


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [6, 9, 12, 15, 16, 35, 48, 98, 100, 272, 1029])
def test_digits_reach_every_kept_frequency_once(n: int, compression: float):
    """Both signs together, each with the weight of the way back: every |f| < k of the circle exactly once."""
    geometry = geometry_of(conv_band((n,), (1,), compression=compression))
    split = split_of(geometry, "tf32x3")
    assert split is not None and split.n1 * split.n2 == n
    mask = band_mask(geometry, split)
    times: dict[int, float] = {}
    for sign, i, u in mask[:, : split.lows, : split.highs].nonzero().tolist():
        twice_j = 2 * i + split.n1 % 2
        frequency = (twice_j + (1 - 2 * sign) * split.n1 * (2 * u + 1)) // 2
        rims = twice_j in (0, split.n1)
        for reached in (frequency,) if rims else (frequency, -frequency):
            times[reached % n] = times.get(reached % n, 0) + 1
    wanted = {f % n for f in range(-geometry.kept + 1, geometry.kept)}
    assert times == dict.fromkeys(wanted, 1)
    assert not mask[:, : split.lows, split.highs :].any()


def test_a_prime_circle_has_no_digits_and_a_long_one_no_whole():
    short, long = (geometry_of(conv_band((n,), (1,), compression=0.5)) for n in (103, 4093))
    assert split_of(short, "bf16") is None and form(short, precision("bf16")) == whole(short, precision("bf16"))
    assert split_of(long, "bf16") is None and form(long, precision("bf16")) is None


@pytest.mark.parametrize("name", UNSCALED)
def test_long_series_take_digits_and_short_ones_the_cheaper(name: str):
    long = geometry_of(conv_band((4096,), (31,), compression=0.5, grid=4160))
    assert isinstance(form(long, precision(name)), Digits)
    short = geometry_of(conv_band((17,), (3,), compression=0.5))
    assert isinstance(form(short, precision(name)), Whole)


def test_the_turns_and_matrices_outside_the_digits_are_zero():
    geometry = geometry_of(conv_band((90,), (7,), compression=0.4, grid=99))
    split = split_of(geometry, "tf32x3")
    assert split is not None
    made = two_level.matrices(geometry, split, precision("tf32x3"), CPU)
    low = made.low_in.unflatten(0, (split.j // 8, 2, 8)).transpose(0, 1).flatten(1, 2)
    assert low[:, : split.lows].any() and not low[:, split.lows :].any()
    high = made.high.unflatten(0, (2, split.u))
    assert not high[:, split.highs :].any() and not high[..., split.n2 :].any()
    assert not made.twiddle[:, split.lows :].any() and not made.twiddle[..., split.n2 :].any()
