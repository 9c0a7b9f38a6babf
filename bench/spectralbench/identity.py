"""What was measured, and what surrounded it: when two numbers may stand for each other (standard library only).

`Identity` says what was measured. `Conditions` say where: what a run may take from an earlier one must have been
measured in the same ones, and a series is judged among points whose conditions agree in what moves its metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Facts = tuple[tuple[str, str], ...]
"""Names and values of known conditions, in the order of their declaration."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What was measured: one implementation of one case in one setting.

    case: `name=value,name=value` in declared order. pass_: "forward", "backward" or "both". fft_size: the grid's sizes.
    cache: "warm" or "cold". launch: "eager" or "graph". seed: of the inputs. A series is one metric of it on a machine.
    """

    operation: str
    operation_version: int | str
    implementation: str
    case: str
    dtype: str
    pass_: str
    fft_size: tuple[int, ...]
    cache: str
    launch: str
    seed: int

    @property
    def question(self) -> Identity:
        """The same whoever answers: implementations with equal questions are rivals in one comparison."""
        return replace(self, implementation="")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What surrounded a measurement and may move its number; None is what its file does not tell, a value of its own.

    cores: that the process may use (`sched_getaffinity`). cpu_model: family, model and stepping. cpu_flags: the vector
    instructions, separated by spaces. gpu_class: "GPU" for a whole card, "MIG" for a slice of one.
    What belongs to a GPU is None where nothing ran on one.
    """

    device: str | None = None
    os: str | None = None
    cpu: str | None = None
    cpu_model: str | None = None
    cpu_flags: str | None = None
    cpu_capability: str | None = None
    cores: str | None = None
    threads: str | None = None
    heap: str | None = None
    python: str | None = None
    torch: str | None = None
    triton: str | None = None
    mkl: str | None = None
    onednn: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    driver: str | None = None
    gpu: str | None = None
    gpu_class: str | None = None
    gpu_uuid: str | None = None
    gpu_power_limit_mw: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> Conditions:
        """From the first line of a record file."""
        found = {name: str(value) for name in NAMES if (value := environment.get(name)) not in (None, "")}
        if "gpu_uuid" in found:
            found["gpu_class"] = "MIG" if found["gpu_uuid"].startswith("MIG") else "GPU"
        if found.get("device") == "cpu":
            found = {name: value for name, value in found.items() if name not in OF_A_GPU}
        return cls(**found)

    def known(self, names: Iterable[str]) -> Facts:
        """Those of `names` that are known."""
        return tuple((name, value) for name in names if (value := getattr(self, name)) is not None)


NAMES = tuple(field.name for field in fields(Conditions))
OF_A_GPU = frozenset(("cuda", "cudnn", "driver", "gpu", "gpu_class", "gpu_uuid", "gpu_power_limit_mw"))
MUST_MATCH = tuple(name for name in NAMES if name != "gpu_uuid")
"""What an earlier record must share to serve a run: cards of one class are processes of one measurement."""

SOFTWARE = ("device", "torch", "triton", "cuda", "cudnn", "gpu")
"""What moves bytes that a program asks for: they do not depend on how fast it runs."""
ARITHMETIC = (*SOFTWARE, "cpu", "cpu_model", "cpu_flags", "cpu_capability", "threads", "mkl", "onednn")
"""What moves roundings, and the scratch of libraries."""


def changes(old: Iterable[tuple[str, str]], new: Iterable[tuple[str, str]]) -> str:
    """What differs in words: `torch 2.12.0 -> 2.13.0, cpu_flags +avx512f -avx_vnni`; empty where nothing does."""
    before, after = dict(old), dict(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {_change(before.get(name, 'none'), after.get(name, 'none'))}" for name in names)


def _change(old: str, new: str) -> str:
    """Of two lists of words only what came and went; anything else whole."""
    one, two = old.split(), new.split()
    if min(len(one), len(two)) < 4:
        return f"{old} -> {new}"
    return " ".join(
        [*(f"+{word}" for word in two if word not in one), *(f"-{word}" for word in one if word not in two)]
    )
