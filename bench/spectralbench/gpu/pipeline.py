"""The stages in order. Each finds what an earlier run has left in the folder and does only the rest."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spectralbench import sweep
from spectralbench.ceilings import Roofs, measure_roofs
from spectralbench.gpu import correctness, native_tests, summary
from spectralbench.gpu.budget import ENDS, StageBudget, hard_stop
from spectralbench.gpu.plan import STAGES, Excluded
from spectralbench.gpu.sweeping import measure_phases
from spectralbench.gpu.talk import say
from spectralbench.journal import Kept, file_stem, key_on_its_card
from spectralbench.worker import WorkerBroken, resolve
from spectralkernels.errors import RangeError, Unsupported

TESTS = Path(__file__).parents[3] / "tests"

OPTIONAL: Mapping[str, str] = {
    "triton": "no Triton kernel runs",
    "pytest": "the tests marked cuda do not run; the checks of the correctness stage do",
    "pynvml": "no memory as the driver sees it and no clocks (pip install nvidia-ml-py)",
    "sklearn": "no case on photographs (pip install scikit-learn)",
    "fft_conv_pytorch": "this peer is not timed (pip install fft-conv-pytorch)",
}
"""Import name -> what is missing without it."""


@dataclass(slots=True)
class Stages:
    """One run of the stages. tests: whether the tests marked cuda run, last. notes: what was left out; they end up in
    the summary."""

    out: Path
    device: str
    budget: StageBudget
    operations: tuple[str, ...] = ()
    commit: str | None = None
    processes: int | None = None
    tests: bool = False
    sources: sweep.Sources = field(default_factory=sweep.Sources)
    say: Callable[[str], None] = say
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    excluded: Excluded = field(default_factory=dict)
    checked: str = "not begun"
    roofs: Roofs | None = None
    known: Kept = field(default_factory=lambda: Kept([], [], []))

    def all_stages(self) -> tuple[str, bool]:
        """Run what is left of every stage. Returns: the text of the summary, and whether a check or test failed.

        Raises: RangeError on a commit that is not the checkout's; JournalError if `out` cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        ignore = self.out / ".gitignore"
        if not ignore.exists():
            # Output inside a checkout must not make it dirty: a dirty state of its own has no earlier results.
            ignore.write_text("*\n", encoding="utf-8")
        self.environment = surroundings(self.device, self.commit)
        self.notes += [f"{name} is not installed: {loss}" for name, loss in OPTIONAL.items() if not _installed(name)]
        for note in self.notes:
            self.say(note)
        self.known = sweep.kept(self.out, self.environment)
        failed = False
        try:
            for stage in ENDS:
                failed |= self._stage(stage)
        finally:
            text = self.summarise()
        return text, failed

    def summarise(self) -> str:
        """Write the summary of what is stored so far."""
        known = self.known.by(key_on_its_card)
        notes = [*self.notes, *(f"damaged record: {harm}" for harm in known.damage)]
        notes += [
            f"{count} records of this commit were measured in other conditions and are left out: {other}"
            for other, count in Counter(known.elsewhere.values()).items()
        ]
        operations = resolve(self.sources.operations)()
        state = summary.SoFar(
            self.environment, list(known.records.values()), self.roofs, self.excluded, self.checked, notes
        )
        return summary.write(state, operations, self.out)

    def _stage(self, name: str) -> bool:
        """Whether the stage found a failure; a measuring process that does not start ends the stage, not the run."""
        others = {"ceilings": self._ceilings, "correctness": self._correctness, "tests": self._tests}
        try:
            failed = others[name]() if name in others else self._phases(name)
        except WorkerBroken as error:
            self.notes.append(f"{name}: {error}")
            self.say(self.notes[-1])
            failed = True
        if name in others:
            self.summarise()
        return failed

    def _request(self, profile: str) -> sweep.Request:
        return sweep.Request(
            operations=self.operations, profile=profile, device=self.device, sources=self.sources, processes=1
        )

    def _state_file(self, kind: str, suffix: str) -> Path:
        """A file of this state of the code on this machine."""
        return self.out / f"{kind}-{file_stem(self.environment, day=str(self.environment['machine']))}.{suffix}"

    def _correctness(self) -> bool:
        count = self.processes or correctness.processes(self.device)
        done = correctness.check_all(
            self._request("smoke"), self.out / "checks", self.environment, self.budget, count, self.say
        )
        found, left = done.records, sum(len(item.implementations) for item in done.left)
        self.notes += [f"damaged check: {harm}" for harm in done.damage]
        text = correctness.report(found, len(found) + left)
        summary.replace_file(self._state_file("correctness", "txt"), text)
        self.excluded = correctness.excluded(found, resolve(self.sources.operations)())
        self.checked = text.splitlines()[0]
        if left:
            self.notes.append(f"correctness: {left} checks not reached; run again to make them")
        return any(record.status == "failed" for record in found)

    def _ceilings(self) -> bool:
        path = self.out / f"ceilings-{self.environment['machine']}.json"
        if path.exists():
            self.roofs = Roofs(**json.loads(path.read_text(encoding="utf-8")))
            return False
        self.say("ceilings: copy, L2, matrix products, empty launch")
        try:
            with hard_stop(self.budget.left("ceilings")) as stop:
                self.roofs = roofs_of(self.device)
                summary.replace_file(path, json.dumps(asdict(self.roofs), indent=1) + "\n")
        except (Unsupported, RuntimeError) as error:
            # Without ceilings there is no percent of the floor, but every time and ratio.
            self.notes.append(f"ceilings: {type(error).__name__}: {error}")
            self.say(self.notes[-1])
            return True
        if stop.fired:
            self.notes.append("ceilings: stopped, no time left")
        return False

    def _tests(self) -> bool:
        if not self.tests:
            return self._tests_said({"ran": False, "reason": "not asked for (--tests)"})
        if self.device != "cuda":
            return self._tests_said({"ran": False, "reason": "they need a CUDA device"})
        seconds = self.budget.left("tests")
        if seconds <= 0:
            return self._tests_said({"ran": False, "reason": "no time left; run again"})
        self.say(f"tests marked cuda, {seconds:.0f} s")
        return self._tests_said(native_tests.run(TESTS, self._state_file("tests", "jsonl"), seconds))

    def _tests_said(self, facts: Mapping[str, Any]) -> bool:
        if not facts["ran"]:
            self.notes.append(f"tests marked cuda: not run: {facts['reason']}")
            return False
        if facts["reason"]:
            self.notes.append(f"tests marked cuda: {facts['reason']}")
        self.checked += f"; tests marked cuda: {facts['passed']} passed, {facts['failed']} failed"
        self.notes += [f"failed test: {failure}" for failure in facts["failures"]]
        return bool(facts["failed"])

    def _phases(self, stage: str) -> bool:
        profile = "gpu" if self.device == "cuda" else "smoke"
        self.notes += measure_phases(
            stage,
            STAGES[self.device].get(stage, ()),
            self._request(profile),
            self.budget,
            self.out,
            self.environment,
            self.excluded,
            self.known,
            after=self.summarise,
            say=self.say,
        )
        return False


