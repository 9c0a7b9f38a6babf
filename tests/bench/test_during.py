"""What the machine did while a case was timed: made-up files and drivers, and rounds that are thrown away."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_nvml import FakeNvml
from toy_operation import case, implementation, toy

from spectralbench import during, measure
from spectralbench.calls import Run
from spectralbench.clock import FakeClock
from spectralbench.during import Watch, watch
from spectralbench.outcome import Measured
from spectralbench.record import from_outcome, read_file, record_line
from spectralbench.timing import Budget, time_interleaved

THERMAL, CAP, IDLE = 0x40, 0x04, 0x01


def masks(*found: int) -> Callable[[], int]:
    """A sensor that reads these one after the other, and then the last for ever."""
    left = list(found)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def timed(sensors: Watch, samples: list[float], least: int = 3) -> tuple[float, ...]:
    """The samples that stay of a run whose k-th sample is samples[k]."""
    run = Run("ours", lambda: None)
    budget = Budget(min_rounds=least, max_rounds=len(samples), target=0.0, seconds=1e9)
    clock = FakeClock({"ours": samples})
    return time_interleaved([run], clock, budget, 0, lambda run, step: step(), None, sensors)["ours"]


def test_rounds_in_which_heat_or_power_slowed_the_machine_are_thrown_away_and_counted() -> None:
    # Read at the begin, and after each of six rounds: the third ends slowed down, and so the fourth began so.
    sensors = Watch(reasons=masks(IDLE, IDLE, CAP, THERMAL, IDLE, IDLE))
    assert timed(sensors, [1.0, 1.01, 7.0, 7.0, 1.02, 1.03]) == (1.0, 1.01, 1.02, 1.03)
    facts = sensors.facts()
    assert (facts["rounds"], facts["slowed"], facts["thrown"]) == (6, 2, 2)
    assert facts["reasons"] == "power_cap hardware_thermal"


def test_a_power_cap_alone_costs_no_round() -> None:
    sensors = Watch(reasons=masks(CAP))
    assert len(timed(sensors, [1.0, 1.01, 1.02, 1.03, 1.04])) == 5
    assert sensors.facts() == {"rounds": 5, "slowed": 0, "thrown": 0, "reasons": "power_cap"}


def test_slow_rounds_stay_where_too_few_others_are_to_be_had() -> None:
    sensors = Watch(reasons=masks(IDLE, IDLE, IDLE, THERMAL))
    assert len(timed(sensors, [1.0, 1.01, 1.02, 1.03, 1.04, 1.05])) == 6
    facts = sensors.facts()
    assert (facts["slowed"], facts["thrown"]) == (4, 0)


def test_a_core_that_was_throttled_since_the_last_look_spoils_its_round() -> None:
    sensors = Watch(heats=masks(5, 5, 6, 6, 6, 6))
    assert timed(sensors, [1.0, 9.0, 1.01, 1.02, 1.03]) == (1.0, 1.01, 1.02, 1.03)
    assert sensors.facts()["thrown"] == 1


def stat(path: Path, steal: int, idle: int) -> None:
    path.write_text(f"cpu  10 20 30 {idle} 5 0 1 {steal} 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n")


def test_a_host_tells_steal_clocks_and_heat_by_its_files(tmp_path: Path) -> None:
    for core, clock in (("cpu0", 2_000_000), ("cpu1", 3_000_000)):
        for name, value in (("cpufreq/scaling_cur_freq", clock), ("thermal_throttle/core_throttle_count", 1)):
            path = tmp_path / core / name
            path.parent.mkdir(parents=True)
            path.write_text(f"{value}\n")
    stat(tmp_path / "stat", steal=100, idle=1000)
    sensors = watch("cpu", tmp_path, tmp_path)
    sensors.begin()
    stat(tmp_path / "stat", steal=125, idle=1075)
    (tmp_path / "cpu1/cpufreq/scaling_cur_freq").write_text("1000000\n")
    assert not sensors.slowed()
    (tmp_path / "cpu1/thermal_throttle/core_throttle_count").write_text("2\n")
    assert sensors.slowed()
    assert sensors.facts() == {
        "rounds": 2, "slowed": 1, "thrown": 0, "cpu_clock_min_mhz": 1500, "cpu_clock_max_mhz": 2500, "steal": 0.25
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3\n", "cpu a b c d e f g h\n"])
def test_a_host_that_tells_nothing_is_no_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "stat").write_text(content)
    sensors = watch("cpu", tmp_path, tmp_path)
    sensors.begin()
    assert not sensors.slowed()
    assert sensors.facts() == {"rounds": 1, "slowed": 0, "thrown": 0}


def test_a_gpu_tells_reasons_and_clocks_by_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clocks = {1: 1980, 2: 2619}
    library = FakeNvml(
        nvmlInit=None,
        nvmlDeviceGetHandleByUUID="handle",
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: THERMAL,
        nvmlDeviceGetClockInfo=lambda handle, kind: clocks[kind],
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1", name="GPU"))
    sensors = watch("cuda", tmp_path, tmp_path)
    sensors.begin()
    assert sensors.slowed()
    clocks[1] = 1200
    facts = sensors.facts()
    assert facts["reasons"] == "hardware_thermal"
    assert (facts["sm_clock_min_mhz"], facts["sm_clock_max_mhz"], facts["memory_clock_max_mhz"]) == (1200, 1980, 2619)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    blind = watch("cuda", tmp_path, tmp_path)
    blind.begin()
    assert not blind.slowed() and "sm_clock_min_mhz" not in blind.facts()


def test_a_record_says_what_the_machine_did_and_a_remark_that_rounds_were_thrown_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "watch", lambda device: Watch(reasons=masks(*[IDLE] * 4, THERMAL, *[IDLE] * 99)))
    budget = Budget(min_rounds=3, max_rounds=9, target=0.0)
    found = measure.measure_case(
        toy(implementation("a")),
        case(),
        ["a"],
        clock=FakeClock([1e-3, 1.01e-3]),
        budget=budget,
        metrics=["device_time"],
    )["a"]
    assert isinstance(found, Measured)
    assert (found.during["rounds"], found.during["thrown"]) == (9, 2) and len(found.measurements[0].samples) == 7
    assert dict(found.unavailable)["throttled"] == "heat or power slowed the machine in 2 of 9 rounds: thrown away"
    identity: dict[str, Any] = json.loads(
        '{"operation":"o","operation_version":1,"implementation":"plain","role":"kernel","dtype":"float32",'
        '"pass_":"forward","cache":"warm","launch":"eager","seed":0,"replicate":0,"profile":"smoke",'
        '"recorded_at":"2026-01-05T08:00:00+00:00"}'
    )
    record = from_outcome(found, case={}, fft_size=(4,), **identity)
    path = tmp_path / "one.jsonl"
    path.write_text('{"schema":1,"kind":"environment","machine":"m"}\n' + record_line(record))
    (again,) = read_file(path).records
    assert again.during == dict(found.during)
    path.write_text(path.read_text().replace('"rounds":9', '"rounds":[9]'))
    (damage,) = read_file(path).damage
    assert "during must be an object of numbers and words" in damage.why


def test_the_names_of_reasons_cover_what_throws_a_round_away() -> None:
    assert sum(bit for bit in during.REASONS if bit & during.SLOWED) == during.SLOWED
