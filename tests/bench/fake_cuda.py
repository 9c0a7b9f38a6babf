"""Stands for torch.cuda's memory where there is none."""

from __future__ import annotations

import pytest
import torch


class FakeAllocator:
    """torch.cuda's memory counters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000
        self.peak = 5000
        for name, value in {
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": self.reset,
            "memory_allocated": lambda: self.now,
            "memory_reserved": lambda: self.now,
            "max_memory_allocated": lambda: self.peak,
            "max_memory_reserved": lambda: self.peak,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def reset(self) -> None:
        self.peak = self.now

    def call(self) -> None:
        self.peak = max(self.peak, self.now + 300)
