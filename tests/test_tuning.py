"""Who decides about a tile: a pin, the table of an architecture, the rule; and what is noted of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spectralkernels import tuning
from spectralkernels.errors import RangeError
from spectralkernels.tuning import Site, noted_choices, pinned, rounded, winners


@dataclass(frozen=True)
class Tile:
    m: int
    k: int
    warps: int


SITE = Site("toy.product", {"m": (16, 128), "warps": (1, 8)})
RULE = Tile(32, 24, 4)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A table of sm_90 in which one bucket has a winner."""
    path = tmp_path / "sm_90.json"
    path.write_text(json.dumps({"schema": 1, "winners": {"toy.product[m=64]": {"tile": {"m": 64, "warps": 8}}}}))
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    winners.cache_clear()
    yield path
    winners.cache_clear()


def test_without_a_table_the_rule_decides():
    with noted_choices() as noted:
        assert SITE.choose({"m": 64}, RULE, 0) == RULE
    assert noted["toy.product[m=64]"].source == "rule"
    assert noted["toy.product[m=64]"].tile == {"m": 32, "k": 24, "warps": 4}


def test_the_winner_of_a_bucket_keeps_what_it_does_not_name(table: Path):
    with noted_choices() as noted:
        assert SITE.choose({"m": 64}, RULE, 90) == Tile(64, 24, 8)
        assert SITE.choose({"m": 32}, RULE, 90) == RULE
        assert SITE.choose({"m": 64}, RULE, 80) == RULE
    assert [choice.source for choice in noted.values()] == ["rule", "rule"]


def test_a_pin_is_before_the_table(table: Path):
    with pinned({"toy.product[m=64]": {"m": 128}}), noted_choices() as noted:
        assert SITE.choose({"m": 64}, RULE, 90) == Tile(128, 24, 4)
        assert SITE.choose({"m": 16}, RULE, 90) == RULE
    assert {label: choice.source for label, choice in noted.items()} == {
        "toy.product[m=64]": "pin",
        "toy.product[m=16]": "rule",
    }
    assert SITE.choose({"m": 64}, RULE, 90) == Tile(64, 24, 8), "a pin ends with its block"


def test_a_pin_by_site_holds_for_every_bucket_and_a_label_before_it():
    with pinned({"toy.product": {"warps": 1}}), pinned({"toy.product[m=64]": {"warps": 2}}):
        assert SITE.choose({"m": 64}, RULE, 0).warps == 2
        assert SITE.choose({"m": 32}, RULE, 0).warps == 1


def test_what_was_noted_replays():
    with pinned({"toy.product": {"m": 16}}), noted_choices() as noted:
        first = SITE.choose({"m": 64}, RULE, 0)
    with pinned({label: choice.tile for label, choice in noted.items()}):
        assert SITE.choose({"m": 64}, RULE, 0) == first


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        ({"n": 16}, "no field 'n'; it has m, k, warps"),
        ({"m": 48}, "power of two from 16 to 128, got 48"),
        ({"m": 256}, "power of two from 16 to 128, got 256"),
        ({"m": "64"}, "got '64'"),
    ],
)
def test_a_wrong_pin_is_refused(tile: dict[str, int], message: str):
    with pinned({"toy.product": tile}), pytest.raises(RangeError, match=message):
        SITE.choose({"m": 64}, RULE, 0)


def test_a_field_without_a_range_may_be_pinned_to_what_it_is():
    """A recorded tile has every field, and those that never vary need not be powers of two."""
    with pinned({"toy.product": {"m": 64, "k": 24, "warps": 4}}):
        assert SITE.choose({"m": 64}, RULE, 0) == Tile(64, 24, 4)


def test_a_newer_table_is_refused(table: Path):
    table.write_text(json.dumps({"schema": 2, "winners": {}}))
    with pytest.raises(RangeError, match="schema 2"):
        SITE.choose({"m": 64}, RULE, 90)


def test_neighbours_halve_or_double_one_field_within_its_range():
    with noted_choices() as noted:
        SITE.choose({"m": 64}, Tile(16, 24, 8), 0)
    assert list(noted["toy.product[m=64]"].neighbours()) == [
        {"m": 32, "k": 24, "warps": 8},
        {"m": 16, "k": 24, "warps": 4},
    ]


def test_sizes_are_rounded_up_to_a_power_of_two():
    assert [rounded(size) for size in (0, 1, 2, 3, 64, 65)] == [0, 1, 2, 4, 64, 128]
