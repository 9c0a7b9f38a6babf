"""How many warps can be resident at once, by arithmetic (standard library only): an upper bound, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one SM offers; shared memory in bytes, tensor memory in columns (0: it has none)."""

    warps: int
    blocks: int
    shared: int
    tensor_memory: int = 0


LIMITS = {80: Limits(64, 32, 164 * KIB), 90: Limits(64, 32, 228 * KIB), 100: Limits(64, 32, 228 * KIB, 512)}
"""Per compute capability: CUDA C++ programming guide, "Technical Specifications per Compute Capability"; 512 columns of
tensor memory: PTX ISA, "Tensor Memory"."""

REGISTERS = 64 * KIB
PARTITIONS = 4
REGISTER_UNIT = 8
"""A warp gets registers per thread in eights (256 per warp), from the quarter of the register file that it lives in."""
SHARED_UNIT, SHARED_RESERVED = 128, 1 * KIB
"""The CUDA runtime keeps 1 KiB of shared memory per resident block from compute capability 8.0 on (the same table)."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Resident warps per SM at most, and what keeps it from being more ("warps": nothing but the SM's own limit)."""

    warps: int
    limited_by: str


def occupancy(capability: int, *, num_warps: int, registers: int, shared: int, tensor_memory: int = 0) -> Occupancy:
    """The bound for blocks of `num_warps` warps with so many registers per thread and bytes of shared memory per block.

    A block that does not fit at all has 0 resident warps.
    """
    limits = LIMITS[capability]
    per_warp = 32 * _round_up(max(registers, 1), REGISTER_UNIT)
    register_warps = PARTITIONS * (REGISTERS // PARTITIONS // per_warp)
    per_block = _round_up(shared, SHARED_UNIT) + SHARED_RESERVED
    blocks = {
        "warps": limits.warps // num_warps,
        "blocks": limits.blocks,
        "registers": register_warps // num_warps,
        "shared": limits.shared // per_block,
    }
    if tensor_memory:
        blocks["tensor memory"] = limits.tensor_memory // tensor_memory
    limited_by = min(blocks, key=lambda name: blocks[name])
    return Occupancy(blocks[limited_by] * num_warps, limited_by)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
