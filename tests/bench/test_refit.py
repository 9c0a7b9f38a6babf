"""Constants that are fitted again: from times of a made-up machine, whose constants are others."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from spectralbench.refit import KEPT, Shape, chosen_by, main, refitted, shape_of, written
from spectralbench.regret import Row, draw, sizes_of
from spectralkernels.convolution.choice import candidates
from spectralkernels.convolution.estimates import taken_from, work
from spectralkernels.convolution.fitted import FORWARD


def rows(chance: random.Random, count: int) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Shapes as a machine would time them that is 20 % off its own constants, and those."""
    other = {
        name: {unit: seconds * math.exp(chance.uniform(-1.5, 1.5)) for unit, seconds in units.items()}
        for name, units in FORWARD.items()
    }
    made = []
    for _ in range(count):
        case = draw(chance)
        sizes, busy = sizes_of(case), chance.uniform(0.8, 1.3)
        times = {}
        for name in candidates(sizes, plain=True, built=True):
            exact = sum(other[taken_from(name)][unit] * counted for unit, counted in work(name, sizes).items())
            times[name] = exact * busy * chance.uniform(0.9, 1.1)
        made.append(Row(case.operation, case.id, next(iter(times)), times, dict(case.params)))
    return made, other


def mean_regret(shapes: list[Shape], table: dict[str, dict[str, float]]) -> float:
    return sum(math.log(chosen_by(table, shape).regret) for shape in shapes) / len(shapes)


def test_another_machine_is_learned(seed: int):
    made, other = rows(random.Random(seed), 120)
    shapes = [shape_of(json.loads(json.dumps(asdict(row)))) for row in made]
    found = refitted(shapes, FORWARD, steps=60)
    before, after, best = (mean_regret(shapes, dict(table)) for table in (FORWARD, found, other))
    assert after < 0.2 * before + best, (before, after, best)
    assert {name: units.keys() for name, units in found.items()} == {name: u.keys() for name, u in FORWARD.items()}
    assert all(seconds >= 0.0 for units in found.values() for seconds in units.values())


def test_what_no_shape_tells_of_stays(seed: int):
    chance = random.Random(seed)
    made = [row for row in rows(chance, 40)[0] if row.operation == "band_limited_conv1d"][:6]
    found = refitted([shape_of(asdict(row)) for row in made], FORWARD, steps=5)
    held = refitted([shape_of(asdict(row)) for row in made], FORWARD, steps=5, keep=1e6)
    for name, units in FORWARD.items():
        for unit, seconds in units.items():
            assert held[name][unit] == pytest.approx(seconds, rel=0.05)
    for unit in ("second_fft", "second_axis"):  # a series has one axis
        assert found["torch_fft"][unit] == pytest.approx(FORWARD["torch_fft"][unit], rel=0.05)


def test_the_command_prints_a_table_and_the_regrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seed: int
):
    kept = []
    monkeypatch.setattr("spectralbench.refit.refitted", lambda shapes, table, keep: kept.append(keep) or table)
    capsys.readouterr()
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows(random.Random(seed), 5)[0]))
    assert main([str(lines)]) == 0
    found = capsys.readouterr()
    assert eval(found.out) == FORWARD and found.err.startswith("5 shapes; auto takes the fastest in ")
    assert main([str(lines), "--keep", "0.3"]) == 0 and kept == [KEPT, 0.3]
    capsys.readouterr()
    assert main([str(lines), "--check"]) == 0
    assert capsys.readouterr().out == ""
    assert eval(written({"a": {"call": 1e-4}})) == {"a": {"call": 1e-4}}
