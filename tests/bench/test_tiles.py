"""A record keeps the tiles that its kernels ran with; a sweep with pinned tiles runs with them, and is no baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fake_operations import SOURCES
from test_record import ENVIRONMENT, MEASURED, record
from torch import Tensor
from toy_operation import implementation, measure, product

from spectralbench import environment, sweep
from spectralbench.outcome import Measured
from spectralbench.record import environment_line, read_file, record_line
from spectralbench.sweep import Request
from spectralkernels.tuning import Site, pinned

SITE = Site("toy.product", {"warps": (1, 8)})


@dataclass(frozen=True)
class Tile:
    warps: int


def tiled(x: Tensor, w: Tensor) -> Tensor:
    SITE.choose({"size": x.shape[-1]}, Tile(4), 0)
    return product(x, w)


def tiles(outcome: object) -> dict[str, dict[str, int | str]]:
    assert isinstance(outcome, Measured), outcome
    return {label: dict(tile) for label, tile in outcome.tiles.items()}


def test_an_outcome_has_the_tiles_of_its_own_implementation():
    found = measure(implementation("plain"), implementation("tiled", tiled), implementation("twin"))
    assert tiles(found["tiled"]) == {"toy.product[size=24]": {"warps": 4, "source": "rule"}}
    assert tiles(found["plain"]) == tiles(found["twin"]) == {}


def test_a_pinned_measurement_says_so():
    with pinned({"toy.product": {"warps": 2}}):
        found = measure(implementation("tiled", tiled))
    assert tiles(found["tiled"]) == {"toy.product[size=24]": {"warps": 2, "source": "pin"}}


def test_tiles_survive_the_file(tmp_path: Path):
    written = record(replace(MEASURED, tiles={"toy.product[size=24]": {"warps": 4, "source": "table"}}))
    path = tmp_path / "a.jsonl"
    path.write_text(environment_line(ENVIRONMENT) + record_line(written))
    assert read_file(path).records == (written,)


def test_a_worker_runs_with_the_pins_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "capture", lambda root=None: {**ENVIRONMENT, "commit": "a" * 40})
    plain = Request(operations=("tiled",), profile="smoke", sources=SOURCES)
    pinning = replace(plain, pin={"fake.site": {"warps": 8}})
    found = {}
    for request in (plain, pinning):
        facts = sweep.surroundings("cpu", request.pin)
        done = sweep.run(request, tmp_path, facts)
        assert done.reused == 0, "the two are different code"
        found[facts["dirty"]] = done.records[0].tiles
    clean, dirty = found
    assert clean is None, "without pins the commit is what was measured"
    assert dirty is not None, "with pins it is not, so that the numbers are no baseline"
    assert found[clean] == {"fake.site[size=1]": {"warps": 4, "source": "rule"}}
    assert found[dirty] == {"fake.site[size=1]": {"warps": 8, "source": "pin"}}
    assert sweep.run(pinning, tmp_path, sweep.surroundings("cpu", pinning.pin)).reused == 2
