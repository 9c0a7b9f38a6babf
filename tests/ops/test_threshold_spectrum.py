"""Thresholded spectra: the decision, the activation, every format, gradients, tracing, every bad argument."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
import torch
from effort import gradcheck, gradgradcheck, opcheck

from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported
from spectralkernels.ops.threshold_spectrum import OPERATION, baselines, threshold_spectrum
from spectralkernels.sparse import FORMATS, SparseSpectrum, bitmap, pack, too_large
from spectralkernels.sparse.inputs import convolved_spectrum

IMPLS = ("dense", "coo", "csr", "index", "bitmap", "bitmap_compact")


def random_maps(seed: int, count: int) -> list[tuple[torch.Tensor, int]]:
    """(half spectrum complex128, n) of random real maps; odd, even, prime and size-1 axes, one without leading axes."""
    draw = random.Random(seed)
    sizes = [(1, 1, 1, 1), (1, 2, 1, 2), (2, 1, 2, 1), (3, 2, 7, 8)]
    sides = (1, 2, 3, 5, 6, 8, 11, 16, 31)
    while len(sizes) < count:
        sizes.append((draw.randint(1, 4), draw.randint(1, 4), draw.choice(sides), draw.choice(sides)))
    return [(torch.fft.rfft2(torch.randn(s, dtype=torch.float64), norm="ortho"), s[-1]) for s in sizes]


def by_definition(y: torch.Tensor, beta: float, n: int, activation: str = "tanh") -> torch.Tensor:
    """Coefficient by coefficient: slow, and unlike anything in the library."""
    z = torch.zeros_like(y)
    rows, columns = y.shape[-2:]
    for plane, out in zip(y.reshape(-1, rows, columns), z.view(-1, rows, columns), strict=True):
        for u in range(rows):
            for v in range(columns):
                pair = v in (0, n / 2)
                if abs(plane[u, v].item()) > beta or (pair and abs(plane[(rows - u) % rows, v].item()) > beta):
                    kept = plane[u, v]
                    out[u, v] = torch.complex(kept.real.tanh(), kept.imag.tanh()) if activation == "tanh" else kept
    return z


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ["tanh", None])
def test_it_is_the_definition(impl: str, activation: str | None, seed: int):
    for y, n in random_maps(seed, 8):
        beta = float(y.abs().median()) * (1 + 1e-9)  # not a magnitude itself: abs of Python and torch round apart
        got = threshold_spectrum(y, beta, n=n, activation=activation, impl=impl)
        torch.testing.assert_close(got.to_dense(), by_definition(y, beta, n, activation or "none"))
        assert got.shape == y.shape
        assert got.format == impl.removesuffix("_compact")


@pytest.mark.parametrize("impl", IMPLS)
def test_relative_beta_scales_with_the_rms_of_the_map(impl: str, seed: int):
    for size in ((5, 6), (6, 7), (1, 4), (8, 8)):
        maps = torch.randn(3, 2, *size, dtype=torch.float64) * torch.tensor([0.1, 30.0]).reshape(2, 1, 1)
        y = torch.fft.rfft2(maps, norm="ortho")
        got = threshold_spectrum(y, 0.8, relative=True, n=size[-1], impl=impl).to_dense()
        for b in range(3):
            for c in range(2):
                rms = float(maps[b, c].square().mean().sqrt())
                torch.testing.assert_close(got[b, c], by_definition(y[b, c], 0.8 * rms, size[-1]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
def test_a_magnitude_equal_to_beta_is_dropped(impl: str, beta: float):
    y = torch.zeros(4, 4, dtype=torch.complex64)
    y[1, 1], y[2, 2], y[3, 1] = beta, -beta * 1j, complex(3, -4)
    just_above = torch.nextafter(torch.tensor(beta), torch.tensor(9.0)).item()
    y[1, 2] = just_above
    kept = threshold_spectrum(y, beta, n=7, impl=impl).kept()
    assert not kept[1, 1] and not kept[2, 2]
    assert kept[1, 2]
    assert bool(kept[3, 1]) == (beta < 5.0)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_none_and_nan(impl: str, seed: int):
    y = torch.randn(2, 3, 5, 4, dtype=torch.complex64)
    everything = threshold_spectrum(y, 0, activation=None, impl=impl)
    assert torch.equal(everything.to_dense(), y)
    assert everything.nnz == y.numel() and everything.density == 1.0
    nothing = threshold_spectrum(y, float("inf"), impl=impl)
    assert nothing.nnz == 0 and not nothing.to_dense().any()
    y[1, 2, 3, 1] = complex(float("nan"), 0.0)
    assert threshold_spectrum(y, 1.0, impl=impl).to_dense()[1, 2, 3, 1].isnan(), "a NaN must not be hidden"


@pytest.mark.parametrize("impl", IMPLS)
def test_pairs_are_decided_together(impl: str):
    """Rounding may push one coefficient of a conjugate pair over the threshold and not the other."""
    for n, paired_columns in ((6, (0, 3)), (7, (0,))):
        y = torch.full((5, 4), 0.1 + 0j, dtype=torch.complex64)
        y[1] = 0.5
        kept = threshold_spectrum(y, 0.4, n=n, impl=impl).kept()
        for v in range(4):
            assert kept[1, v]
            assert bool(kept[4, v]) == (v in paired_columns), (n, v)
            assert not kept[0, v] and not kept[2, v] and not kept[3, v]


@pytest.mark.parametrize("impl", IMPLS)
def test_the_inverse_transform_stays_real(impl: str, seed: int):
    """A Hermitian half spectrum survives irfft2 and rfft2; magnitudes bounded by sqrt 2 after tanh."""
    for y, n in random_maps(seed, 10):
        z = threshold_spectrum(y, float(y.abs().mean()), n=n, impl=impl).to_dense()
        again = torch.fft.rfft2(torch.fft.irfft2(z, s=(y.shape[-2], n), norm="ortho"), norm="ortho")
        torch.testing.assert_close(again, z)
        assert z.abs().max() <= 2**0.5


def test_a_split_pair_would_be_seen(monkeypatch: pytest.MonkeyPatch, seed: int):
    """Planted fault: deciding each coefficient alone breaks the symmetry of a spectrum with rounding at the edge."""
    y = torch.fft.rfft2(torch.randn(8, 8, dtype=torch.float64), norm="ortho")
    y[1, 0] *= 1 + 1e-12
    beta = float(y[7, 0].abs()) * (1 + 5e-13)
    monkeypatch.setattr(baselines, "decide", lambda y, beta, rms, n: y.abs() > beta)
    z = threshold_spectrum(y, beta, n=8, impl="dense").to_dense()
    again = torch.fft.rfft2(torch.fft.irfft2(z, s=(8, 8), norm="ortho"), norm="ortho")
    assert (again - z).abs().max() > 0.01


@pytest.mark.parametrize(("beta", "percent"), [(0.5, 65), (0.75, 43), (1.0, 28), (1.25, 19), (1.5, 13)])
def test_kept_fraction_of_natural_maps(beta: float, percent: float, seed: int):
    """The operating points of the paper's sweep, for ortho-normalised maps of 1/f images: eight standard errors."""
    y = convolved_spectrum("pink", (16, 48, 32, 32), seed)
    assert abs(100 * threshold_spectrum(y, beta).density - percent) <= 3


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4)])
@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch_stays_empty(impl: str, shape: tuple[int, ...]):
    y = torch.zeros(shape, dtype=torch.complex64, requires_grad=True)
    got = threshold_spectrum(y, 0.5, relative=True, impl=impl)
    assert got.to_dense().shape == shape
    assert got.nnz == 0 and got.density == 0.0
    got.to_dense().abs().sum().backward()
    assert y.grad is not None and y.grad.shape == shape


