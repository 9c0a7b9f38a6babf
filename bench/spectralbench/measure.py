"""The measuring core: one case, all its implementations, one outcome each. Every front end calls `measure_case`.

    gate -> time -> gate again -> memory and the rest, in passes of their own

The gate comes first: an answer outside the tolerance is Failed and has no time. Survivors are timed interleaved, round
by round in a shuffled order, so that a slow minute of the machine hits all of them alike and ratios hold. Meanwhile the
inputs change in place from round to round, and answers at random rounds, the last of all and more must pass the gate
again, because some faults need many calls (see `referee`). Memory is never taken from a timing pass.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar, get_args

import torch

from spectralbench import at_work, calls, switches
from spectralbench.ceilings import Ceilings, impossible, launch_bound, usual_ceilings
from spectralbench.clock import Clock, clock_for
from spectralbench.collector import short_collections
from spectralbench.during import Facts, watch
from spectralbench.environment import measuring_flags
from spectralbench.exchange import Exchange
from spectralbench.failures import failure
from spectralbench.metrics import Metric, Trial, Unavailable, load_metrics
from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped
from spectralbench.referee import Ended, Referee
from spectralbench.timing import Budget, time_interleaved, unknown
from spectralkernels.declare import Case, Implementation, Operation, Pass
from spectralkernels.errors import RangeError, Unsupported
from spectralkernels.launch import interpreted
from spectralkernels.tuning import noted_choices

T = TypeVar("T")

INTERPRETED = "Triton runs under its interpreter here: the answer was checked and is right, and it is never timed"
TIME = "device_time"


def measure_case(
    operation: Operation,
    case: Case,
    implementations: Sequence[str],
    *,
    device: str = "cpu",
    pass_: Pass = "forward",
    metrics: Sequence[str] | None = None,
    clock: Clock | None = None,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    ceilings: Ceilings | None = None,
) -> dict[str, Outcome]:
    """Check, time and weigh implementations of one case on the same inputs, in one state.

    clock: default is the device's own with its usual cache, and then its ceilings are measured, once in a process, as
    `spectralbench run` does. ceilings: what the device can do at most; a time below that floor is refused.
    For the rest see `measure_states`.
    """
    usual = clock is None and ceilings is None and (device != "cuda" or torch.cuda.is_available())
    if usual and TIME in {metric.name for metric in _chosen(metrics, device)}:
        clock, ceilings = clock_for(device), _usual_ceilings(clock_for, device)
    options: Any = {"device": device, "pass_": pass_, "metrics": metrics, "budget": budget}
    return measure_states(operation, case, implementations, [(clock, ceilings)], **options)[0]


@cache
def _usual_ceilings(make: Callable[[str], Clock], device: str) -> Ceilings | None:
    return usual_ceilings(make(device), device)


Timer = tuple[Clock | None, Ceilings | None]
"""A clock, by default the device's own, and what the device can do at most by that clock."""


def measure_states(
    operation: Operation,
    case: Case,
    implementations: Sequence[str],
    timers: Sequence[Timer],
    *,
    device: str = "cpu",
    pass_: Pass = "forward",
    metrics: Sequence[str] | None = None,
    budget: Budget = Budget(),  # noqa: B008 - frozen
) -> list[dict[str, Outcome]]:
    """Check implementations of one case once, then time and weigh them by each of the clocks.

    implementations: names, of rivals too; their order is the order of the result. metrics: names, default all of the
    device; without `device_time` nothing is timed. budget: of each clock.
    Returns: by clock, an outcome per name; one implementation that fails loses nothing of the others.
    `Measured.unavailable` holds the reason of every metric that is missing, "launch_bound" if the time is close to an
    empty launch, "launch_gaps" if the device had to wait for the host, "precision" if the budget's target was missed.
    Raises: RangeError on an unknown implementation, metric, pass or device.
    """
    if pass_ not in get_args(Pass):
        raise RangeError(f"unknown pass {pass_!r}; known: {', '.join(get_args(Pass))}")
    wanted = {name: operation.subject(name) for name in implementations}
    chosen = _chosen(metrics, device)
    if device == "cuda" and not torch.cuda.is_available():
        return [{name: Skipped("torch finds no CUDA device") for name in wanted} for _ in timers]
    forget_compilations()
    race = _Race(operation, case, device, pass_, chosen, timers, budget)
    with measuring_flags(), torch.set_grad_enabled(pass_ != "forward"), short_collections():
        try:
            race.measure(wanted)
        except _ProcessSpoiledError as spoiled:
            left = Failed("crash", f"not measured: {spoiled}; measure it again in a new process", innocent=True)
            for outcomes in race.by_timer:
                for name in wanted:
                    outcomes.setdefault(name, spoiled.outcome if name == spoiled.culprit else left)
    return [{name: outcomes[name] for name in wanted} for outcomes in race.by_timer]


