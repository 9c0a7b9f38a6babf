"""The tables of the command line: units for people, ratios to the best baseline, no column that says nothing."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from test_record import record

from spectralbench.cli import tables
from spectralbench.outcome import Failed, Measured, Measurement, Skipped


def measured(seconds: float, **changes: Any) -> Any:
    return record(Measured((Measurement("device_time", 1, "second", (seconds,)),)), **changes)


def test_units_are_scaled_and_the_ratio_is_to_the_best_baseline() -> None:
    found = tables.rows(
        [
            measured(2e-3, implementation="einsum", role="baseline"),
            measured(1e-3, implementation="bmm", role="baseline"),
            measured(4e-4, implementation="triton", role="kernel"),
            record(Failed("oom", "too big", 7), implementation="greedy", role="kernel"),
            record(Skipped("needs CUDA"), implementation="cuda", role="kernel"),
        ]
    )
    table = tables.operation_table("masked_multiply", found["masked_multiply"])
    times, ratios = list(table.columns[1].cells), list(table.columns[2].cells)
    assert list(table.columns[0].cells) == ["einsum", "bmm", "triton", "greedy"]
    assert times == ["2 ms (2 - 2)", "1 ms (1 - 1)", "400 µs (400 - 400)", "[red]failed: oom[/red]"]
    assert ratios == ["2.00x slower", "best baseline", "2.50x faster", "-"]


def test_a_table_of_a_case_fits_eighty_columns() -> None:
    names = ("direct_uncompressed_channels_last", "dft_gemm")
    records = [
        record(Measured((Measurement("device_time", 1, "second", (value,)),
                         Measurement("saved_bytes", 1, "byte", (1.5 * 2**20,)),
                         Measurement("approximation_error", 1, "1", (0.287,)))),
               implementation=name, role=role, case={"kernel_size": 7, "compression": 0.5})
        for name, role, value in zip(names, ("baseline", "kernel"), (1234e-3, 1e-6), strict=True)
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for table in tables.case_tables("band_limited_conv2d", tables.rows(records)["masked_multiply"]):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].strip() == "conv2d K7 c.5"
    assert lines[2].split() == [
        "direct_uncompressed_channels_last",
        "1.23",
        "s",
        "best",
        "base",
        "1.5",
        "MiB",
        "29",
        "%",
    ]
    assert lines[3].split()[:3] == ["dft_gemm", "1", "µs"]


def test_the_median_is_over_processes_and_only_varying_parameters_are_columns() -> None:
    records = [
        measured(value, replicate=index, case={"size": size, "rate": 0.5})
        for size in (7, 8)
        for index, value in enumerate((1e-3, 3e-3, 2e-3))
    ]
    table = tables.operation_table("masked_multiply", tables.rows(records)["masked_multiply"])
    assert [column.header for column in table.columns[:2]] == ["case", "implementation"]
    assert list(table.columns[0].cells) == ["size=7", "size=8"]
    assert list(table.columns[2].cells) == ["2 ms (1.5 - 2.5)"] * 2
    assert table.caption == "everywhere: rate=0.5, dtype=float32, pass=forward"


def test_the_parameters_of_a_case_share_its_lines() -> None:
    records = [
        measured(1e-3, implementation=name, case={"a": value, "b": value, "c": value})
        for value in (1, 2)
        for name in ("einsum", "bmm")
    ]
    table = tables.operation_table("masked_multiply", tables.rows(records)["masked_multiply"])
    assert list(table.columns[0].cells) == ["a=1 b=1", "c=1", "a=2 b=2", "c=2"]