@pytest.mark.parametrize("impl", IMPLS)
def test_any_strides(impl: str, seed: int):
    y = torch.randn(5, 4, 3, 2, dtype=torch.complex64)
    for view in (y.permute(3, 2, 1, 0), y.conj(), y[::2, :, :1].expand(3, 4, 7, 2), y[..., 1:]):
        want = threshold_spectrum(view.contiguous().resolve_conj(), 0.9, relative=True, impl=impl).to_dense()
        assert torch.equal(threshold_spectrum(view, 0.9, relative=True, impl=impl).to_dense(), want)


def test_bytes_of_every_format(seed: int):
    """Values plus what says where they belong, counted by hand; the bitmap is smallest between 3 % and 100 %."""
    y = torch.randn(4, 3, 33, 17, dtype=torch.complex64)
    n, rows = y.numel(), 4 * 3 * 33
    dense = threshold_spectrum(y, 1.5, impl="dense")
    k = dense.nnz
    words = 4 * 32 * -(-n // 1024)
    expected = {
        "dense": 8 * n,
        "coo": k * (8 + 4 * 8),
        "csr": k * (8 + 4) + 4 * (rows + 1),
        "index": k * (8 + 4),
        "bitmap": 8 * k + words,
        "bitmap_compact": 8 * k + words + words // 32,
    }
    for impl in IMPLS:
        sparse = threshold_spectrum(y, 1.5, impl=impl)
        assert sparse.nnz == k
        assert sparse.density == k / n
        assert sparse.nbytes == expected[impl], impl
        tight = sparse.compact()
        assert tight.nbytes == tight.allocated_nbytes
        assert torch.equal(tight.to_dense(), sparse.to_dense())
    assert threshold_spectrum(y, 1.5, impl="bitmap").allocated_nbytes > expected["bitmap"]
    assert threshold_spectrum(y, 1.5, impl="bitmap").compact().nbytes == expected["bitmap"] + words // 32


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_formats_convert_into_each_other(source: str, target: str, seed: int):
    for y, n in random_maps(seed, 5):
        y = y.to(torch.complex64)
        start = threshold_spectrum(y, 0.6, n=n, impl=source)
        converted = start.to_format(target)  # type: ignore[arg-type]
        assert converted.format == target
        assert torch.equal(converted.to_dense(), start.to_dense())
        assert torch.equal(converted.kept(), start.kept())
        assert torch.equal(converted.flat_index(), start.flat_index())


def test_bits_round_trip(seed: int):
    bits = torch.rand(3, bitmap.BLOCK) < 0.5
    bits[0], bits[1] = True, False
    words = bitmap.pack_bits(bits)
    assert words.dtype == torch.int32 and words.shape == (96,)
    assert torch.equal(bitmap.unpack_bits(words), bits)
    assert words[0] == -1 and words[40] == 0


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ["tanh", None])
def test_gradients(impl: str, activation: str | None, seed: int):
    """gradcheck in complex128, away from the threshold, and zero where dropped."""
    for shape in ((2, 3, 5, 4), (1, 1, 1, 1)):
        y = torch.randn(shape, dtype=torch.complex128)
        y = torch.where((y.abs() - 0.7).abs() < 1e-3, 2 * y, y).requires_grad_()

        def dense(y: torch.Tensor) -> torch.Tensor:
            return threshold_spectrum(y, 0.7, activation=activation, impl=impl).to_dense()

        assert gradcheck(dense, y)
        assert gradgradcheck(dense, y)
        (grad,) = torch.autograd.grad(dense(y).abs().sum(), y)
        assert torch.equal(grad != 0, threshold_spectrum(y, 0.7, impl=impl).kept())


