"""`spectralbench compare`: verdicts on made-up processes, states out of git, and a slower kernel that is found."""

from __future__ import annotations

import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
from command_line import Cli, one_line
from planted_clone import ROOT
from synthetic_records import record

from spectralbench.compare import Compared, checkout, exit_code, judge
from spectralbench.record import Record, environment_line, record_line
from spectralbench.turns import CompareError, RaceRequest, Side, race

CASE = {"size": 4}


def process(times: dict[str, float] | dict[str, list[float]], error: float = 1e-7, **more: Any) -> list[Record]:
    values = {
        name: {"device_time": found if isinstance(found, list) else [found] * 3, "rounding_error": error}
        for name, found in times.items()
    }
    return [record(metrics, implementation=name, case=CASE, **more) for name, metrics in values.items()]


def verdict(a: list[list[Record]], b: list[list[Record]], *controls: str) -> Compared:
    return next(found for found in judge(a, b, controls) if found.series[1] == "ours")


def sides(
    seed: int, ratio: float, noise: float, pairs: int, host: float = 1.0
) -> tuple[list[list[Record]], list[list[Record]]]:
    """Processes of a kernel that takes `ratio` times as long in B; the host is `host` times slower during B."""
    draw = random.Random(seed)

    def side(times: float, slow: float) -> list[list[Record]]:
        return [
            process(
                {
                    "ours": times * slow * (shared := math.exp(draw.gauss(0, 0.2))) * math.exp(draw.gauss(0, noise)),
                    "theirs": 2 * slow * shared,
                }
            )
            for _ in range(pairs)
        ]

    return side(1.0, 1.0), side(ratio, host)


@pytest.mark.parametrize(("ratio", "word"), [(1.2, "SLOWER"), (0.8, "FASTER"), (1.0, "SAME")])
def test_a_change_is_seen_through_a_noisy_host_that_the_control_shares(ratio: float, word: str, seed: int) -> None:
    found = verdict(*sides(seed, ratio, 0.004, 6, host=1.3), "theirs")
    assert found.word == word and found.control == ("theirs",) and found.pairs == 6
    assert found.ratio == pytest.approx(ratio, rel=0.03)
    assert found.interval is not None and found.interval[0] < found.ratio < found.interval[1]


def test_without_a_control_a_slow_host_is_not_told_from_a_slow_kernel_and_more_pairs_are_asked_for(
    seed: int,
) -> None:
    found = verdict(*sides(seed, 1.1, 0.004, 4))
    assert found.control == () and found.word == "CANNOT TELL"
    assert found.needed is not None and found.needed > 4
    alone = verdict([process({"ours": 1.0})], [process({"ours": 2.0})])
    assert (alone.word, alone.interval, alone.needed) == ("CANNOT TELL", None, 2)


@pytest.mark.slow
def test_more_pairs_than_there_were_are_asked_for(seed: int) -> None:
    found = [verdict(*sides(seed + at, 1.3, 0.004, pairs)) for at in range(100) for pairs in (2, 3, 4, 6)]
    doubtful = [one for one in found if one.word == "CANNOT TELL"]
    assert doubtful and all(one.needed is not None and one.needed > one.pairs for one in doubtful)


def test_identical_kernels_are_rarely_called_different(seed: int) -> None:
    wrong = sum(verdict(*sides(seed + at, 1.0, 0.03, 4), "theirs").word in ("FASTER", "SLOWER") for at in range(200))
    assert wrong <= 8, f"{wrong} of 200; one in a hundred is what the interval allows, less what the margin takes"


def test_what_differs_by_more_than_the_margin_is_hardly_ever_called_the_same(seed: int) -> None:
    """The interval holds the truth in 99 of 100 comparisons; SAME is wrong where the truth lies beyond one end."""
    wrong = sum(verdict(*sides(seed + at, 1.031, 0.01, 6), "theirs").word == "SAME" for at in range(200))
    assert wrong <= 7, f"{wrong} of 200; one in two hundred is what the interval allows"


def test_a_control_that_some_process_lacks_is_not_used(seed: int) -> None:
    a, b = sides(seed, 1.2, 0.004, 4)
    b[2] = [found for found in b[2] if found.implementation != "theirs"]
    assert verdict(a, b, "theirs").control == ()


def test_faster_by_being_less_exact_is_called_that() -> None:
    a = [process({"ours": 1.0, "theirs": 1.0}, error=1e-7) for _ in range(4)]
    b = [process({"ours": 0.5, "theirs": 1.0}, error=1e-3) for _ in range(4)]
    found = verdict(a, b, "theirs")
    assert (found.word, found.errors) == ("LESS EXACT", (1e-7, 1e-3))


def test_a_wrong_answer_in_any_process_of_b_comes_first() -> None:
    a = [process({"ours": 1.0, "theirs": 1.0}) for _ in range(3)]
    b = [process({"ours": 0.1, "theirs": 2.0}) for _ in range(3)]
    failed = record({}, implementation="ours", case=CASE, status="failed", failure="wrong", reason="error 0.3")
    b[0] = [*[found for found in b[0] if found.implementation != "ours"], failed]
    found = judge(a, b, ("theirs",))
    assert (found[0].word, found[0].why) == ("WRONG", "wrong: error 0.3")
    assert exit_code(found) == 1 and exit_code([]) == 3


