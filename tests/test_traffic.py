"""Bytes that every Triton kernel moves, against the floor: each input read once, each output written once.

Three kinds of statement, each exact: a streaming kernel moves at most 1.15 times its floor; a kernel that reads an
operand again does so as often as its tiles say, and the formula stands beside it; constant matrices, which every
program reads from the cache, are counted apart. The interpreter must be chosen before Triton is imported, so classes
called `Interpreted...` are not collected here: one test runs them in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectralkernels.errors import Unsupported
from spectralkernels.traffic import LaunchTraffic, counted_traffic

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

STREAMING = 1.15
"""Largest traffic over floor of a kernel that reads each input once."""


def test_outside_the_interpreter_it_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(Unsupported, match="start a new process with TRITON_INTERPRET=1"), counted_traffic():
        pass


def test_kernels_under_the_interpreter(seed: int):
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_classes=Interpreted"]
    classes = [f"{Path(__file__)}::{name}" for name in globals() if name.startswith("Interpreted")]
    done = subprocess.run(
        [sys.executable, *arguments, *classes],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "TRITON_INTERPRET": "1",
            "SPECTRAL_SEED": str(seed),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, f"under TRITON_INTERPRET=1:\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


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


class InterpretedCounter:
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


def only(launches: list[LaunchTraffic]) -> LaunchTraffic:
    """The one launch, which kept to its arguments."""
    assert len(launches) == 1 and launches[0].outside == 0
    return launches[0]


def counted(launch: Callable[[], object]) -> LaunchTraffic:
    with counted_traffic() as launches:
        launch()
    return only(launches)


def ratio(moved: LaunchTraffic, **tensors: Tensor) -> float:
    """Bytes moved through these arguments over the bytes of the tensors, which are the floor."""
    for name, tensor in tensors.items():
        assert moved.arguments[name].distinct == tensor.nbytes, f"{name} was not read or written as a whole"
    return moved.total(*tensors) / sum(tensor.nbytes for tensor in tensors.values())


def complex_randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64)


def rereads(moved: LaunchTraffic, name: str) -> float:
    """How often each byte that is read at all is read."""
    return moved.arguments[name].loaded / moved.arguments[name].loaded_distinct


def ceil(size: int, block: int) -> int:
    return -(-size // block)


# --- spectra: products and packing ----------------------------------------------------------------------------------


class InterpretedProducts:
    @pytest.mark.parametrize("masked", [False, True])
    def test_tiled_multiply_reads_an_operand_once_per_tile_of_the_other(self, seed: int, masked: bool):
        """From the L2 cache, by design: cells vary slowest, so programs that share an operand run together."""
        from spectralkernels.ops.masked_multiply.kernels import tile, tiled_launch

        x, w, y = complex_randn(33, 5, 6, 7), complex_randn(40, 5, 6, 7), complex_randn(33, 40, 6, 7)
        mask = torch.zeros(6, 7, dtype=torch.bool)
        mask[:2, :5] = True
        moved = counted(tiled_launch(x, w, mask if masked else None, y, 1, True).run)
        # 16 bytes are read at once, so a kept cell brings the other one of its pair.
        part = float(mask.view(-1, 2).any(1).double().mean()) if masked else 1.0
        assert moved.arguments["x_ptr"].loaded == pytest.approx(part * x.nbytes * ceil(40, tile(33, 40).o))
        assert moved.arguments["w_ptr"].loaded == pytest.approx(part * w.nbytes * ceil(33, tile(33, 40).b))
        assert ratio(moved, y_ptr=y) == 1.0

    def test_planewise_multiply_shares_nothing(self, seed: int):
        """The 2019 kernel: a map is read once per output, a weight once per map."""
        from spectralkernels.ops.masked_multiply.kernels import planewise_launch

        x, w, y = complex_randn(4, 3, 6, 7), complex_randn(5, 3, 6, 7), complex_randn(4, 5, 6, 7)
        moved = counted(planewise_launch(x, w, None, y, 1, True).run)
        assert ratio(moved, x_ptr=x) == 5
        assert ratio(moved, w_ptr=w) == 4
        assert ratio(moved, y_ptr=y) == 1

    def test_sparse_multiply_reads_an_operand_once_per_tile_of_the_other(self, seed: int):
        """Values and slots once per tile of outputs, bits twice, weights once per tile of maps."""
        from spectralkernels.ops.sparse_multiply import kernels
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap

        y_hat, w_hat = complex_randn(9, 3, 8, 16), complex_randn(33, 3, 8, 16)
        values, words = threshold_bitmap(y_hat, 1.0, None, False, 31)
        kept = 8 * sum(word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist())
        with counted_traffic() as launches:
            out = kernels._launch(values, words, None, w_hat, y_hat.shape)
        moved = launches[1]
        tiles = ceil(33, kernels.tile_out(33))
        assert tiles == 2
        assert moved.kernel == "sparse_multiply_kernel" and moved.outside == 0
        assert moved.arguments["values_ptr"].loaded == kept * tiles
        # Rows of 128 cells are whole words; their bits are read to find the filled tiles, here all, and then again.
        assert moved.arguments["words_ptr"].loaded == 2 * y_hat.numel() // 8 * tiles
        assert moved.arguments["w_ptr"].loaded == w_hat.nbytes * ceil(9, kernels.TILE_BATCH)
        assert ratio(moved, out_ptr=torch.view_as_real(out)) == 1.0

    def test_empty_tiles_of_a_sparse_multiply_read_bits_only(self, seed: int):
        from spectralkernels.ops.sparse_multiply import kernels
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap

        y_hat, w_hat = complex_randn(8, 2, 8, 16), complex_randn(8, 2, 8, 16)
        values, words = threshold_bitmap(y_hat, 1e9, None, False, 31)
        with counted_traffic() as launches:
            kernels._launch(values, words, None, w_hat, y_hat.shape)
        moved = launches[1].arguments
        assert moved["words_ptr"].loaded == y_hat.numel() // 8
        assert not any(moved[name].loaded for name in ("values_ptr", "slots_ptr", "w_ptr"))


class InterpretedPacking:
    @pytest.mark.parametrize(("columns", "n"), [(18, 34), (17, 33)])
    def test_threshold_streams(self, seed: int, columns: int, n: int):
        """Above the floor are only partners in self-conjugate columns, one or two of each row."""
        from spectralkernels.ops.threshold_spectrum.kernels import _launch

        y_hat, rms = complex_randn(3, 4, n, columns), torch.rand(12) + 0.5
        with counted_traffic() as launches:
            _, words = _launch(y_hat, 0.8, rms, True, n)
        moved = only(launches)
        kept = 8 * sum(word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist())
        assert moved.arguments["values_ptr"].stored == kept
        floor = y_hat.nbytes + rms.nbytes + words.nbytes + kept
        assert 1.0 < moved.bytes / floor <= STREAMING
        assert ratio(moved, y_ptr=torch.view_as_real(y_hat)) <= 1 + 2 / columns

    @pytest.mark.parametrize("compact", [False, True])
    def test_expand_collect_and_word_slots_move_the_floor(self, seed: int, compact: bool):
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap
        from spectralkernels.sparse import kernels
        from spectralkernels.sparse.bitmap import BLOCK

        flat = complex_randn(5 * BLOCK + 77)
        values, words = threshold_bitmap(flat.view(1, -1), 1.0, None, False, 2 * flat.numel() - 1)
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


# --- the truncated DFT ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A convolution: its tensors, then its launches: transforms of maps and kernel, product, way back."""

    x: Tensor
    weight: Tensor
    y: Tensor
    maps: LaunchTraffic
    kernel: LaunchTraffic
    contract: LaunchTraffic
    synthesise: LaunchTraffic

    @property
    def launches(self) -> tuple[LaunchTraffic, ...]:
        return self.maps, self.kernel, self.contract, self.synthesise


