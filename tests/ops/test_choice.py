"""What auto takes: the least estimated time among those that serve, within the memory of torch.fft."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
from effort import draws

from spectralkernels import weight_spectrum
from spectralkernels.convolution import choice, estimates, ffts, fitted_avx2, fitted_avx512, library
from spectralkernels.convolution.choice import auto, candidates, fastest, matrices_are_light
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.estimates import seconds, work
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.library import MOST_ZEROS
from spectralkernels.convolution.sizes import LANES, Sizes
from spectralkernels.masks import fft_grid, mode_list, radial
from spectralkernels.ops.masked_conv2d.choice import mask_sizes

NAMES = ("torch_fft", "torch_fft_fast", "dft_gemm", "dft_native", "direct", "direct_converted", "direct_lowpass")


ESTIMATED = choice._estimated.__wrapped__


def random_sizes(chance: random.Random) -> Sizes:
    axes, groups = chance.choice([1, 2]), chance.choice([1, 1, 2, 5])
    inputs, outputs = chance.choice([1, 1, 3, 40]), chance.choice([1, 1, 3, 40])
    size = tuple(chance.randint(1, 900) for _ in range(axes))
    kernel = tuple(chance.choice([1, 2, 9, 11, 60]) for _ in range(axes))
    band = conv_band(size, kernel, compression=chance.choice([0.0, 0.3, 0.9]))
    return Sizes(chance.randint(0, 40), inputs * groups, outputs * groups, groups, band, chance.choice([4, 8]))


def given(table: Mapping[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """These seconds for every call, none of them remembered."""
    monkeypatch.setattr(estimates, "seconds", lambda name, sizes, training=False: table[name])
    monkeypatch.setattr(choice, "_estimated", ESTIMATED)


def test_every_unit_of_work_has_seconds(seed: int):
    chance = random.Random(seed)
    for _ in range(400):
        sizes = random_sizes(chance)
        for name in NAMES:
            for training in (False, True):
                assert 0.0 < seconds(name, sizes, training) < float("inf")


@pytest.mark.parametrize("fitted", [fitted_avx2, fitted_avx512])
def test_no_unit_pays_for_being_done(fitted: ModuleType):
    for table in (fitted.FORWARD, fitted.FORWARD_AND_BACKWARD):
        assert all(taken >= 0.0 for units in table.values() for taken in units.values())
        assert all(units["call"] > 0.0 for units in table.values())
        assert {name: set(units) for name, units in table.items()} == {
            name: set(units) for name, units in fitted.FORWARD.items()
        }


def test_work_is_counted_as_by_hand():
    """2 maps of 3 -> 5 channels, 8 x 6, K = 3, all of the 9 x 7 circle: 6, 15 and 10 planes, 9 * 4 modes."""
    sizes = Sizes(2, 3, 5, 1, conv_band((8, 6), (3, 3), compression=0.0))
    assert sizes.planes == (6, 15, 10) and sizes.modes == 36
    ffts = work("torch_fft", sizes)
    assert ffts["number"] == ffts["second_axis"] == 31 * 63
    assert (ffts["mode"], ffts["gemm"], ffts["product"]) == (31 * 36, 36, 2 * 5 * 3 * 36)
    # Rows of 7 numbers, of which odd counts are complex, then 4 columns of 9.
    assert ffts["fft"] == pytest.approx(31 * 9 * 2.1 * 7 * math.log2(7))
    assert ffts["second_fft"] == pytest.approx(31 * 4 * 2.1 * 9 * math.log2(9))
    assert ffts["plan"] == 3 * (9 + 7)
    lanes = LANES  # 8 or 16
    # 3 inputs as they are, 5 outputs as one register; 8 rows by 3 of taps, of which two fall on padding, 6 samples by 3
    sums = work("direct", sizes)
    assert sums["narrow_few_channels"] == 2 * 2 * 3 * lanes * (8 * 3 - 2) * 6 * 3
    assert (sums["number"], sums["in_lanes"], sums["groups_in_lanes"]) == (16 * 48, 2 * (3 + lanes) * 48, 0)
    assert work("direct_converted", sizes)["in_lanes"] == 0 and "padded" not in sums
    assert work("direct_lowpass", sizes)["narrow_few_channels"] == 2 * 2 * 3 * lanes * 9 * 7 * 9
    both = work("direct", sizes, training=True)  # of 3 to 5 channels, and of 5 to 3
    assert both["narrow_few_channels"] == 2 * 2 * (3 + 5) * lanes * (8 * 3 - 2) * 6 * 3
    assert (both["number"], both["call"]) == (2 * 16 * 48, 2)
    assert work("torch_fft", sizes, training=True) == ffts
    wide = Sizes(2, 4, 4, 4, conv_band((8, 6), (3, 2 * MOST_ZEROS + 3), compression=0.0))
    assert work("direct", wide)["groups_in_lanes"] == 2 * 2 * lanes * 48
    assert work("dft_gemm", sizes)["map"] == (32 + 32) * (4 * 48 * 4 + 8 * 8 * 36)  # 6 and 10 planes, as slow as 32
    # 2 planes of x, 3 of the weight and 2 of y in lanes; per plane its numbers, its columns and its modes.
    native = work("dft_native", sizes)
    assert native["map"] == lanes * (4 * (2 * 48 * 4 + 4 * 8 * 4 * 5) + 3 * (2 * 9 * 4 + 4 * 3 * 4 * 5))
    assert native["pass"] == lanes * (4 * (48 + 2 * 8 * 4) + 3 * (9 + 2 * 3 * 4) + 7 * 2 * 36)
    assert (native["product"], native["block"]) == (2 * 3 * lanes * 36, 3 * lanes * 36)


def test_series_are_transformed_in_pairs():
    """3 series of 3 -> 1 channels, K = 5: 4 of each channel of x and y, 4 of the 3 planes of the weight."""
    sizes = Sizes(3, 3, 1, 1, conv_band((20,), (5,), compression=0.0))
    assert work("dft_native", sizes)["map"] == 2 * sizes.band.columns * LANES * (4 * 20 + 4 * 5 + 4 * 20)
    lanes = Sizes(3, LANES, LANES, LANES, conv_band((20,), (5,), compression=0.0))  # two samples, then one twice
    assert work("dft_native", lanes)["lane_map"] == 2 * lanes.band.columns * LANES * (4 * 20 + 2 * 5 + 4 * 20)


def test_a_weight_is_transformed_for_every_part_of_a_batch():
    one, many = (Sizes(batch, 1, 16, 1, conv_band((90, 90), (7, 7), compression=0.0)) for batch in (8, 32))
    assert 1 << 20 < 9 * 4 * LANES * one.modes, "the sums of nine rows do not fit"
    maps = work("dft_native", one)["map"], work("dft_native", many)["map"]
    assert maps[1] == 4 * maps[0]


@pytest.mark.parametrize("short", [False, True])
def test_zeros_that_are_laid_first_are_counted(short: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "SHORT_REGISTERS", short)
    for groups, taps, laid in ((1, 7, False), (1, 9, short), (1, 21, True), (4, 9, short), (32, 21, short)):
        sums = work("direct", Sizes(2, 32, 32, groups, conv_band((8, 40), (3, taps), compression=0.0)))
        assert ("padded" in sums) == laid
        if laid:
            assert (sums["padded"], sums["padded_row"]) == (64 * 10 * (40 + taps - 1), 64 * 10)


def test_groups_that_fill_no_register_are_matrices():
    """Three channels a group are multiplied as matrices; eight fill a register, or half of one."""
    band = conv_band((8, 6), (3, 3), compression=0.0)
    odd, filled = (work("direct", Sizes(2, 2 * c, 2 * c, 2, band)) for c in (3, 8))
    assert odd["grouped_product"] == 2 * 2 * 2 * 9 * 48 * 9 and odd["grouped_column"] == 2 * 6 * 48 * 9
    assert odd["group"] == 4 and not {"reorder", "groups_in_lanes"} & set(odd)
    assert filled["parted" if LANES == 16 else "grouped"] == 2 * 2 * 2 * 8 * LANES * 22 * 18
    assert filled["groups_in_lanes"] == 2 * 32 * 48 and "grouped_product" not in filled
    converted = work("direct_converted", Sizes(2, 6, 6, 2, band))
    assert converted["turned"] == 2 * 12 * 48 and converted["grouped"] == 2 * 2 * 2 * 3 * LANES * 22 * 18
    assert work("direct_converted", Sizes(2, 1, 1, 1, band))["turned"] == 0  # one channel lies in both layouts


def test_one_tap_is_multiplied_by_torch_or_by_the_library():
    band = conv_band((8, 6), (1, 1), compression=0.0)
    few, many, groups = (work("direct", Sizes(*sizes, band)) for sizes in ((15, 3, 5, 1), (16, 3, 5, 1), (16, 6, 6, 2)))
    assert few["pointwise"] == 2 * 15 * 15 * 48 and few["pointwise_group"] == 0 and "reorder" not in few
    assert many["pointwise_kernel"] == 2 * 16 * 48 * LANES * LANES and "pointwise" not in many
    assert groups["pointwise_grouped"] == 2 * 16 * 18 * 48 and groups["group"] == 32


@pytest.mark.parametrize(
    ("n", "real", "row", "plan"),
    [
        (1, True, ffts.ODD, 1),
        (2048, True, 1024 * 10, 2048),
        (2048, False, 2048 * 11, 2048),
        (54, True, ffts.ODD * 27 * math.log2(27), 54),  # half of it is odd
        (68, True, 34 * math.log2(34) + ffts.ROUGH_SQUARED * 17**2 * 34, 68),  # 17 and 2
        (136, True, 68 * math.log2(68) + ffts.ROUGH_BY_FOUR * 17 * 68, 136),  # 17 and 4
        (47, True, ffts.ODD * 47 * math.log2(47) + ffts.ROUGH_SQUARED * 47**2 * 47, 47),
        (106, True, ffts.CONVOLVED * 128 * 7, 106 + ffts.CONVOLVED_PLAN * 128),  # 53, on a circle for 105 lags
        (16411, True, ffts.CONVOLVED * 65536 * 16, 16411 + ffts.CONVOLVED_PLAN * 65536),
    ],
)
def test_an_fft_is_counted_by_its_primes(n: int, real: bool, row: float, plan: float):
    assert (ffts.row(n, real), ffts.plan(n, real)) == pytest.approx((row, plan))


def test_a_filter_is_on_its_own_circle_or_on_one_for_every_lag(seed: int):
    assert [ffts.prime_factors(n)[-1] for n in (1, 2, 16200, 34, 16388, 16411)] == [1, 2, 5, 17, 241, 16411]
    assert ffts.prime_factors(578) == (2, 17, 17)
    assert [ffts.filter_circle(n, n) for n in (1024, 2002, 1031, 3774)] == [1024, 2002, 2100, 7560]
    chance = random.Random(seed)
    for _ in range(50):
        n = chance.randint(1, 40000)
        circle = ffts.filter_circle(n, chance.randint(1, n))
        assert circle == n or (circle % 4 == 0 and ffts.row(circle) < ffts.row(n))


@pytest.mark.parametrize("draw", draws(20))
def test_the_least_estimate_is_taken_and_both_are_said(draw: int, seed: int):
    sizes = random_sizes(random.Random(seed + draw))
    for training in (False, True):
        by_seconds = sorted(NAMES, key=lambda name: seconds(name, sizes, training))
        found = fastest(NAMES, sizes, training)
        assert found.name == by_seconds[0]
        assert f", {by_seconds[1]} " in found.because
    assert fastest(("direct",), sizes).name == "direct"


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "compression", "chosen", "with_compiler"),
    [
        ((8, 64, 32, 32), (64, 64, 15, 15), 1, 0.0, "dft_gemm", "dft_native"),
        ((8, 64, 32, 32), (64, 64, 3, 3), 1, 0.5, "dft_gemm", "dft_native"),
        ((2, 128, 56, 56), (128, 1, 7, 7), 128, 0.0, "direct", "direct"),
        ((2, 128, 56, 56), (128, 1, 3, 3), 128, 0.0, "direct", "direct"),
        ((2, 384, 14, 14), (384, 1, 5, 5), 384, 0.0, "direct", "direct"),
        ((2, 128, 56, 56), (128, 1, 31, 31), 128, 0.5, "dft_gemm", "dft_native"),
        ((4, 16, 270), (32, 16, 5), 1, 0.0, "direct", "direct"),
        ((16, 128, 270), (256, 128, 63), 1, 0.0, "dft_gemm", "dft_native"),
        # Few channels of long series and large maps: neither a matrix nor a transform of everything.
        ((1, 2, 16384), (2, 2, 9), 1, 0.5, "direct_lowpass", "direct_lowpass"),
        ((1, 3, 1024, 1024), (3, 3, 3, 3), 1, 0.5, "direct_lowpass", "direct_lowpass"),
        ((1, 2, 1, 4096), (2, 2, 1, 9), 1, 0.5, "direct_lowpass", "direct_lowpass"),
        ((1, 2, 16384), (2, 2, 9), 1, 0.0, "direct", "direct"),
        ((1, 2, 16384), (2, 2, 4001), 1, 0.5, "torch_fft", "torch_fft"),
        ((1, 1, 16384), (1, 1, 4001), 1, 0.0, "torch_fft_fast", "torch_fft_fast"),
    ],
)
def test_auto_takes_what_was_measured_faster(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    groups: int,
    compression: float,
    chosen: str,
    with_compiler: str,
    monkeypatch: pytest.MonkeyPatch,
):
    x, weight = torch.empty(shape), torch.empty(kernel)
    band = conv_band(shape[2:], kernel[2:], compression=compression)
    for built, name in ((False, chosen), (True, with_compiler)):
        monkeypatch.setattr(build, "READY", built)
        assert auto(x, weight, None, band, groups).name == name


def test_only_who_serves_is_asked(monkeypatch: pytest.MonkeyPatch):
    """The cheapest are those that may not be taken."""
    x, weight = torch.empty(2, 4, 9, 8), torch.empty(4, 4, 3, 3)
    exact, limited = (conv_band((9, 8), (3, 3), compression=compression) for compression in (0.0, 0.5))
    cheap = {name: 2.0 for name in NAMES}
    for built in (False, True):
        monkeypatch.setattr(build, "READY", built)
        for forbidden, band in (("direct_lowpass", exact), ("direct", limited), ("torch_fft_fast", limited)):
            given({**cheap, forbidden: 1.0}, monkeypatch)
            assert auto(x, weight, None, band, 1).name != forbidden
        given({**cheap, "dft_native": 1.0}, monkeypatch)
        assert (auto(x, weight, None, limited, 1).name == "dft_native") == built
        frozen = weight_spectrum(torch.randn(4, 4, 3, 3), (9, 8), compression=0.5)
        assert auto(x, frozen, None, limited, 1).name == ("dft_native_frozen" if built else "dft_gemm_frozen")
    given({**cheap, "direct_converted": 1.0}, monkeypatch)
    assert auto(x, weight, None, exact, 1).name == "direct_converted"
    assert auto(x.to(memory_format=torch.channels_last), weight, None, exact, 1).name != "direct_converted"
    assert auto(x.double(), weight.double(), None, exact, 1).name != "direct_converted"
    series, taps = torch.empty(2, 4, 9), torch.empty(4, 4, 3)
    assert auto(series, taps, None, conv_band((9,), (3,), compression=0.0), 1).name != "direct_converted"


def test_a_backward_pass_counts_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    x, weight = torch.empty(1, 2, 16), torch.empty(2, 2, 3)
    band = conv_band((16,), (3,), compression=0.5)

    def dear_to_train(name: str, sizes: Sizes, training: bool = False) -> float:
        return 2.0 if name != "torch_fft" else 3.0 if training else 1.0

    monkeypatch.setattr(estimates, "seconds", dear_to_train)
    monkeypatch.setattr(choice, "_estimated", ESTIMATED)
    assert auto(x, weight, None, band, 1).name == "torch_fft"
    for trained in ((x.clone().requires_grad_(), weight), (x, weight.clone().requires_grad_())):
        assert auto(*trained, None, band, 1).name != "torch_fft"
        with torch.no_grad():
            assert auto(*trained, None, band, 1).name == "torch_fft"


@pytest.mark.parametrize(
    ("batch", "channels", "size", "light"),
    [(1, 1, (2500,), False), (64, 64, (2500,), True), (1, 1, (64, 64), True), (1, 1, (1000, 1000), False)],
)
def test_matrices_are_made_where_they_are_small_or_small_beside_the_maps(
    batch: int, channels: int, size: tuple[int, ...], light: bool, monkeypatch: pytest.MonkeyPatch
):
    band = conv_band(size, tuple(3 for _ in size), compression=0.5)
    assert matrices_are_light(Sizes(batch, channels, channels, 1, band)) == light
    given({name: 0.0 if name == "dft_gemm" else 1.0 for name in NAMES}, monkeypatch)
    monkeypatch.setattr(build, "READY", False)
    x, weight = (
        torch.zeros(()).expand(shape) for shape in ((batch, channels, *size), (channels, channels, *band.kernel))
    )
    assert (auto(x, weight, None, band, 1).name == "dft_gemm") == light


def test_folded_matrices_are_a_fourth_as_heavy():
    """30 -> 1 series of 5,474 samples: the matrices of `dft_gemm` are too large for a call that `dft_native` serves."""
    long = Sizes(17, 30, 1, 1, conv_band((5474,), (35,), compression=0.94))
    assert not matrices_are_light(long) and matrices_are_light(long, choice.FOLDED_BYTES)
    assert {"dft_native"} == set(candidates(long, True, True)) - set(candidates(long, True, False))
    assert "dft_gemm" not in candidates(long, True, True)
    longest = Sizes(1, 2, 2, 1, conv_band((65536,), (35,), compression=0.5))
    assert "dft_native" not in candidates(longest, True, True)


def test_a_mask_counts_the_modes_that_it_lists():
    x, weight = torch.empty(2, 3, 32, 32), torch.empty(4, 3, 3, 3)
    n = fft_grid((32, 32), (3, 3))
    band, disc = conv_band((32, 32), (3, 3), compression=0.0), mode_list(radial(n, 0.4), n)
    sizes = mask_sizes(x, weight, band, disc, 1)
    assert sizes.modes == len(disc) < sizes.band.modes and not sizes.cells
    cells = mode_list(torch.eye(n[0], n[1] // 2 + 1), n, form="cells")
    dense = mask_sizes(x, weight, band, cells, 1)
    planes = 2 * LANES  # 6 and 8 of them, in registers of 8 or 16
    assert dense.cells and work("dft_gemm", dense)["map"] == planes * 4 * 32 * 32 * len(cells)
