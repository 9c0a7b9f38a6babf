"""`spectralbench compare`: verdicts on made-up processes, states out of git, and a slower kernel that is found."""

from __future__ import annotations

import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from synthetic_records import record

from spectralbench import compare as comparing
from spectralbench.compare import CompareError, Ratio, Sweep, checkout, exit_code, judge, order, race
from spectralbench.record import Record, environment_line, record_line

CASE = {"size": 4}


def process(times: dict[str, float], error: float = 1e-7, **more: Any) -> list[Record]:
    values = {name: {"device_time": [seconds] * 3, "rounding_error": error} for name, seconds in times.items()}
    return [record(metrics, implementation=name, case=CASE, **more) for name, metrics in values.items()]


def verdict(a: list[list[Record]], b: list[list[Record]], *controls: str) -> Ratio:
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


def test_identical_kernels_are_rarely_called_different(seed: int) -> None:
    wrong = sum(verdict(*sides(seed + at, 1.0, 0.03, 4), "theirs").word in ("FASTER", "SLOWER") for at in range(200))
    assert wrong <= 8, f"{wrong} of 200; one in a hundred is what the interval allows, less what the margin takes"


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


def test_sides_take_turns() -> None:
    assert order(4) == "ABBAABBA"
    seen = []

    def measure(tree: Path, results: Path, what: Sweep) -> list[Record]:
        seen.append((tree.name, results.name))
        return process({"ours": 1.0})

    trees = {"A": Path("old"), "B": Path("new")}
    found = race(trees, Sweep(()), 2, Path("scratch"), lambda text: None, measure)
    assert seen == [("old", "1-A"), ("new", "2-B"), ("new", "3-B"), ("old", "4-A")]
    assert [len(found[side]) for side in "AB"] == [2, 2]


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


def test_what_cannot_be_compared_is_said(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("compare", "nonsense", "--control", "plain")
    assert code == 2 and "'nonsense' is no commit, branch or tag here, no record file" in err
    broken = tmp_path / "kernels" / "spectralkernels"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an edit')\n")
    with pytest.raises(CompareError, match="half an edit"):
        comparing.measure_once(tmp_path, tmp_path / "results", Sweep(("--profile", "smoke")))
