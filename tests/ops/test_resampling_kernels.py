"""Spectral pooling, dropout and DiffStride in one Triton launch: under the interpreter, and as compiled.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`; float64 references are those of the operations.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import canaries, check_gradients, interpreter, judged_compiler, relative_error
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.fused.precision import UNSCALED
from spectralkernels.launch import forget_plans
from spectralkernels.ops.diff_stride2d import OPERATION as DIFF_STRIDE
from spectralkernels.ops.diff_stride2d import diff_stride_size
from spectralkernels.ops.frequency_dropout2d import OPERATION as DROPOUT
from spectralkernels.ops.spectral_pool2d import OPERATION as POOL
from spectralkernels.resampling.fused import not_resampled
from spectralkernels.traffic import counted_traffic

pytest.importorskip("triton")

SIDES = (1, 2, 3, 5, 8, 13, 16, 17, 23, 32)
RULES = ("average", "code", "alias", "drop")


def impl_of(accuracy: str) -> str:
    return "triton" if accuracy == "tf32x3" else f"triton_{accuracy}"


def gradients(y: Tensor, leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """Zeros for a leaf that y does not depend on, such as a stride of which every window is whole or nothing."""
    found = torch.autograd.grad(y, leaves, dy.to(y.dtype), materialize_grads=True)
    return tuple(each.detach() for each in found)


@interpreter
class TestInterpreted:
    @pytest.mark.parametrize("draw", draws(10))
    def test_pooling_and_dropout_are_the_references(self, seed: int, draw: int, monkeypatch: pytest.MonkeyPatch):
        """Every rule, odd, even and one-sample sides, shares as numbers and on the device, several planes a program."""
        from spectralkernels.resampling import launches

        rng = random.Random(seed + draw)
        torch.manual_seed(seed + draw)
        monkeypatch.setattr(launches, "images_per_program", lambda *_, **__: rng.choice((1, 2, 4)))
        forget_plans()
        size = tuple(rng.choice(SIDES) for _ in range(2))
        if draw == 0:
            size = (rng.choice((33, 47)), rng.choice((7, 64)))
        target = tuple(rng.randint(1, side) for side in size)
        accuracy, even = tuple(UNSCALED)[draw % len(UNSCALED)], RULES[draw % 4]
        accuracy = "tf32x3" if draw == 0 else accuracy
        x = torch.randn(rng.choice((1, 2, 3)), rng.choice((1, 3)), *size)
        share = rng.choice((None, rng.random(), torch.tensor(rng.random()), 0.0, 1.0))
        facts = {"even": even, "share": share, "scale": 1.0, "pooling": "spectral", "weight": None}
        leaf, exact = x.requires_grad_(), x.detach().double().requires_grad_()
        where = f"{accuracy} {even} x{tuple(x.shape)} -> {target}, share {share}"
        with canaries():
            y = sk.spectral_pool2d(leaf, target, even=even, share=share, impl=impl_of(accuracy))
            dy = torch.randn(y.shape)
            found = (y.detach(), *gradients(y, [leaf], dy))
        want = POOL.reference(exact, target, **facts)
        check_gradients(found, (want, *gradients(want, [exact], dy)), 2 * UNSCALED[accuracy].error, where)
        if share is not None:
            dropped = sk.frequency_dropout2d(x.detach(), share, impl=impl_of(accuracy))
            wanted = DROPOUT.reference(x.detach(), share)
            check_gradients((dropped,), (wanted,), 2 * UNSCALED[accuracy].error, where)

    @pytest.mark.parametrize("draw", draws(8))
    def test_learned_strides_and_their_gradients_are_the_references(
        self, seed: int, draw: int, monkeypatch: pytest.MonkeyPatch
    ):
        """Within the ramp and past the clamp; cropped by the strides, to a given size, or not at all."""
        from spectralkernels.resampling import launches

        rng = random.Random(seed + draw)
        torch.manual_seed(seed + draw)
        images = rng.choice((1, 2, 4))
        monkeypatch.setattr(launches, "images_per_program", lambda *_, **__: images)
        forget_plans()
        size = tuple(rng.choice(SIDES[2:]) for _ in range(2))
        if draw == 0:
            size = (rng.choice((33, 47)), 12)
        smoothness, start = rng.uniform(0.4, 2.5), (rng.uniform(0.9, 4.0), rng.uniform(0.9, 4.0))
        if draw == 1:  # held at both bounds, where frequencies are at an end of the ramp
            start = (rng.choice((size[0] / 2, 1e4)), size[1] / (size[1] - smoothness))
        strides = torch.tensor(start)
        options: dict[str, Any] = rng.choice(({}, {"cropping": False}, {"legacy_scale": True}))
        accuracy = "tf32x3" if draw % 2 == 0 else tuple(UNSCALED)[draw % len(UNSCALED)]
        if max(size) > 32 and accuracy == "fp32":
            accuracy = "tf32x3"
        x = torch.randn(rng.choice((1, 3)), rng.choice((1, 2)), *size)
        leaves = [x.requires_grad_(), strides.requires_grad_()]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        where = f"{accuracy} x{tuple(x.shape)} strides {strides.tolist()} R {smoothness} {options} {images} images"
        with canaries():
            y = sk.diff_stride2d(x, strides, smoothness=smoothness, impl=impl_of(accuracy), **options)
            dy = torch.randn(y.shape)
            found = (y.detach(), *gradients(y, leaves, dy))
        target = tuple(y.shape[2:])
        assert target == (size if options.get("cropping") is False else diff_stride_size(size, strides, smoothness))
        scale = size[0] * size[1] / (target[0] * target[1]) if "legacy_scale" in options else 1.0
        facts = {"size": target, "smoothness": smoothness, "scale": scale, "compat": False}
        want = DIFF_STRIDE.reference(*exact, **facts)
        # A stride's gradient sums over all modes of all maps, each times the slope of its window.
        steepest = max(
            n / (2 * smoothness * max(s, n / (n - smoothness)) ** 2) for n, s in zip(size, start, strict=True)
        )
        terms = (1.0, 1.0, x.numel() * max(1.0, steepest) ** 2)
        wanted = (want, *gradients(want, exact, dy))
        check_gradients(found, wanted, 4 * UNSCALED[accuracy].error * scale, where, terms)

    def test_half_types(self, seed: int):
        x = torch.randn(2, 2, 12, 9)
        for dtype in (torch.float16, torch.bfloat16):
            y = sk.spectral_pool2d(x.to(dtype), (5, 6), impl="triton_bf16")
            assert y.dtype == dtype
            want = sk.spectral_pool2d(x.to(dtype).double(), (5, 6))
            assert relative_error(y, want) <= UNSCALED["bf16"].tolerance.relative[str(dtype).removeprefix("torch.")]

    def test_planted_faults_are_seen(self, seed: int, monkeypatch: pytest.MonkeyPatch):
        """A matrix of the other rule, the untransposed gradient, and the slope of another stride."""
        from spectralkernels.resampling import launches

        x = torch.randn(2, 2, 12, 10, requires_grad=True)
        want = sk.spectral_pool2d(x.double(), (6, 4))
        assert relative_error(sk.spectral_pool2d(x, (6, 4), impl="triton"), want) < 1e-6
        matrix = launches.matrix
        monkeypatch.setattr(launches, "matrix", lambda n, m, even, *rest: matrix(n, m, "alias", *rest))
        monkeypatch.setattr(launches, "_whole", launches._whole.__wrapped__)
        assert relative_error(sk.spectral_pool2d(x, (6, 4), impl="triton"), want) > 1e-3
        strides = torch.tensor([1.9, 1.6], requires_grad=True)

        def slope() -> Tensor:
            y = sk.diff_stride2d(x, strides, smoothness=1.5, impl="triton")
            return torch.autograd.grad(y.square().sum(), strides)[0]

        right = slope()
        analyses = launches._analyses
        monkeypatch.setattr(launches, "_analyses", lambda *facts: (*analyses(*facts)[:2], analyses(*facts)[2].roll(1)))
        assert relative_error(slope(), right) > 1e-3

    def test_each_map_is_read_and_written_once(self, seed: int):
        x, strides = torch.randn(3, 2, 20, 17), torch.tensor([1.9, 1.6])
        dy = torch.randn(3, 2, 14, 14)
        with counted_traffic() as launches:
            y = sk.spectral_pool2d(x, (14, 14), impl="triton")
            sk.diff_stride2d(x, strides, smoothness=1.5, size=(14, 14), impl="triton")
            torch.ops.spectralkernels.resample_window_gradient_plain(x, dy, strides, "drop", 1.5, 1.0, "tf32x3")
        assert [len(launches), *(launch.outside for launch in launches)] == [3, 0, 0, 0]
        for launch in launches[:2]:
            assert launch.arguments["x_ptr"].loaded == x.nbytes and launch.arguments["y_ptr"].stored == y.nbytes
        assert launches[2].arguments["long_ptr"].loaded == x.nbytes
        assert launches[2].arguments["short_ptr"].loaded == dy.nbytes

    def test_nothing_is_saved_but_x_for_strides_that_are_trained(self, seed: int):
        x, strides = torch.randn(1, 2, 16, 16, requires_grad=True), torch.tensor([2.0, 2.0])
        for trained in (False, True):
            saved: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
                sk.diff_stride2d(x, strides.requires_grad_(trained), smoothness=2.0, impl="triton")
                sk.spectral_pool2d(x, stride=2.0, impl="triton")
            assert sum(each.numel() for each in saved if each.numel() > 2) == (x.numel() if trained else 0)

    def test_derivatives_of_every_order_and_mode(self, seed: int):
        x, strides = torch.randn(1, 2, 7, 6, requires_grad=True), torch.tensor([1.7, 1.6], requires_grad=True)

        def pooled(impl: str, x: Tensor, strides: Tensor) -> Tensor:
            return sk.diff_stride2d(x, strides, smoothness=1.5, size=(6, 5), impl=impl).sin()

        def second(impl: str) -> tuple[Tensor, ...]:
            first = torch.autograd.grad(pooled(impl, x, strides).sum(), (x, strides), create_graph=True)
            return torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, strides))

        for got, want in zip(second("triton"), second("torch_rfft"), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        tangents = (torch.randn_like(x), torch.randn_like(strides))
        for got, want in zip(
            *(
                torch.func.jvp(lambda *a, impl=impl: pooled(impl, *a), (x, strides), tangents)
                for impl in ("triton", "dft_gemm")
            ),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_it_traces_whole_and_its_operators_are_well_formed(self, seed: int):
        x, strides = torch.randn(2, 2, 7, 6, requires_grad=True), torch.tensor([1.7, 1.6], requires_grad=True)
        resample = torch.ops.spectralkernels.resample.default
        opcheck(resample, (x, strides, [6, 5], "drop", None, 1.5, 1.0, False, "tf32x3"))
        opcheck(resample, (x.detach(), None, [9, 8], "average", 0.7, 0.0, 1.0, True, "tf32x3"))

        def run(x: Tensor, strides: Tensor) -> Tensor:
            pooled = sk.diff_stride2d(x, strides, smoothness=1.5, size=(6, 5), impl="triton")
            return sk.spectral_pool2d(pooled, stride=1.5, share=torch.tensor(0.8), impl="triton").relu()

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, strides), run(x, strides))
        wanted = torch.autograd.grad(run(x, strides).sum(), (x, strides))
        torch.testing.assert_close(torch.autograd.grad(compiled(x, strides).sum(), (x, strides)), wanted)

    def test_an_empty_batch(self):
        x, strides = torch.zeros(0, 3, 9, 8, requires_grad=True), torch.tensor([1.7, 1.6], requires_grad=True)
        y = sk.diff_stride2d(x, strides, smoothness=1.5, impl="triton")
        dx, ds = torch.autograd.grad(y.sum(), (x, strides))
        assert y.shape[:2] == dx.shape[:2] == (0, 3) and not ds.any()

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (lambda x: sk.spectral_pool2d(x.double(), (4, 4), impl="triton"), "takes float32, .* got float64"),
            (lambda x: sk.spectral_pool2d(x, (4, 4), even="raw", impl="triton"), "apart, as the rule 'raw' does"),
            (lambda x: sk.frequency_dropout2d(x[:, :, :1].expand(-1, -1, 65, -1), 0.5, impl="triton"), "fit 64 x 64"),
            (lambda x: sk.spectral_pool2d(x.repeat(1, 1, 5, 1), (4, 4), impl="triton_fp32"), "in fp32 it holds .* 32"),
            (
                lambda x: sk.diff_stride2d(x, torch.tensor([2.0, 2.0]), compat=True, impl="triton"),
                "treats \\+f and -f differently",
            ),
        ],
    )
    def test_what_it_cannot_serve_is_refused_in_words(self, call: Any, reason: str):
        with pytest.raises(sk.Unsupported, match=reason):
            call(torch.randn(1, 1, 8, 8))


def test_what_a_gpu_has_no_room_for(monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.target import named_capability

    x = torch.empty(1, 1, 56, 56, device="meta")
    told = {}
    for capability in (80, 86, 90, 100):
        token = named_capability.set(capability)
        told[capability] = [
            not_resampled(x, (28, 28), accuracy, strided=strided)
            for accuracy, strided in (("tf32x3", False), ("tf32x3", True), ("bf16", True), ("bf16x6", False))
        ]
        named_capability.reset(token)
    assert told[80] == told[90] == [None] * 4
    assert [reason is None for reason in told[86]] == [True, False, True, True]
    assert "160 KiB" in told[86][1] or "163840 bytes" in told[86][1]
    assert [reason is None for reason in told[100]] == [True, True, True, False]


@pytest.mark.slow
@judged_compiler
@pytest.mark.parametrize(
    ("launch", "registers", "shared"),
    [("pool bf16", 72, 5), ("pool tf32x3", 128, 14), ("window tf32x3", 160, 17), ("strides tf32x3", 176, 41)],
)
def test_machine_code(launch: str, registers: int, shared: int):
    """Maps of 32 x 32 on sm_90: nothing spills, tensor cores do the products, maps move 128 bits at a time."""
    from spectralkernels.aot import compile_kernel, noted_launches
    from spectralkernels.resampling.launches import FINGERPRINTS

    named = next(each for each in FINGERPRINTS if each.name.startswith(launch) and "32x32" in each.name)
    with noted_launches(90) as noted:
        named.call()
    code = compile_kernel(noted[0].kernel, noted[0].arguments, 90, **noted[0].options)
    assert code.registers <= registers and code.stack + code.local == 0 and code.shared <= shared * 1024
    assert code.count("HMMA") > 0
    assert code.count("LDGSTS") == code.count("LDGSTS", "128") > 0
    assert code.count("STG") == code.count("STG", "128") or launch.startswith("strides")