class InterpretedTransforms:
    @staticmethod
    def chain(side: int, taps: int, batch: int = 4, channels: int = 6, outputs: int = 8) -> Chain:
        """Tensors and launches of a dense convolution: maps and weight analysed, contracted, synthesised."""
        from spectralkernels.convolution.dft_triton import dft_triton
        from spectralkernels.convolution.geometry import conv_band

        band = conv_band((side, side), (taps, taps), compression=0.5)
        x, weight = torch.randn(batch, channels, side, side), torch.randn(outputs, channels, taps, taps)
        with counted_traffic() as launches:
            y = dft_triton(x, weight, None, band, 1, precision="tf32x3")
        assert not any(launch.outside for launch in launches)
        *analyses, contract, synthesise = launches
        maps, kernel = sorted(analyses, key=lambda launch: launch.arguments["x_ptr"].loaded_distinct, reverse=True)
        return Chain(x, weight, y, maps, kernel, contract, synthesise)

    @pytest.mark.parametrize("side", [8, 32])
    def test_maps_stream_through_analysis_and_synthesis(self, seed: int, side: int):
        """By one matrix (8 x 8) and by two (32 x 32): spectra and planes cross memory once."""
        made = self.chain(side, 3, batch=8)
        kind = "dense" if side == 8 else "separable"
        assert (made.maps.kernel, made.synthesise.kernel) == (f"analyse_{kind}_kernel", f"synthesise_{kind}_kernel")
        spectra = made.maps.arguments["z_ptr"].stored_distinct, made.contract.arguments["out_ptr"].stored_distinct
        assert made.maps.total("x_ptr", "z_ptr") / (made.x.nbytes + spectra[0]) <= STREAMING
        assert made.synthesise.total("z_ptr", "y_ptr") / (made.y.nbytes + spectra[1]) <= STREAMING

    @pytest.mark.parametrize("side", [8, 32])
    def test_matrices_are_read_at_most_once_per_program(self, seed: int, side: int):
        """They are small, constant and in the cache, so they stand apart from the floor."""
        for launch in self.chain(side, 3).launches:
            for name in set(launch.arguments) & {"matrix_ptr", "columns_ptr", "rows_ptr"}:
                found = launch.arguments[name]
                assert 0 < found.loaded <= launch.grid[0] * found.loaded_distinct and not found.stored

    def test_large_planes_are_read_once_per_block_of_the_answer(self, seed: int):
        """Above 32 x 32 a program owns some columns of modes, or a block of pixels: the others' planes come from L2."""
        made = self.chain(40, 7)
        modes, pixels = made.maps.values, made.synthesise.values
        blocks = ceil(modes["MODES_U"], modes["BLOCK_U"]) * ceil(modes["MODES_V"], modes["BLOCK_V"])
        assert blocks > 1 and ratio(made.maps, x_ptr=made.x) == blocks
        blocks = ceil(pixels["HEIGHT"], pixels["BLOCK_H"]) * ceil(pixels["WIDTH"], pixels["BLOCK_W"])
        assert rereads(made.synthesise, "z_ptr") == blocks
        for moved, name in ((made.maps, "z_ptr"), (made.synthesise, "y_ptr")):
            assert moved.arguments[name].stored == moved.arguments[name].stored_distinct

    def test_one_matrix_reads_planes_once_per_block_of_the_answer(self, seed: int):
        """Of 16 x 16: a program owns some of the modes, or pixels; programs that share planes run together."""
        made = self.chain(16, 3)
        modes, pixels = made.maps.values, made.synthesise.values
        assert made.maps.kernel == "analyse_dense_kernel"
        assert ratio(made.maps, x_ptr=made.x) == ceil(modes["MODES"], modes["BLOCK_M"]) > 1
        assert rereads(made.synthesise, "z_ptr") == ceil(pixels["LENGTH"], pixels["BLOCK_L"]) > 1

    def test_weights_are_read_once_per_block_of_modes(self, seed: int):
        """A 3 x 3 kernel has 9 numbers and some 500 parts of modes: what is written is the traffic."""
        made = self.chain(32, 3)
        tile = made.kernel.values
        assert ratio(made.kernel, x_ptr=made.weight) == ceil(tile["MODES"], tile["BLOCK_M"])
        assert made.kernel.arguments["z_ptr"].stored == made.weight[:, :, 0, 0].nbytes * tile["MODES"]

    def test_a_product_reads_an_operand_once_per_tile_of_the_other(self, seed: int):
        """From the L2 cache: all programs of one mode run together."""
        moved = self.chain(8, 3, batch=80, outputs=72).contract
        tile = moved.values
        assert rereads(moved, "a_ptr") == ceil(tile["size_n"], tile["BLOCK_N"]) > 1
        assert rereads(moved, "b_ptr") == ceil(tile["size_m"], tile["BLOCK_M"]) > 1
        assert moved.arguments["out_ptr"].stored == moved.arguments["out_ptr"].stored_distinct


