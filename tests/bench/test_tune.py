"""The search for tiles: it climbs to the fastest, refuses what is wrong or fails, and keeps only what is faster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_operation import ROUNDS, case, implementation, product, toy

from spectralbench.clock import FakeClock
from spectralbench.tune import MARGIN, Winner, store, tune_case
from spectralkernels import tuning
from spectralkernels.tuning import Site, pinned, winners

SITE = Site("toy.product", {"m": (16, 128), "warps": (1, 8)})


@dataclass(frozen=True)
class Tile:
    m: int
    warps: int


WRONG, BROKEN = Tile(128, 4), Tile(32, 8)


def tiled(x: Tensor, w: Tensor) -> Tensor:
    tile = SITE.choose({"size": x.shape[-1]}, Tile(32, 4), 0)
    if tile == BROKEN:
        raise RuntimeError("out of resource: shared memory")
    return product(x, w) * (2.0 if tile == WRONG else 1.0)


class TileClock(FakeClock):
    """Times by tile: m = 64 with one warp is the fastest of the right ones, the wrong tile faster than all."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def time(self, run: object, number: int) -> float:
        super().time(run, number)  # type: ignore[arg-type]
        tile = json.loads(run.name)  # type: ignore[attr-defined]
        if tile == {"m": 128, "warps": 4}:
            return 1e-6
        return 1e-3 * (1.0 + self.gain * (abs(tile["m"] - 64) / 64 + tile["warps"] / 8))


def search(clock: FakeClock | None = None, **options: object) -> list[Winner]:
    operation = toy(implementation("tiled", tiled))
    found = tune_case(
        operation,
        case(),
        operation.implementation("tiled"),
        options.pop("pass_", "forward"),  # type: ignore[arg-type]
        device="cpu",
        clock=clock or TileClock(),
        budget=ROUNDS,
        **options,  # type: ignore[arg-type]
    )
    return list(found)


@pytest.mark.parametrize("pass_", ["forward", "both"])
def test_it_climbs_to_the_fastest_tile_that_is_right(pass_: str):
    (winner,) = search(pass_=pass_)
    assert winner.start.label == "toy.product[size=24]"
    assert (winner.start.tile, winner.tile) == ({"m": 32, "warps": 4}, {"m": 64, "warps": 1})
    assert winner.start_seconds / winner.seconds == pytest.approx(2.0 / 1.125)


def test_what_is_wrong_or_fails_is_refused_with_its_reason():
    (winner,) = search()
    assert "relative L2 error 1 " in winner.refused['{"m": 128, "warps": 4}']
    assert "out of resource" in winner.refused['{"m": 32, "warps": 8}']


def test_a_gain_within_the_noise_moves_nothing():
    (winner,) = search(TileClock(gain=MARGIN / 4))
    assert not winner.better


def test_labels_to_skip_are_not_searched():
    assert search(skip={"toy.product[size=24]"}) == []


def test_an_implementation_that_is_wrong_is_not_tuned():
    operation = toy(implementation("wrong", lambda x, w: torch.zeros_like(x)))
    with pytest.raises(ValueError, match="wrong before its tiles are tuned"):
        list(
            tune_case(operation, case(), operation.implementation("wrong"), "forward", device="cpu", clock=FakeClock())
        )


def test_a_stored_winner_is_what_launches_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (winner,) = search()
    path = tmp_path / "sm_90.json"
    store(path, {winner.start.label: winner}, {"commit": "abc", "gpu": "a GPU"})
    entry = json.loads(path.read_text())["winners"]["toy.product[size=24]"]
    assert (entry["tile"], entry["instead_of"]) == ({"m": 64, "warps": 1}, {"m": 32, "warps": 4})
    assert (entry["commit"], entry["tried"]) == ("abc", winner.tried)
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    winners.cache_clear()
    try:
        assert SITE.choose({"size": 24}, Tile(32, 4), 90) == Tile(64, 1)
    finally:
        winners.cache_clear()


def test_a_table_grows_and_keeps_what_it_has(tmp_path: Path):
    path = tmp_path / "tuned" / "sm_90.json"
    (winner,) = search()
    store(path, {"a[x=1]": winner}, {})
    store(path, {"b[x=1]": winner}, {})
    with pinned({"toy.product": {"m": 64, "warps": 1}}):
        (same,) = search()
    assert not same.better
    store(path, {"c[x=1]": same}, {})
    assert list(json.loads(path.read_text())["winners"]) == ["a[x=1]", "b[x=1]"]
