"""What the tests of sweeps ask for, and what they read of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fake_operations import SOURCES

from spectralbench.record import Record, RecordFile, read_tree
from spectralbench.sweep import Request

ENVIRONMENT: dict[str, Any] = {"machine": "m", "commit": "abcdef1234567890", "dirty": None}
SMOKE = Request(profile="smoke", sources=SOURCES, timeout=60.0)


def request(*operations: str, **changes: Any) -> Request:
    return replace(SMOKE, operations=operations, **changes)


def files(results: Path) -> list[RecordFile]:
    return list(read_tree(results / "records"))


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    return {record.implementation: record for record in records}
