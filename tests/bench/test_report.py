"""The report: five answers with honest marks, ratios to fair rivals alone, one file that a browser needs."""

from __future__ import annotations

import html.parser
import random
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from test_alert_code import Project

from spectralbench import chosen, contest, history, peaks, report, rivals, simulate
from spectralbench.quantity import amount, in_percent, ratio_words, scale, spread
from spectralbench.report import pictures
from spectralkernels.ops import load_operations

ROOT = Path(__file__).parents[2]
CONV = {"batch": 8, "in_channels": 64, "out_channels": 64, "height": 32, "width": 32, "kernel_size": 7, "groups": 1,
        "compression": 0.5, "grid": "tight", "input": "photo"}  # fmt: skip


def convolution(
    results: Path, times: dict[str, tuple[str, list[float]]], metrics: dict[str, float] | None = None, **changes: Any
) -> str:
    """The report of one band-limited convolution with the given times per process."""
    records = [
        synthetic.record(
            {"device_time": value, **(metrics or {})}, operation="band_limited_conv2d", implementation=name, role=role,
            replicate=replicate, case={**CONV, **changes},
        )
        for name, (role, values) in times.items()
        for replicate, value in enumerate(values)
    ]  # fmt: skip
    synthetic.write(results, "a", synthetic.environment(), records)
    return report.write(results, results).read_text()


def test_a_ratio_is_the_median_over_processes(tmp_path: Path) -> None:
    text = convolution(
        tmp_path,
        {"dft_gemm": ("kernel", [1.0, 2.0, 3.0]), "direct_uncompressed": ("rival", [2.0, 4.4, 6.0])},
    )
    assert "| K = 7<br>N 32x32 | **dft_gemm<br>2.0x° · -** |" in text


def test_processes_that_disagree_or_are_too_few_are_marked(tmp_path: Path) -> None:
    rivals_of = {"direct_uncompressed": ("rival", [1.0, 1.0, 1.0])}
    text = convolution(tmp_path / "a", {"dft_gemm": ("kernel", [1.2, 0.9, 1.3]), **rivals_of})
    assert "torch conv<br>0.83x=° · -" in text
    text = convolution(tmp_path / "b", {"dft_gemm": ("kernel", [0.5, 0.5]), **rivals_of})
    assert "dft_gemm<br>2.0x~° · -" in text and "**dft_gemm<br>" not in text


def test_a_layout_on_a_slow_path_is_marked_and_not_quoted(tmp_path: Path) -> None:
    text = convolution(
        tmp_path,
        {
            "dft_gemm": ("kernel", [1.0, 1.0, 1.0]),
            "direct_uncompressed": ("rival", [44.0, 44.0, 44.0]),
            "direct_uncompressed_channels_last": ("rival", [2.0, 2.0, 2.0]),
            "direct_uncompressed_converted": ("rival", [2.9, 2.9, 2.9]),
        },
    )
    whole = (tmp_path / "report" / "cpu-test-2c" / "band_limited_conv2d.md").read_text()
    assert "**dft_gemm<br>2.0x · -**" in text and "44" not in text.split("### Everything else")[0]
    assert "44e+03†‡" in whole or "44†‡" in whole
    assert "2†" in whole and "2†‡" not in whole and "2.9†‡" not in whole


def test_no_rival_of_a_claim_is_on_a_slow_path_unsaid(tmp_path: Path) -> None:
    """In the newest committed records of claims: who is over 1.5 times slower than its other layout or N is marked."""
    newest = max((ROOT / "results" / "records").glob("*/*.jsonl"), key=lambda path: path.name)
    copy = tmp_path / "records" / newest.parent.name / newest.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(newest.read_bytes())
    stored = history.current(history.load(tmp_path))
    found = [case for cases in contest.cases(stored).values() for case in cases]
    slow = 0
    for case in found:
        for family in rivals.FAMILIES:
            members = [row for row in case.timed() if rivals.family(row.name) == family]
            best = min((row.time.value for row in members), default=0.0)
            late = {row.name for row in members if row.time.value > 1.5 * best}
            assert set(case.slow(family)) == late
            quoted = [case.against(row, family) for row in case.timed() if row not in members]
            assert all(one.other.name not in late for one in quoted if one is not None)
            slow += len(late)
    report.write(stored, tmp_path)
    marked = "".join(path.read_text() for path in (tmp_path / "report").rglob("*.md"))
    assert marked.count("‡") == slow + marked.count("‡ on a slow path")


