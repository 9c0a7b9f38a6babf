"""`--cases shapes.csv`: own cases are like any other of an operation; a wrong cell is named by line and column."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Cli, one_line
from fake_operations import load_operations

from spectralbench import asked, shapes
from spectralbench.sweep import Request
from spectralbench.workloads import load_operations as real_operations
from spectralkernels.declare import Block
from spectralkernels.errors import RangeError

HEAD = "size,rate,exact"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shapes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_is_a_case_in_the_types_that_the_operation_declares(tmp_path: Path) -> None:
    path = file(
        tmp_path, "\ufeffrate, size,exact,pass\r\n\r\n0.0,7,FALSE,both\r\n0.25,9,true,forward\r\n0,7,false,both\r\n"
    )
    found = shapes.read(path, load_operations()["steady"])
    assert [(case.id, pass_) for case, pass_ in found] == [
        ("size=7,rate=0,exact=False,grid=tight", "both"),
        ("size=9,rate=0.25,exact=True,grid=tight", "forward"),
    ]
    assert [type(value) for _, value in found[1][0].params] == [int, float, bool, str]
    assert {case.dtype for case, _ in found} == {"float32"}


def test_a_case_of_a_profile_and_the_same_of_a_file_are_one_measurement(cli: Cli, tmp_path: Path) -> None:
    cli("run", "steady", "--profile", "smoke", "--set", "size=1")
    file(tmp_path, f"{HEAD}\n1,0.5,true\n5,0.5,true\n")
    code, out, err = cli("run", "steady", "--profile", "smoke", "--cases", "shapes.csv", "--json")
    assert code == 0
    assert "3 records were stored already" in err
    assert sorted({json.loads(line)["case"]["size"] for line in out.splitlines()}) == [1, 5]
    _, _, err = cli("run", "steady", "--profile", "smoke", "--cases", "shapes.csv")
    assert "6 records were stored already" in err


def test_a_word_or_a_number_is_taken_where_profiles_have_both(tmp_path: Path) -> None:
    steady = load_operations()["steady"]
    (block,) = steady.profiles["smoke"]
    both = replace(steady, profiles={"smoke": (Block({**block.axes, "grid": ("tight", 64)}),)})
    found = shapes.read(file(tmp_path, f"{HEAD},grid\n1,0,true,tight\n1,0,true,96\n"), both)
    assert [case["grid"] for case, _ in found] == ["tight", 96]
    with pytest.raises(RangeError, match="grid takes integers, such as 64, tight, got 'seed'"):
        shapes.read(file(tmp_path, f"{HEAD},grid\n1,0,true,seed\n"), both)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no case: it needs a line of column names"),
        (f"{HEAD}\n\n", "has no case"),
        ("sise,rate,exact\n1,0,true\n", "line 1: steady has no parameter 'sise', did you mean 'size'? known: size"),
        ("size,rate,exact,size\n1,0,true,1\n", "line 1 has the column 'size' twice"),
        ("size,exact\n1,true\n", "line 1 lacks the column 'rate'; steady has size, rate, exact, grid"),
        (f"{HEAD}\n1,0,true\n\n1,0\n", "line 4 has 2 cells, but the file has 3 columns"),
        (f"{HEAD}\n1,0,true\n1,,true\n", "line 3, column 'rate', is empty"),
        (f"{HEAD}\n1.5,0,true\n", "line 2, column 'size': size takes integers, such as 1, got '1.5'"),
        (f"{HEAD}\n0,0,true\n", "line 2, column 'size': size must be a finite number from 1 on, got '0'"),
        (f"{HEAD}\n1,nan,true\n", "line 2, column 'rate': rate must be a finite number from 0 on, got 'nan'"),
        (f"{HEAD}\n{2**63},0,true\n", "column 'size': size must be a number that a record can hold, of 64 bits"),
        (f"{HEAD}\n1,0,maybe\n", "line 2, column 'exact': exact takes true or false, got 'maybe'"),
        (f"{HEAD},grid\n1,0,true,tigth\n", "column 'grid': unknown 'tigth', did you mean 'tight'?"),
        (f"{HEAD},pass\n1,0,true,bakward\n", "column 'pass': unknown 'bakward', did you mean 'backward'?"),
        (f"{HEAD},dtype\n1,0,true,float\n", "column 'dtype': unknown 'float', did you mean 'float32'? known: float32"),
        (f'{HEAD}\n"1,0,true\n', "cannot be read as CSV in UTF-8: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line_and_column(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    file(tmp_path, text)
    code, out, err = cli("run", "steady", "--cases", "shapes.csv", "--dry-run")
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_a_case_whose_record_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    columns = "batch,in_channels,out_channels,height,width,kernel_size,compression"
    path = file(tmp_path, f"{columns}\n1,1000000,1000000,1000000,1000000,3,0.5\n")
    with pytest.raises(
        RangeError, match=r"line 2: a case of this shape counts \d+ FLOPs and \d+ bytes, beyond 64 bits"
    ):
        shapes.read(path, real_operations()["band_limited_conv2d"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch": "4611686018427387904"}, r"a case of this shape counts \d+ FLOPs and \d+ bytes, beyond 64 bits"),
        ({"groups": "3"}, r"conv2d .* 3 groups .*: groups=3 must divide the 32 channels and the 32 output channels"),
        ({"kernel_size": "0"}, r"K0 .*: map and kernel must have at least one sample per axis"),
    ],
)
def test_values_beside_a_profile_are_held_to_the_same(overrides: dict[str, str], message: str) -> None:
    asked_for = Request(operations=("band_limited_conv2d",), profile="quick", overrides=overrides)
    with pytest.raises(RangeError, match=message):
        list(asked.cases(asked_for, real_operations()["band_limited_conv2d"]))


def test_files_that_cannot_be_read_and_questions_without_an_operation_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert "nowhere.csv cannot be read as CSV" in one_line(cli("run", "steady", "--cases", "nowhere.csv")[2])
    (tmp_path / "shapes.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as CSV in UTF-8" in one_line(cli("run", "steady", "--cases", "shapes.csv")[2])
    for arguments in (("--cases", "shapes.csv"), ("steady", "--cases", "shapes.csv", "--set", "size=1")):
        code, _, err = cli("run", *arguments)
        assert code == 2
        assert "a file of cases is of one operation, which must be named" in one_line(err)


def test_shapes_that_the_operation_refuses_are_named_by_line(tmp_path: Path) -> None:
    conv = real_operations()["band_limited_conv2d"]
    head = "batch,in_channels,out_channels,height,width,kernel_size,compression,dtype\n"
    ((case, pass_),) = shapes.read(file(tmp_path, f"{head}2,3,4,9,7,3,0.5,float16\n"), conv)
    assert (case.dtype, pass_) == ("float16", "forward")
    assert (case["grid"], case["groups"], case["input"]) == ("tight", 1, "photo")
    with pytest.raises(RangeError, match=r"shapes.csv line 2: compression must"):
        shapes.read(file(tmp_path, f"{head}2,3,4,9,7,3,1.5,float16\n"), conv)
    ((multiply, _),) = shapes.read(
        file(tmp_path, "batch,in_channels,out_channels,height,width,compression\n1,2,3,8,5,0.5\n"),
        real_operations()["masked_multiply"],
    )
    assert multiply.dtype == "complex64"


def test_pytests_front_end_takes_the_same_file(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "bench" / "pytest_spectral" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_the_front_end", path)
    assert spec is not None and spec.loader is not None
    front_end = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(front_end)
    file(tmp_path, "batch,in_channels,out_channels,height,width,compression\n1,2,3,8,5,0.5\n")

    def core(cases: str) -> Any:
        options = {"spectral_profile": "asv", "spectral_impl": ["einsum"], "spectral_device": "cpu"}
        return front_end.Core(SimpleNamespace(getoption={**options, "spectral_cases": cases}.__getitem__))

    ((operation, implementation, _, dtype, case),) = core(f"masked_multiply={tmp_path / 'shapes.csv'}").rows()
    assert (operation, implementation, dtype) == ("masked_multiply", "einsum", "complex64")
    assert case == "batch=1,in_channels=2,out_channels=3,height=8,width=5,groups=1,compression=0.5,input=photo"
    for wrong in ("", "masked_multiply", "=shapes.csv", "masked_multiply="):
        with pytest.raises(pytest.UsageError, match=r"takes OPERATION=FILE.csv, got"):
            core(wrong)
