"""The modes of a band, a staircase or cells: what they hold, and that their text says all of it."""

from __future__ import annotations

import io
import pickle
import random
from typing import ClassVar

import pytest
import torch
from effort import draws

import spectralkernels as sk
from spectralkernels.convolution.dft_triton.layout import layout_of
from spectralkernels.modes import ModeList, box, every_mode, modes_of
from spectralkernels.spectra import full_frequencies, half


@pytest.mark.parametrize("draw", draws(50))
def test_the_text_says_all(seed: int, draw: int) -> None:
    rng = random.Random(seed + draw)
    n = (rng.randint(1, 40), rng.randint(1, 40))
    rows = half(n[0])
    ks = [rng.randint(0, rows) for _ in range(rng.randint(1, 4))]
    staircase = ModeList(n, steps=tuple((rng.randint(1, 5), k) for k in (*ks, rng.randint(1, rows))))
    found = {(rng.randrange(n[0]), rng.randrange(half(n[1]))) for _ in range(9)}
    series = box((n[0],), (rng.randint(1, rows),))
    for modes in (staircase, ModeList(n, cells=tuple(found)), box(n, (rows, 1)), every_mode(n), series):
        assert modes_of(str(modes)) == modes and hash(modes_of(str(modes))) == hash(modes)
        assert len(modes) == len(modes.indices) == len(set(modes.indices))


@pytest.mark.parametrize(
    ("n", "kept"), [((9, 8), (3, 2)), ((9, 8), (5, 5)), ((1, 1), (1, 1)), ((7,), (3,)), ((8,), (5,))]
)
def test_a_box_holds_the_frequencies_of_a_band(n: tuple[int, ...], kept: tuple[int, ...]) -> None:
    rows = full_frequencies(n[0], kept[0]) if len(n) == 2 else (0,)
    modes = box(n, kept)
    assert modes.indices == tuple((u, v) for v in range(kept[-1]) for u in rows)
    assert modes.kept == kept


@pytest.mark.parametrize(
    "text", ["", "box", "box 3,3", "ring 3,3 1,1", "steps 3,3 1", "cells 3,3 x,y", "box 3,3 1,1 1"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be written|zip|invalid literal"):
        modes_of(text)


def test_a_layout_says_how_first() -> None:
    with pytest.raises(ValueError, match=r"a layout must begin with separable or matrix, got \'box 3,3 1,1\'"):
        layout_of("box 3,3 1,1")


def test_a_list_that_an_older_version_saved_is_read() -> None:
    """It was declared in masks.modes then."""
    n = sk.masks.fft_grid((7, 6), (3, 3))
    modes = sk.masks.mode_list(sk.masks.radial(n, 0.5), n)
    frozen = sk.masked_weight_spectrum(torch.randn(3, 2, 3, 3), modes, (7, 6))
    saved, old = io.BytesIO(), io.BytesIO()
    torch.save(frozen, saved, pickle_module=_Older)
    old.write(saved.getvalue())
    old.seek(0)
    assert b"spectralkernels.masks.modes" in saved.getvalue()
    assert torch.load(old, weights_only=True) == frozen


class _Older:
    """pickle, as of a class that lies where it lay."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
        def save_global(self, obj, name=None):  # type: ignore[no-untyped-def]
            if obj is ModeList:
                self.write(pickle.GLOBAL + b"spectralkernels.masks.modes\nModeList\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch: ClassVar = {**pickle._Pickler.dispatch, type: save_global}  # type: ignore[attr-defined]

    dumps, loads = staticmethod(pickle.dumps), staticmethod(pickle.loads)