def test_a_coarser_class_and_a_frozen_weight_win_nothing(tmp_path: Path) -> None:
    records = []
    for name, role, time, error in (("dft_gemm", "kernel", 3.0, 2e-7), ("dft_triton_tf32", "kernel", 1.0, 4e-4),
                                    ("dft_gemm_frozen", "kernel", 1.0, 2e-7),
                                    ("direct_uncompressed", "rival", 6.0, 2e-7)):  # fmt: skip
        metrics = {"device_time": time, "rounding_error": error}
        records += [
            synthetic.record(metrics, operation="band_limited_conv2d", implementation=name, role=role, case=CONV,
                             replicate=replicate)
            for replicate in range(3)
        ]  # fmt: skip
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    assert "**dft_gemm<br>2.0x° · -**" in report.write(tmp_path, tmp_path).read_text()


def test_memory_behind_a_relu_counts_its_map(tmp_path: Path) -> None:
    """0.57 times what the convolution saves is 1.5 times with the map that the ReLU keeps anyway."""
    size = 8 * 64 * 32 * 32 * 4
    records = [
        synthetic.record({"device_time": 1.0, "saved_bytes": saved}, operation="band_limited_conv2d",
                         implementation=name, role=role, case=CONV)
        for name, role, saved in (("dft_gemm", "kernel", 0.5 * size), ("direct_uncompressed", "rival", 1.0 * size))
    ]  # fmt: skip
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    text = report.write(tmp_path, tmp_path).read_text()
    assert "| 0.50x | 1.5x |" in text


def test_losses_are_those_of_what_auto_runs(tmp_path: Path) -> None:
    times = {"dense": [1.0] * 3, "index": [2.0] * 3, "bitmap": [3.0] * 3}
    case = {"batch": 8, "channels": 16, "height": 32, "width": 32, "beta": 1.0, "relative": False, "input": "pink"}
    records = [
        synthetic.record({"device_time": value}, operation="threshold_spectrum", implementation=name, role="baseline",
                         case=case, replicate=replicate)
        for name, values in times.items()
        for replicate, value in enumerate(values)
    ]  # fmt: skip
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    assert "run `spectralbench choices`" in report.write(tmp_path, tmp_path).read_text()
    assert "run <code>spectralbench choices</code>" in (tmp_path / "index.html").read_text()
    question = ("threshold_spectrum", records[0].case_id, "float32", "forward")
    chosen.write(tmp_path, "cpu-test-2c", {question: ("bitmap", "smallest", "memory")})
    text = report.write(tmp_path, tmp_path).read_text()
    assert "in 1 of 1 cases, shown in 1 of them" in text
    assert 'In 1 of them it looks for memory unless it is asked for `optimise="time"`.' in text
    assert (
        "| threshold spectrum 8x16 32x32 beta=1 pink | bitmap, for memory | dense | 3 s | 1 s | 3.00x slower | 1 |"
        in text
    )


def test_a_damaged_file_of_choices_is_named(tmp_path: Path) -> None:
    convolution(tmp_path, {"dft_gemm": ("kernel", [1.0])})
    (tmp_path / "choices").mkdir()
    for broken in ("[{]", "{}", '[{"operation": 1}]', "\x00"):
        (tmp_path / "choices" / "cpu-test-2c.json").write_text(broken)
        with pytest.raises(ValueError, match=r"cpu-test-2c.json is damaged .*spectralbench choices"):
            report.write(tmp_path, tmp_path)


def test_the_families_are_those_that_are_declared() -> None:
    """Readers know no torch, so that names are repeated in `rivals`: here they are held to the declarations."""
    operations = load_operations()
    convolutions = [operations[name] for name in ("band_limited_conv1d", "band_limited_conv2d")]
    subjects = {subject.name: subject for operation in convolutions for subject in operation.subjects}
    every = {subject.name: subject for operation in operations.values() for subject in operation.subjects}
    plain = {name for name, one in subjects.items() if one.engine == "library" and not one.name.endswith(("16", "32"))}
    coarse = {name for name in set(subjects) - plain if subjects[name].engine == "library"}
    assert set(rivals.CONV) == plain
    assert all(subjects[name].tolerance.relative["float32"] > 1e-3 for name in coarse)
    assert {name for name, one in every.items() if one.frozen} == set(rivals.FROZEN)
    assert all(name in every for members in rivals.FAMILIES.values() for name in members)
    assert all(rivals.family(one.name) for operation in convolutions for one in operation.rivals
               if one.name not in coarse and one.engine != "triton")  # fmt: skip


