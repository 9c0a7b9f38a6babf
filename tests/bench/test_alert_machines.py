"""Every machine is weighed by itself, and of few series no more is believed than their noise allows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

from spectralbench import alert, history, simulate
from spectralbench.alert import Finding, Verdict
from spectralbench.record import Damage

QUIET, NOISY = "cpu-quiet-2c", "cpu-noisy-2c"


def write_machine(results: Path, machine: str, noise: float, slower: float, rng: random.Random) -> None:
    """Forty kernels over ten commits in five processes each; the first takes `slower` times as long at the newest."""
    for index in range(10):
        records = [
            synthetic.record(
                {"device_time": 1e-3 * (slower if (number, index) == (0, 9) else 1.0) * (1 + noise * rng.gauss(0, 1))},
                case={"batch": number}, day=index, replicate=replicate,
            )
            for number in range(40) for replicate in range(5)
        ]  # fmt: skip
        synthetic.write(results, f"f{index:03d}", synthetic.environment(machine, commit=index), records)


def slower(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.key.subject.machine, one.key.subject.case) for one in findings if one.verdict is Verdict.SLOWER]


def test_a_change_on_one_machine_is_found_beside_a_noisy_one(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    write_machine(tmp_path, QUIET, 0.01, 1.15, rng)
    write_machine(tmp_path, NOISY, 0.4, 1.0, rng)
    loaded = history.load(tmp_path)
    findings = alert.judge(loaded)
    assert slower(findings) == [(QUIET, "batch=0")]
    for machine in (QUIET, NOISY):
        alone = alert.judge(history.only_machine(loaded, machine))
        beside = [one for one in findings if one.key.subject.machine == machine]
        assert alone == beside, "what another machine measured says nothing of this one"


@pytest.mark.parametrize("kind", simulate.KINDS)
@pytest.mark.parametrize(("series", "processes"), [(4, 1), (12, 1), (36, 5)])
def test_a_machine_with_few_unchanged_series_is_silent(kind: str, series: int, processes: int, seed: int) -> None:
    """1 % of 150 runs, at most: six are one in a thousand. Student's statistic alone alarmed in about 15 of t3."""
    cell = simulate.NoiseCell(kind, 0.04, 8, processes, processes > 1, series)
    assert simulate.counted(cell, 150, [seed])[0] <= 5


@pytest.mark.parametrize(("series", "change"), [(1, 2.0), (4, 2.0), (36, 1.2)])
def test_a_large_change_of_one_of_few_series_is_found(series: int, change: float, seed: int) -> None:
    cell = simulate.NoiseCell("gaussian", 0.01, 8, 5, False, series, change)
    assert simulate.counted(cell, 20, [seed])[0] >= 17


def test_what_is_said_to_be_visible_is_what_is_told(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = simulate.run(rng, "gaussian", 0.02, 8, 5, False, 36)
    visible = alert.judging.weigh(values, alarm=1e-4).visible
    values[:, -1] += visible[:, None] - (values[:, -1].mean(1) - values[:, :-1].mean((1, 2)))[:, None]
    told = alert.judging.weigh(values, alarm=1e-4).slower
    assert (told <= 2e-4).mean() >= 0.9 and (told >= 5e-6).mean() >= 0.9


def test_damage_in_the_folder_of_another_machine_is_not_of_this_one(tmp_path: Path) -> None:
    for machine in (QUIET, NOISY):
        synthetic.write(tmp_path, "f", synthetic.environment(machine), [synthetic.record({"device_time": 1.0})])
    with (tmp_path / "records" / NOISY / "f.jsonl").open("a") as file:
        file.write("{cut")
    loaded = history.load(tmp_path)
    assert len(loaded.doubtful) == 1
    assert history.only_machine(loaded, QUIET).doubtful == ()
    assert history.only_machine(loaded, NOISY).doubtful == loaded.doubtful
    lost = Damage(tmp_path / "records" / "cpu-lost-2c" / "f.jsonl", 1, "not JSON")
    assert history.only_machines(history.History((), doubtful=(lost,)), (QUIET,)).doubtful == (lost,), "of no machine"
