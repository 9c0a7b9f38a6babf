"""The depthwise implicit GEMM: its answer and gradients, its blocks, its refusals, and its machine code for sm_90."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import canaries, check_gradients, in_poison, interpreter, judged_compiler

import spectralkernels as sk
from spectralkernels.convolution import baselines
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.implicit_gemm import TOLERANCE, implicit_gemm, supports
from spectralkernels.convolution.implicit_gemm.blocks import Sides, blocks_of
from spectralkernels.ops.band_limited_conv2d import OPERATION

pytest.importorskip("triton")

LENGTHS, TAPS = (1, 2, 5, 9, 13, 17, 34), (1, 2, 3, 7, 10)


@pytest.mark.slow
@interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_answer_and_gradients(dtype: torch.dtype, seed: int):
    """Odd, even, prime and size-1 sides, any padding, strided maps; the interpreter rounds bfloat16 towards zero."""
    draw = random.Random(seed)
    for turn in draws(3):
        size = tuple(draw.choice(LENGTHS) for _ in range(2))
        kernel = tuple(draw.choice(TAPS) for _ in range(2))
        fits = all(k <= h for k, h in zip(kernel, size, strict=True))
        padding = draw.choice(("same", 11, "valid" if fits else "same"))
        batch, channels = (0, 2) if turn == 0 else (draw.choice((1, 3)), draw.choice((1, 3)))
        band = conv_band(size, kernel, compression=0.0, padding=padding)
        x = in_poison(torch.randn(batch, channels, size[1], size[0]).to(dtype)).mT.requires_grad_()
        weight = in_poison(torch.randn(channels, 1, *kernel).to(dtype)).requires_grad_()
        bias = torch.randn(2 * channels).to(dtype)[::2].requires_grad_()
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
        want = baselines.ideal(*exact, band, channels)
        cotangent = torch.randn(want.shape).to(dtype)
        with canaries():
            y = implicit_gemm(x, weight, bias, band, channels)
            found = torch.autograd.grad(y, (x, weight, bias), cotangent)
        assert y.dtype == dtype
        allowed = TOLERANCE.relative[str(dtype).removeprefix("torch.")] if dtype != torch.float32 else 1e-6
        wanted = torch.autograd.grad(want, exact, cotangent.double())
        check_gradients((y, *found), (want, *wanted), allowed, f"{size} {kernel} {padding} {dtype}")


@interpreter
def test_a_program_that_reads_the_wrong_row_of_the_kernel_is_seen(seed: int, monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.convolution.implicit_gemm import launches

    x, weight = torch.randn(2, 2, 9, 7), torch.randn(2, 1, 3, 5)
    band = conv_band((9, 7), (3, 5), compression=0.0)
    want = baselines.ideal(x, weight, None, band, 2)
    launch = launches.convolve_launch
    monkeypatch.setattr(launches, "convolve_launch", lambda x, w, b, y, pad: launch(x, w.roll(1, 2), b, y, pad))
    wrong = implicit_gemm(x, weight, None, band, 2)
    assert float((wrong.double() - want).norm() / want.norm()) > 0.1
    monkeypatch.undo()
    assert float((implicit_gemm(x, weight, None, band, 2).double() - want).norm() / want.norm()) < 1e-6


@interpreter
def test_it_is_an_operator_that_traces():
    band = conv_band((9, 7), (3, 4), compression=0.0)
    x, weight = torch.randn(2, 3, 9, 7, requires_grad=True), torch.randn(3, 1, 3, 4, requires_grad=True)
    pad = [before for before, _ in band.pad]
    checked = opcheck(torch.ops.spectralkernels.implicit_gemm.default, (x, weight, torch.randn(3), pad, list(band.out)))
    assert set(checked.values()) == {"SUCCESS"}


def test_blocks_hold_every_input_column_that_their_outputs_ask_for():
    for width, taps, pad in itertools.product(LENGTHS, TAPS, (0, 1, 10, 23, -2)):
        out = width + 2 * pad - taps + 1
        if out < 1:
            continue
        blocks = blocks_of(Sides((5, width), (5, out), (3, taps), (1, pad)))
        assert blocks.across * blocks.outer >= out > (blocks.across - 1) * blocks.outer
        for first in range(0, out, blocks.outer):
            asked = {j - pad + t for j in range(first, min(first + blocks.outer, out)) for t in range(taps)}
            begin = max(first - pad, 0)
            held = range(begin, begin + blocks.chunks * blocks.inner)
            assert {i for i in asked if 0 <= i < width} <= set(held), (width, taps, pad)


def test_what_it_does_not_serve():
    band = conv_band((8, 8), (3, 3), compression=0.0)

    def why(x: torch.Tensor, weight: torch.Tensor, groups: int, band=band) -> str | None:
        return supports(x, weight, None, band, groups)

    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    assert why(x, weight, 4) is None
    assert "got float64" in str(why(x.double(), weight.double(), 4))
    assert "must be equal, got 2, 4 and 4" in str(why(x, torch.randn(4, 2, 3, 3), 2))
    assert "must be equal, got 4, 4 and 8" in str(why(x, torch.randn(8, 1, 3, 3), 4))
    series = conv_band((8,), (3,), compression=0.0)
    assert why(x[0], weight[:, 0], 4, series) == "it convolves maps, not series"
    assert "WeightSpectrum" in str(why(x, sk.weight_spectrum(weight, (8, 8), groups=4), 4))
    baseline, rival = (OPERATION.subject(f"implicit_gemm_triton{end}") for end in ("", "_uncompressed"))
    limited = conv_band((8, 8), (3, 3), compression=0.5)
    call = {"x": x, "weight": weight, "bias": None, "groups": 4}
    assert (baseline.supports(**call, band=band), rival.supports(**call, band=limited)) == (None, None)
    assert "cannot limit the band" in str(baseline.supports(**call, band=limited))
    assert rival.supports(**call, band=band) is not None


@pytest.mark.slow
@judged_compiler
def test_it_runs_on_tensor_cores_and_spills_nothing():
    from spectralkernels.aot import compile_kernel, noted_launches
    from spectralkernels.convolution.implicit_gemm.launches import FINGERPRINTS

    for watched in FINGERPRINTS:
        with noted_launches() as noted:
            watched.call()
        (launch,) = noted
        code = compile_kernel(launch.kernel, launch.arguments, 90, **launch.options)
        assert code.stack == code.local == 0, watched.name
        assert code.registers <= 168 and code.shared <= 99 * 1024, (watched.name, code.registers, code.shared)
        assert code.count("HGMMA") + code.count("HMMA") > 0 == code.count("FFMA"), watched.name
