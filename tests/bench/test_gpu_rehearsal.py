"""Fifteen minutes on a rented machine, rehearsed: the real plan and stages on a device of made-up costs.

Nothing is launched: a stand-in for the sweep writes the records that it would, and moves the budget's clock by what a
table says that a start, a gate, a capture and a sample cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from effort import one_of
from synthetic_records import environment

from spectralbench import journal, sweep
from spectralbench.ceilings import Roofs
from spectralbench.gpu import packing, pipeline
from spectralbench.gpu.budget import StageBudget
from spectralbench.gpu.compare import matches, time
from spectralbench.gpu.judge import judge
from spectralbench.gpu.plan import ALLOCATED, DRIVER, TIMED
from spectralbench.gpu.targets import TARGETS
from spectralbench.journal import Journal, Kept, kept, key_on_its_card
from spectralbench.outcome import Measured, Measurement
from spectralbench.record import read_tree
from spectralbench.sweep import BUDGETS, Request, Sweep
from spectralbench.worker import Result, Sources
from spectralkernels.ops import load_operations

COST = {"start": 12.0, "gate of a case": 1.0, "gate": 0.08, "capture": 0.06, "sample": 2e-3, "weighing": 0.05}
"""Seconds: a process with its context and ceilings; inputs and float64 reference of a case; one implementation's two
calls and checks; two captures; one sample with its synchronisation; the memory metrics of one implementation."""

SOURCES = Sources(clock="test_gpu_plan:no_clock")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Device:
    """A clock that work moves, and the sweep that would do the work. quits: seconds after which the machine is gone."""

    def __init__(self, card: str, quits: float = float("inf")) -> None:
        self.card = card
        self.seconds = 0.0
        self.quits = quits
        self.begun = self.stored = 0

    def now(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds >= self.quits:
            raise KeyboardInterrupt

    def surroundings(self, device: str) -> dict[str, Any]:
        return {**environment(machine="nvidia-h200", commit=COMMIT), "gpu_uuid": self.card, "gpu": "NVIDIA H200"}

    def run(self, request: Request, out: Path, facts: Mapping[str, Any], progress: Any, known: Kept) -> Sweep:
        began, done = self.seconds, 0
        plan = sweep.preview(request, out, facts, known)
        with Journal.open(out / "records" / "nvidia-h200", facts) as file:
            self.spend(COST["start"])
            for item in plan.left:
                spent = self.seconds - began
                if request.time_budget is not None and spent + spent / max(1, done) > request.time_budget:
                    break
                self.begun += 1
                count = len(item.implementations)
                timed = "device_time" in (request.metrics or ())
                sampling = min(BUDGETS["gpu"]["seconds"], 200 * count * COST["sample"]) if timed else 0.0
                each = COST["gate"] + (len(item.states) * COST["capture"] if timed else COST["weighing"])
                self.spend(COST["gate of a case"] + count * each + len(item.states) * sampling)
                found = [{name: Result(self.outcome(item, name)) for name in item.implementations}] * len(item.states)
                records = sweep.records_of(item, found, request)
                file.append(records)
                known.records.extend(records)
                self.stored += 1
                done += 1
        return plan

    def outcome(self, item: sweep.Item, name: str) -> Measured:
        ours = item.operation.subject(name).role == "kernel"
        values = {"device_time": 1e-5 if ours else 1e-3, "rounding_error": 1e-8, "saved_bytes": 1e6}
        values |= {"stored_bytes": 1e6, "peak_allocated": 1e6, "peak_reserved": 1e6}
        missing = tuple((metric, "not made up") for metric in (*TIMED, *ALLOCATED, *DRIVER) if metric not in values)
        return Measured(tuple(Measurement(metric, 1, "1", (value,)) for metric, value in values.items()), missing)


@pytest.fixture(scope="module")
def planned() -> list[sweep.Item]:
    return sweep.plan(Request(profile="gpu", device="cuda", processes=1, sources=SOURCES))


@pytest.fixture
def rent(planned: list[sweep.Item], monkeypatch: pytest.MonkeyPatch) -> Any:
    """rent(device, out, seconds): one call on that device. Returns: whether it ended by itself."""
    roofs = Roofs({"memory": 4e12}, {"fp32": 6e13, "bf16": 8e14, "fp16": 8e14, "tf32": 4e14}, {}, None, {})

    def call(device: Device, out: Path, seconds: float) -> bool:
        def phases(*given: Any, **options: Any) -> list[str]:
            return original(*given, **{**options, "run": device.run})

        def checked(*_: Any) -> Sweep:
            device.spend(40.0)
            return Sweep([], 0, [], [])

        monkeypatch.setattr(sweep, "plan", plan)
        monkeypatch.setattr(pipeline.sweep, "surroundings", device.surroundings)
        monkeypatch.setattr(pipeline, "roofs_of", lambda _: device.spend(8.0) or roofs)
        monkeypatch.setattr(pipeline, "measure_phases", phases)
        monkeypatch.setattr(pipeline.correctness, "check_all", checked)
        monkeypatch.setattr(pipeline.correctness, "processes", lambda _: 8)
        budget = StageBudget(seconds, device.now)
        run = pipeline.Stages(
            out, "cuda", budget, sources=SOURCES, say=lambda text: print(f"{device.seconds:6.1f} s  {text}")
        )
        try:
            run.all_stages()
        except KeyboardInterrupt:
            return False
        return True

    def plan(request: Request) -> list[sweep.Item]:
        return request.select([replace(item, states=request.states) for item in planned])

    original = pipeline.measure_phases
    return call


def replicates(out: Path) -> dict[str, int]:
    """How many processes have judged each promise that is a ratio, in both graph states."""
    operations = load_operations()
    facts = Device("any").surroundings("cuda")
    records = list(kept(out / "records" / "nvidia-h200", facts).by(key_on_its_card).records.values())
    found = matches(records, operations)
    verdicts = judge(found, records, None, {})
    counts: dict[str, int] = {}
    for verdict in verdicts:
        place = verdict.target.place
        here = [s for s in found if place.answers(s.case.subject, s.case.params) and s.case.subject.launch == "graph"]
        ours = [min((len(time(row).processes) for row in one.ours(one.timed)), default=0) for one in here]
        counts[verdict.target.name] = min(ours) if len(ours) == 2 else 0
    return counts


def test_eight_minutes_judge_every_promise_in_both_graph_states_by_three_processes(
    rent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(
        journal, "kept", lambda folder, facts, read=journal.kept: reads.append(folder) or read(folder, facts)
    )
    device = Device("GPU-1")
    assert rent(device, tmp_path / "out", 480.0)
    assert device.seconds < 480.0
    assert reads == [tmp_path / "out" / "records" / "nvidia-h200"], "what is stored is read once, and kept from then on"
    judged = replicates(tmp_path / "out")
    assert len(TARGETS) == len(judged) and min(judged.values()) >= 3, judged


@pytest.mark.slow
@pytest.mark.parametrize("quits", one_of([60.0, 205.0]))
def test_a_machine_that_goes_at_any_second_costs_one_case_and_the_next_goes_on(
    quits: float, rent: Any, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    lost = Device("GPU-1", quits)
    assert not rent(lost, first, 480.0)
    assert lost.begun - lost.stored <= 1 and (lost.stored > 0 or quits < 30.0)
    whole = [file for file in read_tree(first / "records") if file.environment]
    assert not [harm for file in whole for harm in file.damage]
    before = Counter(key_on_its_card(record) for file in whole for record in file.records)
    packing.pack(first, tmp_path / "out.tgz")

    packing.unpack(tmp_path / "out.tgz", second)
    device = Device("GPU-2")
    assert rent(device, second, 480.0)
    assert min(replicates(second).values()) >= 3
    after = Counter(key_on_its_card(record) for file in read_tree(second / "records") for record in file.records)
    assert before <= after and set(after.values()) == {1}, "what was stored is neither lost nor measured again"
    stripped = Counter(key[1:] for key in after)
    assert set(stripped.values()) == {1}, "the second card does only what the first has not done"
