"""Short names of cases: what goes without saying is left out, and two cases of a profile never share a name."""

from __future__ import annotations

import pytest

from spectralbench import names
from spectralkernels.declare import PROFILES
from spectralkernels.ops import load_operations

CONV = {"batch": 8, "in_channels": 64, "out_channels": 64, "height": 32, "width": 32, "kernel_size": 7, "groups": 1,
        "compression": 0.5, "grid": "tight", "input": "photo"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "8x64->64 32x32 K7 c.5"),
        ({"groups": 64}, "8x64 depthwise 32x32 K7 c.5"),
        ({"groups": 4, "pass": "both"}, "8x64->64 4 groups 32x32 K7 c.5 fwd+bwd"),
        ({"input": "pink", "grid": "fast", "dtype": "float64"}, "8x64->64 32x32 K7 c.5 grid=fast pink float64"),
        ({"relative": True, "beta": 0.25, "seed": 3}, "8x64->64 32x32 K7 c.5 relative=True beta=.25 seed=3"),
        ({"groups": True}, "8x64->64 32x32 K7 c.5"),
    ],
)
def test_names_people_use(changes: dict, name: str) -> None:
    assert names.short({**CONV, **changes}) == name


def test_no_parameters_give_no_words() -> None:
    assert names.short({}) == "" and names.short({"batch": 3}) == "3" and names.short({"length": 270}) == "L270"


@pytest.mark.parametrize("operation", load_operations().values(), ids=lambda operation: operation.name)
def test_cases_of_a_profile_have_names_of_their_own(operation) -> None:
    for profile in PROFILES:
        found = {(case, pass_) for case, block in operation.cases(profile) for pass_ in block.passes}
        assert len({names.of_case(case, pass_) for case, pass_ in found}) == len(found)
