"""Depthwise band-limited 2-D convolution of planes up to 64 x 64, fused into one Triton launch (exact backward).

    y = E (D x . conj(D_w w)) + b      one load of x, one store of y; the kernel's own transform is part of the launch

Without a gradient of the kernel no spectrum crosses memory. A backward pass is two launches and a small sum: dx by the
same kernel with transposed matrices, dw by one that sums over the batch in registers and writes partial sums, added in
a fixed order (no atomics). Saved for it are the weight and the smaller of x (nothing is written) and the 2 F kept reals
of its spectrum (written by the same launch): at c = 0.5 the spectrum, 0.54 of x for 32 x 32 with K = 7 and 0.97 with
K = 31; x itself for 28 x 28 with K = 29.

Registers, shared memory and instructions per architecture are kept in tests/ops/test_fused_depthwise_aot.py.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.constants import planned
from spectralkernels.convolution.depthwise import not_depthwise
from spectralkernels.convolution.fused.operators import fused, plan
from spectralkernels.convolution.fused.precision import PRECISIONS, Precision, in_every_class
from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry, tiles
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.spectra import Band
from spectralkernels.target import SHARED_LIMITS, TensorCore, target_capability, tensor_core

LARGEST_SIDE = 64
"""Of map, output and kernel: the tile that one program holds."""

LARGEST_KEPT = {4: 32, 2: 64}
"""Frequencies per axis by the bytes of an operand's pieces: the matrices of a program must fit its shared memory."""


def fused_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, *, accuracy: str = "tf32x3"
) -> Tensor:
    """Convolve each map with its own kernel under a band limit.

    x: Real [B, C, height, width]. weight: Real [C, 1, kernel_height, kernel_width]. bias: Real [C] or None.
    accuracy: a name of `PRECISIONS`. Returns: Real [B, C, *out], dtype of x.
    Raises: Unsupported (through `dispatch`) where `supports` has a reason; RangeError on an unknown class.
    """
    return fused(x, weight, bias, band, accuracy, geometry_of(band).kept_reals)


def supports(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    accuracy: str = "tf32x3",
) -> str | None:
    """Why the fused kernel cannot serve a call, or None."""
    reason = not_depthwise(x, weight, band, groups, axes=2)
    if reason is not None:
        return reason
    return _refusal(band, accuracy, tensor_core(x.device), target_capability(x.device) if x.is_cuda else None)


@planned
def _refusal(band: Band, accuracy: str, core: TensorCore, capability: int | None) -> str | None:
    """The reason that sizes are. capability: of the GPU that the maps are on, if any."""
    if max(*band.size, *band.out, *band.kernel) > LARGEST_SIDE:
        return (
            f"map, output and kernel must fit {LARGEST_SIDE} x {LARGEST_SIDE}, "
            f"got {band.size}, {band.out} and {band.kernel}; a larger one takes three launches"
        )
    chosen = PRECISIONS[accuracy]
    most = LARGEST_KEPT[2 if chosen.operand.itemsize * chosen.pieces == 2 else 4]
    if max(band.kept) > most:
        return (
            f"with {accuracy} operands it holds {most} frequencies per axis, "
            f"this band keeps {band.kept}; compress more or take a half-precision class"
        )
    geometry = geometry_of(band)
    reason = _too_large(geometry, chosen, core)
    if reason is not None:
        return reason
    need = shared_memory(geometry, chosen)
    limit = need if capability is None else SHARED_LIMITS.get(capability, need)
    if need > limit:
        return f"it needs {need} bytes of shared memory, a block here has {limit}; take a half-precision class"
    return None


def _too_large(geometry: MapGeometry, chosen: Precision, core: TensorCore) -> str | None:
    """Why operands of 64 rows do not fit the registers of a class, or None.

    In fp32 Triton 3.7 would also hand some products of 64 rows to sm_100's tensor cores, rounded to tf32.
    """
    tile = tiles(geometry)
    if tile.largest <= 32:
        return None
    if chosen.mode == "ieee":
        return (
            f"in fp32 it holds maps, outputs and kernels of 32 x 32 and 16 frequencies per axis, got {geometry.size}, "
            f"{geometry.out}, {geometry.taps} and {geometry.kept}; take bf16x6 or tf32x3, as accurate"
        )
    wide_band = max(*tile.size, *tile.out) <= 32 < 2 * max(tile.u, tile.v)
    if core == "tcgen05" and (chosen.pieces == 3 or (chosen.pieces == 2 and wide_band)):
        return (
            f"the pieces of {chosen.name} operands with {geometry.kept} frequencies of {geometry.size} maps overflow "
            "this GPU's registers and tensor memory; compress more or take three launches"
        )
    return None


def shared_memory(geometry: MapGeometry, chosen: Precision) -> int:
    """Bytes of shared memory per program on a GPU whose tensor cores read registers: matrices, and planes in flight."""
    tile = tiles(geometry)
    matrices = 2 * tile.v * (tile.size[1] + tile.out[1]) + 2 * tile.u * (tile.size[0] + tile.out[0])
    plane = max(*tile.size, *tile.out, *tile.taps, 2 * tile.v) ** 2
    in_flight = plane if tile.largest <= 32 else 0
    # What is split arrives as float32.
    arriving = 4 if chosen.pieces > 1 else chosen.operand.itemsize
    return chosen.pieces * chosen.piece_size * (matrices + plane) + arriving * in_flight


def geometry_of(band: Band) -> MapGeometry:
    """The geometry of a 2-D band."""
    starts = tuple(-before for before, _ in band.pad)
    return MapGeometry(band.size, band.out, band.kernel, starts, band.n, band.kept)


# --- declaration ----------------------------------------------------------------------------------------------------


IMPLEMENTATIONS = in_every_class(
    "fused_depthwise",
    fused_depthwise,
    supports,
    "depthwise truncated DFT, product and inverse in one Triton launch",
    plan=plan,
)
