"""masked_multiply: every form in torch against complex128, its gradients, its errors, its declaration."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch
from effort import gradcheck, gradgradcheck, opcheck
from multiply_spectra import MASKS, SIZES, relative_error, some_mask, spectrum
from torch import Tensor

from spectralkernels.declare import Case
from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported
from spectralkernels.ops.masked_multiply import OPERATION, masked_multiply, reference
from spectralkernels.ops.masked_multiply.baselines import COMPUTES
from spectralkernels.spectra import low_pass_mask

TORCH_FORMS = tuple(COMPUTES)
TOLERANCE = OPERATION.tolerance.relative


@pytest.mark.parametrize("impl", TORCH_FORMS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=["complex64", "complex128"])
def test_torch_forms_agree_with_the_definition(seed: int, impl: str, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    for kind in MASKS:
        groups, plane = rng.choice((1, 2, 3)), rng.choice(SIZES)
        batch, group_channels, group_outputs = (rng.choice((1, 2, 5)) for _ in range(3))
        x = spectrum(batch, groups * group_channels, *plane, dtype=dtype)
        w = spectrum(groups * group_outputs, group_channels, *plane, dtype=dtype)
        mask = some_mask(kind, plane, real)
        expected = reference(x, w, mask, groups)
        if mask is not None:
            x[..., mask == 0] = float("nan")  # dropped cells are never used
        y = masked_multiply(x, w, mask, groups=groups, impl=impl)
        where = f"{kind} {tuple(x.shape)} {tuple(w.shape)} groups={groups}"
        assert y.shape == expected.shape and y.dtype == dtype and y.is_contiguous(), where
        assert relative_error(y, expected) <= TOLERANCE[str(dtype).removeprefix("torch.")], where


def test_inverse_transform_is_circular_conv2d(seed: int) -> None:
    x, w = torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 2), mode="circular")
    expected = torch.nn.functional.conv2d(padded, w, groups=2)
    y_hat = masked_multiply(torch.fft.rfft2(x), torch.fft.rfft2(w, s=(9, 8)), groups=2)
    torch.testing.assert_close(torch.fft.irfft2(y_hat, s=(9, 8)), expected)


@pytest.mark.parametrize("impl", TORCH_FORMS)
def test_gradients_and_second_gradients(seed: int, impl: str) -> None:
    plane = (3, 2)
    for groups, kind in ((2, "soft"), (2, "cells"), (1, "none")):
        x = spectrum(2, 2, *plane, dtype=torch.complex128).requires_grad_()
        w = spectrum(4, 2 // groups, *plane, dtype=torch.complex128).requires_grad_()
        mask = some_mask(kind, plane, torch.float64)
        inputs = (x, w)
        if kind == "soft" and mask is not None:
            # Away from 0, where a cell begins to be dropped.
            mask = (mask + 0.1).requires_grad_()
            inputs = (x, w, mask)

        def call(x: Tensor, w: Tensor, soft: Tensor | None = None, fixed=mask, groups=groups) -> Tensor:
            return masked_multiply(x, w, fixed if soft is None else soft, groups=groups, impl=impl)

        assert gradcheck(call, inputs)
        if impl == "complex_bmm" and kind == "soft":  # the backward pass is the same code for all
            assert gradgradcheck(call, inputs)


def test_a_frozen_weight_saves_no_input() -> None:
    saved: list[Tensor] = []
    x, w = spectrum(2, 3, 4, 3).requires_grad_(), spectrum(5, 3, 4, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        masked_multiply(x, w)
    assert [tuple(tensor.shape) for tensor in saved] == [(5, 3, 4, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("impl", TORCH_FORMS)
def test_opcheck(seed: int, impl: str) -> None:
    op = getattr(torch.ops.spectralkernels, f"masked_multiply_{impl}").default
    for kind, groups, conjugate in (("soft", 2, True), ("none", 1, False), ("cells", 1, True)):
        x, w = spectrum(2, 4, 5, 3).requires_grad_(), spectrum(6, 4 // groups, 5, 3).requires_grad_()
        opcheck(op, (x, w, some_mask(kind, (5, 3)), groups, conjugate))


@pytest.mark.parametrize("impl", ["auto", *TORCH_FORMS])
def test_traces_as_one_graph(seed: int, impl: str) -> None:
    mask = some_mask("cells", (5, 4))
    x, w = spectrum(2, 4, 5, 4).requires_grad_(), spectrum(6, 2, 5, 4).requires_grad_()

    def call(x: Tensor, w: Tensor) -> Tensor:
        # Lazy conjugates, which torch once dropped inside custom operators.
        return masked_multiply(x.conj(), w.conj(), mask, groups=2, impl=impl)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = reference(x.conj(), w.conj(), mask, 2)
    assert relative_error(compiled(x, w), expected) <= TOLERANCE["complex64"]
    cotangent = spectrum(2, 6, 5, 4)
    traced = torch.autograd.grad(compiled(x, w), (x, w), cotangent)
    exact = torch.autograd.grad(expected, (x, w), cotangent.to(torch.complex128))
    for found, wanted in zip(traced, exact, strict=True):
        assert relative_error(found, wanted) <= 1e-5


@pytest.mark.parametrize("impl", TORCH_FORMS)
def test_empty_strided_and_expanded_inputs(seed: int, impl: str) -> None:
    w = spectrum(6, 4, 5, 3)
    assert masked_multiply(spectrum(0, 4, 5, 3), w, impl=impl).shape == (0, 6, 5, 3)
    nothing = masked_multiply(spectrum(2, 0, 5, 3), spectrum(6, 0, 5, 3), impl=impl)
    assert nothing.shape == (2, 6, 5, 3) and not nothing.any()
    for x in (
        spectrum(2, 4, 3, 5).transpose(2, 3),
        spectrum(1, 4, 5, 3).expand(3, -1, -1, -1),
        spectrum(4, 2, 5, 3).transpose(0, 1),
        spectrum(2, 8, 5, 6)[:, ::2, :, 1::2],
    ):
        y = masked_multiply(x, w, some_mask("band", (5, 3)), impl=impl)
        assert relative_error(y, reference(x, w, some_mask("band", (5, 3)), 1)) <= TOLERANCE["complex64"]


def test_a_mask_that_is_written_to_counts_as_it_is_now() -> None:
    mask = torch.ones(4, 3, dtype=torch.bool)
    view = mask.numpy()
    x, w = spectrum(1, 2, 4, 3), spectrum(1, 2, 4, 3)
    masked_multiply(x, w, mask)
    view[1, 2] = False
    y = masked_multiply(x, w, mask)
    assert not y[..., 1, 2].any() and y[..., 0, 0].all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x_hat": torch.randn(2, 4, 5, 3)}, DtypeError, r"x_hat must be complex64 or complex128, got float32; pass"),
        (
            {"w_hat": spectrum(6, 4, 5, 3, dtype=torch.complex128)},
            DtypeError,
            r"dtype of x_hat, complex64, got complex128",
        ),
        (
            {"w_hat": spectrum(6, 4, 5, 3).to("meta")},
            DtypeError,
            r"w_hat must be on the device of x_hat, cpu, got meta",
        ),
        ({"mask": torch.ones(5, 3, device="meta")}, DtypeError, r"mask must be on the device of x_hat, cpu, got meta"),
        ({"mask": torch.ones(5, 3, dtype=torch.int32)}, DtypeError, r"mask must be bool or floating point, got int32"),
        (
            {"mask": torch.ones(5, 5)},
            ShapeError,
            r"mask must have shape \[5, 3\] to match the spectrum, got \[5, 5\]; pass a half-spectrum mask",
        ),
        (
            {"x_hat": spectrum(4, 5, 3)},
            ShapeError,
            r"x_hat must have shape \[batch, in_channels, U, V\], got \[4, 5, 3\]",
        ),
        (
            {"w_hat": spectrum(4, 5, 3)},
            ShapeError,
            r"w_hat must have shape \[out_channels, in_channels / groups, U, V\]",
        ),
        ({"w_hat": spectrum(6, 3, 5, 3)}, ShapeError, r"must have in_channels / groups = 4 channels .* got 3 in"),
        ({"w_hat": spectrum(6, 4, 5, 5)}, ShapeError, r"planes of shape \[5, 3\] to match x_hat, got \[5, 5\]"),
        ({"groups": 3}, ShapeError, r"in_channels must be a multiple of groups=3, got 4"),
        ({"groups": 4}, ShapeError, r"out_channels must be a multiple of groups=4, got 6"),
        ({"groups": 2}, ShapeError, r"must have in_channels / groups = 2 channels"),
        ({"groups": 0}, RangeError, r"groups must be at least 1, got 0"),
        (
            {"impl": "fast"},
            RangeError,
            r"masked_multiply has no implementation 'fast'; known: triton, triton_tf32x3, triton_bf16x3, triton_2019",
        ),
    ],
)
def test_errors_say_what_to_do(arguments: dict, error: type[Exception], message: str) -> None:
    inputs = {"x_hat": spectrum(2, 4, 5, 3), "w_hat": spectrum(6, 4, 5, 3), **arguments}
    with pytest.raises(error, match=message):
        masked_multiply(**inputs)


def test_a_named_kernel_never_falls_back() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        with pytest.raises(
            Unsupported, match=r"masked_multiply with impl='triton': (Triton kernels need|triton is not)"
        ):
            masked_multiply(spectrum(1, 1, 2, 2), spectrum(1, 1, 2, 2), impl="triton")
    x = spectrum(1, 1, 2, 2, dtype=torch.complex128)
    reason = OPERATION.implementation("triton").supports(x_hat=x, w_hat=x, mask=None, groups=1)
    assert reason == "Triton kernels take complex64 spectra, got complex128"


def test_cost_counts_kept_inputs_and_the_whole_output() -> None:
    params = {"batch": 2, "in_channels": 6, "out_channels": 4, "height": 8, "width": 6, "groups": 2}
    case = Case("masked_multiply", (*params.items(), ("compression", 0.5), ("input", "white")), "complex64")
    inputs = OPERATION.make_inputs(case, "cpu")
    kept = int(inputs["mask"].sum())
    assert kept == 5 * 2  # k = floor(5 sqrt(1/2)) = 3 rows on one side, floor(4 sqrt(1/2)) = 2 columns
    cost = OPERATION.cost(case)
    assert (cost.bytes_read, cost.bytes_written) == (8 * kept * (2 * 6 + 4 * 3), 8 * 32 * 2 * 4)
    assert cost.flops == 8 * kept * 2 * 4 * 3
    output = OPERATION.implementation("einsum").call(**inputs)
    assert OPERATION.observe(case, output) == {"achieved_compression": 1 - kept / 32, "kept_fraction": kept / 32}


@pytest.mark.parametrize("impl", TORCH_FORMS)
def test_smoke_cases_run_prepared(impl: str) -> None:
    implementation = OPERATION.implementation(impl)
    for case, _ in OPERATION.cases("smoke"):
        inputs = OPERATION.make_inputs(case, "cpu")
        prepared = implementation.prepare(**inputs)
        error = relative_error(implementation.call(**prepared), reference(**inputs))
        assert error <= OPERATION.tolerance.relative[case.dtype], case.id


def test_asv_grid_is_dense_and_runs_on_a_cpu() -> None:
    (block,) = OPERATION.profiles["asv"]
    points = 1
    for values in block.axes.values():
        points *= len(values)
    assert len(OPERATION.cases("asv")) == points
    assert block.implementations is not None
    elsewhere = {name for name in block.implementations if OPERATION.implementation(name).available("cpu") is not None}
    assert elsewhere == {"triton"}


def _forget_conjugate(x: Tensor, w: Tensor, mask: Tensor | None) -> Tensor:
    return masked_multiply(x, w.conj(), mask)


def _skip_last_channel(x: Tensor, w: Tensor, mask: Tensor | None) -> Tensor:
    return masked_multiply(x[:, :-1], w[:, :-1], mask)


def _forget_mask(x: Tensor, w: Tensor, mask: Tensor | None) -> Tensor:
    return masked_multiply(x, w)


def _shift_one_cell(x: Tensor, w: Tensor, mask: Tensor | None) -> Tensor:
    return masked_multiply(x, w, mask).roll(1, -1)


@pytest.mark.parametrize("fault", [_forget_conjugate, _skip_last_channel, _forget_mask, _shift_one_cell])
def test_planted_faults_are_caught(seed: int, fault: Callable[..., Tensor]) -> None:
    x, w = spectrum(2, 64, 9, 5), spectrum(8, 64, 9, 5)
    mask = low_pass_mask((9, 8), 0.5)
    expected = reference(x, w, mask, 1)
    assert relative_error(masked_multiply(x, w, mask), expected) <= TOLERANCE["complex64"]
    assert not relative_error(fault(x, w, mask), expected) <= 1000 * TOLERANCE["complex64"]
