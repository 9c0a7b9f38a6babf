"""The kernels of masked_multiply under Triton's interpreter, against complex128.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import random

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import interpreter
from multiply_spectra import MASKS, SIZES, relative_error, some_mask, spectrum
from torch import Tensor

from spectralkernels.errors import RangeError, Unsupported
from spectralkernels.ops.masked_multiply import OPERATION, masked_multiply, reference
from spectralkernels.tuning import noted_choices, pinned

TOLERANCE = OPERATION.tolerance.relative


LAUNCHES = ("tiled_launch", "planewise_launch", "product_launch")
NAMES = ("triton", "triton_tf32x3", "triton_2019")  # triton_bf16x3 is triton_tf32x3 under the interpreter
CANARY = -12345.0
MARGIN = 1 << 14  # more than any planted fault reaches: what lies beyond is the heap of the interpreter


def _guarded(content: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """A copy of `content` inside a longer buffer, and that buffer as floats."""
    floats = torch.full((2 * content.numel() + 2 * MARGIN,), margin)
    inside = torch.view_as_complex(floats[MARGIN : floats.numel() - MARGIN].view(-1, 2)).view(content.shape)
    inside.copy_(content)
    return inside, floats


@interpreter
class TestInterpreted:
    @staticmethod
    def run(
        launch: str,
        x: Tensor,
        w: Tensor,
        mask: Tensor | None,
        groups: int,
        conjugate: bool,
        changes: dict | None = None,
    ) -> Tensor:
        """Launch on buffers whose surroundings are NaN (inputs) or canaries (output); the output starts as NaN."""
        from spectralkernels.ops.masked_multiply import kernels, tensor_cores

        x_inside, _ = _guarded(x, float("nan"))
        w_inside, _ = _guarded(w, float("nan"))
        y, floats = _guarded(torch.full((x.shape[0], w.shape[0], *x.shape[2:]), float("nan") + 0j), CANARY)
        if launch == "product_launch":
            cells = None if mask is None else tensor_cores.list_cells(mask)
            planned = tensor_cores.product_launch(x_inside, w_inside, mask, cells, y, groups, conjugate, "tf32x3")
        else:
            planned = getattr(kernels, launch)(x_inside, w_inside, mask, y, groups, conjugate)
        planned.arguments.update(changes or {})
        planned.run()
        assert (floats[:MARGIN] == CANARY).all() and (floats[-MARGIN:] == CANARY).all(), "wrote outside the output"
        return y

    @pytest.mark.parametrize("launch", LAUNCHES)
    @pytest.mark.parametrize("draw", draws(6))
    def test_random_shapes(self, seed: int, draw: int, launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from spectralkernels.ops.masked_multiply import cells

        rng = random.Random(seed + draw)
        # Programs look up their cells, or take them as they lie.
        monkeypatch.setattr(cells, "FEWEST_CHANNELS", rng.choice((1, 100)))
        torch.manual_seed(seed + draw)
        groups = rng.choice((1, 1, 2, 3))
        plane = rng.choice(SIZES)
        # A planewise program owns one plane, so more planes would only take longer.
        batch = rng.choice((1, 2, 3, 8, 17) if launch != "planewise_launch" else (1, 2, 3))
        group_outputs = rng.choice((1, 2, 5, 16, 33) if launch != "planewise_launch" else (1, 2, 3))
        group_channels = rng.choice((1, 2, 3, 7, *((17, 32) if launch == "product_launch" else ())))
        kind, conjugate = MASKS[draw % len(MASKS)], rng.random() < 0.7
        x = spectrum(batch, groups * group_channels, *plane)
        w = spectrum(groups * group_outputs, group_channels, *plane)
        mask = some_mask(kind, plane)
        expected = reference(x, w if conjugate else w.conj(), mask, groups)
        if mask is not None:
            x[..., mask == 0] = float("nan")
            w[..., mask == 0] = float("nan")
        y = self.run(launch, x, w, mask, groups, conjugate)
        where = f"{kind} x{tuple(x.shape)} w{tuple(w.shape)} groups={groups} conjugate={conjugate}"
        assert not y.isnan().any(), where
        assert relative_error(y, expected) <= TOLERANCE["complex64"], where
        if mask is not None:
            assert not y[..., mask == 0].any(), where

    @pytest.mark.parametrize(
        "change",
        [{"CONJUGATE": False}, {"group_channels": 4}, {"plane": 39}, {"batch": 2}, {"group_outputs": 8}, {"groups": 2}],
        ids=str,
    )
    def test_planted_faults_are_caught(self, seed: int, change: dict[str, int]) -> None:
        x, w, mask = spectrum(3, 5, 16, 5), spectrum(9, 5, 16, 5), some_mask("all", (16, 5))
        expected = reference(x, w, mask, 1)
        assert relative_error(self.run("tiled_launch", x, w, mask, 1, True), expected) <= TOLERANCE["complex64"]
        caught = False
        try:
            y = self.run("tiled_launch", x, w, mask, 1, True, change)
            caught = not relative_error(y, expected) <= TOLERANCE["complex64"]
        except AssertionError:
            caught = True
        assert caught

    @pytest.mark.parametrize(
        "change",
        [
            *({"CONJUGATE": False}, {"group_channels": 16}, {"n_cells": 14}, {"batch": 2}, {"group_outputs": 8}),
            *({"mask_ptr": None}, {"cells_ptr": None}, {"BLOCK_F": 4}, {"BLOCK_C": 32}),
        ],
        ids=str,
    )
    def test_planted_faults_of_products_are_caught(self, seed: int, change: dict[str, int]) -> None:
        """Each makes a sum or a place wrong, but for deeper steps, which give the same sums."""
        x, w, mask = spectrum(3, 17, 5, 3), spectrum(9, 17, 5, 3), 0.5 + torch.rand(5, 3)
        mask[1] = 0.0
        expected = reference(x, w, mask, 1)
        x[..., 1, :] = float("nan")
        assert relative_error(self.run("product_launch", x, w, mask, 1, True), expected) <= TOLERANCE["complex64"]
        caught = False
        try:
            y = self.run("product_launch", x, w, mask, 1, True, change)
            caught = not relative_error(y, expected) <= TOLERANCE["complex64"]
        except AssertionError:
            caught = True
        assert caught == ("BLOCK_C" not in change)

    @pytest.mark.parametrize("cells", [0, 1, 7, 64, 2047, 2048, 2049, 5000])
    def test_cells_are_listed(self, seed: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those kept upwards, those dropped downwards from the end, and how many are kept, of any kind of mask."""
        from spectralkernels.ops.masked_multiply.tensor_cores import list_cells

        # An empty tensor begins as a number that is no cell.
        monkeypatch.setattr(torch, "empty", lambda *size, **rest: torch.full(size, -1, **rest))
        for mask in (torch.rand(cells) < torch.rand(()), torch.rand(2 * cells)[::2] - 0.5, torch.zeros(cells)):
            kept = mask.nonzero().flatten()
            dropped = (mask == 0).nonzero().flatten().flip(0)
            wanted = torch.cat((kept, dropped, torch.tensor([len(kept)]))).to(torch.int32)
            assert list_cells(mask.view(-1, 1)).equal(wanted)

    @pytest.mark.slow
    def test_cells_are_looked_up(self, seed: int) -> None:
        """From the number of channels on that pays for it, in planes of 5 to 32 words."""
        from spectralkernels.ops.masked_multiply.cells import FEWEST_CHANNELS
        from spectralkernels.ops.masked_multiply.kernels import tiled_launch

        for kind, plane in zip(MASKS[1:], ((13, 11), (34, 18), (1, 1000), (16, 9), (11, 12)), strict=True):
            x, w = spectrum(2, FEWEST_CHANNELS, *plane), spectrum(3, FEWEST_CHANNELS, *plane)
            mask = some_mask(kind, plane)
            assert mask is not None
            expected = reference(x, w, mask, 1)
            assert tiled_launch(x, w, mask, expected, 1, True).arguments["WORDS"] >= mask.numel() / 32
            x[..., mask == 0] = float("nan")
            w[..., mask == 0] = float("nan")
            y = self.run("tiled_launch", x, w, mask, 1, True)
            assert relative_error(y, expected) <= TOLERANCE["complex64"], (kind, plane)
            assert not y[..., mask == 0].any(), (kind, plane)

    def test_a_mask_may_change_before_any_call(self, seed: int) -> None:
        """Nothing remembers its cells, not even where torch counts no version of it."""
        x, w, mask = spectrum(2, 32, 16, 9), spectrum(3, 32, 16, 9), torch.ones(16, 9, dtype=torch.bool)
        for _ in range(2):
            mask.data.copy_(torch.rand(16, 9) < 0.5)
            for impl in NAMES[:2]:
                y = masked_multiply(x, w, mask, impl=impl)
                assert relative_error(y, reference(x, w, mask, 1)) <= TOLERANCE["complex64"]

    @pytest.mark.slow
    @pytest.mark.parametrize("change", [{"WORDS": 2}, {"BLOCK_F": 8}, {"plane": 79}], ids=str)
    def test_cells_looked_up_wrongly_are_caught(self, seed: int, change: dict[str, int]) -> None:
        x, w, mask = spectrum(3, 33, 16, 5), spectrum(9, 33, 16, 5), torch.rand(16, 5) < 0.9
        mask[15, 4] = True
        expected = reference(x, w, mask, 1)
        assert relative_error(self.run("tiled_launch", x, w, mask, 1, True), expected) <= TOLERANCE["complex64"]
        y = self.run("tiled_launch", x, w, mask, 1, True, change)
        assert not relative_error(y, expected) <= TOLERANCE["complex64"]

    @pytest.mark.parametrize(
        "tile", [{"b": 8, "o": 16}, {"f": 64}, {"rows_b": 4, "rows_o": 2}, {"b": 32, "o": 8}], ids=str
    )
    def test_another_tile_gives_the_same_answer(self, seed: int, tile: dict[str, int]) -> None:
        x, w, mask = spectrum(33, 5, 7, 4), spectrum(18, 5, 7, 4), some_mask("cells", (7, 4))
        with pinned({"masked_multiply.tiled": tile}), noted_choices() as noted:
            y = self.run("tiled_launch", x, w, mask, 1, True)
        (choice,) = noted.values()
        assert (choice.source, {name: choice.tile[name] for name in tile}) == ("pin", tile)
        assert relative_error(y, reference(x, w, mask, 1)) <= TOLERANCE["complex64"]

    def test_another_tile_of_products_gives_the_same_answer(self, seed: int) -> None:
        x, w, mask = spectrum(18, 17, 7, 4), spectrum(18, 17, 7, 4), some_mask("cells", (7, 4))
        tile = {"b": 32, "o": 16, "f": 4, "c": 32, "stages": 2}
        with pinned({"masked_multiply.products": tile}), noted_choices() as noted:
            y = self.run("product_launch", x, w, mask, 1, True)
        (choice,) = noted.values()
        assert (choice.source, choice.tile) == ("pin", tile)
        assert relative_error(y, reference(x, w, mask, 1)) <= TOLERANCE["complex64"]

    def test_a_tile_without_a_whole_warp_is_refused(self, seed: int) -> None:
        x, w = spectrum(1, 2, 7, 4), spectrum(1, 2, 7, 4)
        with pinned({"masked_multiply.tiled": {"f": 16}}), pytest.raises(RangeError, match="makes 16"):
            self.run("tiled_launch", x, w, None, 1, True)

    @pytest.mark.slow
    @pytest.mark.parametrize("impl", NAMES)
    def test_gradients(self, seed: int, poisoned: None, impl: str) -> None:
        for groups, kind, plane in ((1, "cells", (7, 4)), (2, "soft", (8, 3)), (1, "none", (5, 6))):
            x, w = spectrum(3, 4, *plane).requires_grad_(), spectrum(6, 4 // groups, *plane).requires_grad_()
            mask = some_mask(kind, plane)
            inputs = (x, w)
            if mask is not None and mask.is_floating_point():
                mask = (mask + 0.1).requires_grad_()
                inputs = (x, w, mask)
            cotangent = spectrum(3, 6, *plane)
            found = torch.autograd.grad(masked_multiply(x, w, mask, groups=groups, impl=impl), inputs, cotangent)
            wanted = torch.autograd.grad(reference(x, w, mask, groups), inputs, cotangent.to(torch.complex128))
            for one, other in zip(found, wanted, strict=True):
                assert relative_error(one, other) <= TOLERANCE["complex64"], (groups, kind)

    @pytest.mark.parametrize("impl", (*NAMES, "triton_bf16x3"))
    def test_public_call(self, seed: int, poisoned: None, impl: str) -> None:
        w = spectrum(6, 4, 5, 4)
        band = some_mask("band", (5, 4))
        for x in (
            spectrum(2, 4, 5, 4),
            spectrum(0, 4, 5, 4),
            spectrum(1, 4, 5, 4).expand(3, -1, -1, -1),
            spectrum(2, 4, 4, 5).transpose(2, 3),
            spectrum(4, 2, 5, 4).transpose(0, 1).conj(),
            spectrum(2, 8, 5, 9)[:, ::2, :, 1::2],
        ):
            y = masked_multiply(x, w, band, impl=impl)
            assert y.shape == (x.shape[0], 6, 5, 4)
            assert relative_error(y, reference(x, w, band, 1)) <= TOLERANCE["complex64"]
        assert not masked_multiply(spectrum(2, 0, 5, 4), spectrum(6, 0, 5, 4), impl=impl).any()
        with pytest.raises(Unsupported, match="take complex64 spectra, got complex128"):
            masked_multiply(w.to(torch.complex128), w.to(torch.complex128), impl=impl)

    @pytest.mark.slow
    @pytest.mark.parametrize("impl", NAMES)
    def test_opcheck_and_trace(self, seed: int, impl: str) -> None:
        op = getattr(torch.ops.spectralkernels, f"masked_multiply_{impl}").default
        x, w = spectrum(2, 4, 5, 3).requires_grad_(), spectrum(6, 2, 5, 3).requires_grad_()
        mask = some_mask("cells", (5, 3))
        opcheck(op, (x, w, mask, 2, True))
        call = torch.compile(
            lambda x, w: masked_multiply(x, w, mask, groups=2, impl=impl), fullgraph=True, backend="aot_eager"
        )
        assert relative_error(call(x, w), reference(x, w, mask, 2)) <= TOLERANCE["complex64"]

    def test_offsets_beyond_32_bits_keep_the_answer(self, seed: int) -> None:
        import triton.language as tl

        x, w, mask = spectrum(3, 5, 7, 4), spectrum(9, 5, 7, 4), some_mask("cells", (7, 4))
        for launch in ("tiled_launch", "product_launch"):
            y = self.run(launch, x, w, mask, 1, True, {"OFFSET": tl.int64})
            assert relative_error(y, reference(x, w, mask, 1)) <= TOLERANCE["complex64"]
