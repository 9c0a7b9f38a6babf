"""`spectralbench model`: what it asks of the sweep, its one table, and what it says to those who ask for too much."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_records import record

from spectralbench import environment, model_request, steps, sweep
from spectralbench.cli import main, modelling
from spectralbench.outcome import Measurement
from spectralbench.plot import steps as drawing
from spectralbench.record import Record, read_tree
from spectralkernels.errors import RangeError

Answer = tuple[int, str, str]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    facts = {"machine": "cpu-test-2c", "cpu": "Test CPU", "cores": 2, "commit": "abcdef1234567890", "dirty": None}
    monkeypatch.setattr(environment, "capture", lambda root=None: dict(facts))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["spectralbench", "model", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return int(left.value.code or 0), streams.out, " ".join(streams.err.split())

    return call


def asked_of(layers: tuple[str, ...], **values: str) -> list[tuple[str, float, float, int, tuple[str, ...]]]:
    one = model_request.asked("small_model:build", layers, None, "3x2x9x8")
    rates = {"compression": "0,0.5", "beta": "1", "n": "2", **values}
    limits = {"device": "cpu", "processes": 1, "time_budget": None, "timeout": 60.0}
    items = sweep.plan(model_request.request(one, **rates, **limits))  # type: ignore[arg-type]
    names = ("mode", "compression", "beta", "n")
    assert {item.pass_ for item in items if item.case["mode"] == "train"} == {"both"}
    return [(*(item.case[name] for name in names), item.implementations) for item in items]  # type: ignore[misc]


def test_only_cases_in_which_something_changes_are_asked_for():
    both = ("eval", "train")
    found = asked_of(("native", "band_limited"))
    assert found == [(mode, c, 1.0, 1, ("band_limited", "native")) for mode in both for c in (0.0, 0.5)]
    assert asked_of(("native",)) == [(mode, 0.0, 1.0, 1, ("native",)) for mode in both]
    found = asked_of(("specnet", "native", "band_limited"), beta="0.5,2")
    assert found == [
        (mode, c, beta, 1, names)
        for mode in both
        for c, beta, names in [
            (0.0, 0.5, ("band_limited", "native", "specnet")),
            (0.0, 2.0, ("native", "specnet")),
            (0.5, 0.5, ("band_limited", "native")),
        ]
    ]
    assert [names for *_, names in asked_of(("specnet",))] == [("specnet",)] * 2
    found = asked_of(("native", "phc"), compression="0.5,0.7")
    assert found == [(mode, 0.5, 1.0, n, ("native",)) for mode in both for n in (1, 2)]


def test_what_cannot_be_asked_for_is_answered_with_what_can():
    for layers, message in [
        (("band_limitd",), "did you mean 'band_limited'"),
        (("",), "known: band_limited, band_limited_bits"),
    ]:
        with pytest.raises(RangeError, match=message):
            model_request.asked("lenet", layers, None, None)
    with pytest.raises(RangeError, match="needs --input, such as"):
        model_request.asked("small_model:build", ("native",), None, None)
    with pytest.raises(RangeError, match="a batch of 8, and --batch says 4"):
        model_request.asked("lenet", ("native",), 4, "8x1x28x28")
    one = model_request.asked("lenet", ("native",), None, None)
    assert (one.batch, one.shape, one.parameters) == (8, (1, 28, 28), 21_840)
    assert one.title == "lenet, 8x1x28x28, 21,840 parameters (85.3 KiB)"


def step(
    layers: str, mode: str, seconds: float, c: float = 0.0, beta: float = 1.0, n: int = 1, **rest: float
) -> Record:
    metrics = {"device_time": seconds, "saved_bytes": 3e6, "host_peak": 4e6, **rest}
    case = {"network": "x", "mode": mode, "compression": c, "beta": beta, "n": n}
    return record(metrics, operation="model_step", implementation=layers, case=case, pass_=steps.PASSES[mode])


RECORDS = [
    step("native", "eval", 1e-3, approximation_error=0.0),
    step("band_limited", "eval", 2e-3, approximation_error=1e-16, achieved_compression=0.0),
    step("native", "eval", 3e-3, c=0.5, approximation_error=0.0),
    step("band_limited", "eval", 1e-3, c=0.5, approximation_error=0.3, achieved_compression=0.55),
    step("native", "train", 4e-3, c=0.5),
    step("band_limited", "train", 8e-3, c=0.5, saved_bytes=1048576 * 2.5),
    step("specnet", "eval", 7e-3, beta=0.5),
    step("native", "eval", 6e-3, n=4),
]


def test_t39_rows_take_ratios_within_the_rounds_of_one_case():
    no_step = replace(step("band_limited", "train", 9.0, c=0.5), pass_="forward")
    found = {(row.layers, row.rate): row for row in steps.rows([*RECORDS, no_step])}
    assert list(found) == [
        ("native", ""), ("band_limited", "0"), ("band_limited", "0.5"), ("specnet", "beta 0.5"), ("phc", "n 4"),
    ]  # fmt: skip
    half = found["band_limited", "0.5"]
    assert (half.inference, half.inference_ratio, half.step, half.step_ratio) == (1e-3, 3.0, 8e-3, 0.5)
    assert (half.saved, half.achieved, half.error) == (1048576 * 2.5, 0.55, 0.3)
    assert found["native", ""].inference == 2e-3 and found["native", ""].inference_ratio == 1.0
    assert found["band_limited", "0"].step is None
    assert found["specnet", "beta 0.5"].inference_ratio is None  # nothing native in its rounds
    assert found["phc", "n 4"].inference_ratio is None


def test_the_table_fits_80_columns_and_shows_failures():
    failed = record(
        None, operation="model_step", implementation="torch_fft_full", case=dict(RECORDS[0].case), status="failed",
        failure="wrong", reason="off",
    )  # fmt: skip
    wide = [
        step("band_limited", mode, 123.456, c=0.85, saved_bytes=4e11, host_peak=4e11, approximation_error=9.99)
        for mode in ("eval", "train")
    ]
    out = io.StringIO()
    table = modelling.steps_table("resnet18_spectral_pool, 128x3x224x224", steps.rows([*RECORDS, failed, *wide]))
    Console(file=out, width=200).print(table)
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) <= 80
    assert "failed" in out.getvalue() and "123456" in out.getvalue() and "<0.01" in out.getvalue()


def test_t39_the_figure_needs_a_rate_of_zero(tmp_path: Path):
    path = drawing.draw(steps.rows(RECORDS), "a net", tmp_path / "new" / "out.svg")
    assert "<svg" in path.read_text()
    with pytest.raises(ValueError, match="at compression 0 and at another"):
        drawing.draw(steps.rows(RECORDS[2:4]), "a net", tmp_path / "no.png")


@pytest.mark.slow
def test_a_readers_own_model_from_the_working_directory(cli: Callable[..., Answer], tmp_path: Path):
    """From its file to a table, records and a picture, in a fresh process; and again, from what is stored."""
    source = Path(__file__).with_name("small_model.py").read_text()
    (tmp_path / "my_own_net.py").write_text(source)
    arguments = ("my_own_net:build", "--input", "2x2x9x8", "--compression", "0,0.6", "--figure", "out.png")
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert "my_own_net:build, 2x2x9x8" in out and out.count("band_limited") == 2
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert (tmp_path / "out.png").stat().st_size > 1000
    records = [found for file in read_tree(tmp_path / "results" / "records") for found in file.records]
    assert len(records) == 8
    wanted = {"device_time", "saved_bytes", "host_peak", "parameter_bytes", "approximation_error"}
    for found in records:
        taken = {one.metric for one in found.measurements}
        assert wanted | ({"achieved_compression"} if found.role == "kernel" else set()) <= taken
        assert isinstance(found.metric("parameter_bytes"), Measurement)
    code, again, err = cli(*arguments, "--json")
    assert code == 0 and again.count("\n") == 8 and "stored already" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resnet_18",), "unknown network 'resnet_18', did you mean 'resnet18'?"),
        (("lenet", "--layers", "fast"), "unknown layers 'fast'; known: band_limited"),
        (("lenet", "--input", "3x28x28"), "lenet does not take an input of 8x3x28x28"),
        (("lenet", "--figure", "out.xyz"), "--figure writes .png, .svg, .pdf, got 'out.xyz'"),
        (("lenet", "--input", "28"), "an input is written as channels and sides"),
        (("lenet", "--compression", "1.5"), "compression"),
        (("lenet", "--compression", "half"), "compression takes numbers"),
        (("lenet", "--layers", "specnet", "--beta", "-1"), "beta"),
        (("lenet", "--layers", "phc", "--n", "7"), "no convolution that can be turned to 'phc'"),
        (("nowhere.net:build", "--input", "3x8x8"), "nowhere.net:build cannot be imported"),
    ],
)
def test_wrong_requests_end_in_one_sentence(cli: Callable[..., Answer], arguments: tuple[str, ...], says: str):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert says in err and "Traceback" not in err
