"""Two input sets that take turns in the same memory.

A remembered answer, cloned or not, keyed on pointer and version or not, is right for one set only. So the contents of
the inputs are exchanged in place, without a trace in torch's version counter, and both answers are checked. The kept
copies also tell, bit by bit, whether an implementation has written to an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spectralbench.answers import overlaps, tensors_in
from spectralkernels.declare import Case, Operation, Pass, fitting, with_seed

Side = Literal[0, 1]
SIDES: tuple[Side, Side] = (0, 1)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Memory that an implementation reads, and what belongs there on either side."""

    name: str
    live: Tensor
    contents: tuple[Tensor, Tensor]

    def put(self, side: Side) -> None:
        # Not `live.copy_`: that would raise the version, by which a remembered answer could be told from a fresh one.
        self.live.detach().data.copy_(self.contents[side])


class Exchange:
    """The inputs of a case and a second set for the same memory.

    inputs: the operation's keywords; their tensors hold the set of `side`, at first 0. others: of side 1, by name; what
    is not there stays.
    """

    def __init__(self, inputs: dict[str, Any], others: Mapping[str, Tensor]) -> None:
        self.inputs = inputs
        self.side: Side = 0
        self._slots = [
            _slot(name, tensor, others.get(name, tensor))
            for name, value in inputs.items()
            for tensor in tensors_in(value)
        ]
        self._moving = [slot for slot in self._slots if slot.contents[0] is not slot.contents[1]]

    @classmethod
    def drawn(cls, operation: Operation, case: Case, inputs: dict[str, Any], device: str, pass_: Pass) -> Exchange:
        """With a second set of the next seed in the place of what the operation differentiates.

        Where that draw also changes anything else (a threshold that was put in a gap between magnitudes, a mask made
        for these maps), the second set is the first with the sign of one input turned instead: decisions about
        magnitudes then stay as they are. In a backward pass inputs stay, because the kept forward has saved them.
        """
        return cls(inputs, {} if pass_ == "backward" else _second_set(operation, case, inputs, device))

    def put(self, side: Side) -> None:
        """Put the contents of `side` into the memory of the inputs and of everything added to them."""
        if side != self.side:
            self.side = side
            for slot in self._moving:
                slot.put(side)

    def add(self, name: str, live: object, other: object) -> None:
        """Exchange the tensors inside `live` as well, which hold the contents of side 0, with those inside `other`.

        Where they hold the same, or are the same memory, there is nothing to do.
        Raises: ValueError if they differ in more than values.
        """
        here, there = list(tensors_in(live)), list(tensors_in(other))
        if [(tensor.shape, tensor.dtype) for tensor in here] != [(tensor.shape, tensor.dtype) for tensor in there]:
            raise ValueError(f"{name} has other shapes or dtypes for other values of the same inputs")
        for mine, its in zip(here, there, strict=True):
            if mine.data_ptr() != its.data_ptr() and not _same_bits(mine, its):
                slot = _slot(name, mine, its)
                slot.put(self.side)
                self._moving.append(slot)

    def written(self) -> list[str]:
        """Names of the inputs that do not hold what belongs there on this side; they are put right."""
        wrong = [slot for slot in self._slots if not _same_bits(slot.live, slot.contents[self.side])]
        for slot in wrong:
            slot.put(self.side)
        return list(dict.fromkeys(slot.name for slot in wrong))


def _slot(name: str, live: Tensor, other: Tensor) -> _Slot:
    first = live.detach().clone()
    return _Slot(name, live, (first, first if other is live else other.detach().to(live.device)))


def _second_set(operation: Operation, case: Case, inputs: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    candidates = fitting(inputs, operation.gradients) or tuple(inputs)
    moving = [name for name in candidates if _exchangeable(inputs.get(name))]
    drawn = operation.make_inputs(with_seed(case, case.seed + 1), device)
    alike = all(_alike(inputs[name], drawn[name]) for name in inputs if name not in moving)
    if alike and all(drawn[name].shape == inputs[name].shape for name in moving):
        return {name: drawn[name] for name in moving}
    return {name: -inputs[name].detach() for name in moving[:1]}


def _exchangeable(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or overlaps(value):
        return False
    return value.is_floating_point() or value.is_complex()


def _alike(one: object, other: object) -> bool:
    """Whether two inputs are the same; of packed ones every tensor counts."""
    first, second = list(tensors_in(one)), list(tensors_in(other))
    if not first and not second:
        return bool(one == other)
    return len(first) == len(second) and all(map(_same_bits, first, second))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Exact equality, of NaN too and of the signs of zeros."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