def forget_compilations() -> None:
    """Let every case compile for its own shapes, whatever ran in this process before it.

    Left alone, torch.compile turns to dynamic shapes at the second case and, silently, to eager at the ninth.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


class _ProcessSpoiledError(Exception):
    """An implementation broke the CUDA context or torch's allocator; nothing more can be measured in this process."""

    def __init__(self, culprit: str, outcome: Outcome, unfit: str) -> None:
        super().__init__(f"{culprit} left {unfit}")
        self.culprit, self.outcome = culprit, outcome


def rightful(
    operation: Operation, case: Case, implementations: Sequence[str], *, device: str, pass_: Pass
) -> tuple[dict[str, calls.Bound], dict[str, Outcome]]:
    """Those whose answer is right, ready to be called, and what became of the others: the gate without a clock.

    Whoever calls them does so within `measuring_flags`, with gradients on where the pass has some.
    Raises: RangeError on an unknown implementation.
    """
    race = _Race(operation, case, device, pass_, (), ((None, None),), Budget())
    racing = race.answered({name: operation.subject(name) for name in implementations})
    return {bound.run.name: bound for bound, _ in racing}, race.outcomes


class _Race:
    """One case on its way to outcomes: `by_timer` fills as implementations drop out or arrive.

    `outcomes`, `clock` and `ceilings` are those of the timer whose turn it is.
    """

    def __init__(
        self,
        operation: Operation,
        case: Case,
        device: str,
        pass_: Pass,
        metrics: Sequence[Metric],
        timers: Sequence[Timer],
        budget: Budget,
    ) -> None:
        self.operation = operation
        self.case = case
        self.device = device
        self.pass_: Pass = pass_
        self.metrics = metrics
        self.timers = [(clock or clock_for(device), ceilings) for clock, ceilings in timers]
        self.clock, self.ceilings = self.timers[0]
        self.budget = budget
        self.outcomes: dict[str, Outcome] = {}
        self.by_timer: list[dict[str, Outcome]] = [self.outcomes, *({} for _ in timers[1:])]
        self.tiles: dict[str, Mapping[str, Mapping[str, int | str]]] = {}
        self.during: Facts = {}
        self.ideal: Callable[[], torch.Tensor | None] = lambda: None

    def answered(self, wanted: Mapping[str, Implementation]) -> list[tuple[calls.Bound, calls.Question]]:
        """Those who can run here and whose answer is right."""
        able = [found for name, found in wanted.items() if self._guard(name, partial(self._available, found))]
        return list(self._gated(able)) if able else []

    def measure(self, wanted: Mapping[str, Implementation]) -> None:
        racing = self.answered(wanted)
        for outcomes in self.by_timer[1:]:
            outcomes.update(self.outcomes)
        for timer, outcomes in zip(self.timers, self.by_timer, strict=True):
            (self.clock, self.ceilings), self.outcomes = timer, outcomes
            self._timed([(bound, question) for bound, question in racing if bound.run.name not in self.outcomes])

    def _timed(self, racing: Sequence[tuple[calls.Bound, calls.Question]]) -> None:
        """Time and weigh what passed the gate, by the timer whose turn it is."""
        times: dict[str, tuple[float, ...]] = {}
        if any(metric.name == TIME for metric in self.metrics):
            runs = [bound.run for bound, _ in racing]
            referee = Referee({bound.run.name: (question, bound) for bound, question in racing})
            seed, watched = self.case.seed, watch(self.device)
            times = time_interleaved(runs, self.clock, self.budget, seed, self._step, referee, watched)
            self.during = watched.facts()
            # Not in a `finally`: what ends a race ends its case, and a lost device cannot be written to.
            referee.leave()
        for bound, question in racing:
            name = bound.run.name
            if name in self.outcomes:
                continue
            trial = self._guard(name, partial(self._tried, question, bound, times.get(name, ())))
            # Only the trial still needs the answer, and those after it need the memory.
            bound.run.latest = None
            if trial is not None:
                measured = self._guard(name, partial(self._weighed, bound, trial))
                if measured is not None:
                    self.outcomes[name] = measured

    def _gated(self, able: Sequence[Implementation]) -> Iterator[tuple[calls.Bound, calls.Question]]:
        """The implementations whose answer is right, bound to the question they answered."""
        first = able[0].name
        inputs = self._guard(first, lambda: self.operation.make_inputs(self.case, self.device), of_all=True)
        if inputs is None:
            # Without inputs every implementation has the same outcome.
            self.outcomes.update({implementation.name: self.outcomes[first] for implementation in able})
            return
        self.ideal = cache(lambda: self._uncompressed(inputs))
        draw = partial(Exchange.drawn, self.operation, self.case, inputs, self.device, self.pass_)
        exchange = self._guard(first, draw, of_all=True)
        if exchange is None:
            self.outcomes.update({implementation.name: self.outcomes[first] for implementation in able})
            return
        questions: dict[Callable[..., Any], calls.Question | Outcome] = {}
        for implementation in able:
            name = implementation.name
            reference = self._guard(name, partial(self.operation.reference_of, implementation))
            if reference is None:
                continue
            if reference not in questions:
                asked = (self.operation, self.case, self.device, self.pass_, inputs)
                ask = partial(calls.ask, *asked, reference=reference, exchange=exchange)
                questions[reference] = self._guard(name, ask, of_all=True) or self.outcomes[name]
            question = questions[reference]
            if isinstance(question, calls.Question):
                bound = self._guard(name, partial(self._right, question, implementation))
                if bound is not None:
                    yield bound, question
            else:
                self.outcomes[name] = question

    def _uncompressed(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        if self.operation.ideal is None:
            return None
        with torch.no_grad():
            return calls.truth(self.operation, inputs, self.operation.ideal)

    def _guard(self, name: str, step: Callable[[], T], of_all: bool = False) -> T | None:
        """The value of a step of one implementation; None if the step ended in an outcome, which is then noted.

        of_all: whether it is a step that all of them need, so that none is blamed if it never ends.

        Whoever leaves a process-wide switch moved is wrong, and the next one finds it where it was.
        """
        before = switches.positions()
        if not of_all:
            at_work.begin(name)
        try:
            try:
                value = step()
            finally:
                moved = switches.restore(before)
            if moved is not None:
                raise Ended(Failed("wrong", f"it changed {moved} for the whole process, and left it so"))
            if self.device == "cuda":
                torch.cuda.synchronize()
            return value
        except Ended as ended:
            self.outcomes[name] = ended.outcome
        except Unsupported as error:
            self.outcomes[name] = Skipped(str(error))
            if getattr(self.clock, "damaged", False):
                unfit = "the process unfit for another CUDA graph"
                raise _ProcessSpoiledError(name, self.outcomes[name], unfit) from error
        except Exception as error:
            if self.device == "cuda" and not _device_answers():
                crash = Failed("crash", f"{type(error).__name__}: {error}")
                raise _ProcessSpoiledError(name, crash, "the CUDA device unusable") from error
            self.outcomes[name] = failure(error)
        finally:
            at_work.end()
        return None

    def _step(self, run: calls.Run, step: Callable[[], float]) -> float | None:
        return self._guard(run.name, step)

    def _available(self, implementation: Implementation) -> bool:
        reason = implementation.available(self.device)
        if reason is not None:
            raise Unsupported(reason)
        return True

    def _right(self, question: calls.Question, implementation: Implementation) -> calls.Bound:
        try:
            with noted_choices() as choices:
                bound = calls.bind(question, implementation)
                wrong = calls.verify(question, bound)
            self.tiles[implementation.name] = {label: choice.recorded for label, choice in choices.items()}
        finally:
            question.exchange.written()
        if wrong is not None:
            raise Ended(Failed("wrong", wrong))
        if _needs_interpreter(implementation):
            raise Unsupported(INTERPRETED)
        return bound

    def _tried(self, question: calls.Question, bound: calls.Bound, times: tuple[float, ...]) -> Trial:
        given = calls.answer(question, bound)
        return Trial(
            operation=self.operation,
            case=self.case,
            implementation=bound.implementation,
            device=self.device,
            pass_=self.pass_,
            inputs=question.inputs,
            run=bound.run.call,
            forward=bound.forward,
            output=given.output,
            dense=given.dense.detach(),
            expected=question.expected.output,
            ideal=self.ideal,
            times=times,
        )

    def _weighed(self, bound: calls.Bound, trial: Trial) -> Measured:
        measurements, unavailable = [], []
        for metric in self.metrics:
            try:
                samples = tuple(float(sample) for sample in metric.sample(trial))
            except (Unavailable, Unsupported) as error:
                unavailable.append((metric.name, str(error)))
                continue
            if not samples or not all(map(math.isfinite, samples)):
                raise ValueError(f"the metric {metric.name} must give finite numbers, got {list(samples)}")
            measurements.append(Measurement(metric.name, metric.version, metric.unit, samples))
            if metric.name == TIME:
                unavailable.extend(self._believed(bound, samples))
        return Measured(tuple(measurements), tuple(unavailable), self.tiles.get(bound.run.name, {}), self.during)

    def _believed(self, bound: calls.Bound, samples: tuple[float, ...]) -> Iterator[tuple[str, str]]:
        """Remarks on a time; a time that cannot be true ends in Failed."""
        seconds = statistics.median(samples)
        wrong = impossible(seconds, self.operation.cost(self.case), self.ceilings, self.clock.cache, self.pass_)
        if wrong is not None:
            raise Ended(Failed("wrong", wrong))
        launches = launch_bound(seconds, self.ceilings)
        if launches is not None:
            yield "launch_bound", launches
        if self.clock.exposed(bound.run):
            yield "launch_gaps", "the call waits for the device, so its time contains gaps in which the device was idle"
        if slow := self.during.get("slowed"):
            verb = "thrown away" if self.during["thrown"] else "kept, for there were too few others"
            yield "throttled", f"heat or power slowed the machine in {slow} of {self.during['rounds']} rounds: {verb}"
        missed = unknown(samples, self.budget.target)
        if missed is not None:
            yield "precision", f"{missed}, after {len(samples)} samples"


def _chosen(names: Sequence[str] | None, device: str) -> list[Metric]:
    known = load_metrics()
    for name in names or ():
        if name not in known:
            raise RangeError(f"unknown metric {name!r}; known: {', '.join(known)}")
    if names is None:
        return [metric for metric in known.values() if device in metric.devices]
    return [known[name] for name in names]


def _needs_interpreter(implementation: Implementation) -> bool:
    """Whether its kernels are Triton's and the interpreter is on: without the interpreter no CPU would run it."""
    if not interpreted() or implementation.available("cpu") is not None:
        return False
    with _compiled_triton():
        return implementation.available("cpu") is not None


@contextmanager
def _compiled_triton() -> Iterator[None]:
    before = os.environ.pop("TRITON_INTERPRET")
    try:
        yield
    finally:
        os.environ["TRITON_INTERPRET"] = before


def _device_answers() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
