"""The compiled convolution: the reference in value and gradient, memory, threads, and life without a compiler."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.cost import folded_flops
from spectralkernels.convolution.dft_native import build, ends, folding
from spectralkernels.convolution.geometry import conv_band

needs_compiler = pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler")


def drawn(draw: random.Random) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """A function, tensors in float64, and options: series and maps, odd, even, prime and size-1, lanes full and not."""
    axes = draw.choice((1, 2))
    size = [draw.choice((1, 2, 3, 5, 8, 11, 16, 23)) for _ in range(axes)]
    kernel = [draw.choice((1, 2, 3, 4, 5, 7, 10)) for _ in range(axes)]
    groups, inputs, outputs = (
        draw.choice(each) for each in ((1, 1, 2, 5, 8, 17), (1, 1, 2, 3, 17), (1, 1, 2, 3, 8, 17))
    )
    tensors = {
        "x": torch.randn(draw.choice((1, 2, 3, 9)), groups * inputs, *size, dtype=torch.float64),
        "weight": torch.randn(groups * outputs, inputs, *kernel, dtype=torch.float64),
        "bias": torch.randn(groups * outputs, dtype=torch.float64),
    }
    wide = tuple(draw.choice((9, 10, 12)) for _ in size)
    options = {
        "padding": draw.choice(("same", "same", wide)),
        "grid": draw.choice(("tight", "tight", "seed", "pow2", "fast")),
        "compression": draw.choice((0.0, 0.2, 0.5, 0.9)),
        "groups": groups,
    }
    return (sk.band_limited_conv1d, sk.band_limited_conv2d)[axes - 1], tensors, options


def expected(tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    geometry = {name: value for name, value in options.items() if name != "groups"}
    band = conv_band(tuple(tensors["x"].shape[2:]), tuple(tensors["weight"].shape[2:]), **geometry)
    return reference(*tensors.values(), band, options["groups"])


def close(got: Tensor, want: Tensor, terms: int, rounding: float) -> None:
    """Held to what as many normal terms usually sum to: a lone number may be the rest of a cancellation."""
    assert got.shape == want.shape
    assert float((got.double() - want).detach().norm()) <= rounding * (terms * want.numel()) ** 0.5


def check_a_draw(draw: random.Random) -> None:
    """Value, gradients and frozen form of one random call in both precisions."""
    convolve, tensors, options = drawn(draw)
    print(convolve.__name__, {name: list(tensor.shape) for name, tensor in tensors.items()}, options)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    want = expected(tensors, options)
    dy = torch.randn_like(want)
    gradients = torch.autograd.grad(want, leaves, dy)
    taps, seen = leaves[1][0].numel(), dy[:, 0].numel()
    of_y, of_gradients = taps + 1, (taps * leaves[1].shape[0] // leaves[0].shape[1] + 1, seen, seen)
    geometry = {name: options[name] for name in ("padding", "grid", "compression", "groups")}
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        own = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        got = convolve(*own, **options, impl="dft_native")
        close(got, want, of_y, rounding)
        found = torch.autograd.grad(got, own, dy.to(dtype))
        for each, gradient, terms in zip(found, gradients, of_gradients, strict=True):
            close(each, gradient, terms, rounding)
        frozen = sk.weight_spectrum(own[1].detach(), tuple(own[0].shape[2:]), **geometry)
        for _ in range(2):  # packed, and found packed
            got = convolve(own[0], frozen, own[2], **options, impl="dft_native_frozen")
            close(got, want, of_y, rounding)
            dx, db = torch.autograd.grad(got, (own[0], own[2]), dy.to(dtype))
            close(dx, gradients[0], of_gradients[0], rounding)
            close(db, gradients[2], of_gradients[2], rounding)


@needs_compiler
@pytest.mark.parametrize("number", draws(6))
def test_values_gradients_and_frozen_weights_are_those_of_the_reference(number: int, seed: int, poisoned: None):
    draw = random.Random(seed)
    for _ in range(12):
        check_a_draw(draw)


@pytest.fixture
def registers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The library for registers of another width; what knows the width is forgotten before and after."""
    plain = [flag for flag in build._flags() if not flag.startswith(("-march", "-mcpu", "-O3"))]

    def forget() -> None:
        build._load.cache_clear()
        constants.forget()

    monkeypatch.setattr(build, "_flags", lambda: [*plain, "-O0", f"-DSPECTRAL_VECTOR_BYTES={request.param}"])
    forget()
    yield
    forget()


