"""The summary of `spectralbench.gpu` on records that were made up: a promise met, one missed, classes kept apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import environment, record

from spectralbench.ceilings import Roofs
from spectralbench.gpu.compare import Match, matches, time
from spectralbench.gpu.forecast import markdown
from spectralbench.gpu.judge import Judgement, judge
from spectralbench.gpu.summary import SHOWN, SoFar, write
from spectralbench.gpu.targets import PUBLISHED, TARGETS, Place, SpeedUp
from spectralbench.history import quotient
from spectralbench.record import Record
from spectralkernels.ops import load_operations

OPERATIONS = load_operations()
ROOFS = Roofs(
    bytes_per_second={"memory": 4e12, "l2": 8e12},
    flops_per_second={"bf16": 8e14, "fp16": 8e14, "tf32": 4e14, "fp32": 6e13},
    launch_seconds={"eager": 2e-6, "graph": 1e-6},
    l2_bytes=50 << 20,
    missing={},
)
COST = {"bytes_read": 40_000_000, "bytes_written": 40_000_000, "flops": 10**9}


def made(
    place: Place, times: Mapping[str, float], launch: str = "graph", cache: str = "cold", **more: Any
) -> list[Record]:
    """Records of a promise's case: implementation -> seconds."""
    subjects = OPERATIONS[place.operation]
    return [
        record(
            {"device_time": [seconds, seconds, seconds * 1.1], "rounding_error": 1e-7},
            operation=place.operation,
            implementation=name,
            role=subjects.subject(name).role,
            case=place.params,
            dtype=place.dtype,
            pass_=place.pass_,
            launch=launch,
            cache=cache,
            cost=COST,
            **more,
        )
        for name, seconds in times.items()
    ]


def verdicts(records: list[Record], roofs: Roofs | None = ROOFS, **excluded: str) -> dict[str, Judgement]:
    found = matches(records, OPERATIONS)
    return {verdict.target.name: verdict for verdict in judge(found, records, roofs, excluded)}  # type: ignore[arg-type]


def lost(found: list[Match]) -> list[tuple[str, str]]:
    return [(loss[1].name, loss[2].name) for one in found if (loss := one.loss()) is not None]


def target(words: str) -> Any:
    return next(found for found in TARGETS if words in found.name)


def test_a_promise_is_met_or_missed_by_the_ratio_to_the_fastest_rival_it_names() -> None:
    met, missed = target("over torch crop"), target("over the 2019 kernel")
    found = verdicts(made(met.place, {"triton": 1e-5, "complex_bmm": 2.6e-5, "triton_2019": 9e-5, "einsum": 1e-6}))
    assert found[met.name].word == "met"
    assert found[met.name].lines[0].value == pytest.approx(2.6)
    assert found[met.name].lines[0].rival == "complex_bmm", "einsum is faster, but the promise is not about it"
    assert found[missed.name].word == "not met"
    assert found[missed.name].lines[0].value == pytest.approx(9.0)


def test_one_missed_cache_state_misses_the_promise_and_eager_launches_do_not_count() -> None:
    promise = target("over torch crop")
    records = made(promise.place, {"triton": 1e-5, "complex_bmm": 3e-5})
    records += made(promise.place, {"triton": 1e-5, "complex_bmm": 2e-5}, cache="warm")
    assert verdicts(records)[promise.name].word == "not met"
    eager = made(promise.place, {"triton": 1e-5, "complex_bmm": 9e-5}, launch="eager")
    assert verdicts(eager)[promise.name].word == "not measured"


def test_a_coarser_kernel_is_never_compared_with_a_finer_rival() -> None:
    promise = target("forward + backward, over torch.fft")
    promise = next(t for t in TARGETS if "whole band-limited conv, forward" in t.name)
    found = verdicts(made(promise.place, {"dft_triton_bf16": 1e-6, "dft_triton_tf32": 2e-6, "torch_fft": 1e-3}))
    assert found[promise.name].word == "not measured"
    assert "none of our kernels of class fp32 or finer" in str(found[promise.name].why)
    found = verdicts(made(promise.place, {"dft_triton_bf16": 1e-6, "dft_gemm": 1e-4, "torch_fft": 1e-3}))
    assert found[promise.name].lines[0].ours == "dft_gemm"
    assert found[promise.name].word == "met"


def test_a_finer_kernel_may_be_compared_with_a_coarser_rival_and_a_finer_rival_is_not_asked() -> None:
    promise = target("dense 7x7 56x56 over cuDNN TF32")
    times = {"dft_triton": 1e-5, "dft_triton_bf16": 1e-7, "direct_uncompressed_tf32": 2.5e-5}
    found = verdicts(made(promise.place, times))[promise.name]
    assert (found.lines[0].ours, found.word) == ("dft_triton", "met")
    only_float32 = {"dft_triton": 1e-5, "direct_uncompressed": 9e-5}
    assert verdicts(made(promise.place, only_float32))[promise.name].word == "not measured"


