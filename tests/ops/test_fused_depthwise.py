"""The fused depthwise convolution: its numbers emulated, its kernels under Triton's interpreter, its refusals.

The interpreter must be chosen before Triton is imported, so the class `Interpreted` is not collected here: one test
runs it in a process of its own.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.fused_depthwise import IMPLEMENTATIONS, fused_depthwise, supports
from spectralkernels.convolution.fused_depthwise.operators import Geometry, Operators, Pair, operators, tiles
from spectralkernels.convolution.fused_depthwise.precision import PRECISIONS, Precision, precision, round_to_tf32
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.spectra import Band

CPU = torch.device("cpu")


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2; NaN where `found` has one, so that no comparison passes."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def geometry_of(band: Band) -> Geometry:
    return Geometry(band.size, band.out, band.kernel, tuple(-before for before, _ in band.pad), band.n, band.kept)


# --- what the tensor cores compute, written in torch ----------------------------------------------------------------


def product(a: Tensor, b: Tensor, chosen: Precision) -> Tensor:
    """A matrix product on operands rounded as the class rounds them, summed without error, rounded to float32."""
    if chosen.operand != torch.float32:
        return (a.to(chosen.operand).double() @ b.to(chosen.operand).double()).float()
    a_high, b_high = round_to_tf32(a), round_to_tf32(b)
    total = a_high.double() @ b_high.double()
    if chosen.mode == "tf32x3":
        a_low, b_low = round_to_tf32(a - a_high), round_to_tf32(b - b_high)
        total = total + a_high.double() @ b_low.double() + a_low.double() @ b_high.double()
    return total.float()


def padded(plane: Tensor, tile: tuple[int, int]) -> Tensor:
    return F.pad(plane, (0, tile[1] - plane.shape[-1], 0, tile[0] - plane.shape[-2]))


def analysed(plane: Tensor, pair: Pair, chosen: Precision, u: int, v: int) -> tuple[Tensor, ...]:
    """The four quadrants (re, cos), (im, cos), (re, sin), (im, sin), each [..., v / 8, 8, u]."""
    z = product(product(pair.columns, plane.mT, chosen), pair.rows.mT, chosen)
    parts = z.reshape(*z.shape[:-2], v // 8, 2, 8, 2, u)
    return tuple(parts[..., part, :, turn, :] for turn in (0, 1) for part in (0, 1))


def emulated(x: Tensor, weight: Tensor, geometry: Geometry, name: str) -> Tensor:
    chosen, tile = precision(name), tiles(geometry)
    made = operators(geometry, chosen, CPU)
    cc, sc, cs, ss = analysed(padded(x, tile.size), made.analyse_map, chosen, tile.u, tile.v)
    w_cc, w_sc, w_cs, w_ss = analysed(padded(weight[:, 0], tile.taps), made.analyse_taps, chosen, tile.u, tile.v)
    y_cc = w_cc * cc + w_sc * sc + w_cs * cs + w_ss * ss
    y_sc = w_cc * sc - w_sc * cc - w_ss * cs + w_cs * ss
    y_cs = w_cc * cs - w_cs * cc - w_ss * sc + w_sc * ss
    y_ss = w_cc * ss + w_ss * cc - w_cs * sc - w_sc * cs
    parts = torch.stack([torch.stack([y_cc, y_cs], -2), torch.stack([y_sc, y_ss], -2)], -4)
    z = parts.reshape(*x.shape[:2], 2 * tile.v, 2 * tile.u)
    partial = product(z, made.synthesise_output.rows.mT, chosen)
    y = product(partial.mT, made.synthesise_output.columns.mT, chosen)
    return y[..., : geometry.out[0], : geometry.out[1]]


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize(
    ("side", "taps", "compression"), [(32, 7, 0.5), (32, 31, 0.5), (28, 29, 0.5), (56, 31, 0.5), (5, 3, 0.0)]
)
def test_emulated_rounding_is_within_the_class(seed: int, name: str, side: int, taps: int, compression: float):
    band = conv_band((side, side), (taps, taps), compression=compression)
    x = feature_map(random.Random(seed).choice(("white", "pink")), (3, 4, side, side), seed)
    weight = he_kernel((4, 1, taps, taps), seed)
    error = relative(emulated(x, weight, geometry_of(band), name), reference(x, weight, None, band, 4))
    assert error <= PRECISIONS[name].error / 1.5
    # The class is the one it is named after and not, by mistake, a finer one.
    assert error > {"tf32x3": 3e-8, "tf32": 2e-4, "fp16": 2e-4, "bf16": 1.5e-3}[name]


def test_rounding_to_tf32_is_to_the_nearest():
    exact = torch.tensor([1.0, -1.5, 1.0 + 2**-10, 0.0])
    assert torch.equal(round_to_tf32(exact), exact)
    offset = torch.tensor([1.0 + 2**-11, 1.0 + 2**-11 - 2**-20, -1.0 - 2**-12])
    assert torch.equal(round_to_tf32(offset), torch.tensor([1.0 + 2**-10, 1.0, -1.0]))


def test_matrices_outside_the_band_and_the_planes_are_zero():
    geometry = geometry_of(conv_band((13, 9), (4, 6), compression=0.4))
    made, tile = operators(geometry, PRECISIONS["tf32x3"], CPU), tiles(geometry)
    assert (tile.size, tile.taps, tile.u, tile.v) == ((16, 16), (16, 16), 8, 8)
    assert made.analyse_map.rows[: tile.u, : geometry.size[0]].count_nonzero() > 0
    assert not made.analyse_map.rows[:, geometry.size[0] :].any()
    assert not made.analyse_map.columns[:, geometry.size[1] :].any()
    kept_rows = made.analyse_map.rows.unflatten(0, (2, tile.u))
    assert not kept_rows[:, geometry.kept[0] :].any()
    assert torch.equal(made.synthesise_map.rows, made.analyse_map.rows.t())
    assert torch.equal(made.reflected.rows[: tile.u], made.analyse_taps.rows[: tile.u])
    assert torch.equal(made.reflected.rows[tile.u :], -made.analyse_taps.rows[tile.u :])


# --- refusals -------------------------------------------------------------------------------------------------------


def call_arguments(**changes: Any) -> dict[str, Any]:
    size, kernel = changes.get("size", (8, 8)), changes.get("kernel", (3, 3))
    channels, outputs = changes.get("channels", 4), changes.get("outputs", 4)
    groups = changes.get("groups", 4)
    return {
        "x": torch.zeros(1, channels, *size, dtype=changes.get("dtype", torch.float32)),
        "weight": torch.zeros(outputs, channels // groups, *kernel),
        "bias": None,
        "band": conv_band(size, kernel, compression=changes.get("compression", 0.5)),
        "groups": groups,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2}, "groups, channels and out_channels must be equal, got 2, 4 and 4"),
        ({"outputs": 8}, "groups, channels and out_channels must be equal, got 4, 4 and 8"),
        ({"dtype": torch.float64}, "it takes float32, float16 or bfloat16 maps, got float64"),
        ({"size": (65, 8)}, r"map, output and kernel must fit 64 x 64, got (65, 8)"),
        ({"kernel": (3, 67)}, r"map, output and kernel must fit 64 x 64"),
        ({"size": (64, 64), "kernel": (31, 31), "compression": 0.0}, "it holds 32 frequencies per axis"),
        ({}, None),
        ({"size": (64, 64), "kernel": (31, 31)}, None),
        ({"size": (1, 1), "kernel": (1, 1), "compression": 0.0}, None),
    ],
)
def test_what_it_cannot_do_it_says(changes: dict[str, Any], message: str | None):
    reason = supports(**call_arguments(**changes))
    if message is None:
        assert reason is None
    else:
        assert reason is not None and message in reason


def test_a_half_precision_class_holds_a_full_band():
    full = call_arguments(size=(64, 64), kernel=(31, 31), compression=0.0)
    found = {entry.name: entry.supports(**full) for entry in IMPLEMENTATIONS}
    assert found["fused_depthwise_bf16"] is None and found["fused_depthwise_fp16"] is None
    assert "take a half-precision class" in str(found["fused_depthwise_tf32"])


def test_an_unknown_class_is_answered_with_the_known_ones():
    with pytest.raises(RangeError, match="precision must be one of tf32x3, tf32, bf16, fp16, got 'fp8'"):
        fused_depthwise(**call_arguments(), accuracy="fp8")


def test_classes_have_names_and_tolerances():
    assert [entry.name for entry in IMPLEMENTATIONS] == [
        "fused_depthwise",
        "fused_depthwise_tf32",
        "fused_depthwise_bf16",
        "fused_depthwise_fp16",
    ]
    for entry in IMPLEMENTATIONS:
        assert entry.tolerance is not None and set(entry.tolerance.relative) == {"float32", "float16", "bfloat16"}


# --- under the interpreter ------------------------------------------------------------------------------------------


def test_kernels_under_the_interpreter(seed: int):
    pytest.importorskip("triton")
    arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "python_classes=Interpreted"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, *arguments, f"{Path(__file__)}::Interpreted"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "TRITON_INTERPRET": "1",
            "SPECTRAL_SEED": str(seed),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, f"under TRITON_INTERPRET=1:\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


MARGIN = 4096
CANARY = -12345.0


def guarded(content: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """A copy of `content` inside a longer buffer, and that buffer."""
    buffer = torch.full((content.numel() + 2 * MARGIN,), margin, dtype=content.dtype)
    inside = buffer[MARGIN : MARGIN + content.numel()].view(content.shape)
    inside.copy_(content)
    return inside, buffer


def nan_inside(*shape: int) -> tuple[Tensor, Tensor]:
    return guarded(torch.full(shape, float("nan")), CANARY)


SIDES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 23, 28, 31, 32)
TAPS = (1, 2, 3, 4, 7, 10, 15, 29, 31)


class Interpreted:
    """Collected only by `test_kernels_under_the_interpreter`."""

    @classmethod
    def problem(cls, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Band]:
        """Maps, kernel, bias and band: odd, prime, non-square, size 1, batches that no tile divides."""
        size, kernel = (tuple(draw.choice(among) for _ in range(2)) for among in (SIDES, TAPS))
        if draw.random() < 0.1:
            size = (draw.choice((33, 47, 56)), draw.choice((5, 40)))
        band = conv_band(size, kernel, compression=draw.choice((0.0, 0.3, 0.5, 0.8, 0.95)))
        batch, channels = draw.choice((1, 2, 3, 5)), draw.choice((1, 2, 3))
        x, weight, bias = torch.randn(batch, channels, *size), torch.randn(channels, 1, *kernel), torch.randn(channels)
        fits = supports(x, weight, bias, band, channels) is None
        return (x, weight, bias, band) if fits else cls.problem(draw)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, changes: dict[str, Any]) -> Tensor:
        from spectralkernels.convolution.fused_depthwise.launches import convolve_launch

        inputs = [guarded(tensor, float("nan"))[0] for tensor in (x, weight)]
        y, around_y = nan_inside(*x.shape[:2], *geometry.out)
        modes, around_modes = nan_inside(*x.shape[:2], geometry.kept_reals)
        planned = convolve_launch(*inputs, bias, y, modes, geometry, precision("tf32x3"))
        planned.arguments.update(changes)
        planned.run()
        for buffer in (around_y, around_modes):
            assert (buffer[:MARGIN] == CANARY).all() and (buffer[-MARGIN:] == CANARY).all(), "wrote outside"
        assert not modes.isnan().any(), "a mode was not written"
        return y

    @pytest.mark.parametrize("draw", range(32))
    def test_forward_at_random_shapes(self, seed: int, draw: int, monkeypatch: pytest.MonkeyPatch):
        from spectralkernels.convolution.fused_depthwise import launches

        rng = random.Random(seed + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = self.problem(rng)
        images = rng.choice((1, 2, 4))
        monkeypatch.setattr(launches, "images_per_program", lambda *_, **__: images)
        y = self.forward(x, weight, bias, geometry_of(band), {})
        where = f"x{tuple(x.shape)} w{tuple(weight.shape)} {band}, {images} images a program"
        assert not y.isnan().any(), where
        assert relative(y, reference(x, weight, bias, band, x.shape[1])) <= PRECISIONS["tf32x3"].error, where

    @pytest.mark.parametrize("draw", range(32))
    def test_gradients_at_random_shapes(self, seed: int, draw: int, poisoned: None):
        rng = random.Random(seed + 1000 + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = self.problem(rng)
        name = ("tf32x3", "tf32", "bf16", "fp16")[draw % 4]
        exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y = fused_depthwise(*leaves, band, x.shape[1], accuracy=name)
        wanted = reference(*exact, band, x.shape[1])
        cotangent = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, cotangent)
        true = torch.autograd.grad(wanted, exact, cotangent.double())
        # Some answers of tiny shapes cancel to almost nothing, so an error is measured against the usual size of one.
        norm_x, norm_w, norm_dy = (float(tensor.detach().norm()) for tensor in (x, weight, cotangent))
        per_plane = (weight[0].numel() / (len(x) * x.shape[1] * x[0, 0].numel())) ** 0.5
        by_weight = x.shape[1] ** -0.5 * norm_w
        usual = (norm_x * by_weight, norm_dy * by_weight, norm_x * norm_dy * per_plane, norm_dy)
        for one, other, least in zip((y, *found), (wanted, *true), usual, strict=True):
            error, size = (float(tensor.detach().norm()) for tensor in (one.double() - other, other))
            assert error <= 2 * PRECISIONS[name].error * max(size, least), (name, tuple(x.shape), band)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", PRECISIONS)
    def test_half_precision_maps(self, seed: int, poisoned: None, name: str, dtype: torch.dtype):
        for size, kernel in (((12, 17), (5, 4)), ((9, 8), (11, 9))):  # saves the spectrum, saves x
            band = conv_band(size, kernel, compression=0.6)
            x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 2, *size), (2, 1, *kernel), (2,)))
            leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
            y = fused_depthwise(*leaves, band, 2, accuracy=name)
            exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
            wanted = reference(*exact, band, 2)
            found = torch.autograd.grad(y, leaves, torch.ones_like(y))
            true = torch.autograd.grad(wanted, exact, torch.ones_like(wanted))
            assert y.dtype == dtype and [grad.dtype for grad in found] == [dtype] * 3
            # Interpreted stores cut bfloat16 where hardware rounds: twice the error.
            allowed = 2 * PRECISIONS[name].tolerance.relative[str(dtype).removeprefix("torch.")]
            for one, other in zip((y, *found), (wanted, *true), strict=True):
                assert relative(one, other) <= allowed

    def test_full_band_is_conv2d(self, seed: int):
        x, weight, bias = torch.randn(2, 3, 11, 7), torch.randn(3, 1, 5, 3), torch.randn(3)
        for padding, grid in (("same", "tight"), ("valid", "tight"), ((3, 1), "pow2"), ("same", "seed")):
            band = conv_band((11, 7), (5, 3), compression=0.0, padding=padding, grid=grid)
            y = fused_depthwise(x, weight, bias, band, 3)
            pad = (2, 1) if padding == "same" else 0 if padding == "valid" else padding
            assert relative(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=pad, groups=3)) < 3e-6

    def test_a_large_band_in_a_half_precision_class(self, seed: int):
        band = conv_band((64, 9), (31, 3), compression=0.0)
        assert band.kept[0] > 32
        x, weight = torch.randn(2, 1, 64, 9).requires_grad_(), torch.randn(1, 1, 31, 3).requires_grad_()
        y = fused_depthwise(x, weight, None, band, 1, accuracy="fp16")
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
        wanted = reference(*exact, None, band, 1)
        found = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
        true = torch.autograd.grad(wanted, exact, torch.ones_like(wanted))
        for one, other in zip((y, *found), (wanted, *true), strict=True):
            assert relative(one, other) <= PRECISIONS["fp16"].error

    @pytest.mark.parametrize(
        "change",
        [{"H": 12}, {"W": 10}, {"TAPS_W": 4}, {"batch": 2}, {"OUT_W": 10}, {"bias_ptr": None}, {"ROWS": 3}, "swap"],
        ids=str,
    )
    def test_planted_faults_are_caught(self, seed: int, change: dict[str, Any] | str):
        band = conv_band((13, 11), (4, 5), compression=0.3)
        geometry = geometry_of(band)
        x, weight, bias = torch.randn(3, 2, 13, 11), torch.randn(2, 1, 4, 5), torch.randn(2)
        wanted = reference(x, weight, bias, band, 2)
        assert relative(self.forward(x, weight, bias, geometry, {}), wanted) <= 3e-6
        made: Operators = operators(geometry, precision("tf32x3"), CPU)
        not_conjugated = {"columns_weight_ptr": made.reflected.columns, "rows_weight_ptr": made.reflected.rows}
        try:
            y = self.forward(x, weight, bias, geometry, not_conjugated if isinstance(change, str) else change)
            caught = not relative(y, wanted) <= 1e-3
        except AssertionError:
            caught = True
        assert caught

    def test_a_nan_stays_visible(self, seed: int):
        x, weight = torch.randn(2, 2, 9, 8), torch.randn(2, 1, 3, 3)
        x[1, 0, 4, 4] = float("nan")
        for name in PRECISIONS:
            y = fused_depthwise(x, weight, None, conv_band((9, 8), (3, 3), compression=0.5), 2, accuracy=name)
            assert y[1, 0].isnan().any() and not y[0].isnan().any() and not y[1, 1].isnan().any()

    def test_strides_empty_batches_and_frozen_weights(self, seed: int, poisoned: None):
        band = conv_band((9, 8), (3, 5), compression=0.5)
        weight = torch.randn(4, 1, 5, 3).transpose(2, 3).requires_grad_()
        for x in (
            torch.randn(2, 4, 8, 9).transpose(2, 3),
            torch.randn(1, 4, 9, 8).expand(3, -1, -1, -1),
            torch.randn(2, 8, 9, 8)[:, ::2],
        ):
            assert relative(fused_depthwise(x, weight, None, band, 4), reference(x, weight, None, band, 4)) <= 3e-6
        none = torch.randn(0, 4, 9, 8).requires_grad_()
        y = fused_depthwise(none, weight, None, band, 4)
        assert y.shape == (0, 4, 9, 8)
        dx, dw = torch.autograd.grad(y.sum(), (none, weight))
        assert dx.shape == none.shape and not dw.any()

    @pytest.mark.parametrize(
        ("kernel", "dtype", "name", "share"),
        [
            ((7, 7), torch.float32, "tf32x3", 0.54),
            ((7, 7), torch.float32, "bf16", 0.27),
            ((7, 7), torch.bfloat16, "bf16", 0.54),
            ((31, 31), torch.float32, "tf32x3", 0.97),
        ],
    )
    def test_saved_bytes(self, kernel: tuple[int, int], dtype: torch.dtype, name: str, share: float):
        """The smaller of x and its kept spectrum, and the kernel; a frozen kernel saves no activation."""
        band = conv_band((32, 32), kernel, compression=0.5)
        x, weight = torch.randn(1, 1, 32, 32).to(dtype).requires_grad_(), torch.randn(1, 1, *kernel).to(dtype)
        saved: list[Tensor] = []
        for trained in (True, False):
            saved.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
                fused_depthwise(x, weight.requires_grad_(trained), None, band, 1, accuracy=name)
            activations = sum(tensor.nbytes for tensor in saved if tensor.shape != weight.shape)
            assert activations == 0 if not trained else activations / x.nbytes <= share + 0.0005

    def test_both_savings_give_the_same_gradient(self, seed: int):
        band = conv_band((12, 11), (4, 3), compression=0.5)
        geometry = geometry_of(band)
        from spectralkernels.convolution import fused_depthwise as package

        x, weight, dy = torch.randn(5, 2, 12, 11), torch.randn(2, 1, 4, 3), torch.randn(5, 2, 12, 11)
        facts = (geometry.starts, geometry.n, geometry.kept)
        _, modes = package._conv(x, weight, None, *facts, geometry.out, "tf32x3", True)
        from_x = package._conv_backward(dy, x, weight, *facts, geometry.size, "tf32x3", False, False, True)[1]
        again = package._conv_backward(dy, x, weight, *facts, geometry.size, "tf32x3", False, False, True)[1]
        from_modes = package._conv_backward(dy, modes, weight, *facts, geometry.size, "tf32x3", True, False, True)[1]
        assert torch.equal(from_x, again)
        assert relative(from_modes, from_x) <= 1e-6

    def test_traffic_is_the_floor(self, seed: int, monkeypatch: pytest.MonkeyPatch):
        """Every byte of x is loaded once and every byte of y stored once; the rest is the same for all planes."""
        from triton.runtime.interpreter import InterpreterBuilder

        from spectralkernels.convolution.fused_depthwise.launches import convolve_launch

        x, weight, y = torch.randn(8, 2, 28, 31), torch.randn(2, 1, 5, 7), torch.empty(8, 2, 28, 31)
        moved = dict.fromkeys(("x", "y", "other"), 0)

        def count(pointers: Any, mask: Any) -> None:
            addresses, wanted = pointers.data, mask.data
            for name, tensor in (("x", x), ("y", y)):
                start = tensor.data_ptr()
                inside = wanted & (addresses >= start) & (addresses < start + tensor.nbytes)
                moved[name] += 4 * int(inside.sum())
                moved["other"] -= 4 * int(inside.sum())
            moved["other"] += 4 * int(wanted.sum())

        for name in ("create_masked_load", "create_masked_store"):
            original = getattr(InterpreterBuilder, name)

            def counted(self: Any, pointers: Any, *rest: Any, original: Any = original, **more: Any) -> Any:
                count(pointers, rest[0] if original.__name__ == "create_masked_load" else rest[1])
                return original(self, pointers, *rest, **more)

            monkeypatch.setattr(InterpreterBuilder, name, counted)
        geometry = geometry_of(conv_band((28, 31), (5, 7), compression=0.5))
        planned = convolve_launch(x, weight, None, y, None, geometry, precision("tf32x3"))
        planned.run()
        assert (moved["x"], moved["y"]) == (x.nbytes, y.nbytes)
        made, programs = operators(geometry, precision("tf32x3"), CPU), planned.grid[0]
        pairs = (made.analyse_map, made.analyse_taps, made.synthesise_output)
        constants = sum(pair.columns.nbytes + pair.rows.nbytes for pair in pairs) + weight[0].nbytes
        # Matrices come from the L2 cache, once per program.
        assert moved["other"] == programs * constants

    def test_opcheck_and_trace(self, seed: int):
        op = torch.ops.spectralkernels.fused_depthwise.default
        x, weight, bias = torch.randn(2, 3, 7, 6), torch.randn(3, 1, 4, 3), torch.randn(3)
        band = conv_band((7, 6), (4, 3), compression=0.4)
        geometry = geometry_of(band)
        facts = (geometry.starts, geometry.n, geometry.kept, geometry.out, "tf32x3")
        for keep, with_bias in ((True, bias), (False, None)):
            leaves = (x.requires_grad_(), weight.requires_grad_(), with_bias)
            torch.library.opcheck(op, (*leaves, *(list(f) if isinstance(f, tuple) else f for f in facts), keep))
        traced = torch.compile(
            lambda x, weight, bias: fused_depthwise(x, weight, bias, band, 3), fullgraph=True, backend="aot_eager"
        )
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y, wanted = traced(*leaves), fused_depthwise(*leaves, band, 3)
        assert torch.equal(y, wanted)
        cotangent = torch.randn_like(y)
        for one, other in zip(
            torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(one, other)