class Stand:
    """A stand-in for a process: measures cases of its tree at once, in seconds of a clock of its own."""

    seen: ClassVar[list[str]] = []
    clock: ClassVar[list[float]] = [0.0]
    offers: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, tree: Path, what: RaceRequest, stored: Path) -> None:
        self.name, self.done = tree.name, 0

    def cases(self) -> list[str]:
        self.clock[0] += 1.0
        return self.offers[self.name]

    def measure(self, label: str) -> None:
        self.seen.append(f"{self.name}{label}")
        self.clock[0] += 1.0
        self.done += 1

    def records(self) -> list[Record]:
        return process({"ours": 1.0}) * self.done

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *_: object) -> None:
        self.seen.append("/")


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    monkeypatch.setattr(Stand, "seen", [])
    monkeypatch.setattr(Stand, "clock", [0.0])
    monkeypatch.setattr(Stand, "offers", {"a": ["1", "2", "gone"], "b": ["new", "2", "1"]})
    return Stand


def run(stand: type[Stand], pairs: int, budget: float | None = None) -> tuple[dict[str, list[list[Record]]], list[str]]:
    said: list[str] = []
    trees = {"A": Path("a"), "B": Path("b")}
    now = lambda: stand.clock[0]  # noqa: E731
    start: Any = stand
    return race(trees, RaceRequest(time_budget=budget), pairs, Path("scratch"), said.append, start, now), said


def test_sides_take_turns_at_every_case_that_both_have(stand: type[Stand]) -> None:
    found, _ = run(stand, 2)
    once, again = "a1 b1 b2 a2", "b1 a1 a2 b2"
    assert " ".join(stand.seen) == f"{once} {again} / / {again} {once} / /"
    assert [[len(records) for records in found[side]] for side in "AB"] == [[4, 4], [4, 4]]


def test_what_the_time_is_too_short_for_is_left_out_of_every_pair_and_said(stand: type[Stand]) -> None:
    found, said = run(stand, 9, budget=9.0)  # a fifth is over after the first case of the first pair
    assert [len(records) for records in found["A"]] == [1] * 2 == [len(records) for records in found["B"]]
    assert said[0] == "1 of 2 cases fit into 9 s: narrow them, or give --time-budget"
    assert said[-1] == "the time is over after 2 of 9 pairs; --time-budget gives more"


def test_laps_that_the_time_is_too_short_for_are_left_out_too(stand: type[Stand]) -> None:
    found, said = run(stand, 3, budget=18.0)  # a fifth is over after the first lap
    assert [len(records) for records in found["A"]] == [2, 2, 2]
    assert said[-1] == "3/3: 2 cases, 1 times, in 6.0 s"


@pytest.mark.parametrize(("budget", "laps"), [(100.0, 2), (200.0, 5), (1000.0, 8)])
def test_there_are_as_many_laps_as_all_pairs_have_time_for(stand: type[Stand], budget: float, laps: int) -> None:
    """A start takes two seconds and a lap four: eight pairs of five laps take 176 s, and of six 208 s."""
    found, said = run(stand, 8, budget)
    assert {len(records) for side in "AB" for records in found[side]} == {2 * laps}
    assert len(said) == len(found["A"]) == 8


def test_what_is_compared_are_the_fast_samples_which_a_busy_host_leaves_alone(seed: int) -> None:
    """Thirty-three of sixty samples take two to twenty times as long; the median of a process says nothing then."""
    draw = random.Random(seed)

    def samples(seconds: float) -> list[float]:
        found = [seconds] * 27 + [seconds * draw.uniform(2, 20) for _ in range(33)]
        draw.shuffle(found)
        return found

    def side(seconds: float) -> list[list[Record]]:
        return [process({"ours": samples(seconds)}) for _ in range(5)]

    assert verdict(side(1.0), side(1.2)).word == "SLOWER"
    assert verdict(side(1.0), side(1.0)).word == "SAME"


def test_laps_are_held_against_each_other_and_not_thrown_together(seed: int) -> None:
    """A quiet lap is known after five samples, a busy one after seventy: each side has quiet laps of its own."""
    draw = random.Random(seed)

    def lap(seconds: float) -> list[Record]:
        return process({"ours": [seconds * math.exp(draw.gauss(0, 0.01)) for _ in range(draw.choice((5, 70)))]})

    def sides(ratio: float) -> list[list[list[Record]]]:
        hosts = [[math.exp(draw.gauss(0, 0.2)) for _ in range(6)] for _ in range(8)]
        return [[[found for host in laps for found in lap(host * times)] for laps in hosts] for times in (1.0, ratio)]

    assert verdict(*sides(1.0)).word == "SAME"
    assert verdict(*sides(1.06)).word == "SLOWER"


