"""What the machine did while a case was timed: throttling, clocks, and the time that a hypervisor took away.

Facts at the start of a process say little of the hour that follows. So the sensors are read around the rounds of every
case: a round in which the device or the CPU was slowed down by heat or by its power supply is thrown away and counted.
A power cap is noted alone, because a busy GPU runs at it for as long as it is busy. What a machine does not tell is
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spectralbench import nvml
from spectralkernels.errors import Unsupported

REASONS: Mapping[int, str] = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
}
"""Bits of nvmlClocksEventReasons in nvml.h that say that a clock is lower than it was asked to be."""
SLOWED = 0x08 | 0x20 | 0x40 | 0x80
"""Those of which a round is thrown away."""

Facts = dict[str, int | float | str]


@dataclass(slots=True)
class Watch:
    """The sensors of one machine while one case is timed; each is None where there is none.

    reasons: a bit mask, see REASONS. heats: how often the CPU was throttled by heat so far. clocks: name -> megahertz.
    steal: (ticks that a hypervisor took from this machine so far, all ticks).
    """

    reasons: Callable[[], int | None] = lambda: None
    heats: Callable[[], int | None] = lambda: None
    clocks: Callable[[], Mapping[str, float]] = dict
    steal: Callable[[], tuple[int, int] | None] = lambda: None
    rounds: int = 0
    slow: int = 0
    thrown: int = 0
    _mask: int = 0
    _before: int = 0
    _heats: int | None = None
    _steal: tuple[int, int] | None = None
    _seen: dict[str, list[float]] = field(default_factory=dict)

    def begin(self) -> None:
        """Read all sensors before the first round."""
        self._before, self._heats, self._steal = self.reasons() or 0, self.heats(), self.steal()
        self._look()

    def slowed(self) -> bool:
        """Whether heat or power slowed the machine at the begin or end of the round that is over."""
        now, heats = self.reasons() or 0, self.heats()
        found = bool((now | self._before) & SLOWED) or (heats is not None and heats != self._heats)
        self._mask |= now | self._before
        self._before, self._heats = now, heats
        self.rounds, self.slow = self.rounds + 1, self.slow + found
        return found

    def facts(self) -> Facts:
        """What is stored of a case: rounds, those slowed down and thrown away, reasons, range of clocks, steal."""
        self._look()
        found: Facts = {"rounds": self.rounds, "slowed": self.slow, "thrown": self.thrown}
        named = [name for bit, name in REASONS.items() if self._mask & bit]
        if named:
            found["reasons"] = " ".join(named)
        for name, seen in self._seen.items():
            found |= {f"{name}_min_mhz": min(seen), f"{name}_max_mhz": max(seen)}
        steal = self.steal()
        if steal is not None and self._steal is not None and steal[1] > self._steal[1]:
            found["steal"] = round((steal[0] - self._steal[0]) / (steal[1] - self._steal[1]), 4)
        return found

    def _look(self) -> None:
        for name, value in self.clocks().items():
            self._seen.setdefault(name, []).append(value)


def watch(device: str, proc: Path = Path("/proc"), system: Path = Path("/sys/devices/system/cpu")) -> Watch:
    """The sensors of "cpu" or "cuda" here: the kernel's files, and for a GPU those of NVML beside them."""
    host = Watch(heats=lambda: _heats(system), clocks=lambda: _cpu_clocks(system), steal=lambda: _steal(proc / "stat"))
    if device != "cuda":
        return host
    try:
        card = nvml.Device.current()
    except Unsupported:
        return host  # the environment of the file says why
    host.reasons = card.throttle_reasons
    host.clocks = lambda: {**_cpu_clocks(system), **card.clocks_mhz()}
    return host


def _heats(system: Path) -> int | None:
    """How often cores were throttled by heat, all together; a virtual machine and an AMD do not tell."""
    counts = [_number(path) for path in system.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cpu_clocks(system: Path) -> dict[str, float]:
    """The mean clock of all cores."""
    counts = [_number(path) for path in system.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [count for count in counts if count is not None]
    return {"cpu_clock": round(sum(known) / len(known) / 1000)} if known else {}


def _steal(path: Path) -> tuple[int, int] | None:
    """From the first line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice."""
    try:
        with path.open(encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
