"""Freed memory stays in a measuring process: a second call faults no page in again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spectralbench import heap
from spectralbench.environment import capture

PROBE = """
import ctypes, resource, sys
if sys.argv[1] == "kept":
    from spectralbench.heap import keep_freed_memory
    assert keep_freed_memory() == "kept"
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def call():
    # 24 MB with nothing above them in the heap, as the buffers of a call may lie
    blocks = [library.malloc(3 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 3 << 20)
    for block in blocks:
        library.free(block)

for _ in range(4):
    call()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    call()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def faults_per_call(heap_rule: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, heap_rule],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout)


@pytest.mark.skipif(heap.keep_freed_memory() != "kept", reason="needs glibc")
def test_a_call_that_ran_before_faults_no_page_in():
    assert faults_per_call("kept") < 50
    assert faults_per_call("default") > 500, "the probe must show what is prevented"


def test_the_environment_says_what_becomes_of_freed_memory():
    assert capture()["heap"] in ("kept", "default")
