"""The vocabulary in which an operation is declared (standard library only).

An operation is a mathematical contract with a float64 reference; an implementation is one way to compute it; a case is
the operation at given parameters, dtype and seed. Everything that measures, stores or plots speaks these words and
imports them from here, so this file knows nothing of torch, of Triton or of clocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from spectralkernels.errors import RangeError

Scalar = int | float | str | bool
Pass = Literal["forward", "backward", "both"]
Role = Literal["kernel", "baseline", "rival"]
Aim = Literal["time", "memory"]
Engine = Literal["torch", "triton", "library", "native"]
"""torch: chains of torch's operations. library: a convolution of cuDNN or oneDNN. native: compiled from C++ here."""

PROFILES = ("smoke", "quick", "study", "claims", "models", "gpu", "asv")


@dataclass(frozen=True, slots=True)
class Case:
    """An operation at given parameters, dtype and seed: hashable, readable, free of tensors."""

    operation: str
    params: tuple[tuple[str, Scalar], ...]
    dtype: str = "float32"
    seed: int = 0

    @property
    def id(self) -> str:
        """Parameters in declared order, `kernel_size=7,compression=0.5`: pytest id, asv label and record key alike."""
        return ",".join(f"{name}={value}" for name, value in self.params)

    def __getitem__(self, name: str) -> Any:
        for known, value in self.params:
            if known == name:
                return value
        known_names = ", ".join(name for name, _ in self.params)
        raise RangeError(f"{self.operation} has no parameter {name!r}; it has {known_names}")


@dataclass(frozen=True, slots=True)
class Block:
    """A cartesian product of parameter values; a profile is a tuple of blocks.

    `where` drops illegal points. `implementations` narrows the block to some of the operation's implementations
    (None: all of them; rivals count).
    """

    axes: Mapping[str, tuple[Scalar, ...]]
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[Pass, ...] = ("forward",)
    implementations: tuple[str, ...] | None = None
    where: Callable[[Case], bool] = lambda case: True

    def cases(self, operation: str, overrides: Mapping[str, tuple[Scalar, ...]] | None = None) -> Iterator[Case]:
        """The legal cases in declared order; `overrides` replaces the values of some axes."""
        axes = {**self.axes, **(overrides or {})}
        for dtype in self.dtypes:
            for values in itertools.product(*axes.values()):
                case = Case(operation, tuple(zip(axes, values, strict=True)), dtype)
                if self.where(case):
                    yield case


