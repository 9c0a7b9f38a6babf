"""The photographs that operations are measured on: scikit-learn's, read without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spectralkernels import inputs
from spectralkernels.errors import Unsupported


@pytest.mark.slow
def test_the_photographs_are_those_of_scikit_learn_bit_by_bit() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    expected = torch.cat([torch.tensor(image).permute(2, 0, 1) for image in datasets.load_sample_images().images])
    found = inputs._photographs()
    assert found.shape == (6, 427, 640) and found.dtype == torch.float32
    assert torch.equal(found, expected.float() / 255.0)


def test_without_the_photographs_a_case_is_skipped_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = inputs._photographs.__wrapped__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"needs scikit-learn: pip install 'spectralbench\[images\]'"):
        read()
    elsewhere = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere)
    with pytest.raises(Unsupported, match=r"needs scikit-learn's china.jpg: .*No such file"):
        read()
    folder = tmp_path / "datasets" / "images"
    folder.mkdir(parents=True)
    (folder / "china.jpg").write_bytes(b"no picture")
    with pytest.raises(Unsupported, match=r"needs scikit-learn's china.jpg: cannot identify"):
        read()
