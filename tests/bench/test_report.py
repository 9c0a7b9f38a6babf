"""REPORT.md: medians over processes, honest ratios in words, and where we lose."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import synthetic_records as synthetic

from spectralbench import history, report
from spectralbench.quantity import amount, ratio_words, scale, spread


def table(results: Path, times: dict[str, tuple[str, list[float]]], **changes) -> str:
    """The report of one case with the given times per process."""
    records = [
        synthetic.record(
            {"device_time": value}, implementation=name, role=role, replicate=replicate, **{"case": {"n": 1}, **changes}
        )
        for name, (role, values) in times.items()
        for replicate, value in enumerate(values)
    ]
    synthetic.write(results, "a", synthetic.environment(), records)
    return report.write(results, results).read_text()


def test_ratios_are_medians_over_processes_in_words(tmp_path: Path) -> None:
    text = table(tmp_path, {"triton": ("kernel", [1.2, 2.4, 3.7]), "einsum": ("baseline", [1.0, 2.0, 3.0])})
    assert "| triton | kernel | 2.4 [1.8, 3.05] s | 1.20x slower |" in text
    assert "1 of 1 comparisons of a kernel with a baseline" in text
    assert "| masked_multiply | triton | einsum | 1 | n=1, float32, forward |" in text
    assert "1.16 to 1.26" in text


def test_disagreeing_processes_are_not_significant(tmp_path: Path) -> None:
    text = table(tmp_path, {"triton": ("kernel", [1.2, 0.9, 1.3]), "einsum": ("baseline", [1.0, 1.0, 1.0])})
    assert "1.20x slower (n.s.)" in text
    assert "0 of 1 comparisons" in text


def test_a_rival_is_compared_and_marked(tmp_path: Path) -> None:
    records = []
    for compression in (0.0, 0.5):
        case = {"kernel_size": 3, "compression": compression, "grid": "tight"}
        records.append(synthetic.record({"device_time": 2.0 - compression}, implementation="dft_gemm", case=case))
        name, role = ("direct_uncompressed", "rival") if compression else ("direct", "baseline")
        records.append(synthetic.record({"device_time": 1.0}, implementation=name, role=role, case=case))
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    text = report.write(tmp_path, tmp_path / "out.md").read_text()
    assert "1.50x slower (not judged) †" in text and "2.00x slower (not judged) |" in text


def test_a_whole_study(tmp_path: Path) -> None:
    synthetic.study(tmp_path, random.Random(3), processes=2)
    figure = tmp_path / "figures" / "cpu-test-2c" / "pareto.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    path = report.write(tmp_path, tmp_path / "REPORT.md")
    text = path.read_text()
    for part in ("Test CPU", "2.13.0", synthetic.commit_hash(0)[:8], "### Where we lose", "### Skipped and failed",
                 "only legal at compression = 0", "failed: wrong", "](figures/cpu-test-2c/pareto.png)"):  # fmt: skip
        assert part in text
    whole = tmp_path / "report" / "cpu-test-2c" / "band_limited_conv2d.md"
    assert "report/cpu-test-2c/band_limited_conv2d.md" in text and whole.is_file()
    lines = [line for line in whole.read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(text) < 100_000


def test_dirty_trees_and_damage_are_shown(tmp_path: Path) -> None:
    facts = synthetic.environment(dirty="abcd1234")
    path = synthetic.write(tmp_path, "a", facts, [synthetic.record({"device_time": 1.0})])
    with path.open("a") as file:
        file.write("garbage\n")
    text = report.write(tmp_path, tmp_path).read_text()
    assert "-dirty" in text and "uncommitted changes" in text
    assert "1 damaged places" in text and "`a.jsonl` line 3" in text


def test_nothing_recorded_and_unknown_machines(tmp_path: Path) -> None:
    assert "No records yet" in report.write(tmp_path, tmp_path).read_text()
    with pytest.raises(ValueError, match="no results of machine 'x'; known: none yet"):
        report.write(tmp_path, tmp_path, "x")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.234e-6, "second", "1.23 µs"), (0.25, "second", "250 ms"), (90.0, "second", "90 s"), (1536, "byte", "1.5 KiB"),
     (0, "byte", "0 B"), (3.1e-7, "1", "3.1e-07"), (2e-3, "joule", "2 mJ"), (0.0, "second", "0 s"),
     (1e-12, "second", "0.001 ns"), (5000.0, "second", "5000 s")],
)  # fmt: skip
def test_amounts_for_people(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_words_for_ratios() -> None:
    assert ratio_words(1.22, "second") == "1.22x slower" and ratio_words(0.5, "second") == "2.00x faster"
    assert ratio_words(2, "byte") == "2.00x more" and ratio_words(1.001, "second") == "the same"
    assert ratio_words(None, "byte") == "up from zero" and ratio_words(0.0, "byte") == "down to zero, less"
    assert ratio_words(0.25, "1") == "4.00x smaller" and ratio_words(1234, "second") == "1234x slower"
    assert spread(2e-3, 1e-3, 3e-3, "second") == "2 [1, 3] ms" and scale((), "byte") == (1.0, "B")


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_identical_implementations_are_called_different_in_five_percent_at_most(processes: int, seed: int) -> None:
    """1,000 pairs with 2 % noise; a true rate of 5 % gives more than 8 % once in 100,000 times."""
    rng = random.Random(seed)

    def point() -> history.Point:
        values = [1 + 0.02 * rng.gauss(0, 1) for _ in range(processes)]
        labelled = tuple((str(index), value) for index, value in enumerate(values))
        return history.Point("c", None, "2026", sorted(values)[processes // 2], labelled, 0.98, 1.02, processes, ())

    found = [history.ratio(point(), point()) for _ in range(1000)]
    assert sum(one is not None and one.significant for one in found) <= (80 if processes >= 3 else 0)
