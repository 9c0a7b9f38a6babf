"""Bytes that the launches of the convolutions move, against the floor; see test_traffic for what is stated.

A transform of large planes reads them again from the L2 cache, once per block of its answer: programs that share
planes run together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from guarded_interpreter import interpreter
from moved_bytes import STREAMING, ceil, counted, ratio, rereads
from torch import Tensor

import spectralkernels as sk
from spectralkernels.traffic import LaunchTraffic, counted_traffic

pytest.importorskip("triton")


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


@interpreter
class TestInterpretedTransforms:
    @staticmethod
    @cache
    def chain(side: int, taps: int, batch: int = 8, channels: int = 3, outputs: int = 4) -> Chain:
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

    @pytest.mark.slow
    @pytest.mark.parametrize("side", [8, 32])
    def test_maps_stream_through_analysis_and_synthesis(self, seed: int, side: int):
        """By one matrix (8 x 8) and by two (32 x 32): spectra and planes cross memory once."""
        made = self.chain(side, 3)
        kind = "dense" if side == 8 else "quadrants"
        assert (made.maps.kernel, made.synthesise.kernel) == (f"analyse_{kind}_kernel", f"synthesise_{kind}_kernel")
        spectra = made.maps.arguments["z_ptr"].stored_distinct, made.contract.arguments["out_ptr"].stored_distinct
        assert made.maps.total("x_ptr", "z_ptr") / (made.x.nbytes + spectra[0]) <= STREAMING
        assert made.synthesise.total("z_ptr", "y_ptr") / (made.y.nbytes + spectra[1]) <= STREAMING

    @pytest.mark.slow
    @pytest.mark.parametrize("side", [8, 32])
    def test_matrices_are_read_at_most_once_per_program(self, seed: int, side: int):
        """They are small, constant and in the cache, so they stand apart from the floor."""
        for launch in self.chain(side, 3).launches:
            for name in set(launch.arguments) & {"matrix_ptr", "columns_ptr", "rows_ptr"}:
                found = launch.arguments[name]
                assert 0 < found.loaded <= launch.grid[0] * found.loaded_distinct and not found.stored

    @pytest.mark.slow
    def test_large_planes_are_read_once_per_block_of_the_answer(self, seed: int):
        """Above 32 x 32 a program owns some columns of modes, or a block of pixels: the others' planes come from L2."""
        made = self.chain(40, 7, batch=3)
        modes, pixels = made.maps.values, made.synthesise.values
        blocks = ceil(modes["MODES_U"] // 2 + 1, modes["BLOCK_U"]) * ceil(modes["MODES_V"], modes["BLOCK_V"])
        assert blocks > 1 and ratio(made.maps, x_ptr=made.x) == blocks
        blocks = ceil(pixels["HEIGHT"], pixels["BLOCK_H"]) * ceil(pixels["WIDTH"], pixels["BLOCK_W"])
        assert rereads(made.synthesise, "z_ptr") == blocks
        for moved, name in ((made.maps, "z_ptr"), (made.synthesise, "y_ptr")):
            assert moved.arguments[name].stored == moved.arguments[name].stored_distinct

    @pytest.mark.slow
    def test_one_matrix_reads_planes_once_per_block_of_the_answer(self, seed: int):
        """Of 16 x 16: a program owns some of the modes, or pixels; programs that share planes run together."""
        made = self.chain(16, 3)
        modes, pixels = made.maps.values, made.synthesise.values
        assert made.maps.kernel == "analyse_dense_kernel"
        assert ratio(made.maps, x_ptr=made.x) == ceil(modes["MODES"], modes["BLOCK_M"]) > 1
        assert rereads(made.synthesise, "z_ptr") == ceil(pixels["LENGTH"], pixels["BLOCK_L"]) > 1

    @pytest.mark.slow
    def test_weights_are_read_once_per_block_of_modes(self, seed: int):
        """A 3 x 3 kernel has 9 numbers and some 500 parts of modes: what is written is the traffic."""
        made = self.chain(32, 3)
        tile = made.kernel.values
        assert ratio(made.kernel, x_ptr=made.weight) == ceil(tile["MODES"], tile["BLOCK_M"])
        assert made.kernel.arguments["z_ptr"].stored == made.weight[:, :, 0, 0].nbytes * tile["MODES"]

    @pytest.mark.slow
    def test_a_product_reads_an_operand_once_per_tile_of_the_other(self, seed: int):
        """From the L2 cache: all programs of one mode run together."""
        moved = self.chain(8, 3, batch=80, outputs=72).contract
        tile = moved.values
        assert rereads(moved, "a_ptr") == ceil(tile["size_n"], tile["BLOCK_N"]) > 1
        assert rereads(moved, "b_ptr") == ceil(tile["size_m"], tile["BLOCK_M"]) > 1
        assert moved.arguments["out_ptr"].stored == moved.arguments["out_ptr"].stored_distinct


# --- spectra of a convolution ----------------------------------------------------------------------------------------


@interpreter
class TestInterpretedSpectra:
    """Kernels that stream over spectra."""

    @pytest.mark.slow
    @pytest.mark.parametrize("product", ["forward", "dx", "dw"])
    def test_a_product_of_single_channels_streams(self, seed: int, product: str):
        """Every spectrum crosses memory once; maps of one channel share a load of its kernel's."""
        x = torch.randn(3, 4, 11, 10, requires_grad=product != "dw")
        weight = torch.randn(4, 1, 3, 3, requires_grad=product == "dw")
        with counted_traffic() as launches:
            y = sk.band_limited_conv2d(x, weight, compression=0.5, groups=4, impl="dft_triton")
            made = len(launches)
            torch.autograd.grad(y, weight if product == "dw" else x, torch.randn_like(y))
        among = launches[:made] if product == "forward" else launches[made:]
        (moved,) = [launch for launch in among if launch.kernel == "single_channel_kernel"]
        assert rereads(moved, "a_ptr") == rereads(moved, "b_ptr") == 1.0
        assert moved.arguments["out_ptr"].stored == moved.arguments["out_ptr"].stored_distinct

    @pytest.mark.slow
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_the_gradient_of_a_mask_reads_both_spectra_once(self, seed: int, per_sample: bool):
        x, weight = torch.randn(3, 4, 11, 10), torch.randn(2, 4, 3, 3)
        n = sk.masks.fft_grid((11, 10), (3, 3))
        mask = sk.masks.hermitian(torch.rand(*((3, 1) if per_sample else ()), n[0], n[1] // 2 + 1), n).requires_grad_()
        with counted_traffic() as launches:
            y = sk.masked_conv2d(x, weight, mask, impl="dft_triton")
            torch.autograd.grad(y, mask, torch.randn_like(y))
        (moved,) = [launch for launch in launches if launch.kernel == "mask_gradient_kernel"]
        assert rereads(moved, "z_ptr") == rereads(moved, "dz_ptr") == 1.0
        assert moved.arguments["dz_ptr"].stored == moved.arguments["dz_ptr"].stored_distinct

    def test_moving_packed_values_streams(self, seed: int):
        """A value is read and written once; an odd count reads one slot more."""
        from spectralkernels.ops.spec_block import kernels
        from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap

        y_hat = torch.randn(2, 5, 33, 17, dtype=torch.complex64)
        values, words = threshold_bitmap(y_hat, torch.tensor(1.2), None, False, 33)
        kept = 8 * sum(word.bit_count() for word in (words.long() & 0xFFFFFFFF).tolist())
        with counted_traffic() as launches:
            packed, starts = kernels.trimmed(values, words, y_hat.numel() // 2)
        counts, moved = launches
        assert counts.bytes == words.nbytes + starts.nbytes
        assert moved.arguments["packed_ptr"].stored == kept
        assert kept <= moved.arguments["values_ptr"].loaded <= kept + 8 * len(starts)
        assert moved.total("values_ptr", "packed_ptr", "counts_ptr", "starts_ptr") <= STREAMING * (
            2 * kept + 2 * starts.nbytes
        )
        assert packed.shape[0] >= kept // 8


# --- the fused depthwise convolution --------------------------------------------------------------------------------


@interpreter
class TestInterpretedDepthwise:
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

    @pytest.mark.slow
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
        from spectralkernels.convolution.fused.precision import precision

        return precision("tf32x3")

    @staticmethod
    def problem(size: tuple[int, int], taps: tuple[int, int]) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        """geometry, x, weight, y and modes."""
        from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry
        from spectralkernels.convolution.geometry import conv_band

        band = conv_band(size, taps, compression=0.5)
        starts = tuple(-before for before, _ in band.pad)
        geometry = MapGeometry(band.size, band.out, band.kernel, starts, band.n, band.kept)
        x, y = torch.randn(5, 2, *size), torch.randn(5, 2, *band.out)
        return geometry, x, torch.randn(2, 1, *taps), y, torch.randn(5, 2, geometry.kept_reals)
