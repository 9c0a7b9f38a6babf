"""`spectralbench model`: a whole network with layers of several kinds, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spectralbench.cli import sweeping, terminal
from spectralbench.record import record_line
from spectralbench.steps import StepRow, rows

MIB = 1024**2
PICTURES = (".png", ".svg", ".pdf")


def model(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="A name, or your own as package.module:function.")],
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", help="native, band_limited, band_limited_bits, torch_fft, torch_fft_full, specnet, phc."
        ),
    ] = None,
    compression: Annotated[
        str, typer.Option(help="Rates of band_limited, band_limited_bits and torch_fft.")
    ] = "0,0.5,0.8",
    beta: Annotated[str, typer.Option(help="Thresholds of specnet.")] = "1",
    n: Annotated[str, typer.Option("--n", help="Numbers of Kronecker products of phc.")] = "4",
    batch: Annotated[int | None, typer.Option(min=1, help="Examples in a batch; default 8.")] = None,
    shape: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="One example, or BxCxHxW; default the network's.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs in fresh processes.")] = 1,
    time_budget: Annotated[float | None, typer.Option(min=0, help="Start no case after this many seconds.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which a case is killed.")] = 600.0,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the rates, as .png, .svg or .pdf.")] = None,
    results: terminal.Results = Path("results"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    as_json: terminal.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no talk but errors.")] = False,
) -> None:
    """Time, weigh and check the steps of a network, kinds of layers interleaved; running again resumes."""
    if figure is not None and figure.suffix.lower() not in PICTURES:
        raise terminal.fail(f"--figure writes {', '.join(PICTURES)}, got {figure.name!r}", 2)
    with terminal.usage_errors():
        from spectralbench import model_request, sweep

        one = model_request.asked(network, terminal.split(layers) or ("native", "band_limited"), batch, shape)
        request = model_request.request(
            one,
            compression=compression,
            beta=beta,
            n=n,
            device=sweep.choose_device(device),
            processes=processes,
            time_budget=time_budget,
            timeout=timeout,
        )
        done = sweeping.swept(request, results, quiet)
    found = rows(done.records)
    if as_json:
        for record in done.records:
            sys.stdout.write(record_line(record))
    elif found:
        terminal.data().print(steps_table(one.title, found))
    if figure is not None and found:
        _draw(found, one.title, figure)
    if done.stopped == "interrupt":
        raise typer.Exit(sweeping.INTERRUPTED)
    if any(record.status == "failed" for record in done.records):
        raise typer.Exit(1)
    if not found:
        raise terminal.fail("nothing was measured: no case was started, or every one was skipped", sweeping.NOTHING)


def steps_table(title: str, found: Sequence[StepRow]) -> Table:
    """A row per kind of layers and rate, at most 80 columns wide; failures stand where the first time would be."""
    table = Table(
        title=escape(title),
        caption="x: native's time over this one's, same rounds. saved, peak: of a training step.\n"
        "error: of the answer, against the network as it was built.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("layers", "rate"):
        table.add_column(name, no_wrap=True)
    for name in ("inference\nms", "x", "step\nms", "x", "saved\nMiB", "peak\nMiB", "error\n%"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        cells = [
            _number(row.inference, 1e-3),
            _ratio(row.inference_ratio),
            _number(row.step, 1e-3),
            _ratio(row.step_ratio),
            _number(row.saved, MIB),
            _number(row.peak, MIB),
            _number(row.error, 1e-2),
        ]
        if row.failed is not None:
            cells[0 if row.inference is None else 2] = "[red]failed[/red]"
        table.add_row(escape(row.layers), escape(row.rate), *cells)
    return table


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return "-"
    shown = value / unit
    return f"{shown:.0f}" if shown >= 100 else f"{shown:.3g}" if shown >= 0.01 else "<0.01" if shown else "0"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _draw(found: Sequence[StepRow], title: str, path: Path) -> None:
    try:
        from spectralbench.plot import steps

        terminal.say(f"figure: {steps.draw(found, title, path)}")
    except ModuleNotFoundError as missing:
        raise terminal.fail(
            f"figures need {missing.name}; install them with: pip install 'spectralbench[plots]'", 2
        ) from None
    except ValueError as error:
        raise terminal.fail(f"no figure: {error}", sweeping.NOTHING) from None
    except OSError as error:
        raise terminal.fail(f"cannot write {path}: {error.strerror or error}", 2) from None