@pytest.mark.slow
def test_gradients_through_compaction_and_conversion(seed: int):
    y = torch.randn(1, 2, 3, 4, dtype=torch.complex128)
    y = torch.where((y.abs() - 0.7).abs() < 1e-3, 2 * y, y).requires_grad_()
    assert gradcheck(lambda y: threshold_spectrum(y, 0.7, impl="bitmap").compact().to_dense(), y)
    for target in FORMATS:
        convert = lambda y, target=target: threshold_spectrum(y, 0.7).to_format(target).to_dense()  # noqa: E731
        assert gradcheck(convert, y)


@pytest.mark.slow
def test_operators_pass_opcheck(seed: int):
    flat = torch.randn(1500, dtype=torch.complex64, requires_grad=True)
    kept = flat.detach().abs() > 0.8
    opcheck(bitmap.pack.differentiable, (flat, kept))
    sparse = pack(flat.detach().reshape(1, 1500), kept.reshape(1, 1500), "bitmap")
    tight = sparse.compact()
    for spectrum in (sparse, tight):
        words, offsets = spectrum.bits()
        values = spectrum.values.clone().requires_grad_()
        opcheck(bitmap.expand.differentiable, (values, words, offsets, 1500))
        opcheck(bitmap.collect.differentiable, (flat, words, offsets, values.shape[0]))