def surroundings(device: str, commit: str | None) -> dict[str, Any]:
    """The environment of the records; a given commit is taken where git knows none, and marked as given.

    Raises: RangeError if git knows another commit.
    """
    facts = sweep.surroundings(device)
    if commit is None:
        return facts
    if facts["commit"] is not None:
        if not str(facts["commit"]).startswith(commit):
            raise RangeError(f"--commit says {commit}, but the checkout is at {facts['commit']}; leave it out")
        return facts
    if len(commit) != 40 or set(commit) - set("0123456789abcdef"):
        raise RangeError(f"--commit takes the 40 hex digits of `git rev-parse HEAD`, got {commit!r}")
    return {**facts, "commit": commit, "commit_given": True}


def roofs_of(device: str) -> Roofs:
    """The roofs of a device, by its clocks."""
    from spectralbench.clock import clock_for

    if device != "cuda":
        return measure_roofs({"eager": clock_for(device)}, device, side=256, copied=1 << 22)
    import torch

    clocks = {launch: clock_for(device, "warm", launch) for launch in ("eager", "graph")}
    try:
        return measure_roofs(clocks, device, _l2_reads())
    finally:
        torch.cuda.empty_cache()


def _l2_reads() -> Callable[[], tuple[Callable[[], object], int]] | None:
    if not _installed("triton"):
        return None
    from spectralbench.gpu.kernels import l2_reads

    return l2_reads


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