@dataclass(frozen=True, slots=True)
class Cost:
    """The floor of one forward pass: bytes that must cross memory once and arithmetic that must be done."""

    bytes_read: int
    bytes_written: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest relative L2 rounding error that counts as correct, and the reason for it.

    relative: per dtype; it says how accurate an implementation is, and so with which others it is compared.
    needs: what a case needs where that is more, for sums whose error grows with their length.
    """

    relative: Mapping[str, float]
    because: str
    needs: Callable[[Case], float] = lambda case: 0.0

    def at(self, case: Case) -> float:
        """The largest error that counts as correct in a case. KeyError on a dtype that is not declared."""
        return max(self.relative[case.dtype], self.needs(case))


def anywhere(device: str) -> str | None:
    """Availability of an implementation that needs nothing but torch."""
    return None


def everything(**inputs: Any) -> str | None:
    """Support of an implementation that takes every legal call."""
    return None


def nothing(**inputs: Any) -> bool:
    """Whether an implementation whose support follows from sizes, dtypes and devices reads numbers: it does not."""
    return False


def all_of(*conditions: Callable[..., str | None]) -> Callable[..., str | None]:
    """Support that several conditions decide: the first reason among them."""
    return lambda **inputs: next((reason for check in conditions if (reason := check(**inputs))), None)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operation.

    call: takes the operation's inputs by keyword and returns its output.
    available: given "cpu" or "cuda", the reason why this machine cannot run it, or None.
    prepare: work done once per weight or mask, outside the clock; maps inputs to the inputs that `call` takes.
    supports: given the same keywords as `call` (after `prepare`), the reason why it cannot serve them, or None.
    reads: given the same keywords, whether `supports` asks for the numbers in a tensor, which the next call may change.
    plan: given the same keywords as `call`, a function of the tensors among them, in their order and as the public
        call was given them, that computes every call of the same sizes, strides, dtypes and devices, where no gradient
        is wanted; None: `call` serves.
    gradients: the inputs that it can differentiate, see `fitting`; None means all of the operation's.
    tolerance: of its accuracy class, where that is coarser than the operation's (None: the operation's).
    reference: the float64 answer of a rival that computes neither the operation nor its ideal (None: see
        `Operation.reference_of`); takes the operation's inputs by keyword.
    source: where the algorithm comes from. engine: what runs it.
    frozen: whether the weight is transformed outside the clock, so that it may not be compared with others.
    compiled: whether torch.compile traces it for seconds in every process.
    foreign: whether a package of others computes it: it is compared with, and auto takes none.
    """

    name: str
    role: Role
    call: Callable[..., Any]
    source: str
    engine: Engine = "torch"
    frozen: bool = False
    compiled: bool = False
    foreign: bool = False
    available: Callable[[str], str | None] = anywhere
    supports: Callable[..., str | None] = everything
    reads: Callable[..., bool] = nothing
    prepare: Callable[..., dict[str, Any]] | None = None
    plan: Callable[..., Callable[..., Any]] | None = None
    gradients: tuple[str, ...] | None = None
    tolerance: Tolerance | None = None
    reference: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The implementation that `impl="auto"` takes, and the reason in one clause."""

    name: str
    because: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A mathematical contract, what it costs at least, and everyone who computes it.

    make_inputs(case, device): the keywords for every implementation, drawn from the case's seed.
    reference(**inputs): the same operation in float64 by an independent route; the gate compares against it.
    ideal(**inputs): the uncompressed float64 answer, or None where the operation loses nothing.
    cost(case): the floor (see Cost).
    fft_size(case): the FFT size N of each spatial axis, part of a record's identity.
    auto(**inputs): the implementation that `impl="auto"` takes, and why; where there are `aims`, `optimise` says
        which of them.
    contenders(**inputs): the names among which `autotune` measures who is the fastest, or None for everyone.
    dense(output): the output as one dense tensor, for comparison.
    rivals: what a user would call instead (role rival). They compute `ideal`, or the `reference` they declare, are
        gated against it, timed beside the implementations and never dispatched to: their answer is another one.
    observe(case, output): facts that are neither times nor errors: achieved_compression, kept_fraction, stored_bytes.
    gradients: the names of the inputs that a backward pass differentiates, see `fitting`.
    aims: what a caller may ask auto to optimise, the default first; (): auto looks for the least time.
    gradient_floor: a gradient smaller than this share of the rms of all is judged as if it were as large, because it
        may be zero but for rounding, as that of a bias before a normalisation.
    """

    name: str
    summary: str
    version: int
    source: str
    profiles: Mapping[str, tuple[Block, ...]]
    make_inputs: Callable[[Case, str], dict[str, Any]]
    reference: Callable[..., Any]
    cost: Callable[[Case], Cost]
    fft_size: Callable[[Case], tuple[int, ...]]
    tolerance: Tolerance
    implementations: tuple[Implementation, ...]
    auto: Callable[..., Decision]
    ideal: Callable[..., Any] | None = None
    contenders: Callable[..., Sequence[str] | None] | None = None
    dense: Callable[[Any], Any] = lambda output: output
    observe: Callable[[Case, Any], Mapping[str, float]] = lambda case, output: {}
    rivals: tuple[Implementation, ...] = ()
    gradients: tuple[str, ...] = ()
    aims: tuple[Aim, ...] = ()
    gradient_floor: float = 0.0

    @property
    def subjects(self) -> tuple[Implementation, ...]:
        """Everything that is timed: implementations, then rivals."""
        return self.implementations + self.rivals

    def reference_of(self, subject: Implementation) -> Callable[..., Any]:
        """What computes the right float64 answer of a subject; RangeError for a rival without one."""
        source = subject.reference or (self.ideal if subject in self.rivals else self.reference)
        if source is None:
            raise RangeError(f"{self.name} has rivals but no ideal to check them against")
        return source

    def as_exact(self, implementation: Implementation, dtype: str | None = None) -> bool:
        """Whether an implementation is no coarser than the operation asks, in a dtype or in all of them."""
        tolerance = implementation.tolerance or self.tolerance
        dtypes = self.tolerance.relative if dtype is None else (dtype,)
        return all(tolerance.relative.get(each, math.inf) <= self.tolerance.relative[each] for each in dtypes)

    def implementation(self, name: str) -> Implementation:
        """The implementation of that name; RangeError lists the known ones."""
        return self._named(name, self.implementations)

    def subject(self, name: str) -> Implementation:
        """The implementation or rival of that name; RangeError lists the known ones."""
        return self._named(name, self.subjects)

    def _named(self, name: str, among: tuple[Implementation, ...]) -> Implementation:
        for implementation in among:
            if implementation.name == name:
                return implementation
        known = ", ".join(implementation.name for implementation in among)
        raise RangeError(f"{self.name} has no implementation {name!r}; known: {known}")

    def cases(
        self, profile: str, overrides: Mapping[str, tuple[Scalar, ...]] | None = None
    ) -> list[tuple[Case, Block]]:
        """Every case of a profile with the block that declares its passes and implementations.

        A case of two blocks comes twice: what is asked of it is asked by either.

        `overrides` maps parameter names to the values to use instead. RangeError on an unknown profile or parameter.
        """
        if profile not in PROFILES:
            raise RangeError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
        blocks = self.profiles.get(profile, ())
        for name in overrides or {}:
            known = sorted({axis for block in blocks for axis in block.axes})
            if blocks and name not in known:
                raise RangeError(f"{self.name} has no parameter {name!r}; it has {', '.join(known)}")
        return [(case, block) for block in blocks for case in block.cases(self.name, overrides)]


def fitting(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The names that a pattern fits, in the order of the patterns: `weight`, or `parameters.*` as in a shell."""
    known = tuple(names)
    return tuple(dict.fromkeys(name for pattern in patterns for name in known if fnmatchcase(name, pattern)))


def with_seed(case: Case, seed: int) -> Case:
    """The same case with another seed."""
    return replace(case, seed=seed)