def test_the_fastest_of_several_rivals_counts_and_frozen_weights_do_not() -> None:
    promise = target("dense 3x3 ResNet-18 layer 3")
    times = {
        "dft_triton_tf32": 1e-5,
        "direct_uncompressed_tf32": 9e-5,
        "direct_uncompressed_channels_last_tf32": 1.2e-5,
    }
    times |= {"dft_gemm_frozen": 1e-7, "dft_triton_frozen_tf32": 1e-7}
    found = verdicts(made(promise.place, times))[promise.name]
    assert found.lines[0].rival == "direct_uncompressed_channels_last_tf32"
    assert (found.lines[0].ours, found.word) == ("dft_triton_tf32", "not met")


def test_processes_are_reduced_by_their_median_and_a_note_marks_what_was_not_interleaved() -> None:
    promise = target("over torch crop")
    records = [
        found
        for process, seconds in enumerate((1e-5, 1.1e-5, 9e-5))
        for found in made(promise.place, {"triton": seconds}, replicate=process)
    ]
    records += made(promise.place, {"complex_bmm": 3.3e-5}, reason="not interleaved with triton, stored earlier")
    line = verdicts(records)[promise.name].lines[0]
    assert line.value == pytest.approx(3.3), "the ratio within the one process that timed both"
    assert line.state == "graph, cold cache, not interleaved"


def test_two_cards_are_two_processes_and_a_ratio_is_taken_within_each() -> None:
    promise = target("over torch crop")
    slow = made(promise.place, {"triton": 2e-5, "complex_bmm": 6e-5}, card="GPU-slow")
    quick = made(promise.place, {"triton": 1e-5, "complex_bmm": 3e-5}, card="GPU-quick")
    quick_alone = made(promise.place, {"triton": 0.5e-5}, card="GPU-other")
    rows = matches([*slow, *quick, *quick_alone], OPERATIONS)[0].case.rows
    ours, rival = time(rows["triton"]), time(rows["complex_bmm"])
    assert len(ours.processes) == 3
    assert quotient(rival, ours) == pytest.approx(3.0)
    assert verdicts([*slow, *quick, *quick_alone])[promise.name].lines[0].value == pytest.approx(3.0)


def test_saved_activations_leave_the_weight_out_and_look_at_one_class() -> None:
    fine, coarse = target("saved activations, float32"), target("saved activations, bf16")
    case = dict(fine.place.params)
    x = 4 * case["batch"] * case["in_channels"] * case["height"] * case["width"]
    weight = 4 * case["out_channels"] * case["in_channels"] * case["kernel_size"] ** 2

    def saved(name: str, share: float, role: str = "kernel") -> Record:
        return record({"saved_bytes": share * x + weight}, operation="band_limited_conv2d", implementation=name,
                      role=role, case=case, pass_="both", replicate=5)  # fmt: skip

    others = [saved("torch_fft", 0.1, "baseline"), saved("dft_gemm_frozen", 0.1)]
    found = verdicts([saved("dft_gemm", 0.539), saved("dft_triton_bf16", 0.2695), *others])
    assert found[fine.name].word == "met"
    assert found[fine.name].lines[0].value == pytest.approx(0.539)
    assert found[coarse.name].lines[0].ours == "dft_triton_bf16"
    assert found[coarse.name].word == "met"
    assert verdicts([saved("dft_gemm", 0.55)])[fine.name].word == "not met"


def test_bandwidth_counts_what_was_stored() -> None:
    promise = target("share of copy bandwidth")
    times = made(promise.place, {"triton": 2e-5})
    size = [replace(times[0], measurements=(*times[0].measurements, *record({"stored_bytes": 24e6}).measurements))]
    found = verdicts(size)[promise.name]
    assert found.lines[0].value == pytest.approx((40e6 + 24e6) / 2e-5 / 4e12)
    assert found.word == "met"
    assert verdicts(times)[promise.name].why == "the stored bytes of triton were not measured"
    assert verdicts(size, None)[promise.name].why == "the copy bandwidth was not measured"


def test_what_is_missing_says_why() -> None:
    promise = target("over the 2019 kernel")
    refused = record(None, operation="masked_multiply", implementation="triton_2019", role="baseline",
                     case=promise.place.params, dtype="complex64", launch="graph", status="skipped",
                     reason="cannot be captured in a CUDA graph: no")  # fmt: skip
    found = verdicts([*made(promise.place, {"triton": 1e-5}), refused])[promise.name]
    assert found.word == "not measured"
    assert found.why == "triton_2019: skipped: cannot be captured in a CUDA graph: no"


def test_rows_that_we_lose_are_shown_worst_first_and_only_at_equal_accuracy() -> None:
    one, two = target("over torch crop").place, target("dense 7x7 56x56 over cuDNN TF32").place
    records = made(one, {"triton": 3e-5, "complex_bmm": 1e-5, "real_bmm_bf16": 1e-9})
    records += made(two, {"dft_triton_tf32": 2e-5, "direct_uncompressed_tf32": 1.5e-5, "torch_fft": 1e-7})
    assert lost(matches(records, OPERATIONS)) == [
        ("triton", "real_bmm_bf16"),
        ("dft_triton_tf32", "direct_uncompressed_tf32"),
    ], "a bf16 rival beats an fp32 kernel, and torch_fft has no kernel of its class beside it"
    assert lost(matches(made(one, {"triton": 1e-5, "complex_bmm": 2e-5}), OPERATIONS)) == []


