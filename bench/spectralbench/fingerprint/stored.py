"""The committed expectations: one JSON file per kernel (standard library only: alerts read them without torch).

    results/fingerprints/masked_multiply.tiled_kernel.json
    {"schema": 1, "kernel": ..., "launches": {"B128 C64 O64 34x18, bool mask": {"sm_90": {"registers": 128, ...}}}}

Keys are sorted, so that a difference in git is a difference in the machine code. Schema history: 1 (2026-11) first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SCHEMA = 1
NOTE = "what the compiler made of the kernel; evidence of change, not a time; written by `spectralbench fingerprint`"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One launch of one kernel as compiled for one architecture.

    kernel, launch, capability: the identity. triton, ptxas: the compilers' versions, which mark segments: across them
    nothing is judged. registers: per thread. stack, local: bytes per thread. shared: bytes per block.
    tensor_memory: columns. instructions: SASS without padding; opcodes: by family, see `sass.family`.
    widest_load, widest_store: bits of global memory in one instruction, 0 for none.
    resident_warps, limited_by: the occupancy bound. sass: hash of the text with registers renamed in order; order: hash
    of the sequence of families. ptx: hash of the text that ptxas was given, see `same_code`.
    compile_seconds: of the compilation that made it, no part of what is compared.
    because: why it changed when it last did, in the words of whoever stored it.
    """

    kernel: str
    launch: str
    capability: int
    triton: str
    ptxas: str
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    local: int
    shared: int
    tensor_memory: int
    instructions: int
    widest_load: int
    widest_store: int
    resident_warps: int
    limited_by: str
    sass: str
    order: str
    opcodes: Mapping[str, int]
    ptx: str | None = None
    compile_seconds: float | None = None
    because: str | None = None

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.kernel, self.launch, self.capability

    @property
    def compiler(self) -> str:
        return f"triton {self.triton}, ptxas {self.ptxas}"

    @property
    def spills(self) -> int:
        """Bytes of local memory per thread; a slow path of sin or cos also shows here."""
        return self.stack + self.local

    def same_code(self, other: Fingerprint) -> bool:
        """Whether everything that the compiler made is equal, the compiler included.

        From one text ptxas makes one sequence of instructions, but not always with the same operands: two compilations
        of a tf32 product for sm_100 differ in names of registers. So where the text is known and equal, `sass` may be
        another.
        """
        if self.ptx is not None and self.ptx == other.ptx:
            other = replace(other, sass=self.sass)
        return _without_circumstances(self) == _without_circumstances(other)


def _without_circumstances(found: Fingerprint) -> Fingerprint:
    return replace(found, ptx=None, compile_seconds=None, because=None, opcodes=dict(found.opcodes))


def path_of(folder: Path, kernel: str) -> Path:
    return folder / f"{kernel}.json"


def load(folder: Path) -> dict[tuple[str, str, int], Fingerprint]:
    """Every stored fingerprint by identity; none if the folder is missing. ValueError names a file that is not one."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        for fingerprint in parse(path.read_text(encoding="utf-8"), str(path)):
            found[fingerprint.identity] = fingerprint
    return found


def parse(text: str, name: str) -> list[Fingerprint]:
    """The fingerprints of one file's text, for instance of `git show COMMIT:PATH`. ValueError if it is damaged."""
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}, this version reads {SCHEMA}; update spectralbench")
        return [
            Fingerprint(document["kernel"], launch, int(architecture.removeprefix("sm_")), **values)
            for launch, architectures in document["launches"].items()
            for architecture, values in architectures.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name} is not a file of fingerprints: {type(error).__name__}: {error}") from error


def save(folder: Path, fingerprints: Iterable[Fingerprint]) -> list[Path]:
    """Write one file per kernel, each as a whole or not at all; return those whose content changed."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels: dict[str, dict[str, dict[str, Any]]] = {}
    for found in fingerprints:
        values = {name: value for name, value in asdict(found).items() if value is not None}
        for name in ("kernel", "launch", "capability"):
            del values[name]
        kernels.setdefault(found.kernel, {}).setdefault(found.launch, {})[f"sm_{found.capability}"] = values
    written = []
    for kernel, launches in sorted(kernels.items()):
        document = {"schema": SCHEMA, "note": NOTE, "kernel": kernel, "launches": launches}
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        path = path_of(folder, kernel)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        written.append(path)
    return written


def prune(folder: Path, kernels: Collection[str]) -> list[Path]:
    """Remove the files of all other kernels, and return them."""
    gone = [path_of(folder, kernel) for kernel in {kernel for kernel, _, _ in load(folder)} - set(kernels)]
    for path in gone:
        path.unlink()
    return sorted(gone)


def merged(
    stored: Mapping[tuple[str, str, int], Fingerprint],
    fresh: Iterable[Fingerprint],
    declared: Mapping[str, Iterable[str]],
    because: str | None = None,
) -> list[Fingerprint]:
    """What to store: fresh ones, and stored ones of other architectures whose launch is still declared.

    Unchanged code keeps its stored entry, compile time and reason included, so that a second run changes no file.
    declared: the launches of each kernel that was compiled now. because: reason of whatever changed.
    """
    kept = {
        identity: old
        for identity, old in stored.items()
        if old.kernel not in declared or old.launch in set(declared[old.kernel])
    }
    for new in fresh:
        old = kept.get(new.identity)
        if old is None or not old.same_code(new):
            kept[new.identity] = replace(new, because=because)
    return [kept[identity] for identity in sorted(kept)]
