"""Fingerprints as data: SASS is read right, the comparison is exact and in words, and files round-trip."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectralbench.fingerprint import sass, stored
from spectralbench.fingerprint.compare import Change, compare, exit_code, judge
from spectralbench.fingerprint.occupancy import occupancy
from spectralbench.fingerprint.stored import Fingerprint

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "fingerprints"

GOOD = Fingerprint(
    kernel="toy.kernel",
    launch="B4",
    capability=90,
    triton="3.7.1",
    ptxas="12.8",
    num_warps=4,
    num_stages=3,
    registers=40,
    stack=0,
    local=0,
    shared=1024,
    tensor_memory=0,
    instructions=100,
    widest_load=128,
    widest_store=128,
    resident_warps=48,
    limited_by="registers",
    sass="a" * 16,
    order="b" * 16,
    opcodes={"FFMA": 60, "IMAD": 20, "LDG.128": 8, "STG.128": 4, "HGMMA.64x64x16.F32": 8},
    compile_seconds=0.25,
)


def opcodes(**changes: int) -> dict[str, int]:
    changed = {**GOOD.opcodes, **{name.replace("_", "."): number for name, number in changes.items()}}
    return {name: number for name, number in changed.items() if number}


# Reading SASS


def test_names_of_registers_reuse_hints_and_padding_do_not_matter() -> None:
    one = ["LDG.E.128 R4, desc[UR4][R2.64]", "@P0 FFMA R8, R4.reuse, R5, RZ", "EXIT", "NOP"]
    renamed = ["LDG.E.128 R12, desc[UR8][R20.64]", "@P3 FFMA R0, R12, R13, RZ", "EXIT"]
    rewired = ["LDG.E.128 R12, desc[UR8][R20.64]", "@P3 FFMA R0, R12, R12, RZ", "EXIT"]
    assert sass.normalised(one) == sass.normalised(renamed) != sass.normalised(rewired)
    assert sass.normalised(one)[1] == "@P0 FFMA R2, R0, R3, RZ"
    assert sass.normalised(["R2UR UR4, R2", "S2R R0, SR_TID.X"]) == ["R2UR UR0, R0", "S2R R1, SR_TID.X"]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("LDG.E R4, [R2]", "LDG.32"),
        ("@!P0 LDG.E.EL.LTC128B.128.CONSTANT R4, [R2]", "LDG.128"),
        ("@P1 STG.E.U16 [R2], R4", "STG.16"),
        ("LDGSTS.E.BYPASS.LTC128B.64 [R1], [R2]", "LDGSTS.64"),
        ("@UP0 IMAD.WIDE.U32 R2, R3, R4, R5", "IMAD"),
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24", "HGMMA.64x64x16.F32.BF16"),
        ("EXIT", "EXIT"),
    ],
)
def test_families(text: str, family: str) -> None:
    assert sass.sequence([text, "NOP"]) == [family]


def test_generation_of_the_matrix_instructions() -> None:
    opcodes = {"UTCHMMA": 1, "HGMMA.64x64x16.F32": 2, "HGMMA.64x8x16.F32": 3, "HMMA.16816.F32": 4, "FFMA": 5}
    assert sass.tensor_cores(opcodes) == {3: 1, 2: 5, 1: 4}


@pytest.mark.parametrize(
    ("capability", "block", "warps", "limited_by"),
    [
        (90, {"num_warps": 8, "registers": 128, "shared": 12288}, 16, "registers"),  # 2 x 256 x 128 = 65536
        (90, {"num_warps": 8, "registers": 129, "shared": 0}, 8, "registers"),  # 136 once rounded up
        (90, {"num_warps": 4, "registers": 32, "shared": 0}, 64, "warps"),
        (90, {"num_warps": 1, "registers": 16, "shared": 0}, 32, "blocks"),
        (90, {"num_warps": 8, "registers": 32, "shared": 227 * 1024}, 8, "shared"),  # the reserved 1 KiB fits too
        (80, {"num_warps": 8, "registers": 32, "shared": 82 * 1024}, 8, "shared"),  # and here it does not
        (100, {"num_warps": 4, "registers": 64, "shared": 0, "tensor_memory": 256}, 8, "tensor memory"),
    ],
)
def test_occupancy(capability: int, block: dict[str, int], warps: int, limited_by: str) -> None:
    bound = occupancy(capability, **block)
    assert (bound.warps, bound.limited_by) == (warps, limited_by)


# Comparing


def words(**changes: Any) -> tuple[str, str]:
    change = judge(GOOD, replace(GOOD, **changes))
    return change.verdict, change.words


def test_only_what_the_compiler_made_counts() -> None:
    assert words() == ("same", "unchanged")
    assert words(compile_seconds=9.0, because="another day") == ("same", "unchanged")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"registers": 56}, "registers 40 -> 56 (+40 %)"),
        ({"shared": 2048}, "shared bytes 1024 -> 2048 (+100 %)"),
        ({"stack": 8}, "stack bytes 0 -> 8"),
        ({"local": 8}, "local bytes 0 -> 8"),
        ({"instructions": 135, "opcodes": opcodes(IMAD=55)}, "instructions 100 -> 135 (+35 %); +35 IMAD"),
        ({"opcodes": opcodes(STL_32=2)}, "local memory accesses 0 -> 2"),
        (
            {"opcodes": opcodes(LDG_128=0, LDG_32=32), "widest_load": 32},
            "global loads narrower: 8 x 128 bit -> 32 x 32 bit",
        ),
        (
            {"opcodes": opcodes(LDG_128=4, LDG_64=8)},
            "global loads narrower: 8 x 128 bit -> 4 x 128 bit + 8 x 64 bit",
        ),
        ({"opcodes": opcodes(STG_128=0, STG_64=8)}, "global stores narrower: 4 x 128 bit -> 8 x 64 bit"),
        (
            {"opcodes": {**opcodes(**{"HGMMA_64x64x16_F32": 0}), "HMMA.16816.F32": 32}},
            "8 wgmma -> 32 mma; +32 HMMA.16816.F32, -8 HGMMA.64x64x16.F32",
        ),
        (
            {"opcodes": {**opcodes(**{"HGMMA_64x64x16_F32": 6}), "HMMA.16816.F32": 8}},
            "8 wgmma -> 6 wgmma + 8 mma",
        ),
        ({"opcodes": opcodes(HGMMA_64x64x16_F32=0)}, "8 wgmma -> no matrix products"),
    ],
)
def test_growth_and_narrowing_are_worse(changes: dict[str, Any], says: str) -> None:
    verdict, text = words(**changes)
    assert verdict == "worse"
    assert says in text


def test_other_changes_are_told_and_no_fault() -> None:
    assert words(registers=32) == ("changed", "registers 40 -> 32 (-20 %); the same instructions")
    assert words(sass="c" * 16) == ("changed", "the same instructions with other operands")
    assert words(sass="c" * 16, order="d" * 16) == ("changed", "the same instructions in another order")
    assert words(opcodes=opcodes(LDG_128=0, UTMALDG=1)) == ("changed", "-8 LDG.128, +1 UTMALDG")
    assert words(opcodes=opcodes(LDG_128=0, LDG_64=2, UTMALDG=1))[0] == "changed"  # a bulk copy took their place
    assert words(opcodes={**opcodes(HGMMA_64x64x16_F32=0), "UTCHMMA": 2})[0] == "changed"
    assert words(opcodes=opcodes(LDG_128=6))[0] == "changed"  # fewer loads, none narrower


def test_other_operands_from_the_same_text_are_no_change() -> None:
    """ptxas is not deterministic there; only where its input is known to be the same, and nothing else differs."""
    known = replace(GOOD, ptx="e" * 16)
    assert judge(known, replace(known, sass="c" * 16)).verdict == "same"
    assert judge(known, replace(known, sass="c" * 16, ptx="f" * 16)).verdict == "changed"
    assert judge(known, replace(known, sass="c" * 16, order="d" * 16)).verdict == "changed"
    assert judge(known, replace(known, sass="c" * 16, registers=41)).verdict == "worse"
    assert judge(GOOD, replace(known, sass="c" * 16)).verdict == "changed"  # stored before the text was
    assert judge(GOOD, known).verdict == "same"


def test_another_compiler_is_another_segment() -> None:
    verdict, text = words(triton="3.8.0", registers=60)
    assert verdict == "segment"
    assert text.startswith("compiler changed from triton 3.7.1, ptxas 12.8 to triton 3.8.0, ptxas 12.8, not judged;")
    assert "registers 40 -> 60" in text


def test_exit_codes() -> None:
    def code(*fresh: Fingerprint, known: tuple[Fingerprint, ...] = (GOOD,)) -> int:
        return exit_code(compare({found.identity: found for found in known}, fresh))

    fatter, newer = replace(GOOD, registers=41), replace(GOOD, triton="3.8.0", launch="B8")
    assert code(GOOD) == 0
    assert code(replace(GOOD, registers=39)) == 0
    assert code(fatter) == 1
    assert code(fatter, newer, known=(GOOD, replace(newer, triton="3.7.1"))) == 1
    assert code(GOOD, newer, known=(GOOD, replace(newer, triton="3.7.1"))) == 0
    assert code(newer, known=(replace(newer, triton="3.7.1"),)) == 3
    assert code(GOOD, known=()) == 3


def test_what_is_not_declared_any_more_is_told() -> None:
    other = replace(GOOD, launch="B8")
    known = {found.identity: found for found in (GOOD, other, replace(other, capability=80))}
    (same, gone) = compare(known, [GOOD], ["toy.kernel"])
    assert same.verdict == "same"
    assert gone == Change("toy.kernel", "B8", 90, "gone", other=("stored, but not declared any more",))
    assert [change.verdict for change in compare(known, [GOOD], ["another"])] == ["same"]


# Storing


def test_files_round_trip_and_are_stable(tmp_path: Path) -> None:
    found = [GOOD, replace(GOOD, capability=80, because="unrolled"), replace(GOOD, kernel="toy.other", launch="B8")]
    first = stored.save(tmp_path, found)
    assert [path.name for path in first] == ["toy.kernel.json", "toy.other.json"]
    assert sorted(stored.load(tmp_path).values(), key=lambda f: f.identity) == sorted(found, key=lambda f: f.identity)
    assert stored.save(tmp_path, reversed(found)) == []
    assert not list(tmp_path.glob("*.partial"))


def test_unchanged_code_keeps_its_entry_and_vanished_launches_go() -> None:
    again, other = replace(GOOD, compile_seconds=3.0), replace(GOOD, launch="B8")
    ampere = replace(GOOD, capability=80)
    known = {found.identity: found for found in (GOOD, other, ampere)}
    assert stored.merged(known, [again], {"toy.kernel": ["B4"]}, "no reason") == [ampere, GOOD]
    fatter = replace(again, registers=48)
    assert stored.merged(known, [fatter], {"toy.kernel": ["B4"]}, "unrolled")[1] == replace(fatter, because="unrolled")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": 2}', "schema 2, this version reads 1; update spectralbench"),
        ('{"schema": 1, "kernel"', "JSONDecodeError"),
        ('{"schema": 1, "kernel": "k", "launches": {"B4": {"sm_90": {"registers": 3}}}}', "missing"),
        ("[]", "TypeError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(ValueError, match=r"toy\.json is not a file of fingerprints") as error:
        stored.load(tmp_path)
    assert says in str(error.value)


def test_readers_need_neither_torch_nor_triton() -> None:
    program = (
        "import sys; sys.modules.update(torch=None, triton=None, spectralkernels=None)\n"
        "from spectralbench.fingerprint import compare, occupancy, sass, stored\n"
        f"print(len(stored.load(__import__('pathlib').Path({str(COMMITTED)!r}))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
