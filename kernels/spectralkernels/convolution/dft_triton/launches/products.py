"""The launches of the products per mode: whose planes are rows, columns and depth, and where a mask weights them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from spectralkernels.convolution.dft_triton.kernels import products as kernels
from spectralkernels.convolution.dft_triton.launches.transforms import STAGES, numbers, overlapping
from spectralkernels.convolution.dft_triton.precision import ChainPrecision
from spectralkernels.convolution.dft_triton.tiles import product_tile
from spectralkernels.launch import Launch, LaunchPlan, planned_launch
from spectralkernels.target import TensorCore, kind_of, target_capability
from spectralkernels.tuning import Site, rounded

CONTRACT = Site(
    "dft_triton.contract",
    {"m": (16, 128), "n": (16, 128), "k": (16, 64), "warps": (2, 8), "overlap": (1, 2), "shares": (1, 8)},
)
Product = Literal["forward", "input_gradient", "weight_gradient"]
STREAM = 1024
"""Planes per program of the kernels that stream: two 128-bit loads of float32 per thread of 4 warps."""


@dataclass(frozen=True, slots=True)
class ProductSizes:
    """Of a product: samples, channels and outputs of a group, groups, modes.

    frozen: the spectrum of the weight was not made by this class, and has its planes as [O, C / g] for every product.
    """

    batch: int
    channels: int
    outputs: int
    groups: int
    modes: int
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Mask:
    """Weights of modes: values [N_h, N_w // 2 + 1] or [batch, 1, ...], contiguous; cells as `layout.cells_of` says."""

    values: Tensor
    cells: Tensor

    @property
    def per_sample(self) -> bool:
        return self.values.dim() == 4

    @property
    def sample(self) -> int:
        """Cells from one sample's mask to the next."""
        return self.values.shape[-2] * self.values.shape[-1] if self.per_sample else 0


Weighted = Literal["", "shared", "per sample"]
"""Which mask weights the modes: none, one for the batch, or one per sample."""


@dataclass(frozen=True, slots=True)
class _Operand:
    """The strides of a spectrum as one side of a product: of its parts, groups, rows and depth."""

    part: int
    group: int
    row: int
    k: int


@dataclass(frozen=True, slots=True)
class ProductPlan:
    """A product's launches without their tensors.

    exchanged: whether the kernel's first operand is the second given. shares, total: how many sums the first launch
    leaves, and the launch that adds them, None where it leaves one.
    """

    launch: LaunchPlan
    exchanged: bool = False
    shares: int = 1
    total: LaunchPlan | None = None

    def run(self, a: Tensor, b: Tensor, out: Tensor, mask: Mask | None = None) -> None:
        """Fill `out` from these spectra."""
        left, right = (b, a) if self.exchanged else (a, b)
        values, where = (None, None) if mask is None else (mask.values, mask.cells)
        into = out
        if self.total is not None:
            into = torch.empty((self.shares, *out.shape), dtype=torch.float32, device=out.device)
        operands = {"a_ptr": left, "b_ptr": right, "out_ptr": into, "mask_ptr": values, "cell_ptr": where}
        self.launch.of(operands).run()
        if self.total is not None:
            self.total.of({"shares_ptr": into, "out_ptr": out}).run()


def contract(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    product: Product,
    sizes: ProductSizes,
    mask: Mask | None,
    precision: ChainPrecision,
    core: TensorCore | None = None,
) -> None:
    """Fill `out` by one per-mode product over spectra [modes, 2, ...]; m_f is the weight of a mask, 1 without one.

    forward:          a = z [B, C],  b = w [O, C / g],                 out = y [B, O]       m sum_c z conj(w)
    input_gradient:   a = g [B, O],  b = w [g, C / g, O / g] (frozen: [O, C / g]),  out = dz [B, C]   m sum_o g w
    weight_gradient:  a = g [B, O],  b = z [B, C],                     out = dw [O, C / g]  sum_b conj(m g) z
    """
    contraction(product, sizes, *weighted_by(mask), precision, target_capability(a.device), core).run(a, b, out, mask)


def weighted_by(mask: Mask | None) -> tuple[Weighted, int]:
    """Which mask weights the modes, and the cells from one sample's to the next."""
    if mask is None:
        return "", 0
    return "per sample" if mask.per_sample else "shared", mask.sample


@planned_launch
def contraction(
    product: Product,
    sizes: ProductSizes,
    weighted: Weighted,
    cells: int,
    precision: ChainPrecision,
    capability: int,
    core: TensorCore | None = None,
) -> ProductPlan:
    """cells: from one sample's mask to the next."""
    if sizes.channels == 1:
        return ProductPlan(_single_channel_plan(product, sizes, weighted, cells, precision))
    batch, channels, outputs, groups = sizes.batch, sizes.channels, sizes.outputs, sizes.groups
    weight = channels * outputs * groups
    z = (batch * channels * groups, channels, channels * groups, 1)  # part, group, sample, channel
    y = (batch * outputs * groups, outputs, outputs * groups, 1)
    dw = (weight, outputs * channels, channels, 1)
    where: Literal["m", "n", "k"] = "m"
    if product == "forward":
        m, n, k = batch, outputs, channels
        left, right, result = _Operand(*z), _Operand(*dw), y
    elif product == "input_gradient":
        m, n, k = batch, channels, outputs
        by_output = (weight, channels * outputs, outputs, 1)
        by_channel = (weight, outputs * channels, 1, channels)
        left, right, result = _Operand(*y), _Operand(*(by_channel if sizes.frozen else by_output)), z
    else:
        m, n, k, where = outputs, channels, batch, "k"
        left, right, result = _Operand(y[0], y[1], 1, y[2]), _Operand(z[0], z[1], 1, z[2]), dw
    conjugated = {"forward": "b", "input_gradient": "", "weight_gradient": "a"}[product]
    exchanged = product != "weight_gradient" and m < 64 <= n
    if exchanged:
        # Tensor cores want 64 rows, so the longer side comes first.
        left, right, m, n, where = right, left, n, m, "n"
        result = (result[0], result[1], result[3], result[2])
        conjugated = {"b": "a", "": ""}[conjugated]
    rule = product_tile(m, n, k, sizes.modes * groups, precision, core or kind_of(capability))
    products = {"m": rounded(m), "n": rounded(n), "k": rounded(k), "count": rounded(sizes.modes * groups)}
    tile = CONTRACT.choose({"product": product, **products, "class": precision.name}, rule, capability)
    contiguous, multiplied = left.k == right.k == 1, numbers(precision)
    overlap, option = overlapping(tile, capability)
    count = 2 * result[0] * sizes.modes
    share = {"out_share": count, "SHARES": tile.shares} if tile.shares > 1 else {"out_share": None}
    launch = LaunchPlan(
        kernel=kernels.contract_kernel,
        grid=(triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n) * groups * sizes.modes * tile.shares,),
        numbers={
            **_weighting(weighted, cells, where),
            "size_m": m,
            "size_n": n,
            "size_k": k,
            "groups": groups,
            **{f"a_{name}": getattr(left, field) for name, field in _strides("m")},
            **{f"b_{name}": getattr(right, field) for name, field in _strides("n")},
            **{f"out_{name}": stride for name, stride in zip(("part", "group", "m", "n"), result, strict=True)},
            "CONJUGATED": conjugated,
            "AS_IT_IS": contiguous and not sizes.frozen,
            "SPLIT": multiplied["PRECISION"] in ("tf32x3", "bf16x3", "bf16x6"),
            "BLOCK_M": tile.m,
            "BLOCK_N": tile.n,
            "BLOCK_K": tile.k,
            "STAGES": STAGES,
            **share,
            **multiplied,
            **overlap,
        },
        options={"num_warps": tile.warps, **option},
    )
    if tile.shares == 1:
        return ProductPlan(launch, exchanged)
    block = _stream(count)
    total = LaunchPlan(
        kernel=kernels.total_kernel,
        grid=(triton.cdiv(count, block),),
        numbers={"count": count, "SHARES": tile.shares, "BLOCK": block, **multiplied},
        options={"num_warps": _warps(block)},
    )
    return ProductPlan(launch, exchanged, tile.shares, total)


