"""The fused depthwise convolution of series: kernels under Triton's interpreter, refusals.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
Classes that round are emulated in test_fused_depthwise_1d_precision.py.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import alive, check_gradients, in_poison, interpreter, nan_inside, relative_error
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.fused.precision import PRECISIONS, UNSCALED, precision
from spectralkernels.convolution.fused_series import (
    IMPLEMENTATIONS,
    fused_series,
    geometry_of,
    supports,
    tcgen05_refuses,
)
from spectralkernels.convolution.fused_series.geometry import (
    Digits,
    Form,
    SeriesGeometry,
    digits,
    form,
    whole,
)
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.errors import RangeError
from spectralkernels.launch import forget_plans
from spectralkernels.ops.band_limited_conv2d import weight_spectrum
from spectralkernels.spectra import Band


def split_of(geometry: SeriesGeometry, name: str) -> Digits | None:
    return digits(geometry, precision(name))


# --- refusals -------------------------------------------------------------------------------------------------------


def call_arguments(**changes: Any) -> dict[str, Any]:
    length, taps = changes.get("length", 20), changes.get("taps", 3)
    channels, outputs, groups = changes.get("channels", 4), changes.get("outputs", 4), changes.get("groups", 4)
    return {
        "x": torch.zeros(1, channels, length, dtype=changes.get("dtype", torch.float32)),
        "weight": torch.zeros(outputs, channels // groups, taps),
        "bias": None,
        "band": conv_band((length,), (taps,), compression=0.5, grid=changes.get("grid", "tight")),
        "groups": groups,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2}, "groups, channels and out_channels must be equal, got 2, 4 and 4"),
        ({"outputs": 8}, "groups, channels and out_channels must be equal, got 4, 4 and 8"),
        ({"dtype": torch.float64}, "it takes float32, float16 or bfloat16 series, got float64"),
        ({"length": 4097}, "must not be longer than 4096, got 4097; take dft_triton"),
        ({"length": 4096, "taps": 5}, "N = 4098 splits into no two factors that fit a program of class"),
        ({"length": 4096, "taps": 5}, "pass grid='fast', or grid=4160"),
        ({"length": 4096, "taps": 5, "grid": "fast"}, None),
        ({"length": 4096, "taps": 4095, "grid": "fast"}, None),
        ({"length": 1021, "taps": 5}, None),
        ({"length": 1, "taps": 1}, None),
        ({}, None),
    ],
)
def test_what_it_cannot_do_it_says(changes: dict[str, Any], message: str | None):
    for entry in IMPLEMENTATIONS:
        reason = entry.supports(**call_arguments(**changes))
        if message is None:
            assert reason is None
        else:
            assert reason is not None and message in reason


def test_a_large_circle_is_for_classes_whose_operands_are_whole():
    """N = 16384 keeps 8192 reals at c = 0.5, in the registers of 256 threads."""
    reasons = {
        entry.name: entry.supports(**call_arguments(length=4096, taps=5, grid="pow2")) for entry in IMPLEMENTATIONS
    }
    able = {name for name, reason in reasons.items() if reason is None}
    assert able == {"fused_series_tf32", "fused_series_bf16", "fused_series_fp16"}


def test_what_tensor_memory_cannot_hold_is_refused():
    """On such a GPU a kernel that needs more columns than there are compiles to nothing, without a word."""
    small, large = (geometry_of(conv_band((n,), (5,), compression=0.5, grid=1092)) for n in (512, 1024))
    split = split_of(large, "bf16x6")
    assert split is not None and split.j <= 32
    wide = replace(split, j=64)
    assert tcgen05_refuses(split, PRECISIONS["bf16x6"]) is None and tcgen05_refuses(wide, PRECISIONS["tf32"]) is None
    assert "more tensor memory for bf16x6 operands" in str(tcgen05_refuses(wide, PRECISIONS["bf16x6"]))
    tile = whole(small, PRECISIONS["fp32"])
    assert tile is not None and "take tf32x3" in str(tcgen05_refuses(tile, PRECISIONS["fp32"]))


def test_maps_and_frozen_weights_are_refused():
    maps = {**call_arguments(), "band": conv_band((8, 8), (3, 3), compression=0.5)}
    assert supports(**maps) == "it convolves series, not maps"
    arguments = call_arguments()
    frozen = weight_spectrum(arguments["weight"], (20,), compression=0.5, groups=4)
    assert "not a WeightSpectrum" in str(supports(**{**arguments, "weight": frozen}))


def test_an_unknown_class_is_answered_with_the_known_ones():
    with pytest.raises(RangeError, match=r"precision must be one of tf32x3, .*, got 'fp8'"):
        fused_series(**call_arguments(), accuracy="fp8")


def test_classes_have_names_and_tolerances():
    assert [entry.name for entry in IMPLEMENTATIONS] == [
        "fused_series" if name == "tf32x3" else f"fused_series_{name}" for name in UNSCALED
    ]
    for entry in IMPLEMENTATIONS:
        assert entry.tolerance is not None and set(entry.tolerance.relative) == {"float32", "float16", "bfloat16"}


# --- under the interpreter ------------------------------------------------------------------------------------------


LENGTHS = (1, 2, 3, 5, 8, 16, 17, 20, 31, 36, 49, 60, 97, 100, 128, 143, 270)
TAPS = (1, 2, 3, 4, 7, 8, 15, 31, 64, 131)


def problem(draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Band]:
    """Series, kernel, bias and band: odd, prime, size 1, kernels longer than series, batches that no tile divides."""
    length, taps = draw.choice(LENGTHS), draw.choice(TAPS)
    padding = draw.choice(("same", "same", 0 if taps <= length else "same", draw.randrange(taps)))
    if padding != "same" and length + 2 * padding < taps:
        padding = "same"
    compression = draw.choice((0.0, 0.0, 0.3, 0.5, 0.8, 0.95))
    band = conv_band((length,), (taps,), compression=compression, padding=padding, grid=draw.choice(("tight", "fast")))
    batch, channels = draw.choice((1, 2, 3, 5)), draw.choice((1, 2, 3))
    return torch.randn(batch, channels, length), torch.randn(channels, 1, taps), torch.randn(channels), band


def forms(geometry: SeriesGeometry, draw: random.Random) -> list[Form]:
    """Both transforms, the two-level one in one block of columns or several, and with another choice of digits."""
    found: list[Form] = []
    split, tile = split_of(geometry, "tf32x3"), whole(geometry, precision("tf32x3"))
    if split is not None:
        block = draw.choice((split.block, 16))
        found.append(replace(split, block=block, chunks=-(-split.n2 // block)))
    if tile is not None and (split is None or draw.random() < 0.5):
        found.append(tile)
    return found


@interpreter
class TestInterpreted:
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: SeriesGeometry, shape: Form, changes: dict[str, Any]
    ) -> Tensor:
        from spectralkernels.convolution.fused_series.launches import convolve_launch

        inputs = [in_poison(tensor) for tensor in (x, weight)]
        y, around_y = nan_inside(*x.shape[:2], geometry.out)
        modes, around_modes = nan_inside(*x.shape[:2], shape.kept_reals)
        planned = convolve_launch(*inputs, bias, y, modes, geometry, shape, precision("tf32x3"))
        planned.arguments.update(changes)
        planned.run()
        for buffer in (around_y, around_modes):
            assert alive(buffer), "wrote outside"
        assert not modes.isnan().any(), "a mode was not written"
        return y

    @staticmethod
    def check(x: Tensor, weight: Tensor, bias: Tensor, band: Band, shape: Form, where: str) -> None:
        """Forward, dx, and dw from the series and from the kept spectrum, against autograd of the reference."""
        from spectralkernels.convolution.fused_series.launches import (
            convolve_launch,
            partial_sums,
            weight_gradient_launch,
        )

        geometry, chosen, channels = geometry_of(band), precision("tf32x3"), x.shape[1]
        y, around_y = nan_inside(*x.shape[:2], geometry.out)
        modes, around_modes = nan_inside(*x.shape[:2], shape.kept_reals)
        dx, around_dx = nan_inside(*x.shape)
        sums = [nan_inside(partial_sums(len(x), channels, shape), channels, geometry.taps) for _ in range(2)]
        exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
        dy = torch.randn(*x.shape[:2], geometry.out)
        x_in, weight_in, dy_in = (in_poison(tensor) for tensor in (x, weight, dy))
        convolve_launch(x_in, weight_in, bias, y, modes, geometry, shape, chosen).run()
        convolve_launch(dy_in, weight_in, None, dx, None, geometry, shape, chosen, reflected=True).run()
        weight_gradient_launch(dy_in, x_in, None, sums[0][0], geometry, shape, chosen).run()
        weight_gradient_launch(dy_in, None, modes, sums[1][0], geometry, shape, chosen).run()
        for buffer in (around_y, around_modes, around_dx, *(around for _, around in sums)):
            assert alive(buffer), where
        wanted = reference(*exact, band, channels)
        wanted_dx, wanted_dw = torch.autograd.grad(wanted, exact[:2], dy.double())
        found = (y, dx, *(made.sum(0).unsqueeze(1) for made, _ in sums))
        check_gradients(found, (wanted, wanted_dx, wanted_dw, wanted_dw), 2 * PRECISIONS["tf32x3"].error, where)

    @pytest.mark.parametrize("draw", draws(6))
    def test_random_shapes(self, seed: int, draw: int, monkeypatch: pytest.MonkeyPatch):
        from spectralkernels.convolution.fused_series.two_level import launches

        rng = random.Random(seed + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = problem(rng)
        images = rng.choice((1, 2, 4))
        monkeypatch.setattr(launches, "images_per_program", lambda *_, **__: images)
        forget_plans()
        for shape in forms(geometry_of(band), rng):
            self.check(x, weight, bias, band, shape, f"x{tuple(x.shape)} {band}, {shape}, {images} images a program")

    @pytest.mark.parametrize(
        ("length", "taps", "compression", "grid"),
        [(4096, 5, 0.5, "fast"), (4096, 33, 0.5, 4160), (4096, 3, 0.0, 4160), (500, 1201, 0.5, "fast")],
    )
    def test_long_series(self, seed: int, length: int, taps: int, compression: float, grid: str | int):
        band = conv_band((length,), (taps,), compression=compression, grid=grid)
        x, weight, bias = torch.randn(1, 1, length), torch.randn(1, 1, taps) / taps**0.5, torch.randn(1)
        shape = form(geometry_of(band), precision("tf32x3"))
        assert isinstance(shape, Digits)
        self.check(x, weight, bias, band, shape, f"{band}, {shape}")

    @pytest.mark.parametrize("draw", draws(7))
    def test_autograd_in_every_class(self, seed: int, draw: int, poisoned: None):
        rng = random.Random(seed + 1000 + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = problem(rng)
        name = tuple(UNSCALED)[draw % len(UNSCALED)]
        exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y = fused_series(*leaves, band, x.shape[1], accuracy=name)
        wanted = reference(*exact, band, x.shape[1])
        cotangent = torch.randn(wanted.shape)
        found = torch.autograd.grad(y, leaves, cotangent)
        true = torch.autograd.grad(wanted, exact, cotangent.double())
        where = f"{name} x{tuple(x.shape)} {band}"
        check_gradients((y, *found), (wanted, *true), 2 * PRECISIONS[name].error, where)

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("a kernel that is not conjugated", {"CONJUGATE": False}),
            ("a band one wider", {"KEPT": 18}),
            ("twiddle factors that are left out", {"twiddle_ptr": torch.ones(2, 8, 16)}),
            ("rows one shorter", {"N2": 15}),
        ],
    )
    def test_a_planted_fault_is_caught(self, seed: int, name: str, changes: dict[str, Any]):
        band = conv_band((62,), (5,), compression=0.5, grid=64)
        x, weight, geometry = torch.randn(2, 2, 62), torch.randn(2, 1, 5), geometry_of(band)
        wanted = reference(x, weight, None, band, 2)
        split = split_of(geometry, "tf32x3")
        assert split is not None and (split.n2, split.j, geometry.kept) == (16, 8, 16)
        assert relative_error(self.forward(x, weight, None, geometry, split, {}), wanted) <= 3e-6
        assert relative_error(self.forward(x, weight, None, geometry, split, changes), wanted) > 1e-3, name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_series_are_rounded_once(self, seed: int, dtype: torch.dtype):
        band = conv_band((36,), (5,), compression=0.5)
        x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((3, 2, 36), (2, 1, 5), (2,)))
        y = fused_series(x, weight, bias, band, 2)
        assert y.dtype == dtype
        assert (
            relative_error(y, reference(x, weight, bias, band, 2)) <= {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
        )

    def test_strided_and_empty_inputs(self, seed: int):
        band, weight = conv_band((20,), (3,), compression=0.5), torch.randn(4, 1, 3)
        for x in (
            torch.randn(2, 20, 4).transpose(1, 2),
            torch.randn(2, 8, 20)[:, ::2],
            torch.randn(1, 4, 1).expand(3, 4, 20),
        ):
            assert relative_error(fused_series(x, weight, None, band, 4), reference(x, weight, None, band, 4)) <= 3e-6
        none = torch.randn(0, 4, 20).requires_grad_()
        y = fused_series(none, weight.requires_grad_(), None, band, 4)
        assert y.shape == (0, 4, 20)
        dx, dw = torch.autograd.grad(y.sum(), (none, weight))
        assert dx.shape == none.shape and not dw.any()

    @pytest.mark.parametrize(
        ("dtype", "name", "length", "grid", "share"),
        [
            (torch.float32, "tf32x3", 1024, 1088, 0.5625),
            (torch.float32, "bf16", 1024, 1088, 0.2815),
            (torch.bfloat16, "bf16", 1024, 1088, 0.5625),
            (torch.float32, "tf32x3", 101, 103, 0.5),
        ],
    )
    def test_saved_bytes(self, dtype: torch.dtype, name: str, length: int, grid: int, share: float):
        """The smaller of x and its kept spectrum, and the kernel; a frozen kernel saves no activation."""
        band = conv_band((length,), (5,), compression=0.5, grid=grid)
        x, weight = torch.randn(1, 1, length).to(dtype).requires_grad_(), torch.randn(1, 1, 5).to(dtype)
        saved: list[Tensor] = []
        for trained in (True, False):
            saved.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
                fused_series(x, weight.requires_grad_(trained), None, band, 1, accuracy=name)
            activations = sum(tensor.nbytes for tensor in saved if tensor.shape != weight.shape)
            assert activations == 0 if not trained else 0 < activations / x.nbytes <= share

    @pytest.mark.slow
    def test_traffic_is_the_floor(self, seed: int):
        """Every byte of a series is loaded once and every byte of y stored once; matrices come from the cache."""
        from spectralkernels.traffic import counted_traffic

        x, weight, y = torch.randn(8, 2, 1000), torch.randn(2, 1, 5), torch.empty(8, 2, 1000)
        geometry = geometry_of(conv_band((1000,), (5,), compression=0.5, grid=1024))
        from spectralkernels.convolution.fused_series.launches import convolve_launch, weight_gradient_launch

        split, chosen = split_of(geometry, "tf32"), precision("tf32")
        assert split is not None and split.chunks == 1
        with counted_traffic() as launches:
            convolve_launch(x, weight, None, y, None, geometry, split, chosen).run()
        (moved,) = launches
        assert moved.arguments["x_ptr"].loaded == x.nbytes and moved.arguments["y_ptr"].stored == y.nbytes
        assert moved.arguments["y_ptr"].loaded == 0 and moved.outside == 0
        sums = torch.empty(8, 2, 5)
        with counted_traffic() as launches:
            weight_gradient_launch(y, x, None, sums, geometry, split, chosen).run()
        (moved,) = launches
        assert moved.arguments["x_ptr"].loaded == x.nbytes and moved.arguments["dy_ptr"].loaded == y.nbytes
        assert moved.outside == 0

    @pytest.mark.slow
    def test_opcheck_and_trace(self, seed: int):
        op = torch.ops.spectralkernels.fused.default
        x, weight, bias = torch.randn(2, 3, 20), torch.randn(3, 1, 4), torch.randn(3)
        band = conv_band((20,), (4,), compression=0.4)
        geometry = geometry_of(band)
        facts = ([geometry.start], [geometry.n], [geometry.kept], [geometry.out], "tf32x3")
        for keep, with_bias in ((True, bias), (False, None)):
            leaves = (x.requires_grad_(), weight.requires_grad_(), with_bias)
            opcheck(op, (*leaves, *facts, keep))
        traced = torch.compile(
            lambda x, weight, bias: fused_series(x, weight, bias, band, 3), fullgraph=True, backend="aot_eager"
        )
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y, wanted = traced(*leaves), fused_series(*leaves, band, 3)
        assert torch.equal(y, wanted)
        cotangent = torch.randn_like(y)
        for one, other in zip(
            torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(one, other)
