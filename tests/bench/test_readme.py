"""README says what the records and the declarations say: its facts are made, and made again here."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import synthetic_records as synthetic

from spectralbench import history, readme
from spectralkernels.ops import load_operations

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> history.History:
    """The committed records, where nobody writes."""
    results = tmp_path_factory.mktemp("results")
    shutil.copytree(ROOT / "results" / "records", results / "records")
    return history.load(results)


def test_the_facts_are_those_of_the_records_and_declarations(claimed: history.History) -> None:
    """After a change of either: python -m spectralbench.readme [COMMIT]"""
    assert readme.render(README, claimed, load_operations()) == README
    assert len(list(readme.PART.finditer(README))) == 2


def test_a_changed_number_is_noticed(claimed: history.History) -> None:
    row = next(line for line in README.splitlines() if line.startswith("| 8x64->64 32x32 K7 |"))
    forged = README.replace(row, re.sub(r"\d+(\.\d+)?x", "123x", row, count=1))
    assert forged != README and readme.render(forged, claimed, load_operations()) == README


def test_claims_of_a_commit_without_any_are_refused(claimed: history.History) -> None:
    with pytest.raises(ValueError, match="no band-limited convolution was measured beside its rivals at 00000000"):
        readme.claims(claimed, "00000000")


CASE = {"batch": 8, "in_channels": 64, "out_channels": 64, "height": 32, "width": 32, "kernel_size": 7, "groups": 1,
        "compression": 0.5, "grid": "tight", "input": "photo"}  # fmt: skip


def _stored(
    folder: Path,
    commits: dict[int, dict[tuple[int, float], tuple[float, float]]],
    error: Mapping[str, float] = MappingProxyType({"approximation_error": 0.3}),
) -> history.History:
    """commits: index -> (K, c) -> times of ours and of the torch convolution, in three processes."""
    for index, times in commits.items():
        records = [
            synthetic.record({"device_time": time, **error}, operation="band_limited_conv2d",
                             implementation=name, role=role, case={**CASE, "kernel_size": kernel, "compression": rate},
                             replicate=replicate, day=index)
            for replicate in range(3)
            for (kernel, rate), (ours, conv) in times.items()
            for name, role, time in (("dft_gemm", "kernel", ours), ("direct_uncompressed", "rival", conv))
        ]  # fmt: skip
        synthetic.write(folder, f"{index}", synthetic.environment(commit=index), records)
    return history.load(folder)


def _answers(loaded: history.History, index: int) -> list[str]:
    text = readme.claims(loaded, synthetic.commit_hash(index)[:8])
    return [" ".join(answer.split()) for answer in text.split("\n\n")[0].split("\n- ")]


def test_a_price_that_was_not_measured_is_not_said_to_be_nothing(tmp_path: Path) -> None:
    times = {(7, 0.5): (1.0, 2.0)}
    found = _answers(_stored(tmp_path / "with", {0: times}), 0)[2]
    assert found.endswith(
        "At c = .5, before any retraining, the answer is off by 30 % to 30 %, and behind a ReLU, which keeps its map "
        "too, a layer keeps bytes that were not counted."
    )
    found = _answers(_stored(tmp_path / "without", {0: times}, error={}), 0)[2]
    assert "the answer was not compared" in found


def test_a_claim_is_of_its_commit_alone(tmp_path: Path) -> None:
    loaded = _stored(tmp_path, {0: {(7, 0.5): (1.0, 2.0)}, 1: {(7, 0.5): (0.25, 2.0)}})
    found = [readme.claims(loaded, synthetic.commit_hash(index)[:8]) for index in (0, 1)]
    assert "| 8x64->64 32x32 K7 | 1 s | 2.0x° | - | 30 % |" in found[0]
    assert "| 8x64->64 32x32 K7 | 250 ms | 8.0x° | - | 30 % |" in found[1]
    assert "too few processes" not in found[0]


def test_the_readme_says_from_where_on_it_pays_and_where_it_loses(tmp_path: Path) -> None:
    """Ours takes a second at every K, the torch convolution K**2 / 16: it pays from K = 4 on."""
    times = {(kernel, 0.5): (1.0, kernel**2 / 16) for kernel in (1, 2, 7, 31)}
    pays, lost = (_answers(_stored(tmp_path, {0: times}), 0)[at] for at in (1, 4))
    assert pays.endswith("`dft_gemm` over the torch convolution, conv2d 8x64->64 32x32: at c = .5 from K = 4 [4, 4].")
    one, two = (f"8x64->64 32x32 K{kernel} at c = .5 ({ratio}x at worst)" for kernel, ratio in ((1, 0.06), (2, 0.25)))
    assert lost.endswith(f"is faster in 2 of 4 cases: {one}; {two}.")


def test_the_readme_says_what_changed_since_the_commit_before(tmp_path: Path) -> None:
    times = {(7, 0.5): (1.0, 2.0)}
    first, second = (_answers(_stored(tmp_path, {0: times, 1: {(7, 0.5): (0.25, 2.2)}}), index)[3] for index in (0, 1))
    assert "This is the first commit that was measured in its environment." in first
    before = synthetic.commit_hash(0)[:8]
    assert f"Since {before} our kernels are 4.0x as fast, and everything else, which nobody changed, 0.91x" in second
    assert "1 and 1 series" in second and "The alert calls none of them slower and none faster." in second


def test_the_readme_says_what_a_threshold_takes(tmp_path: Path) -> None:
    facts = {"network": "lenet", "batch": 2, "input": "1x28x28", "mode": "train", "compression": 0.0, "n": 1}
    records = [
        synthetic.record({"device_time": time}, operation="model_step", implementation=name, role="rival",
                         pass_="both", case={**facts, "beta": beta}, replicate=replicate)
        for replicate in range(3)
        for beta, slow in ((0.5, 4.0), (1.5, 3.0))
        for name, time in (("native", 1.0), ("specnet", slow))
    ]  # fmt: skip
    synthetic.write(tmp_path, "steps", synthetic.environment(commit=0), records)
    pays = _answers(_stored(tmp_path, {0: {(7, 0.5): (1.0, 2.0)}}), 0)[1]
    assert pays.endswith("a training step of lenet takes 3.0x to 4.0x the time of native layers, at beta = .5 to 1.5.")


def test_every_name_in_the_readme_exists() -> None:
    """Public names in code, files that are linked, commands of the Makefile."""
    import spectralkernels as sk

    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sk":
                assert hasattr(sk, node.attr), node.attr
    for name in re.findall(r"`nn\.(\w+)`", README):
        assert hasattr(sk.nn, name), name
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    made = re.findall(r"`make (\w+)`", README)
    rules = (ROOT / "Makefile").read_text()
    assert made and all(re.search(rf"^[\w ]*\b{name}\b[\w ]*:", rules, re.MULTILINE) for name in made)
