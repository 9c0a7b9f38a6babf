"""The command line: `spectralbench <verb>`. It parses and prints; what to do is decided in the modules it calls.

Data goes to stdout (a table, or JSON lines), talk to stderr. Exit codes: 0 fine, 1 a failed case or a regression and
nothing else, 2 usage or a place that cannot be read or written, 3 nothing to judge, draw or measure, 130 interrupted.
Verbs that read records work without torch, so nothing here imports it before a verb needs it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from spectralbench import __version__
from spectralbench.cli import (
    choosing,
    comparing,
    fingerprinting,
    keeping,
    listing,
    machine,
    modelling,
    profiling,
    reading,
    sweeping,
    terminal,
    tuning,
)

app = typer.Typer(
    name="spectralbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        terminal.out(f"spectralbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Time, memory and accuracy of spectral-domain convolutions, in one history."""


app.command("list")(listing.list_)
app.command("run")(sweeping.run)
app.command("model")(modelling.model)
app.command("plot")(reading.plot)
app.command("report")(reading.report)
app.command("alert")(reading.alert)
app.add_typer(keeping.app)
app.command("compare")(comparing.compare)
app.command("profile")(profiling.profile)
app.command("fingerprint")(fingerprinting.fingerprint)
app.command("choices")(choosing.choices)
app.command("tune")(tuning.tune)
app.command("machine")(machine.machine)


def main() -> None:
    """Run the command line and exit with its code."""
    terminal.keep_data_apart()
    terminal.survive_any_encoding()
    with terminal.whole_data():
        app()
