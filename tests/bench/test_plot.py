"""Figures from records alone: all are drawn, labelled and complete; what cannot be drawn says why."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_records as synthetic
from effort import some_of

pytest.importorskip("matplotlib", reason="figures are an optional extra")
pytest.importorskip("seaborn", reason="figures are an optional extra")
pd = pytest.importorskip("pandas", reason="figures are an optional extra")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from spectralbench import alert, history  # noqa: E402
from spectralbench.plot import FIGURES, draw_all, load_figures, steps, style  # noqa: E402
from spectralbench.plot.figures import kernel_size_sweep, pareto, speedup_map, visible_changes, watched_history  # noqa: E402
from spectralbench.plot.frame import measurements, one_commit, spread_over  # noqa: E402
from spectralbench.plot.style import DPI, NotDrawn, Page, look_of, looks, quartiles, styled  # noqa: E402
from spectralbench.report import pictures  # noqa: E402

FAMILIES = {name: found.draw for name, found in load_figures().items() if found.of in ("newest", "every commit")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> history.History:
    results = tmp_path_factory.mktemp("results")
    synthetic.study(results, random.Random(7), processes=3)
    return history.load(results)


@pytest.fixture(scope="module")
def frame(study: history.History) -> pd.DataFrame:
    return measurements(history.current(study))


@pytest.mark.slow
def test_every_figure_is_written(study: history.History, tmp_path: Path) -> None:
    gallery = draw_all(study, tmp_path)
    names = {path.stem for path in gallery}
    assert {*FIGURES} - {"watched_history", "visible_changes", "model_steps"} <= names
    for figure, reason in (
        ("watched_history", "no kernel was timed at three or more commits"),
        ("visible_changes", "no series of times has points enough for the alert to judge"),
        ("model_steps", "no network was measured at two rates: spectralbench model NETWORK"),
    ):
        assert ("cpu-test-2c", figure, reason) in gallery.skipped
    assert all(pictures.finding(path).endswith(".") for path in gallery)
    assert all(int.from_bytes(path.read_bytes()[16:20], "big") <= 1200 for path in gallery)
    assert all(path.parent == tmp_path / "cpu-test-2c" for path in gallery)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in gallery)
    assert all(reason for _, _, reason in gallery.skipped)


@pytest.mark.slow
@pytest.mark.parametrize("name", some_of(list(FAMILIES), 3))
def test_axes_are_labelled_and_nothing_is_clipped_or_overlaps(name: str, frame: pd.DataFrame) -> None:
    with styled():
        pages = [page for page in FAMILIES[name](frame, "cpu-test-2c") if isinstance(page, Page)]
        assert pages
        for page in pages[:2]:
            figure = page.figure
            FigureCanvasAgg(figure).draw()
            assert "cpu-test-2c" in figure.get_suptitle()
            whole = figure.bbox
            renderer = figure.canvas.get_renderer()
            (legend,) = figure.legends
            for ax in figure.axes:
                box = ax.get_tightbbox(renderer)
                assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
                assert not legend.get_window_extent().overlaps(box)
                outer = ax.get_subplotspec().is_last_row() if ax.get_subplotspec() else False
                assert not outer or ax.get_xlabel()
            assert not legend.get_window_extent().overlaps(figure._suptitle.get_window_extent())
            assert figure.get_figwidth() * DPI <= 1200 and page.finding


def test_lines_carry_the_medians_over_processes(frame: pd.DataFrame) -> None:
    rows = frame[(frame["operation"] == "sparse_multiply") & (frame["implementation"] == "bitmap")]
    found = quartiles(rows[rows["input"] == "photo"], "beta", "device_time")
    by_hand = rows[rows["input"] == "photo"].groupby("beta")["device_time"].median()
    assert found["middle"].tolist() == by_hand.tolist()
    assert (found["low"] <= found["middle"]).all() and (found["middle"] <= found["high"]).all()


def test_speedup_is_direct_over_ours(tmp_path: Path) -> None:
    records = []
    for kernel in (3, 7, 15):
        for compression in (0.0, 0.5):
            case = {"kernel_size": kernel, "compression": compression, "grid": "tight"}
            shared = {"operation": "band_limited_conv2d", "case": case}
            records.append(synthetic.record({"device_time": 1e-3}, implementation="dft_gemm", **shared))
            name, role = ("direct_uncompressed", "rival") if compression else ("direct", "baseline")
            times = {"device_time": kernel * 1e-3}
            records.append(synthetic.record(times, implementation=name, role=role, **shared))
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    with styled():
        found = list(kernel_size_sweep.draw(measurements(history.load(tmp_path)), "m"))
    (page,) = [one for one in found if isinstance(one, Page)]
    speedups = [line.get_ydata() for line in page.figure.axes[3].lines if len(line.get_ydata()) == 3]
    assert any(list(line) == pytest.approx([3, 7, 15]) for line in speedups)


def test_styles_differ_in_more_than_colour(frame: pd.DataFrame) -> None:
    found = looks(frame[frame["operation"] == "band_limited_conv2d"])
    assert len({look.marker for look in found.values()}) == len(found)
    assert len({look.color for look in found.values()}) == len(found)
    roles = dict(zip(frame["implementation"], frame["role"], strict=True))
    assert all(look.filled == (roles[name] == "kernel") for name, look in found.items())


def test_a_look_is_the_same_everywhere(frame: pd.DataFrame) -> None:
    """Whoever else is in the figure, and whatever the machine measured."""
    whole = looks(frame)
    for operation in frame["operation"].unique():
        for name, look in looks(frame[frame["operation"] == operation]).items():
            assert whole[name] == look
    assert look_of("somebody new", "kernel") == look_of("somebody new", "kernel")


def test_a_line_is_of_one_commit() -> None:
    """The whole sweep of an old commit, not its places mixed with three of a newer, slower day."""
    rows = pd.DataFrame(
        [("a", size, "1", "old") for size in (1, 3, 7, 15)] + [("a", size, "2", "new") for size in (3, 7, 15)]
        + [("b", size, process, mark) for size in (3, 7, 15) for process, mark in (("1", "old"), ("2", "new"))],
        columns=["implementation", "kernel_size", "process", "mark"],
    )  # fmt: skip
    kept = one_commit(rows, ("implementation",), "kernel_size")
    assert set(zip(kept["implementation"], kept["mark"], strict=True)) == {("a", "old"), ("b", "new")}


def test_a_map_of_speedups_tells_the_ratio_and_its_doubt(study: history.History) -> None:
    with styled():
        pages = [page for page in speedup_map.draw(history.current(study), "cpu-test-2c") if isinstance(page, Page)]
        for page in pages:
            FigureCanvasAgg(page.figure).draw()
    ax = pages[0].figure.axes[0]
    (image,) = ax.images
    assert image.get_array().shape == (len(ax.get_yticks()), len(ax.get_xticks()))
    shown = [text.get_text() for text in ax.texts if "x" in text.get_text()]
    heights = image.get_array().compressed() if hasattr(image.get_array(), "compressed") else image.get_array().ravel()
    assert len(shown) == len(heights)
    first = float(shown[0].split("x")[0])
    assert 2.0 ** heights[0] == pytest.approx(first, rel=0.06)


def test_the_band_of_the_alert_is_drawn(tmp_path: Path) -> None:
    synthetic.history(tmp_path, 12, random.Random(5), slower=1.5)
    found = history.load(tmp_path)
    (page,) = watched_history.draw((found, alert.judge(found)), "cpu-test-2c")
    ax = page.figure.axes[0]
    assert len(ax.get_xticks()) == 12 and "12 commits" in page.finding
    band = next(patch for patch in ax.patches if patch.get_facecolor()[3] < 1)
    low, high = sorted(band.get_extents().transformed(ax.transData.inverted()).get_points()[:, 1])
    newest, before = ax.lines[0].get_ydata()[-1], ax.lines[0].get_ydata()[:-1]
    assert newest > high and all(low < value < high for value in before)


def test_the_alert_is_asked_once_and_only_by_figures_that_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.history(tmp_path, 6, random.Random(5))
    found, asked, judge = history.load(tmp_path), [], alert.judge
    monkeypatch.setattr(alert, "judge", lambda own: asked.append(own) or judge(own))
    assert len(draw_all(found, tmp_path / "out", only=("visible_changes", "watched_history"))) == 2
    assert len(asked) == 1
    draw_all(found, tmp_path / "out", only=("speedup_map",))
    assert len(asked) == 1


def test_a_png_shows_what_matplotlib_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel for pixel, at the same size, where the palette holds every colour."""
    monkeypatch.setattr(style, "COLOURS", 4)
    figure = Figure(figsize=(2.0, 1.5), layout="constrained")
    ax = figure.subplots()
    ax.imshow([[0, 1], [1, 0]], cmap="gray", interpolation="nearest")
    ax.set_axis_off()
    with styled():
        figure.savefig(tmp_path / "whole.png")
        style.save(figure, tmp_path / "few.png")
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "few.png") as few:
        assert whole.convert("RGB").getcolors(4) is not None
        assert few.size == (round(2.0 * DPI), round(1.5 * DPI))
        assert few.convert("RGB").tobytes() == whole.convert("RGB").tobytes()