@pytest.mark.parametrize("impl", ["auto", "bitmap", "dense"])
def test_static_formats_trace_whole(impl: str, seed: int):
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)

    def dense(y: torch.Tensor) -> torch.Tensor:
        return threshold_spectrum(y, 0.5, relative=True, impl=impl).to_dense()

    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(y), dense(y))
    grads = [torch.autograd.grad(call(y).abs().square().sum(), y)[0] for call in (compiled, dense)]
    torch.testing.assert_close(*grads)
    sparse = torch.compile(lambda y: threshold_spectrum(y, 0.5, impl=impl), fullgraph=True, backend="aot_eager")(y)
    assert isinstance(sparse, SparseSpectrum) and sparse.nnz > 0


def test_a_threshold_that_turns_negative_is_refused_when_compiled():
    y = torch.randn(1, 2, 4, 3, dtype=torch.complex64)
    compiled = torch.compile(lambda y, beta: threshold_spectrum(y, beta).values, fullgraph=True, backend="eager")
    for beta in (0.5, 0.6, 0.7):  # a number of the graph, then one that the graph takes
        compiled(y, beta)
    with pytest.raises(Exception, match="beta must be a number >= 0, got a negative one; 0 keeps every coefficient"):
        compiled(y, -1.0)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_threshold_may_be_a_tensor_of_one_and_asks_for_no_gradient(shape: tuple[int, ...], recwarn, seed: int):
    y, beta = torch.randn(1, 2, 4, 3, dtype=torch.complex64), torch.full(shape, 0.5, requires_grad=True)
    want = threshold_spectrum(y, 0.5).to_dense()
    assert torch.equal(threshold_spectrum(y, beta).to_dense(), want) and not recwarn.list
    call = torch.compile(lambda y, beta: threshold_spectrum(y, beta).to_dense(), fullgraph=True, backend="eager")
    assert torch.equal(call(y, beta), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_wrong_decisions_fail_the_gate(impl: str, seed: int):
    """Planted fault: a threshold one part in a hundred off is far outside the tolerance, a right one far inside."""
    case = dataclasses.replace(OPERATION.cases("quick")[0][0], seed=seed)
    inputs = OPERATION.make_inputs(case, "cpu")
    want = OPERATION.reference(**inputs)
    call = OPERATION.implementation(impl).call
    right = call(**inputs)
    wrong = call(**{**inputs, "beta": 1.01 * inputs["beta"]})
    error = [float((got.to_dense() - want).norm() / want.norm()) for got in (right, wrong)]
    limit = OPERATION.tolerance.relative["float32"]
    assert error[0] < limit / 5 and error[1] > 20 * limit
    observed = OPERATION.observe(case, right)
    assert observed == {"kept_fraction": right.density, "stored_bytes": float(right.nbytes)}


def test_inputs_stay_away_from_the_threshold(seed: int):
    """No correct implementation can disagree on what is kept, so the gate never fails by chance."""
    for case, _ in OPERATION.cases("smoke"):
        inputs = OPERATION.make_inputs(dataclasses.replace(case, seed=seed), "cpu")
        y, beta = inputs["y_hat"], inputs["beta"]
        limit = beta * (baselines.map_rms(y, inputs["n"]).reshape(*y.shape[:2], 1, 1) if inputs["relative"] else 1.0)
        assert ((y.abs() - limit).abs() > 5e-6 * limit).all()


def test_the_ideal_keeps_everything(seed: int):
    case = OPERATION.cases("quick")[0][0]
    inputs = OPERATION.make_inputs(case, "cpu")
    y = inputs["y_hat"].to(torch.complex128)
    assert OPERATION.ideal is not None
    torch.testing.assert_close(OPERATION.ideal(**inputs), torch.complex(y.real.tanh(), y.imag.tanh()))


Y = torch.ones(2, 3, 6, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Y.real, 0.5), DtypeError, "y_hat must be a complex64 or complex128 tensor, got torch.float32; transform"),
        ((Y.tolist(), 0.5), DtypeError, "y_hat must be a complex64 or complex128 tensor, got list"),
        ((Y[0, 0, 0], 0.5), ShapeError, "y_hat must have shape [..., U, V] with U, V >= 1, got [4]"),
        ((Y[:, :, :0], 0.5), ShapeError, "with U, V >= 1, got [2, 3, 0, 4]"),
        ((Y, float("nan")), RangeError, "beta must be a number >= 0, got nan; 0 keeps every coefficient"),
        ((Y, -0.5), RangeError, "beta must be a number >= 0, got -0.5"),
        ((Y, "0.5"), RangeError, "beta must be a number >= 0, got '0.5'"),
        ((Y, torch.tensor(-0.5)), RangeError, "beta must be a number >= 0, got -0.5"),
        ((Y, torch.tensor([0.5, 0.5])), RangeError, "beta must be a number >= 0, got Tensor"),
        ((Y, True), RangeError, "beta must be a number >= 0, got True"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        threshold_spectrum(*arguments)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"n": 8}, ShapeError, "n must be a signal length with 4 half-spectrum columns (6 or 7), got 8"),
        ({"n": 0}, ShapeError, "n must be a signal length with 4 half-spectrum columns (6 or 7), got 0"),
        ({"activation": "relu"}, RangeError, "unknown activation 'relu'; known: tanh, none"),
        ({"impl": "fast"}, RangeError, f"has no implementation 'fast'; known: {', '.join(IMPLS)}, triton"),
        ({"impl": "triton"}, Unsupported, "threshold_spectrum with impl='triton': Triton kernels need a CUDA device"),
    ],
)
def test_bad_keywords(keywords: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        threshold_spectrum(Y, 0.5, **keywords)


def test_formats_that_cannot_serve_say_why():
    with pytest.raises(RangeError, match="unknown sparse format 'ell'; known: dense, coo, csr, index, bitmap"):
        threshold_spectrum(Y, 0.5).to_format("ell")  # type: ignore[arg-type]
    huge = torch.empty(2**31, 1, dtype=torch.complex64, device="meta")
    assert too_large(huge, "coo") is None
    for format in ("csr", "index", "bitmap"):
        reason = too_large(huge, format)  # type: ignore[arg-type]
        assert reason is not None and "takes at most 2147482624 coefficients, got 2147483648; split the batch" in reason
    with pytest.raises(Unsupported, match="format 'index' counts in int32"):
        pack(huge, huge.real.bool(), "index")
    double = Y.to(torch.complex128)
    supports = OPERATION.implementation("triton").supports
    reason = supports(y_hat=double, beta=1.0, activation="tanh", relative=False, n=6)
    assert reason == "the kernel takes complex64, got torch.complex128; use impl='bitmap'"
