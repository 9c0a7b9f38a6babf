"""pytest-benchmark front end: options, the cases of a profile as parameters, and a table of memory and errors.

pytest-benchmark can neither time a device nor keep implementations interleaved, so the measuring core times a whole
case at its first test and `test_operations.py` replays the samples. What pytest-benchmark has no column for goes into
`extra_info` and into a table above its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spectralbench import environment, measure, names, quantity, sweep
from spectralbench.outcome import Measured, Outcome
from spectralkernels.declare import PROFILES
from spectralkernels.errors import RangeError

MACHINE = "spectral_machine"


class Core:
    """The plan of this run, the tests that were selected from it, and what has been measured so far."""

    def __init__(self, config: pytest.Config) -> None:
        profile = config.getoption("spectral_profile")
        names = tuple(config.getoption("spectral_impl")) or None
        self._device = config.getoption("spectral_device") or environment.device_kind()
        self._budget = measure.Budget(**sweep.BUDGETS[profile])  # type: ignore[arg-type]
        asked = config.getoption("spectral_cases")
        operation, equals, cases = (asked or "").partition("=")
        if asked is not None and not (operation and equals and cases):
            raise pytest.UsageError(f"--spectral-cases takes OPERATION=FILE.csv, got {asked!r}")
        request = sweep.Request(
            operations=(operation,) if operation else (),
            profile=profile,
            implementations=names,
            cases=Path(cases) if operation else None,
            device=self._device,
            processes=1,
        )
        self.items = {_key(item): item for item in sweep.plan(request)}
        self.selected: dict[tuple[str, ...], list[str]] = {}
        self.shown: list[tuple[sweep.Item, str, Measured]] = []
        self._outcomes: dict[tuple[str, ...], Mapping[str, Outcome]] = {}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Operation, implementation, pass, dtype and case of every test, those of one case in succession."""
        for (operation, *rest), item in self.items.items():
            for implementation in item.implementations:
                yield operation, implementation, *rest

    def select(self, operation: str, implementation: str, *rest: str) -> None:
        """Note that this test will run, so that its case is measured with it and without those left out."""
        self.selected.setdefault((operation, *rest), []).append(implementation)

    def outcome(self, operation: str, implementation: str, *rest: str) -> Outcome:
        """What became of one implementation; the first call measures every selected one of that case, interleaved."""
        key = (operation, *rest)
        if key not in self._outcomes:
            item = self.items[key]
            self._outcomes[key] = measure.measure_case(
                item.operation,
                item.case,
                self.selected[key],
                device=self._device,
                pass_=item.pass_,
                budget=self._budget,
            )
        return self._outcomes[key][implementation]


CORE: pytest.StashKey[Core] = pytest.StashKey()
ARGUMENTS = ("operation", "implementation", "pass_", "dtype", "case")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("spectralbench")
    group.addoption("--spectral-profile", choices=PROFILES, default="asv", help="cases to time (default: asv)")
    group.addoption(
        "--spectral-impl", action="append", default=[], metavar="NAME", help="only this implementation; repeatable"
    )
    group.addoption("--spectral-cases", metavar="OPERATION=FILE.csv", help="your own shapes of one operation")
    group.addoption("--spectral-device", choices=("cpu", "cuda"), help="default: cuda where torch finds it, else cpu")


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[CORE] = Core(config)
    except RangeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not set(ARGUMENTS) <= set(metafunc.fixturenames):
        return
    core = metafunc.config.stash[CORE]
    # Plain strings, because pytest-benchmark writes parameters into its JSON.
    metafunc.parametrize(ARGUMENTS, [pytest.param(*row, id="-".join(row)) for row in core.rows()])


def pytest_collection_finish(session: pytest.Session) -> None:
    core = session.config.stash[CORE]
    for test in session.items:
        if (
            isinstance(test, pytest.Function)
            and hasattr(test, "callspec")
            and set(ARGUMENTS) <= test.callspec.params.keys()
        ):
            core.select(*(str(test.callspec.params[name]) for name in ARGUMENTS))


@pytest.fixture
def core(request: pytest.FixtureRequest) -> Core:
    """The measuring core, shared by the tests of one run."""
    return request.config.stash[CORE]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info[MACHINE] = environment.machine_name()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Refuse to judge across machines; pytest-benchmark by itself only warns."""
    saved = compared_benchmark["machine_info"].get(MACHINE)
    if config.getoption("benchmark_compare_fail") and saved != machine_info[MACHINE]:
        raise pytest.UsageError(
            f"--benchmark-compare-fail needs a run saved on this machine ({machine_info[MACHINE]}), got one saved on "
            f"{saved}; compare without it, or save a run here first"
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print, per operation, the median of every metric but the time, which pytest-benchmark prints."""
    shown = config.stash[CORE].shown
    for operation in dict.fromkeys(item.operation.name for item, _, _ in shown):
        rows = [row for row in shown if row[0].operation.name == operation]
        terminalreporter.write_sep("-", f"spectralbench: {operation}, memory and errors")
        for line in _table(rows):
            terminalreporter.write_line(line)


def _table(rows: list[tuple[sweep.Item, str, Measured]]) -> Iterator[str]:
    found = [{each.metric: each for each in measured.measurements} for _, _, measured in rows]
    metrics = [name for name in dict.fromkeys(name for row in found for name in row) if name != "device_time"]
    cells = [["case", "implementation", *metrics]]
    for (item, implementation, _), row in zip(rows, found, strict=True):
        values = [quantity.amount(row[name].median, row[name].unit) if name in row else "-" for name in metrics]
        cells.append([names.of_case(item.case, item.pass_), implementation, *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row_cells in cells:
        left = [cell.ljust(width) for cell, width in zip(row_cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row_cells[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right])


def _key(item: sweep.Item) -> tuple[str, ...]:
    return item.operation.name, item.pass_, item.case.dtype, item.case.id
