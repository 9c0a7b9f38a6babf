"""The vocabulary: cases, blocks, and what a name that does not exist is answered with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spectralbench import sweep
from spectralkernels.declare import Block, Case
from spectralkernels.errors import RangeError
from spectralkernels.ops import load_operation


def test_a_case_reads_and_answers_by_name():
    case = Case("blur", (("size", 3), ("rate", 0.5)))
    assert case.id == "size=3,rate=0.5"
    assert case["rate"] == 0.5
    with pytest.raises(RangeError, match="blur has no parameter 'beta'; it has size, rate"):
        case["beta"]


def test_unknown_names_are_answered_with_the_known_ones():
    operation = load_operation("masked_multiply")
    with pytest.raises(RangeError, match="unknown profile 'all'; known: smoke, quick"):
        operation.cases("all")
    with pytest.raises(RangeError, match="masked_multiply has no implementation 'cublas'; known: triton"):
        operation.implementation("cublas")
    with pytest.raises(RangeError, match="unknown operation 'blur'; known: band_limited_conv1d"):
        load_operation("blur")


def test_a_case_of_two_blocks_is_measured_with_what_either_asks_for():
    axes = {"size": (1, 2)}
    blocks = (Block(axes, implementations=("a",)), Block({"size": (2,)}, implementations=("b",), passes=("both",)))
    operation = replace(load_operation("masked_multiply"), profiles={"study": blocks})
    assert [(case["size"], block.implementations) for case, block in operation.cases("study")] == [
        (1, ("a",)),
        (2, ("a",)),
        (2, ("b",)),
    ]


def test_the_study_of_the_convolution_has_every_baseline_somewhere():
    planned = sweep.plan(sweep.Request(("band_limited_conv2d",), profile="study", processes=1))
    named = {name for item in planned for name in item.implementations}
    assert named == {found.name for found in load_operation("band_limited_conv2d").subjects}
    assert len({(item.case, item.pass_) for item in planned}) == len(planned)
