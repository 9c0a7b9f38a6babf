"""The cases on which `masked_multiply` is measured: layers of real networks by their tight FFT size N = H + K // 2."""

from __future__ import annotations

from collections.abc import Mapping

from spectralkernels.declare import Block, Case, Pass

WITHOUT_BROADCAST = (
    "triton",
    "triton_tf32x3",
    "triton_bf16x3",
    "triton_2019",
    "einsum",
    "complex_bmm",
    "real_bmm",
    "three_mult",
)
"""Broadcasting holds batch x outputs x channels x cells numbers at once: only on small cases."""

ON_GPU = (*WITHOUT_BROADCAST, "complex_bmm_tf32", "real_bmm_tf32", "real_bmm_fp16", "real_bmm_bf16")

COARSE = (0.0, 0.5, 0.8)
SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def _layer(
    batch: int,
    in_channels: int,
    out_channels: int,
    size: int | tuple[int, int],
    compression: tuple[float, ...],
    *,
    groups: int = 1,
    kind: str = "white",
    dtypes: tuple[str, ...] = ("complex64",),
    passes: tuple[Pass, ...] = ("forward",),
    implementations: tuple[str, ...] | None = None,
) -> Block:
    height, width = (size, size) if isinstance(size, int) else size
    return Block(
        axes={
            "batch": (batch,),
            "in_channels": (in_channels,),
            "out_channels": (out_channels,),
            "height": (height,),
            "width": (width,),
            "groups": (groups,),
            "compression": compression,
            "input": (kind,),
        },
        dtypes=dtypes,
        passes=passes,
        implementations=implementations,
        where=_groups_divide,
    )


def _groups_divide(case: Case) -> bool:
    return case["in_channels"] % case["groups"] == 0 and case["out_channels"] % case["groups"] == 0


PROFILES: Mapping[str, tuple[Block, ...]] = {
    "smoke": (
        _layer(2, 3, 5, (7, 6), (0.0, 0.5), passes=("forward", "both")),
        _layer(3, 4, 4, (5, 9), (0.5,), groups=4),
        _layer(2, 4, 6, (8, 8), (0.3,), groups=2, kind="pink", dtypes=("complex64", "complex128")),
    ),
    "quick": (
        _layer(8, 64, 64, 35, (0.0, 0.5, 0.8), implementations=WITHOUT_BROADCAST),  # 32 x 32 maps, K = 7
        _layer(8, 64, 64, 33, (0.5,), passes=("both",), implementations=WITHOUT_BROADCAST),
        _layer(8, 256, 256, 9, (0.5,), implementations=WITHOUT_BROADCAST),  # 8 x 8 maps, K = 3
        _layer(2, 16, 16, 35, (0.5,), kind="photo"),
        _layer(2, 128, 128, 43, (0.0, 0.5), groups=128),  # depthwise, 28 x 28 maps, K = 31
    ),
    "study": (
        _layer(8, 64, 64, 35, SWEEP, passes=("forward", "both"), implementations=WITHOUT_BROADCAST),
        _layer(8, 64, 64, 33, COARSE, kind="photo", implementations=WITHOUT_BROADCAST),
        _layer(8, 128, 128, 17, COARSE, implementations=WITHOUT_BROADCAST),
        _layer(8, 256, 256, 9, COARSE, implementations=WITHOUT_BROADCAST),
        _layer(2, 64, 64, 59, COARSE, implementations=WITHOUT_BROADCAST),
        _layer(2, 16, 16, 35, COARSE, dtypes=("complex64", "complex128")),
        _layer(2, 128, 128, 71, COARSE, groups=128, passes=("forward", "both")),
        _layer(8, 64, 64, 35, COARSE, groups=8, implementations=WITHOUT_BROADCAST),
    ),
    "gpu": (
        # ResNet-18's first stage on cuFFT's grid: the row that targets are set for, timed first.
        _layer(128, 64, 64, 35, (0.5,), kind="pink", passes=("forward", "both"), implementations=ON_GPU),
        _layer(128, 64, 64, 34, SWEEP, passes=("forward", "both"), implementations=ON_GPU),
        _layer(128, 128, 128, 18, COARSE, implementations=ON_GPU),
        _layer(128, 256, 256, 9, COARSE, implementations=ON_GPU),
        _layer(128, 512, 512, 5, COARSE, implementations=ON_GPU),
        _layer(32, 64, 64, 60, COARSE, kind="photo", implementations=ON_GPU),
        _layer(8, 32, 32, 35, COARSE),
        _layer(32, 128, 128, 72, COARSE, groups=128, passes=("forward", "both")),
        _layer(32, 256, 256, 43, COARSE, groups=256),
    ),
    "asv": (
        Block(
            axes={
                "batch": (8,),
                "in_channels": (16, 64),
                "out_channels": (64,),
                "height": (35,),
                "width": (35,),
                "groups": (1,),
                "compression": COARSE,
                "input": ("white",),
            },
            dtypes=("complex64",),
            implementations=("triton", "einsum", "complex_bmm", "real_bmm", "three_mult"),
        ),
    ),
}
