"""What SASS text says once the names of its registers are left out (standard library only)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

_REGISTER = re.compile(r"\b(UR|UP|R|P|B)(\d+)\b")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_MEMORY = frozenset({"LDG", "STG", "LDGSTS", "LDS", "STS", "LDL", "STL", "LD", "ST", "ATOMG", "RED"})
GLOBAL_LOADS = ("LDG", "LDGSTS")
GLOBAL_STORES = ("STG",)
BULK_COPIES = ("UTMALDG", "UTMASTG", "UBLKCP")
SPILLS = ("LDL", "STL")


def normalised(instructions: Iterable[str]) -> list[str]:
    """The instructions with registers numbered as they first appear, without padding and reuse hints.

    Another allocation of the same code reads the same; the compiler's choice of names is no change.
    """
    names: dict[str, str] = {}
    seen: Counter[str] = Counter()

    def rename(found: re.Match[str]) -> str:
        kind, old = found[1], found[0]
        if old not in names:
            names[old] = f"{kind}{seen[kind]}"
            seen[kind] += 1
        return names[old]

    texts = (" ".join(text.split()) for text in instructions)
    return [_REGISTER.sub(rename, text).replace(".reuse", "") for text in texts if not _is_padding(text)]


def digest(lines: Iterable[str]) -> str:
    """Sixteen hex digits of SHA-256."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def family(text: str) -> str:
    """The opcode, with the width of a memory access in bits and the shape and types of a matrix product.

    `@P0 LDG.E.128 R4, [R2]` is LDG.128, `IMAD.WIDE` is IMAD, `HGMMA.64x64x16.F32.BF16` keeps its name.
    """
    opcode = _PREDICATE.sub("", text).split(maxsplit=1)[0]
    base, *modifiers = opcode.split(".")
    if base.endswith("MMA"):
        return opcode
    if base in _MEMORY:
        return f"{base}.{next((_WIDTHS[name] for name in modifiers if name in _WIDTHS), 32)}"
    return base


def sequence(instructions: Iterable[str]) -> list[str]:
    """The family of each instruction in order, padding left out."""
    return [family(text) for text in instructions if not _is_padding(text)]


def widths(opcodes: Mapping[str, int], bases: Iterable[str]) -> dict[int, int]:
    """Bits per access -> number of instructions, of these memory opcodes."""
    found: Counter[int] = Counter()
    for name, number in opcodes.items():
        base, *rest = name.split(".")
        if base in bases:
            found[int(rest[0])] += number
    return dict(found)


def tensor_cores(opcodes: Mapping[str, int]) -> dict[int, int]:
    """Generation -> number of its matrix instructions: 3 tcgen05 (UTC*MMA), 2 wgmma (*GMMA), 1 mma (HMMA ...)."""
    found: Counter[int] = Counter()
    for name, number in opcodes.items():
        base = name.split(".")[0]
        if base.endswith("MMA"):
            found[3 if base.startswith("UTC") else 2 if base.endswith("GMMA") else 1] += number
    return dict(found)


def _is_padding(text: str) -> bool:
    return text.strip() == "NOP"