class Outside(html.parser.HTMLParser):
    """What a page fetches, and its tags that were not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tables = self.sortable = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tables += tag == "table"
        self.sortable += tag == "th" and "data-sort" in dict(attrs)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.slow
def test_a_whole_study_on_one_screen_and_in_one_file(tmp_path: Path) -> None:
    synthetic.study(tmp_path, random.Random(3), processes=3)
    picture = tmp_path / "figures" / "cpu-test-2c" / "pareto.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(pictures.SIGNATURE)
    path = report.write(tmp_path, tmp_path / "REPORT.md")
    text = path.read_text()
    for part in ("Test CPU", "2.13.0", "### What won where?", "### From where on does it pay?", "### Where do we lose?",
                 "### What does it cost in error and memory?", "### What changed since the commit before?",
                 "only legal at compression = 0", "failed: wrong", "](figures/cpu-test-2c/pareto.png)"):  # fmt: skip
        assert part in text
    whole = tmp_path / "report" / "cpu-test-2c" / "band_limited_conv2d.md"
    assert "report/cpu-test-2c/band_limited_conv2d.md" in text and whole.is_file()
    tables = [block.splitlines() for block in whole.read_text().split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    page = (tmp_path / "index.html").read_text()
    seen = Outside()
    seen.feed(page)
    assert seen.tables > 8 and seen.sortable > 40
    assert seen.fetched and all(source.startswith("data:image/png;base64,") for source in seen.fetched)
    assert "http" not in page and "prefers-color-scheme: dark" in page
    assert ">K&nbsp;=&nbsp;3<br>" in page, "what is short stays on its line"


def test_what_is_stored_is_shown_as_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|\x1b[31m"
    text = convolution(tmp_path, {evil: ("kernel", [1.0]), "direct_uncompressed": ("rival", [2.0])}, input=evil)
    page = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in page and "<script>alert" not in text and "\x1b" not in page + text


def test_changes_are_means_of_what_both_commits_measured(tmp_path: Path) -> None:
    for index, factor in enumerate((1.0, 0.5)):
        records = [
            synthetic.record({"device_time": base * (factor if role == "kernel" else 1.0)}, day=index, role=role,
                             operation="band_limited_conv2d", implementation=name, case={**CONV, "kernel_size": size})
            for size, base in ((3, 1.0), (7, 2.0))
            for name, role in (("dft_gemm", "kernel"), ("direct_uncompressed", "rival"))
        ]  # fmt: skip
        synthetic.write(tmp_path, f"{index}", synthetic.environment(commit=index), records)
    text = report.write(tmp_path, tmp_path).read_text()
    old, new = (synthetic.commit_hash(index)[:8] for index in (0, 1))
    assert f"| conv2d | 2.0x | 1.0x | 4 | 0 | 0 | 0 | 4 | {old} to {new} |" in text


@pytest.mark.parametrize(("changes", "verdict"), [((), "cannot tell"), (("kernels",), "slower")], ids=["host", "code"])
def test_changes_are_judged_as_the_alert_judges_them(tmp_path: Path, changes: tuple[str, ...], verdict: str) -> None:
    """A time that grew between two commits of the same code is the host's, and a rule of the project counts."""
    project = Project(tmp_path / "project", changes)

    def counted() -> dict[str, str]:
        lines = report.write(project.root / "results", tmp_path).read_text().splitlines()
        at = next(index for index, line in enumerate(lines) if line.startswith("| operation | kernels faster"))
        return {
            name.strip(): cell.strip()
            for name, cell in zip(lines[at].split("|"), lines[at + 2].split("|"), strict=True)
        }

    counts = counted()
    assert counts.pop(verdict) == "1" and {counts[name] for name in ("faster", "same")} == {"0"}
    (project.root / "pyproject.toml").write_text('[tool.spectralbench.alert]\nrules = ["device_time=70%"]\n')
    assert counted()["slower"] == "0"


def test_the_machine_that_measured_last_comes_first(tmp_path: Path) -> None:
    for day, machine in enumerate(("cpu-a", "cpu-b", "cpu-c")):
        record = synthetic.record({"device_time": 1.0}, case={"n": 1})
        facts = synthetic.environment(machine, started_at=None if day == 2 else f"2026-01-0{day + 1}")
        synthetic.write(tmp_path, "a", facts, [record])
    text = report.write(tmp_path, tmp_path).read_text()
    assert text.index("## cpu-b") < text.index("## cpu-a")


