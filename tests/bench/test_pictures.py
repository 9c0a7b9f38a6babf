"""Pictures of the mathematics: every one is found and drawn, and what it says of itself is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Cli, one_line

pytest.importorskip("matplotlib", reason="figures are an optional extra")
pytest.importorskip("seaborn", reason="figures are an optional extra")
pytest.importorskip("sklearn", reason="photographs are an optional extra")

from spectralbench import pictures
from spectralbench.pictures import kronecker_trade, learned_strides, pooling_loss, series_quad, spectrum_maps
from spectralbench.report.pictures import finding
from spectralkernels.spectra import low_pass_mask


@pytest.mark.slow
def test_every_picture_is_drawn_with_its_finding(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_strides, "STEPS", 2)
    monkeypatch.setattr(kronecker_trade, "STEPS", 1)
    monkeypatch.setattr(kronecker_trade, "SEEDS", (0,))
    code, out, _ = cli("plot", "--pictures", "--out", "drawn")
    assert code == 0
    paths = [tmp_path / line for line in out.split()]
    assert [path.stem for path in paths] == list(pictures.names())
    for path in paths:
        assert int.from_bytes(path.read_bytes()[16:20], "big") <= 1200
        assert (finding(path) or "").endswith(".")


def test_one_picture_an_unknown_one_and_a_machine(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("plot", "series_quad", "--pictures")
    assert (code, out.strip()) == (0, "results/figures/pictures/series_quad.png")
    code, _, err = cli("plot", "series_quad", "nonsense", "--pictures")
    assert code == 2 and "unknown picture 'nonsense'; known: kronecker_trade, learned_strides" in one_line(err)
    assert cli("plot", "--pictures", "--machine", "m")[0] == 2
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(series_quad, "PICTURE", lambda: pytest.fail("drew before it looked where to write"))
    assert cli("plot", "series_quad", "--pictures", "--out", "file")[0] == 2


@pytest.mark.parametrize("n", [(1, 1), (7, 5), (8, 6), (6, 9)])
def test_a_whole_mask_keeps_a_frequency_with_its_conjugate(n: tuple[int, int]) -> None:
    found = spectrum_maps.whole(low_pass_mask(n, 0.5, "cpu"), n)
    assert found.shape == n
    mirrored = found.flip(0, 1).roll((1, 1), (0, 1))
    assert torch.equal(found, mirrored)
    assert torch.equal(found[:, : n[1] // 2 + 1], low_pass_mask(n, 0.5, "cpu"))


def test_a_band_limited_map_loses_nothing_to_spectral_pooling(seed: int) -> None:
    spectrum = torch.zeros(2, 1, 16, 9, dtype=torch.complex128)
    generator = torch.Generator().manual_seed(seed)
    rows = [0, 1, 2, 3, 13, 14, 15]
    spectrum[..., rows, :4] = torch.randn(2, 1, 7, 4, dtype=torch.complex128, generator=generator)
    maps = torch.fft.irfft2(spectrum, s=(16, 16))
    assert pooling_loss.loss(maps, "spectral", 8) < 1e-12
    assert pooling_loss.loss(maps, "mean", 8) > 1e-2
    assert pooling_loss.loss(torch.ones(1, 1, 16, 16), "max", 4) == 0.0
