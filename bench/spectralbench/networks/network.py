"""What is declared of a network: how it is built, for what input, and where its form is stated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the papers as a workload.

    input: of one example, (channel, length) or (channel, height, width). classes: length of its answer.
    build: makes it with torch's layers and fresh weights from torch's random numbers.
    source: the paper or code that states this form.
    """

    name: str
    summary: str
    source: str
    input: tuple[int, ...]
    classes: int
    build: Callable[[], nn.Module]


def with_he_weights(model: nn.Module) -> nn.Module:
    """The same model, its convolutions drawn with He's variance, so that maps keep their size through the layers."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