def test_undominated_points() -> None:
    points = pd.DataFrame({"time": [1.0, 2.0, 3.0, 2.0], "bytes": [3.0, 2.0, 3.0, 2.0], "error": [0.0, 0.0, 0.0, 0.1]})
    assert pareto.undominated(points, ["time", "bytes", "error"]).tolist() == [True, True, False, False]
    assert pareto.undominated(points, ["time", "bytes"]).tolist() == [True, True, False, True]


@pytest.mark.slow
def test_files_of_an_earlier_drawing_are_removed(study: history.History, tmp_path: Path) -> None:
    folder = tmp_path / "cpu-test-2c"
    folder.mkdir()
    mine = [folder / "pareto-gone.png", folder / "pareto.png"]
    others = [folder / "pareto.txt", folder / "kernel_size_sweep-old.png", tmp_path / "pareto-gone.png"]
    for path in (*mine, *others):
        path.write_text("old")
    gallery = draw_all(study, tmp_path, only=("pareto",))
    assert set(gallery.removed) == set(mine) - set(gallery.paths)
    assert mine[0] in gallery.removed
    assert all(path.read_text() == "old" for path in others)
    assert set(folder.glob("pareto*.png")) == set(gallery.paths)


def test_figures_without_data_say_so(tmp_path: Path) -> None:
    synthetic.write(tmp_path, "a", synthetic.environment(), [synthetic.record({"device_time": 1.0})])
    gallery = draw_all(tmp_path, tmp_path / "figures")
    assert len(gallery) == 0
    assert {figure for _, figure, _ in gallery.skipped} == set(FIGURES)
    reasons = " ".join(reason for _, _, reason in gallery.skipped)
    assert "no times of a band-limited convolution" in reasons and "no sparse_multiply" in reasons
    assert list(draw_all(history.History(()), tmp_path)) == []


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    records = [
        synthetic.record(
            {"device_time": 1.0}, operation="band_limited_conv2d", case={"kernel_size": size, "compression": 0.5}
        )
        for size in (3, 5, 7)
    ]
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    with styled():
        found = list(kernel_size_sweep.draw(measurements(history.load(tmp_path)), "m"))
    assert any(isinstance(one, NotDrawn) and "no direct convolution" in one.reason for one in found)


