"""Ahead-of-time compilation: the specialisation is the launch's own, and the cubin is read right."""

from __future__ import annotations

import pytest
import torch
from guarded_interpreter import compiler

from spectralkernels import aot
from spectralkernels.aot import compile_kernel
from spectralkernels.errors import RangeError, Unsupported

tl = pytest.importorskip("triton.language")
triton = pytest.importorskip("triton")

pytestmark = compiler


@triton.jit
def axpy_kernel(x_ptr, y_ptr, a, n_rows, row_stride, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * row_stride + tl.arange(0, BLOCK)
    for _ in range(n_rows):
        y = tl.load(y_ptr + offs)
        y += a * tl.load(x_ptr + offs)
        tl.store(y_ptr + offs, y)


ARGUMENTS = {"x_ptr": torch.float32, "y_ptr": torch.float32, "a": 0.5, "n_rows": 3, "row_stride": 1024, "BLOCK": 1024}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_reads_what_the_compiler_made(capability: int) -> None:
    code = compile_kernel(axpy_kernel, ARGUMENTS, capability, num_warps=4)
    assert code.name == "axpy_kernel" and code.capability == capability and code.num_warps == 4
    assert code.triton == triton.__version__
    assert 8 <= code.registers <= 255 and code.stack == code.local == 0
    assert code.shared <= code.shared_limit
    assert code.count("LDG", "128") == code.count("LDG") > 0 and code.count("STG", "128") > 0
    assert code.count("FFMA") + 2 * code.count("FFMA2") >= 8  # 1024 elements over 128 threads
    assert code.count("EXIT") >= 1
    assert sum(code.opcodes.values()) == len(code.instructions)


@pytest.mark.slow
def test_specialises_as_a_launch_would() -> None:
    def loads(**changes: object) -> int:
        return compile_kernel(axpy_kernel, {**ARGUMENTS, **changes}, 90).count("LDG", "128")

    aligned = torch.empty(4096)
    assert loads() > 0
    assert loads(row_stride=1023) == 0  # rows that begin anywhere
    assert loads(x_ptr=aligned, y_ptr=aligned) > 0
    assert loads(x_ptr=aligned[1:], y_ptr=aligned[1:]) == 0
    assert loads(x_ptr=torch.empty(4096, device="meta")) > 0
    once, thrice = (compile_kernel(axpy_kernel, {**ARGUMENTS, "n_rows": n}, 90) for n in (1, 3))
    assert len(once.instructions) < len(thrice.instructions)  # 1 is a constant, so there is no loop


@pytest.mark.slow
def test_spills_are_seen() -> None:
    code = compile_kernel(axpy_kernel, {**ARGUMENTS, "BLOCK": 16384}, 90, num_warps=1, maxnreg=32)
    assert code.stack + code.local > 0
    assert code.count("STL") > 0


@pytest.mark.slow
def test_the_hash_of_the_text_sees_code_and_no_line_numbers() -> None:
    text = '.visible .entry k(\n)\n{\n\t.loc\t1 32 0 // a.py:32\n$L__tmp0:\n\tbar.sync \t0;\n}\n\t.file\t1 "/a/a.py"\n'
    moved = (
        text.replace("1 32 0 // a.py:32", "1 40 2 // a.py:40").replace("/a/a.py", "/b/a.py")
        + "\t.section\t.debug_info\n"
    )
    assert aot._ptx_digest(text) == aot._ptx_digest(moved) != aot._ptx_digest(text.replace("sync", "arrive"))
    one, again, other = (
        compile_kernel(axpy_kernel, {**ARGUMENTS, "BLOCK": size}, 90).ptx for size in (1024, 1024, 512)
    )
    assert one == again != other and len(one) == 16


@pytest.mark.slow
def test_wrapped_kernels_are_unwrapped() -> None:
    tuned = triton.heuristics({"BLOCK": lambda arguments: 256})(axpy_kernel)
    assert compile_kernel(tuned, ARGUMENTS, 90) == compile_kernel(axpy_kernel, ARGUMENTS, 90)


def test_the_real_driver_comes_back() -> None:
    from triton.runtime.driver import driver

    compile_kernel(axpy_kernel, ARGUMENTS, 90)
    if torch.cuda.is_available():
        assert driver.active.get_current_target().backend == "cuda"
    else:
        with pytest.raises(RuntimeError, match="active driver"):
            _ = driver.active


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RangeError, match="unknown compute capability 42; known: 80, 86, 89, 90, 100"):
        compile_kernel(axpy_kernel, ARGUMENTS, 42)
    with pytest.raises(Unsupported, match="exited with"):
        aot._read_cubin(b"no cubin")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(Unsupported, match="unset TRITON_INTERPRET"):
        compile_kernel(axpy_kernel, ARGUMENTS, 90)
