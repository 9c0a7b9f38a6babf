"""Stored and fresh fingerprints compared exactly, in words (standard library only).

Machine code has no noise, so every difference is reported. More registers, spilled bytes, shared memory or
instructions, narrower global accesses or an older generation of matrix instructions are "worse"; another compiler
version begins a new segment and is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from spectralbench.fingerprint import sass
from spectralbench.fingerprint.stored import Fingerprint

Standing = Literal["same", "changed", "worse", "segment", "new", "gone"]
JUDGED: frozenset[Standing] = frozenset({"same", "changed", "worse"})
NOTHING_COMPARABLE = 3

_COSTS = {
    "registers": "registers",
    "stack": "stack bytes",
    "local": "local bytes",
    "shared": "shared bytes",
    "tensor_memory": "tensor memory columns",
    "instructions": "instructions",
}
_NEUTRAL = {"num_warps": "warps per block", "num_stages": "stages", "resident_warps": "resident warps at most"}
GENERATIONS = {1: "mma", 2: "wgmma", 3: "tcgen05"}


@dataclass(frozen=True, slots=True)
class Change:
    """How one fingerprint stands: what grew or narrowed (`worse`), and everything else that is different."""

    kernel: str
    launch: str
    capability: int
    verdict: Standing
    worse: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One sentence."""
        return "; ".join((*self.worse, *self.other)) or "unchanged"


def compare(
    stored: Mapping[tuple[str, str, int], Fingerprint], fresh: Iterable[Fingerprint], expected: Iterable[str] = ()
) -> list[Change]:
    """Judge every fresh fingerprint against the stored one; a stored one of an `expected` kernel that is missing now
    is gone. Order: as compiled, then the missing ones."""
    new = {found.identity: found for found in fresh}
    changes = [judge(stored.get(identity), found) for identity, found in new.items()]
    capabilities = {capability for _, _, capability in new}
    wanted = set(expected)
    for identity, old in sorted(stored.items()):
        if identity not in new and old.kernel in wanted and (old.capability in capabilities or not new):
            changes.append(Change(*identity, "gone", other=("stored, but not declared any more",)))
    return changes


def judge(old: Fingerprint | None, new: Fingerprint) -> Change:
    """One fresh fingerprint against the stored one of the same identity, if there is one."""
    if old is None:
        return Change(*new.identity, "new", other=("not stored yet",))
    if old.same_code(new):
        return Change(*new.identity, "same")
    worse, other = _differences(old, new)
    if old.compiler != new.compiler:
        mark = f"compiler changed from {old.compiler} to {new.compiler}, not judged"
        return Change(*new.identity, "segment", other=(mark, *worse, *other))
    return Change(*new.identity, "worse" if worse else "changed", tuple(worse), tuple(other))


def exit_code(changes: Iterable[Change]) -> int:
    """1 if something is worse, 3 if nothing could be compared, else 0."""
    verdicts = {change.verdict for change in changes}
    if "worse" in verdicts:
        return 1
    return 0 if verdicts & JUDGED else NOTHING_COMPARABLE


def _differences(old: Fingerprint, new: Fingerprint) -> tuple[list[str], list[str]]:
    worse: list[str] = []
    other: list[str] = []
    for name, words in (*_COSTS.items(), *_NEUTRAL.items()):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            grew = name in _COSTS and after > before
            (worse if grew else other).append(f"{words} {before} -> {after}{_percent(before, after)}")
    spilled = [sum(n for name, n in found.opcodes.items() if name.split(".")[0] in sass.SPILLS) for found in (old, new)]
    if spilled[1] > spilled[0]:
        worse.append(f"local memory accesses {spilled[0]} -> {spilled[1]}")
    for bases, words in ((sass.GLOBAL_LOADS, "global loads"), (sass.GLOBAL_STORES, "global stores")):
        if narrowed := _narrowed(old, new, bases):
            worse.append(f"{words} narrower: {narrowed}")
    products = sass.tensor_cores(old.opcodes), sass.tensor_cores(new.opcodes)
    if products[0] != products[1]:
        fell = _moved_down(*products) or not products[1]
        (worse if fell else other).append(f"{matrix_words(products[0])} -> {matrix_words(products[1])}")
    other.append(opcode_difference(old.opcodes, new.opcodes) or _same_counts(old, new))
    return worse, other


def _percent(before: int, after: int) -> str:
    return f" ({100 * (after / before - 1):+.0f} %)" if before else ""


def _narrowed(old: Fingerprint, new: Fingerprint, bases: tuple[str, ...]) -> str | None:
    """Accesses per width, if accesses of the widest kind became narrower ones and no bulk copy took their place."""
    before, after = sass.widths(old.opcodes, bases), sass.widths(new.opcodes, bases)
    bulk_before, bulk_after = (sum(found.opcodes.get(name, 0) for name in sass.BULK_COPIES) for found in (old, new))
    if not _moved_down(before, after) or bulk_after > bulk_before:
        return None
    return f"{_by_width(before)} -> {_by_width(after)}"


def _moved_down(before: Mapping[int, int], after: Mapping[int, int]) -> bool:
    """Whether the highest rank is gone, or became rarer while a lower one became more frequent."""
    highest = max(before, default=0)
    rarer = after.get(highest, 0) < before.get(highest, 0)
    lower = any(number > before.get(rank, 0) for rank, number in after.items() if rank < highest)
    return max(after, default=highest) < highest or (rarer and lower)


def matrix_words(found: Mapping[int, int]) -> str:
    """`12 wgmma + 8 mma`, the newest generation first."""
    ordered = sorted(found, reverse=True)
    return " + ".join(f"{found[rank]} {GENERATIONS[rank]}" for rank in ordered) or "no matrix products"


def _by_width(found: Mapping[int, int]) -> str:
    return " + ".join(f"{found[width]} x {width} bit" for width in sorted(found, reverse=True)) or "none"


def opcode_difference(old: Mapping[str, int], new: Mapping[str, int]) -> str:
    """`+59 IMAD, -4 LDG.128`, the largest first; empty if the counts are equal."""
    changed = {name: new.get(name, 0) - old.get(name, 0) for name in {*old, *new}}
    ordered = sorted((item for item in changed.items() if item[1]), key=lambda item: (-abs(item[1]), item[0]))
    return ", ".join(f"{number:+d} {name}" for name, number in ordered)


def _same_counts(old: Fingerprint, new: Fingerprint) -> str:
    if old.order != new.order:
        return "the same instructions in another order"
    return "the same instructions with other operands" if old.sass != new.sass else "the same instructions"
