"""Bytes that a launch moves: the counter itself, then the kernels of spectra, against the floor.

The floor is each input read once, each output written once. Three kinds of statement, each exact: a streaming kernel
moves at most 1.15 times its floor; a kernel that reads an operand again does so as often as its tiles say, and the
formula stands beside it; constant matrices, which every program reads from the cache, are counted apart. What is marked
`interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import pytest
import torch
from guarded_interpreter import interpreter
from moved_bytes import STREAMING, ceil, complex_randn, counted, only, ratio

from spectralkernels.errors import Unsupported
from spectralkernels.traffic import counted_traffic

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


def test_outside_the_interpreter_it_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(Unsupported, match="start a new process with TRITON_INTERPRET=1"), counted_traffic():
        pass


# --- the counter ----------------------------------------------------------------------------------------------------


@triton.jit
def copy_kernel(x_ptr, index_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """y[i] = x[index[i]]: lanes may name one address twice."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offsets, mask=offsets < size, other=0)
    tl.store(y_ptr + offsets, tl.load(x_ptr + index, mask=offsets < size, other=0.0), mask=offsets < size)


@triton.jit
def atomic_kernel(x_ptr, sum_ptr, flag_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    tl.atomic_add(sum_ptr + offsets % 2, x, mask=offsets < size)
    tl.atomic_cas(flag_ptr, 0, 1)


@triton.jit
def described_kernel(x_ptr, y_desc, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    x_desc = tl.make_tensor_descriptor(x_ptr, [HEIGHT, WIDTH], [WIDTH, 1], [8, 8])
    y_desc.store([0, 0], x_desc.load([0, 0]))


@triton.jit
def beyond_kernel(x_ptr, SIZE: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, SIZE) - 1, tl.zeros((SIZE,), tl.float32))


@interpreter
class TestInterpretedCounter:
    def test_masked_lanes_move_nothing_and_equal_addresses_move_once(self, seed: int):
        x, index, y = torch.randn(40), torch.arange(37) // 4, torch.empty(37)
        with counted_traffic() as launches:
            copy_kernel[(3,)](x, index, y, 37, BLOCK=16)
        moved = only(launches)
        assert torch.equal(y, x[index])
        assert (moved.kernel, moved.grid, list(moved.arguments)) == (
            "copy_kernel",
            (3,),
            ["x_ptr", "index_ptr", "y_ptr"],
        )
        found = moved.arguments["x_ptr"]
        assert (found.loaded, found.loaded_distinct, found.lanes_loaded) == (4 * 10, 4 * 10, 4 * 37)
        assert (moved.arguments["index_ptr"].loaded, moved.arguments["index_ptr"].stored) == (8 * 37, 0)
        assert (moved.arguments["y_ptr"].stored, moved.arguments["y_ptr"].loaded) == (4 * 37, 0)
        assert moved.bytes == moved.total("x_ptr", "index_ptr", "y_ptr") == 4 * 10 + 8 * 37 + 4 * 37

    def test_a_second_reading_shows(self, seed: int):
        x, y = torch.randn(4), torch.empty(48)
        with counted_traffic() as launches:
            copy_kernel[lambda arguments: (3,)](x, torch.arange(48) % 4, y, 48, BLOCK=16)
        found = only(launches).arguments["x_ptr"]
        assert (found.loaded, found.loaded_distinct, found.distinct) == (3 * 16, 16, 16)

    def test_an_atomic_loads_and_stores_lane_by_lane(self, seed: int):
        x, sums, flag = torch.randn(13), torch.zeros(2), torch.zeros(1, dtype=torch.int32)
        with counted_traffic() as launches:
            atomic_kernel[(1,)](x, sums, flag, 13, BLOCK=16)
        moved = only(launches).arguments
        torch.testing.assert_close(sums, torch.stack([x[::2].sum(), x[1::2].sum()]))
        found = moved["sum_ptr"]
        assert (found.loaded, found.stored, found.atomics, found.stored_distinct) == (52, 52, 13, 8)
        assert (moved["flag_ptr"].loaded, moved["flag_ptr"].stored, moved["flag_ptr"].atomics) == (4, 4, 1)

    def test_descriptors_count_what_lies_inside(self, seed: int):
        from triton.tools.tensor_descriptor import TensorDescriptor

        x, y = torch.randn(5, 4), torch.empty(7, 12)
        with counted_traffic() as launches:
            described_kernel[(1,)](x, TensorDescriptor.from_tensor(y, [8, 8]), HEIGHT=5, WIDTH=4)
        moved = only(launches).arguments
        assert moved["x_ptr"].loaded == x.nbytes
        assert moved["y_desc"].stored == 4 * 7 * 8

    def test_bytes_beyond_the_arguments_are_seen(self, seed: int):
        inside = torch.zeros(20)
        with counted_traffic() as launches:
            beyond_kernel[(1,)](inside[2:9], SIZE=8)
        assert (launches[0].outside, launches[0].arguments["x_ptr"].stored) == (4, 28)

    def test_counting_ends_with_the_block(self, seed: int):
        from triton.runtime import interpreter

        before = interpreter._interpreter, interpreter.GridExecutor.__call__
        with pytest.raises(KeyError), counted_traffic() as launches, counted_traffic() as again:
            copy_kernel[(1,)](torch.randn(4), torch.zeros(4, dtype=torch.int64), torch.empty(4), 4, BLOCK=4)
            raise KeyError
        assert before == (interpreter._interpreter, interpreter.GridExecutor.__call__)
        copy_kernel[(1,)](torch.randn(4), torch.zeros(4, dtype=torch.int64), torch.empty(4), 4, BLOCK=4)
        assert len(launches) == 1 and launches == again


# --- spectra: products and packing ----------------------------------------------------------------------------------


@interpreter
class TestInterpretedProducts:
    @pytest.mark.parametrize("masked", [False, True])
    def test_tiled_multiply_reads_an_operand_once_per_tile_of_the_other(self, seed: int, masked: bool):
        """From the L2 cache, by design: cells vary slowest, so programs that share an operand run together."""
        from spectralkernels.ops.masked_multiply.kernels import tile, tiled_launch

        x, w, y = complex_randn(33, 5, 6, 7), complex_randn(40, 5, 6, 7), complex_randn(33, 40, 6, 7)
        mask = torch.zeros(6, 7, dtype=torch.bool)
        mask[:2, :5] = True
        moved = counted(tiled_launch(x, w, mask if masked else None, y, 1, True).run)
        # Without a search 16 bytes are read at once, so a kept cell brings the other one of its pair.
        part = float(mask.view(-1, 2).any(1).double().mean()) if masked else 1.0
        assert moved.arguments["x_ptr"].loaded == pytest.approx(part * x.nbytes * ceil(40, tile(33, 40).o))
        assert moved.arguments["w_ptr"].loaded == pytest.approx(part * w.nbytes * ceil(33, tile(33, 40).b))
        assert ratio(moved, y_ptr=y) == 1.0

    @pytest.mark.slow
    def test_looked_up_cells_are_read_alone(self, seed: int):
        """No neighbour of a kept cell is read, and a mask once per program."""
        from spectralkernels.ops.masked_multiply.kernels import tile, tiled_launch

        x, w, y = complex_randn(17, 33, 9, 7), complex_randn(40, 33, 9, 7), complex_randn(17, 40, 9, 7)
        mask = torch.rand(9, 7) < 0.4
        launch = tiled_launch(x, w, mask, y, 1, True)
        moved = counted(launch.run)
        part = int(mask.sum()) / mask.numel()
        assert launch.arguments["WORDS"] == 2
        assert moved.arguments["x_ptr"].loaded == pytest.approx(part * x.nbytes * ceil(40, tile(17, 40).o))
        assert moved.arguments["w_ptr"].loaded == pytest.approx(part * w.nbytes * ceil(17, tile(17, 40).b))
        assert moved.arguments["mask_ptr"].loaded == mask.nbytes * launch.grid[0]
        assert ratio(moved, y_ptr=y) == 1.0

    def test_planewise_multiply_shares_nothing(self, seed: int):
        """The 2019 kernel: a map is read once per output, a weight once per map."""
        from spectralkernels.ops.masked_multiply.kernels import planewise_launch

        x, w, y = complex_randn(4, 3, 6, 7), complex_randn(5, 3, 6, 7), complex_randn(4, 5, 6, 7)
        moved = counted(planewise_launch(x, w, None, y, 1, True).run)
        assert ratio(moved, x_ptr=x) == 5
        assert ratio(moved, w_ptr=w) == 4
        assert ratio(moved, y_ptr=y) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("over_batch", [False, True])
    def test_sparse_multiply_reads_an_operand_once_per_tile_of_the_other(self, seed: int, over_batch: bool):
        """Values and slots once per tile of outputs, bits twice, weights once per tile of maps; or, over the batch, the
        gradient of the product once per tile of channels."""
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap
        from spectralkernels.sparse import multiply as kernels

        y_shape, w_shape, out_shape = ((3, 9), (3, 33), (33, 9)) if over_batch else ((9, 3), (33, 3), (9, 33))
        y_hat, w_hat = complex_randn(*y_shape, 8, 16), complex_randn(*w_shape, 8, 16)
        values, words = threshold_bitmap(y_hat, torch.tensor(1.0), None, False, 31)
        kept = 8 * sum(word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist())
        with counted_traffic() as launches:
            out = kernels._launch(values, words, None, w_hat, y_hat.shape, over_batch)
        moved = launches[1]
        tiles = ceil(33, kernels.tile_out(33))
        assert tiles == 2 and out.shape == (*out_shape, 8, 16)
        assert moved.kernel == "sparse_multiply_kernel" and moved.outside == 0
        assert moved.arguments["values_ptr"].loaded == kept * tiles
        # Rows of 128 cells are whole words; their bits are read to find the filled tiles, here all, and then again.
        assert moved.arguments["words_ptr"].loaded == 2 * y_hat.numel() // 8 * tiles
        assert moved.arguments["w_ptr"].loaded == w_hat.nbytes * ceil(9, kernels.TILE_ROW)
        assert ratio(moved, out_ptr=torch.view_as_real(out)) == 1.0

    def test_empty_tiles_of_a_sparse_multiply_read_bits_only(self, seed: int):
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap
        from spectralkernels.sparse import multiply as kernels

        y_hat, w_hat = complex_randn(8, 2, 8, 16), complex_randn(8, 2, 8, 16)
        values, words = threshold_bitmap(y_hat, torch.tensor(1e9), None, False, 31)
        with counted_traffic() as launches:
            kernels._launch(values, words, None, w_hat, y_hat.shape, False)
        moved = launches[1].arguments
        assert moved["words_ptr"].loaded == y_hat.numel() // 8
        assert not any(moved[name].loaded for name in ("values_ptr", "slots_ptr", "w_ptr"))


@interpreter
class TestInterpretedPacking:
    @pytest.mark.parametrize(("columns", "n", "tanh"), [(18, 34, True), (17, 33, True), (17, 33, False)])
    def test_threshold_streams(self, seed: int, columns: int, n: int, tanh: bool):
        """Above the floor are partners in self-conjugate columns, one or two of each row, and, for the activation, each
        kept value once more in and out; nothing beyond them is touched."""
        from spectralkernels.ops.threshold_spectrum.kernels import _launch

        y_hat, rms = complex_randn(3, 4, n, columns), torch.rand(12) + 0.5
        with counted_traffic() as launches:
            _, words = _launch(y_hat, 0.8, rms, tanh, n)
        moved = only(launches)
        kept = 8 * sum(word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist())
        values = moved.arguments["values_ptr"]
        assert values.stored_distinct == kept
        assert (values.stored, values.loaded) == ((2 * kept, kept) if tanh else (kept, 0))
        floor = y_hat.nbytes + rms.nbytes + words.nbytes + kept
        assert 1.0 < (moved.bytes - 2 * kept * tanh) / floor <= STREAMING
        assert ratio(moved, y_ptr=torch.view_as_real(y_hat)) <= 1 + 2 / columns

    @pytest.mark.parametrize("compact", [False, True])
    def test_expand_collect_and_word_slots_move_the_floor(self, seed: int, compact: bool):
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap
        from spectralkernels.sparse import kernels
        from spectralkernels.sparse.bitmap import BLOCK

        flat = complex_randn(5 * BLOCK + 77)
        values, words = threshold_bitmap(flat.view(1, -1), torch.tensor(1.0), None, False, 2 * flat.numel() - 1)
        counts = torch.tensor([word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist()])
        kept, offsets = int(counts.sum()), None
        if compact:
            per_block = counts.view(-1, BLOCK // 32).sum(1)
            offsets = (per_block.cumsum(0) - per_block).to(torch.int32)
            values = values.view(-1, BLOCK)[torch.arange(BLOCK) < per_block[:, None]]
        overhead = words.nbytes + (offsets.nbytes if offsets is not None else 0)
        expanded = counted(lambda: kernels.expand(values, words, offsets, flat.numel()))
        assert expanded.bytes == 8 * kept + overhead + flat.nbytes
        assert expanded.arguments["flat_ptr"].stored == flat.nbytes
        collected = counted(lambda: kernels.collect(flat, words, offsets, values.numel()))
        assert collected.bytes == 8 * kept + overhead + flat.nbytes
        assert collected.arguments["values_ptr"].stored == 8 * kept
        assert counted(lambda: kernels.word_slots(words, offsets)).bytes == words.nbytes + overhead