def test_dirty_trees_and_damage_are_shown(tmp_path: Path) -> None:
    facts = synthetic.environment(dirty="abcd1234")
    path = synthetic.write(tmp_path, "a", facts, [synthetic.record({"device_time": 1.0})])
    with path.open("a") as file:
        file.write("garbage\n")
    text = report.write(tmp_path, tmp_path).read_text()
    assert "-dirty" in text and "uncommitted changes" in text
    assert "1 damaged places" in text and "| a.jsonl | 3 |" in text


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
    assert [in_percent(share) for share in (0.0085, 0.29, 0.996, 1.12)] == ["0.85 %", "29 %", "100 %", "112 %"]
    assert ratio_words(1.22, "second") == "1.22x slower" and ratio_words(0.5, "second") == "2.00x faster"
    assert ratio_words(2, "byte") == "2.00x more" and ratio_words(1.001, "second") == "the same"
    assert ratio_words(None, "byte") == "up from zero" and ratio_words(0.0, "byte") == "down to zero, less"
    assert ratio_words(0.25, "1") == "4.00x smaller" and ratio_words(1234, "second") == "1234x slower"
    assert spread(2e-3, 1e-3, 3e-3, "second") == "2 [1, 3] ms" and scale((), "byte") == (1.0, "B")


@pytest.mark.parametrize("kind", simulate.KINDS)
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_identical_implementations_are_called_different_in_five_percent_at_most(
    processes: int, kind: str, seed: int
) -> None:
    """500 pairs with 2 % noise; a true rate of 5 % gives more than 10 % once in 100,000 times."""
    assert simulate.identical(kind, processes, 500, (seed,)) <= (50 if processes >= 3 else 0)


def test_what_failed_stands_before_skips_of_one_reason_in_one_row(tmp_path: Path) -> None:
    """Reasons that differ in their numbers alone are one row, which quotes the first."""
    skips = [
        synthetic.record(None, implementation=name, status="skipped", failure=None, reason="needs a CUDA device")
        for name in ("one", "two", "three", "four")
    ]
    wrong = [
        synthetic.record(None, implementation="five", status="failed", failure="wrong", case={"height": side},
                         reason=f"the answer has error 1.{side} against the reference")
        for side in (3, 7)
    ]  # fmt: skip
    synthetic.write(tmp_path, "a", synthetic.environment(), [*skips, *wrong])
    text = report.write(tmp_path, tmp_path / "out").read_text()
    rows = [line for line in text[text.index("skipped and failed: 6 cases") :].splitlines() if line.startswith("| ")]
    assert rows[1:3] == [
        "| 2 | failed: wrong | masked multiply | five | the answer has error 1.3 against the reference |",
        "| 4 | skipped | masked multiply | one, two and 2 more | needs a CUDA device |",
    ]


def test_our_fastest_is_rated_by_what_the_machine_reaches(tmp_path: Path) -> None:
    """1e9 flops and 1e8 bytes in 20 ms of 100 GFLOP/s and 10 GB/s: half of the product, and half of the copy."""
    cost = {"bytes_read": 60_000_000, "bytes_written": 40_000_000, "flops": 1_000_000_000}
    synthetic.write(tmp_path, "a", synthetic.environment(), [synthetic.record({"device_time": 0.02}, cost=cost)])
    page = "report/cpu-test-2c/masked_multiply.md"
    report.write(tmp_path, tmp_path)
    assert "product" not in (tmp_path / page).read_text(), "nothing is rated by what was not measured"
    written = peaks.write(tmp_path, "cpu-test-2c", peaks.Peak(1e10, 1e11, 2, "2026"))
    report.write(tmp_path, tmp_path)
    text = (tmp_path / page).read_text()
    assert "5 GB/s<br>50 GFLOP/s<br>product 50 %<br>floor 50 %" in text
    assert "Of 100 GFLOP/s in a large float32 product and 10 GB/s in a large copy here, 2 threads" in text
    for damage in ("[]", "{}", '{"bytes_per_second": 0}', written.read_text().replace("1000", "-1000")):
        written.write_text(damage)
        with pytest.raises(ValueError, match=r"cpu-test-2c.json is damaged .*spectralbench machine --ceilings"):
            report.write(tmp_path, tmp_path)