@needs_compiler
@pytest.mark.parametrize("registers", [16, 64], indirect=True)
def test_registers_of_any_width_give_the_answer(registers: None, seed: int):
    """Of a plain processor, and of AVX-512 on whatever runs this."""
    assert build.library().dft_native_vector_bytes() in (16, 64)
    draw = random.Random(seed)
    for _ in range(12):
        check_a_draw(draw)


@pytest.mark.parametrize("panel", [3, 6])
def test_the_floor_counts_the_products_of_the_folded_matrices(panel: int):
    """A number of the half axis meets every row of a map once, one of the rows both parts of every column."""
    for size, kernel in (((32, 32), (3, 3)), ((9, 14), (4, 5)), ((1, 1), (3, 1))):
        band = conv_band(size, kernel, compression=0.4)
        for height, width in (band.size, band.kernel, band.out):
            numbers = folding.fold(band.n, band.kept, (height, width), (0, 0), torch.float64, panel).matrices.numel()
            of_rows = height * band.kept[0]
            products = height * (numbers - of_rows) + 2 * band.columns * of_rows
            assert folded_flops((height, width), band) == 2 * products
    series = conv_band((17,), (5,), compression=0.4)
    numbers = folding.fold(series.n, series.kept, (17,), (0,), torch.float64, panel).matrices.numel()
    assert folded_flops((17,), series) == 2 * (numbers - 1)


@needs_compiler
@pytest.mark.parametrize("fault", ["no zero in front of even kernels", "the other sign of i", "no middle"])
def test_a_fault_in_the_folding_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch, seed: int):
    right = folding._about_the_centre

    def wrong(n: int, kept: int, length: int, step: int) -> tuple[Tensor, Tensor]:
        cos, sin = right(n, kept, length, step)
        if fault == "the other sign of i" and length == 5:  # the kernel with its zero
            sin = -sin
        if fault == "no middle" and length % 2 == 1:
            cos[0] *= 2.0
        return cos, sin

    monkeypatch.setattr(folding, "_about_the_centre", wrong)
    if fault == "no zero in front of even kernels":
        monkeypatch.setattr(ends, "_ends", ends._ends.__wrapped__)  # type: ignore[attr-defined]  # remembers nothing
        monkeypatch.setattr(ends, "zeros_of", lambda *sides: ((0, 0), (0, 0)))
    constants.forget()
    x, weight = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    want = reference(x, weight, None, conv_band((9, 8), (4, 4), compression=0.4), 1)
    got = sk.band_limited_conv2d(x, weight, compression=0.4, impl="dft_native")
    constants.forget()
    assert float((got - want).norm() / want.norm()) > 1e-2