def test_the_files_are_whole_and_say_everything(tmp_path: Path) -> None:
    place = target("over torch crop").place
    records = made(place, {"triton": 1e-5, "complex_bmm": 3e-5, "triton_2019": 5e-5})
    facts = environment("nvidia-h200", gpu="NVIDIA H200", commit_given=True, dirty="ab12cd34")
    excluded = {("band_limited_conv2d", "dft_triton_bf16", "both"): "failed its check: 0.3 | over"}
    stored = SoFar(facts, records, ROOFS, excluded, "7 of 9 checks made", ["pynvml is not installed: no clocks"])
    brief = write(stored, OPERATIONS, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert len(brief) < len(text) and brief.endswith(f"everything: {tmp_path / 'summary.md'}\n")
    assert text.split("## Targets")[1].split("##")[0].strip() in brief
    assert text.startswith("# NVIDIA H200: 1 met, 1 not met, 14 not measured\n")
    for words in (
        "dirty (as given by --commit)",
        "correctness: 7 of 9 checks made",
        "| 3.00x ",
        ">= 10.00x",
        "## Rows we lose\n\nnone among",
        "4000 GB/s",
        "- pynvml is not installed",
        "dft_triton_bf16 both: failed its check: 0.3",
        "fp32",
    ):
        assert words in text, words
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["verdict"] for entry in found["targets"][:2]] == ["met", "not met"]
    subjects = found["settings"][0]["subjects"]
    # A cold forward pass moves 80 MB at 4 TB/s: 20 us of floor.
    assert [round(entry["floor_share"], 3) for entry in subjects] == [2.0, 0.667, 0.4]
    assert not list(tmp_path.glob(".*")), "no draft is left"


def test_nothing_measured_is_a_summary_too(tmp_path: Path) -> None:
    write(SoFar(environment(), [], None, {}, "not begun", []), OPERATIONS, tmp_path)
    assert (tmp_path / "summary.md").read_text().startswith("# Test CPU: 0 met, 0 not met, 16 not measured")


def test_a_forecast_stands_beside_what_was_measured() -> None:
    promise = target("over torch crop")
    blank = markdown(list(verdicts([]).values()), judge([], [], None, {}, PUBLISHED))
    row = next(line for line in blank.splitlines() if promise.name in line)
    assert "50 us to 58 us" in row and [cell.strip() for cell in row.split("|")[4:8]] == ["2.5x", "", "", ""]
    assert len(PUBLISHED) == 9 and all(one.name in blank for one in PUBLISHED)
    filled = markdown(list(verdicts(made(promise.place, {"triton": 4.9e-5, "complex_bmm": 14.7e-5})).values()), [])
    row = next(line for line in filled.splitlines() if promise.name in line)
    assert "49 us" in row and "3.00x" in row and "graph, cold cache" in row


def test_the_committed_forecast_is_what_the_code_says() -> None:
    committed = Path(__file__).parents[2] / "results" / "GPU.md"
    text = committed.read_text()
    blank = markdown(list(verdicts([]).values()), judge([], [], None, {}, PUBLISHED))
    forecasts = [one.name for one in TARGETS if isinstance(one, SpeedUp) and one.forecast]
    assert len(forecasts) == 11
    for name in (*forecasts, *(one.name for one in PUBLISHED)):
        columns = slice(2, 5) if name in forecasts else slice(2, 3)
        wanted = [[cell.strip() for cell in line.split("|")[columns]] for line in blank.splitlines() if name in line]
        stored = [[cell.strip() for cell in line.split("|")[columns]] for line in text.splitlines() if name in line]
        assert stored[:1] == wanted, name


def test_a_time_that_is_mostly_launch_is_marked_where_it_is_judged() -> None:
    promise = target("over torch crop")
    marked = {"launch_bound": "1e-06 s is within 2 times an empty launch"}
    records = made(promise.place, {"triton": 1e-6}, unavailable=marked) + made(promise.place, {"complex_bmm": 3e-6})
    assert verdicts(records)[promise.name].lines[0].state == "graph, cold cache, launch-bound"


def test_a_terminal_is_shown_the_worst_losses_and_how_many_more_there_are(tmp_path: Path) -> None:
    place = target("over torch crop").place
    records = []
    for batch in range(1, 21):
        elsewhere = replace(place, params={**place.params, "batch": batch})
        records += made(elsewhere, {"triton": 1e-5, "complex_bmm": 1e-5 / (batch + 1)})
    brief = write(SoFar(environment(), records, None, {}, "", ["why " * 100] * 15), OPERATIONS, tmp_path)
    assert brief.count("\n- ") == SHOWN and "- and 4 more" in brief
    assert "and 8 more" in brief and brief.count("theirs / ours") == 1
    assert "batch=20," in brief and "batch=3," not in brief
    assert "batch=3," in (tmp_path / "summary.md").read_text()