def test_a_lap_that_one_side_lacks_is_left_out_of_both(seed: int) -> None:
    fails = record({}, implementation="ours", case=CASE, status="failed", failure="timeout", reason="slow")
    a = [[*process({"ours": 1.0}), fails, *process({"ours": 2.0})] for _ in range(3)]
    b = [[found for time in (1.1, 0.2, 2.2) for found in process({"ours": time})] for _ in range(3)]
    assert verdict(a, b).ratio == pytest.approx(1.1)


def test_two_pairs_are_measured_however_short_the_time_is(stand: type[Stand]) -> None:
    found, _ = run(stand, 5, budget=1.0)
    assert [len(records) for records in found["A"]] == [1, 1]


def test_states_without_a_common_case_are_refused(stand: type[Stand]) -> None:
    stand.offers["b"] = ["new"]
    with pytest.raises(CompareError, match="no case in common"):
        run(stand, 2)


@pytest.mark.slow
def test_a_run_of_many_unchanged_series_seldom_calls_one_of_them_different(seed: int) -> None:
    """By chance the interval of one in a hundred leaves 1; ten runs of a hundred series would have told of ten."""
    draw = random.Random(seed)
    told = 0
    for _ in range(10):
        a, b = (
            [process({f"k{at}": math.exp(draw.gauss(0, 0.1)) for at in range(100)}) for _ in range(4)] for _ in "ab"
        )
        told += any(found.word in ("FASTER", "SLOWER") for found in judge(a, b, ()))
    assert told <= 2, f"{told} of 10 runs"


@pytest.mark.slow
def test_a_process_of_a_real_tree_measures_what_it_is_told_to_and_its_end_is_said(tmp_path: Path) -> None:
    what = RaceRequest(("threshold_spectrum",), "smoke", ("dense",), cpu_time=True)
    with Side(ROOT, what, tmp_path / "one.jsonl") as side:
        first, *_ = side.cases()
        side.measure(first)
        (record,) = side.records()
        assert record.status == "measured" and record.metric("device_time") and record.metric("rounding_error")
        with pytest.raises(CompareError, match=r"no case: ended with 1\n(.|\n)*KeyError: 'no case'"):
            side.measure("no case")
    with (
        Side(ROOT, RaceRequest(("threshold_spectrum",), "smoke", ("nobody",)), tmp_path / "two.jsonl") as side,
        pytest.raises(CompareError, match=r"^in .*: unknown implementation 'nobody'; known:"),
    ):
        side.cases()


def test_a_commit_is_checked_out_beside_the_working_tree_and_taken_away_again(tmp_path: Path) -> None:
    repository = tmp_path / "with space"
    repository.mkdir()

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=repository, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (repository / "code.py").write_text("old")
    git("add", "-A")
    git("commit", "-q", "-m", "old")
    (repository / "code.py").write_text("new")
    with checkout("HEAD", repository, tmp_path) as old, checkout(".", repository, tmp_path) as here:
        assert ((old / "code.py").read_text(), (here / "code.py").read_text()) == ("old", "new")
    assert not old.exists() and len(git("worktree", "list").splitlines()) == 1
    with checkout("HEAD", repository, tmp_path) as one, checkout("HEAD", repository, tmp_path) as other:
        assert one != other and (one / "code.py").read_text() == (other / "code.py").read_text() == "old"
    assert len(git("worktree", "list").splitlines()) == 1
    with (
        pytest.raises(CompareError, match="'nonsense' is no commit, branch or tag here"),
        checkout("nonsense", repository, tmp_path),
    ):
        pass


def test_record_files_are_compared_as_they_are(cli: Cli, tmp_path: Path) -> None:
    facts = {"machine": "cpu-test-2c", "commit": "1" * 40, "dirty": None}
    for name, factor in (("a", 1.0), ("b", 1.5)):
        lines = [
            record_line(found)
            for replicate in range(4)
            for found in process({"ours": factor * (1 + 0.001 * replicate), "theirs": 1.0}, replicate=replicate)
        ]
        (tmp_path / f"{name}.jsonl").write_text(environment_line(facts) + "".join(lines))
    code, out, _ = cli("compare", "a.jsonl", "b.jsonl", "--control", "theirs", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and (found[0]["series"][1], found[0]["word"]) == ("ours", "SLOWER")
    code, out, _ = cli("compare", "a.jsonl", "a.jsonl", "--control", "theirs")
    assert code == 0 and out.splitlines()[0] == "a.jsonl against a.jsonl: 2 SAME"
    code, _, err = cli("compare", "a.jsonl", "b.jsonl", "--cpu-time")
    assert code == 2 and "record files are read as they are" in one_line(err)
    code, _, err = cli("compare", "HEAD", "--cpu-time", "--own-harness")
    assert code == 2 and "is how this harness measures" in one_line(err)


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("compare", "nonsense", "--control", "plain")
    assert code == 2 and "'nonsense' is no commit, branch or tag here, no record file" in err
    broken = tmp_path / "kernels" / "spectralkernels"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an edit')\n")
    with pytest.raises(CompareError, match="half an edit"):
        race({"A": tmp_path, "B": tmp_path}, RaceRequest(profile="smoke"), 2, tmp_path, print)