@needs_compiler
@pytest.mark.parametrize("groups", [1, 12])
def test_strides_and_half_precision(groups: int, seed: int):
    x, weight = torch.randn(2, 12, 9, 10), torch.randn(12, 12 // groups, 3, 4)

    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = sk.band_limited_conv2d(*leaves, compression=0.3, groups=groups, impl="dft_native")
        return (y, *torch.autograd.grad(y, leaves, torch.ones_like(y[:, :1]).expand_as(y)))

    want = run(x, weight)
    layouts = (
        (x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last)),
        (x.mT.contiguous().mT, torch.randn(12, 12 // groups, 6, 8)[..., ::2, ::2].copy_(weight)),
    )
    for layout in layouts:
        for found, expected in zip(run(*layout), want, strict=True):
            assert torch.equal(found, expected)
    for found, expected in zip(run(x[:1].expand_as(x), weight), run(x[:1].repeat(2, 1, 1, 1), weight), strict=True):
        assert torch.equal(found, expected)
    for dtype in (torch.bfloat16, torch.float16):
        halves = x.to(dtype), weight.to(dtype)
        for found, expected in zip(run(*halves), run(*(half.float() for half in halves)), strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


@needs_compiler
@pytest.mark.parametrize(("groups", "kernel"), [(1, (3, 3)), (24, (5, 4)), (2, (7,))])
def test_bits_do_not_depend_on_threads(groups: int, kernel: tuple[int, ...], seed: int):
    """Neither on how many share a call, nor on what other threads of the program call at the same time."""
    convolve = sk.band_limited_conv2d if len(kernel) == 2 else sk.band_limited_conv1d
    x = torch.randn(3, 24, *(17 for _ in kernel), requires_grad=True)
    weight = torch.randn(24, 24 // groups, *kernel, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        y = convolve(x, weight, compression=0.4, groups=groups, impl="dft_native")
        return (y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight)))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = run()
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert all(torch.equal(found, one) for found, one in zip(run(), want, strict=True)), threads
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: run(), range(12)):
                assert all(torch.equal(each, one) for each, one in zip(found, want, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize(("groups", "compression", "most"), [(1, 0.5, 0.6), (1, 0.0, 1.0), (16, 0.5, 1.0)])
def test_backward_saves_the_smaller_of_x_and_its_spectrum(groups: int, compression: float, most: float, seed: int):
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    weight = torch.randn(16, 16 // groups, 3, 3, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sk.band_limited_conv2d(x, weight, compression=compression, groups=groups, impl="dft_native")
    assert sum(saved.values()) <= most * x.nbytes + weight.nbytes


@pytest.mark.slow
@needs_compiler
def test_operators_pass_opcheck_and_trace(seed: int):
    ops = torch.ops.spectralkernels
    for groups, channels in ((1, 16), (2, 4), (24, 24)):
        x = torch.randn(2, channels, 7, 6, requires_grad=True)
        weight = torch.randn(channels, channels // groups, 3, 4, requires_grad=True)
        bias = torch.randn(channels, requires_grad=True)
        geometry, steps = ([-1, -1], groups, [8, 8], [3, 3]), ([1, 1], [1, 1])
        for keep in (True, False):
            opcheck(ops.dft_native_conv.default, (x, weight, bias, *geometry, [7, 6], *steps, keep, None, []))
        y, z = ops.dft_native_conv(x.detach(), weight.detach(), None, *geometry, [7, 6], *steps, True, None, [])
        saved = (None, z) if z.numel() else (x.detach(), z)
        backward = (y, *saved, weight.detach(), *geometry, [7, 6], *steps, True, True, None, [])
        opcheck(ops.dft_native_conv_backward.default, backward)
        modes = sk.weight_spectrum(weight, (7, 6), compression=0.4, groups=groups, grid=8).modes
        kept = [3, 3]
        assert len(modes) == 15
        apply = (x, modes, bias, channels, groups, [8, 8], kept, [7, 6])
        opcheck(ops.dft_native_apply.default, (*apply, None, [], None))
        opcheck(
            ops.dft_native_apply_backward.default, (y, modes, channels, groups, [8, 8], kept, [7, 6], None, [], None)
        )

        def layer(x: Tensor, weight: Tensor, groups: int = groups) -> Tensor:
            return sk.band_limited_conv2d(x, weight, compression=0.5, groups=groups, impl="dft_native").relu()

        eager, compiled = layer(x, weight), torch.compile(layer, fullgraph=True, backend="aot_eager")(x, weight)
        torch.testing.assert_close(compiled, eager)
        for got, want in zip(*(torch.autograd.grad(y.sum(), (x, weight)) for y in (compiled, eager)), strict=True):
            torch.testing.assert_close(got, want)


@needs_compiler
@pytest.mark.parametrize(("groups", "kernel", "compression"), [(1, (3, 4), 0.5), (1, (3, 3), 0.0), (16, (4, 3), 0.5)])
def test_second_and_forward_derivatives(groups: int, kernel: tuple[int, int], compression: float, seed: int):
    """The saved spectrum, x in its place, and groups in lanes."""
    tensors = torch.randn(2, 16, 8, 9), torch.randn(16, 16 // groups, *kernel), torch.randn(16)
    x, weight, bias = (tensor.double().requires_grad_() for tensor in tensors)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, impl: str = "dft_native") -> Tensor:
        return sk.band_limited_conv2d(x, weight, bias, groups=groups, compression=compression, impl=impl)

    def second(impl: str) -> tuple[Tensor, ...]:
        y = convolve(x, weight, bias, impl)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight, bias), create_graph=True)
        penalty = sum(each.square().sum() for each in first)
        return (*first, *torch.autograd.grad(penalty, (x, weight, bias)))

    for got, want in zip(second("dft_native"), second("torch_fft"), strict=True):
        torch.testing.assert_close(got, want)
    spectrum = sk.weight_spectrum(weight.detach(), (8, 9), groups=groups, compression=compression)
    frozen = convolve(x, spectrum, bias, "dft_native_frozen")
    (first,) = torch.autograd.grad(frozen.pow(3).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(first.sum(), x)
    (want,) = torch.autograd.grad(
        torch.autograd.grad(convolve(x, weight, bias).pow(3).sum(), x, create_graph=True)[0].sum(), x
    )
    torch.testing.assert_close(again, want)
    tangents = tuple(torch.randn_like(tensor) for tensor in (x, weight, bias))
    _, got = torch.func.jvp(convolve, (x, weight, bias), tangents)
    _, want = torch.func.jvp(lambda *leaves: convolve(*leaves, "torch_fft"), (x, weight, bias), tangents)
    torch.testing.assert_close(got, want)


@needs_compiler
def test_a_frozen_spectrum_may_be_changed_in_place_with_or_without_a_version(seed: int):
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    spectrum = sk.weight_spectrum(weight, (8, 8), compression=0.5)
    first = sk.band_limited_conv2d(x, spectrum, compression=0.5, impl="dft_native_frozen")
    spectrum.modes.mul_(2.0)
    second = sk.band_limited_conv2d(x, spectrum, compression=0.5, impl="dft_native_frozen")
    torch.testing.assert_close(second, 2.0 * first)
    spectrum.modes.data.mul_(2.0)
    third = sk.band_limited_conv2d(x, spectrum, compression=0.5, impl="dft_native_frozen")
    torch.testing.assert_close(third, 4.0 * first)


@needs_compiler
def test_no_samples_make_no_samples_and_freed_memory_none(seed: int):
    for groups in (1, 16):
        x, weight = torch.randn(0, 16, 5, 5, requires_grad=True), torch.randn(16, 16 // groups, 3, 3)
        weight.requires_grad_()
        y = sk.band_limited_conv2d(x, weight, compression=0.5, groups=groups, impl="dft_native")
        dx, dw = torch.autograd.grad(y.sum(), (x, weight))
        assert y.shape == dx.shape == (0, 16, 5, 5)
        assert not dw.any()
    both = torch.randn(2, 16, 5, 5)
    parts = both.split(1)
    both.untyped_storage().resize_(0)  # as sharded modules free theirs
    for x in parts:
        with pytest.raises(RuntimeError, match="whose memory was freed"):
            sk.band_limited_conv2d(x, weight.detach(), groups=16, impl="dft_native")


# --- the compiler ---------------------------------------------------------------------------------------------------

X, W = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3)
MANY = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)  # enough for the matrices to be fastest


@pytest.fixture
def built() -> Path:
    """The library in the cache of this machine."""
    assert build.COMPILER is not None
    build.library()
    return build._path(build.COMPILER)


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(build, "READY", False)
    build._load.cache_clear()
    yield tmp_path
    build._load.cache_clear()


def test_without_a_compiler_it_says_so(nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "COMPILER", None)
    reasons = {found.name: found.reason for found in sk.implementations("band_limited_conv2d", "cpu")}
    assert f"no C++ compiler: {build._NAME!r} is not on the path" in str(reasons["dft_native"])
    with pytest.raises(sk.Unsupported, match=r"impl='dft_native': no C\+\+ compiler"):
        sk.band_limited_conv2d(X, W, impl="dft_native")
    assert sk.explain(sk.band_limited_conv2d, *MANY, compression=0.5).chosen == "dft_gemm"


def test_on_a_gpu_it_says_so():
    reasons = {found.name: found.reason for found in sk.implementations("band_limited_conv1d", "cuda")}
    assert reasons["dft_native"] == reasons["dft_native_frozen"] == "it runs on a CPU only"


@needs_compiler
def test_a_failing_compiler_is_quoted_and_leaves_nothing(nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_flags", lambda: ["-std=c++20", "-include", "no_such_header.h"])
    for _ in range(2):
        with pytest.raises(sk.Unsupported, match=r"the C\+\+ compiler failed: .*(\n.*)*no_such_header.h"):
            sk.band_limited_conv2d(X, W, impl="dft_native")
    assert not list(nothing_built.rglob("*.so"))
    assert not build.READY


@needs_compiler
def test_a_folder_that_cannot_be_written_is_named(nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    (nothing_built / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(nothing_built / "file"))
    with pytest.raises(sk.Unsupported, match=r"no folder to compile in .*; set TORCH_EXTENSIONS_DIR"):
        sk.band_limited_conv2d(X, W, impl="dft_native")


@pytest.mark.slow
@needs_compiler
def test_auto_takes_it_from_the_first_build_on_and_never_builds(built: Path, nothing_built: Path):
    def chosen() -> str:
        return sk.explain(sk.band_limited_conv2d, *MANY, compression=0.5).chosen

    sk.band_limited_conv2d(X, W, compression=0.5)
    assert chosen() == "dft_gemm"
    assert not list(nothing_built.rglob("*.so"))
    assert build.COMPILER is not None
    build._path(build.COMPILER).parent.mkdir(parents=True)
    shutil.copy(built, build._path(build.COMPILER))
    sk.band_limited_conv2d(X, W, impl="dft_native")
    assert chosen() == "dft_native"
    program = "import spectralkernels.convolution.dft_native.build as build; print(build.READY)"
    root = Path(sk.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "True\n"