# --- the fused depthwise convolution --------------------------------------------------------------------------------


class InterpretedDepthwise:
    @pytest.mark.parametrize("kind", ["forward", "forward, keeping modes", "dx"])
    @pytest.mark.parametrize(("size", "taps"), [((28, 31), (5, 7)), ((32, 32), (31, 31)), ((40, 9), (3, 3))])
    def test_planes_cross_memory_once(self, seed: int, kind: str, size: tuple[int, int], taps: tuple[int, int]):
        """Every byte of x is loaded and every byte of y stored once; matrices and kernel once per program."""
        from spectralkernels.convolution.fused_depthwise import launches

        geometry, x, weight, y, modes = self.problem(size, taps)
        if kind == "dx":
            launch = launches.map_gradient_launch(y, weight, x, geometry, self.chosen())
        else:
            kept = modes if "modes" in kind else None
            launch = launches.convolve_launch(x, weight, None, y, kept, geometry, self.chosen())
        moved = counted(launch.run)
        streams = {"x_ptr": launch.arguments["x_ptr"], "y_ptr": launch.arguments["y_ptr"]}
        if "modes" in kind:
            streams["modes_ptr"] = modes
        assert ratio(moved, **streams) == 1.0 <= STREAMING
        programs = launch.grid[0]
        assert moved.arguments["weight_ptr"].loaded == programs * weight[0].nbytes
        for name in set(moved.arguments) - set(streams) - {"weight_ptr"}:
            assert moved.arguments[name].loaded == programs * launch.arguments[name].nbytes

    @pytest.mark.parametrize("keep", [False, True])
    def test_the_kernels_gradient_reads_planes_once_per_block_of_columns(self, seed: int, keep: bool):
        """Blocks of columns bound the registers; kept modes are split among them, so these are read once."""
        from spectralkernels.convolution.fused_depthwise import launches

        geometry, x, _, dy, modes = self.problem((32, 32), (31, 31))
        blocks = launches.v_blocks(geometry, self.chosen())
        count = launches.partial_sums(*x.shape[:2], geometry, self.chosen())
        sums = torch.empty(count, x.shape[1], *geometry.taps)
        saved = (None, modes) if keep else (x, None)
        moved = counted(launches.weight_gradient_launch(dy, *saved, sums, geometry, self.chosen()).run)
        assert ratio(moved, dy_ptr=dy) == blocks
        assert ratio(moved, **({"modes_ptr": modes} if keep else {"x_ptr": x})) == (1 if keep else blocks)
        assert ratio(moved, partial_ptr=sums) == 1

    @staticmethod
    def chosen() -> Any:
        from spectralkernels.convolution.fused_depthwise.precision import precision

        return precision("tf32x3")

    @staticmethod
    def problem(size: tuple[int, int], taps: tuple[int, int]) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        """geometry, x, weight, y and modes."""
        from spectralkernels.convolution.fused_depthwise.operators import Geometry
        from spectralkernels.convolution.geometry import conv_band

        band = conv_band(size, taps, compression=0.5)
        starts = tuple(-before for before, _ in band.pad)
        geometry = Geometry(band.size, band.out, band.kernel, starts, band.n, band.kept)
        x, y = torch.randn(5, 2, *size), torch.randn(5, 2, *band.out)
        return geometry, x, torch.randn(2, 1, *taps), y, torch.randn(5, 2, geometry.kept_reals)
