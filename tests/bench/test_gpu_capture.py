"""On a CUDA device: every implementation in a CUDA graph, replayed with new inputs, gives the answer to the new inputs.

What cannot be captured must say so; our kernels all can.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spectralbench import calls
from spectralbench.clock import capture
from spectralbench.environment import measuring_flags
from spectralkernels.declare import Case, Implementation, Operation, Pass, with_seed
from spectralkernels.errors import Unsupported
from spectralkernels.ops import load_operations

pytestmark = pytest.mark.cuda


def subjects() -> list[Any]:
    """One small case per implementation and pass: the first that its smoke profile declares for it."""
    found = {}
    for operation in load_operations().values():
        for case, block in operation.cases("smoke"):
            for subject in operation.subjects:
                for pass_ in block.passes:
                    if block.implementations is None or subject.name in block.implementations:
                        key = f"{operation.name}-{subject.name}-{pass_}"
                        found.setdefault(key, pytest.param(operation, case, subject, pass_, id=key))
    return list(found.values())


@pytest.mark.parametrize(("operation", "case", "subject", "pass_"), subjects())
def test_a_replay_answers_the_inputs_of_now(
    operation: Operation, case: Case, subject: Implementation, pass_: Pass, seed: int
) -> None:
    reason = subject.available("cuda")
    if reason is not None:
        pytest.skip(reason)
    reference = operation.reference_of(subject)
    inputs = operation.make_inputs(with_seed(case, seed), "cuda")
    with measuring_flags(), torch.set_grad_enabled(pass_ != "forward"):
        try:
            question = calls.ask(operation, case, "cuda", pass_, inputs, reference=reference)
            bound = calls.bind(question, subject)
            assert calls.verify(question, bound) is None
            graph = capture(bound.run, lambda: [bound.run() for _ in range(2)], torch.cuda.Stream())
        except Unsupported as error:
            # Only what waits for the host may refuse a capture, and no kernel of ours waits.
            assert subject.role != "kernel" or "captured" not in str(error)
            pytest.skip(str(error))
        moved = move(question, bound, operation.make_inputs(with_seed(case, seed + 1), "cuda"))
        graph.replay()
        torch.cuda.synchronize()
        again = calls.ask(operation, case, "cuda", pass_, {**inputs, **moved}, reference=reference)
        assert calls.fault(again, bound) is None


def move(question: calls.Question, bound: calls.Bound, fresh: dict[str, Any]) -> dict[str, Tensor]:
    """Write fresh values into the inputs that a replay reads: those handed on as they are, and those differentiated.

    Returns: these inputs. What `prepare` has copied once, outside the graph, stays.
    """
    handed_on = bound.keep[len(question.inputs) :]
    read = {value.data_ptr() for value in handed_on if isinstance(value, Tensor) and value.layout == torch.strided}
    moved = {}
    for name, value in question.inputs.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        differentiated = question.pass_ != "forward" and name in question.names(bound.implementation)
        if (differentiated or value.data_ptr() in read) and value.shape == fresh[name].shape:
            with torch.no_grad():
                value.copy_(fresh[name])
            moved[name] = value
    return moved