def test_unknown_names_list_the_known_ones(study: history.History, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown figure 'pie'; known: error_vs_compression"):
        draw_all(study, tmp_path, only=("pie",))
    with pytest.raises(ValueError, match="known: cpu-test-2c"):
        draw_all(study, tmp_path, "nvidia-h200")


def test_spread_over_keeps_both_ends() -> None:
    assert spread_over([3, 1, 2], 5) == [1, 2, 3]
    assert spread_over(range(31), 3) == [0, 15, 30]


def test_masked_operations_alone_have_a_gallery(tmp_path: Path) -> None:
    """masked_multiply has a compression and masked_conv2d a kernel size: together they are no band-limited sweep."""
    records = [
        synthetic.record({"device_time": 1.0}, operation="masked_multiply", case={"compression": 0.5}),
        synthetic.record({"device_time": 1.0}, operation="masked_conv2d", case={"kernel_size": 3, "mask": "radial"}),
    ]
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    gallery = draw_all(tmp_path, tmp_path / "figures")
    assert {figure for _, figure, _ in gallery.skipped} == set(FIGURES)


def test_a_machine_with_skips_alone_has_no_figure(tmp_path: Path) -> None:
    skipped = synthetic.record(None, status="skipped", reason="needs CUDA")
    synthetic.write(tmp_path, "a", synthetic.environment(), [skipped])
    assert len(draw_all(tmp_path, tmp_path / "figures")) == 0


def test_parameters_that_no_figure_can_show_are_named(tmp_path: Path) -> None:
    cases = [{"kernel_size": 0, "compression": 0.5}, {"kernel_size": 3, "compression": "half"}, {"input": True}]
    shared = {"operation": "band_limited_conv2d"}
    records = [synthetic.record({"device_time": 1.0}, case=case, **shared) for case in cases]
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    reasons = " ".join(reason for _, _, reason in draw_all(tmp_path, tmp_path / "figures").skipped)
    assert "1 series: kernel_size must be a positive integer, got 0" in reasons
    assert "compression must be a number, got 'half'" in reasons and "input must be text, got True" in reasons


@pytest.mark.slow
def test_neither_a_matplotlibrc_nor_a_formula_changes_a_figure(tmp_path: Path) -> None:
    import matplotlib

    def drawn(out: Path) -> list[bytes]:
        return [path.read_bytes() for path in draw_all(tmp_path, out, only=("nominal_vs_achieved",))]

    records = [
        synthetic.record({"achieved_compression": c}, case={"compression": c, "input": "$\\frac$"})
        for c in (0.1, 0.5, 0.9)
    ]
    synthetic.write(tmp_path, "a", synthetic.environment(torch="2.13 $\\frac$"), records)
    plain = drawn(tmp_path / "one")
    assert plain
    with matplotlib.rc_context({"savefig.transparent": True, "text.usetex": True, "font.size": 30.0}):
        assert drawn(tmp_path / "two") == plain
        assert matplotlib.rcParams["font.size"] == 30.0


def test_the_version_of_torch_is_told_by_what_it_can_move(tmp_path: Path) -> None:
    """A fraction is the same whatever torch is, and so its series does not know it."""
    for name, torch in (("a", "2.12.0"), ("b", "2.13.0")):
        both = synthetic.record({"achieved_compression": 0.5, "device_time": 1.0}, day=name == "b")
        synthetic.write(tmp_path, name, synthetic.environment(torch=torch, commit=int(name == "b")), [both])
    assert set(measurements(history.load(tmp_path), every=True)["torch"]) == {"2.12.0", "2.13.0"}


def test_what_the_alert_could_show_is_drawn_series_by_series(tmp_path: Path, seed: int) -> None:
    synthetic.history(tmp_path, 6, random.Random(seed))
    found = history.load(tmp_path)
    findings = alert.judge(found)
    (page,) = visible_changes.draw((found, findings), "cpu-test-2c")
    assert isinstance(page, Page)
    (image,) = page.figure.axes[0].images
    known = {one.key for one in found.series if one.key.metric == "device_time"}
    judged = {one.key.subject.implementation: one.resolution for one in findings if one.key in known}
    assert image.get_array().ravel().tolist() == pytest.approx([judged["triton"], judged["einsum"]])
    assert "2 series of times" in page.finding and f"{math.ceil(100 * min(judged.values()))} %" in page.finding
    wide = [replace(one, resolution=18.6) for one in findings]
    (page,) = visible_changes.draw((found, wide), "cpu-test-2c")
    assert {text.get_text() for text in page.figure.axes[0].texts} == {"1900"}, "no power of ten"


def test_stored_steps_of_a_network_are_drawn_against_compression_0_and_native(tmp_path: Path) -> None:
    def step(implementation: str, seconds: float, **changes: float) -> synthetic.Record:
        case = {
            "network": "lenet",
            "batch": 8,
            "input": "1x28x28",
            "mode": "train",
            "compression": 0.0,
            "beta": 1.0,
            "n": 1,
        }
        metrics = {
            "device_time": seconds,
            "saved_bytes": 1024 * seconds,
            "achieved_compression": changes.get("compression", 0.0),
        }
        return synthetic.record(metrics, operation="model_step", implementation=implementation, role="baseline",
                                case={**case, **changes}, pass_="both")  # fmt: skip

    records = [step("native", 4.0), step("band_limited", 8.0), step("band_limited", 2.0, compression=0.5),
               step("specnet", 12.0, beta=0.5), step("specnet", 6.0, beta=1.0)]  # fmt: skip
    records.append(replace(step("band_limited", 1.0, compression=0.5), pass_="forward"))  # of a training, and no step
    synthetic.write(tmp_path, "a", synthetic.environment(), records)
    gallery = draw_all(tmp_path, tmp_path / "out", only=("model_steps",))
    (path,) = gallery
    assert pictures.finding(path) == (
        "At c = 0.5 layers of the kind band_limited take 25 % of the time of a training step and 25 % of the bytes "
        "saved."
    )
    (page,) = steps.draw_stored(history.load(tmp_path), "cpu-test-2c")
    assert isinstance(page, Page)
    band, specnet = page.figure.axes
    lines = {
        line.get_label(): line.get_xydata().tolist() for line in band.lines if not line.get_label().startswith("_")
    }
    assert lines["training step"] == [[0.0, 1.0], [0.5, 0.25]]
    lines = {line.get_label(): line.get_xydata().tolist() for line in specnet.lines}
    assert lines["training step"] == [[0.5, 3.0], [1.0, 1.5]]