def mask_gradient_launch(
    z: Tensor, dz: Tensor, mask: Mask, dmask: Tensor, sizes: ProductSizes, precision: ChainPrecision
) -> Launch:
    """The launch that fills dmask, Float32 of the shape of the mask, at the listed modes, and weights dz in place.

    z, dz: spectra [modes, 2, B C]; dz is an input gradient without the mask.
    """
    rows = sizes.batch if mask.per_sample else 1
    length = sizes.batch * sizes.channels * sizes.groups // max(1, rows)
    columns = _stream(length)
    block = min(STREAM // columns, _stream(rows))
    return Launch(
        kernel=kernels.mask_gradient_kernel,
        grid=(triton.cdiv(rows, block) * sizes.modes,),
        arguments={
            "z_ptr": z,
            "dz_ptr": dz,
            "mask_ptr": mask.values,
            "cell_ptr": mask.cells,
            "dmask_ptr": dmask,
            "rows": rows,
            "length": length,
            "mask_row": mask.sample,
            "BLOCK_R": block,
            "BLOCK_L": columns,
            **numbers(precision),
        },
        options={"num_warps": _warps(block * columns)},
    )


@dataclass(frozen=True, slots=True)
class _Stream:
    """An operand of the product of single channels: planes in all, and the strides of `single_channel_kernel`."""

    planes: int
    outer: int = 0
    term: int = 0
    divide: int = 1
    times: int = 1


def _single_channel_plan(
    product: Product, sizes: ProductSizes, weighted: Weighted, cells: int, precision: ChainPrecision
) -> LaunchPlan:
    """The plan where each group has one channel: no sum over channels, so no tensor core."""
    batch, groups, outputs = sizes.batch, sizes.groups, sizes.groups * sizes.outputs
    z_planes, y_planes, multiplier = batch * groups, batch * outputs, sizes.outputs
    if product == "forward":
        inner, count, terms, conjugated = outputs, y_planes, 1, "b"
        left = _Stream(z_planes, outer=groups, divide=multiplier)
        right = _Stream(outputs)
    elif product == "input_gradient":
        inner, count, terms, conjugated = groups, z_planes, multiplier, ""
        left = _Stream(y_planes, outer=outputs, term=1, times=multiplier)
        right = _Stream(outputs, term=1, times=multiplier)
    else:
        inner, count, terms, conjugated = outputs, outputs, batch, "a"
        left = _Stream(y_planes, term=outputs)
        right = _Stream(z_planes, term=groups, divide=multiplier)
    block = _stream(count)
    return LaunchPlan(
        kernel=kernels.single_channel_kernel,
        grid=(triton.cdiv(count, block) * sizes.modes,),
        numbers={
            **_weighting(weighted, cells, "k" if product == "weight_gradient" else "m"),
            "count": count,
            "inner": inner,
            "terms": terms,
            **{f"a_{name}": getattr(left, name) for name in _Stream.__slots__},
            **{f"b_{name}": getattr(right, name) for name in _Stream.__slots__},
            "CONJUGATED": conjugated,
            "BLOCK": block,
            **numbers(precision),
        },
        options={"num_warps": _warps(block)},
    )


def _stream(count: int) -> int:
    """The block that covers `count`, at most STREAM."""
    return int(min(STREAM, triton.next_power_of_2(max(1, count))))


def _warps(block: int) -> int:
    """Warps whose threads have 4 numbers each, for 128-bit accesses."""
    return max(1, min(4, block // 128))


def _weighting(weighted: Weighted, cells: int, sample: str) -> dict[str, Any]:
    """The numbers of a mask; `sample` names the axis of the product that the batch is."""
    return {"mask_sample": cells, "WEIGHTED": {"": "", "shared": "mode", "per sample": sample}[weighted]}


def _strides(row: str) -> tuple[tuple[str, str], ...]:
    """Names of a kernel's strides and the fields that hold them."""
    return (("part", "part"), ("group", "group"), (row, "row"), ("k", "k"))
