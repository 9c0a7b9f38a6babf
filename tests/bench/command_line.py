"""Words of the tests of the command line: its answers, and a machine's facts."""

from __future__ import annotations

from collections.abc import Callable

Answer = tuple[int, str, str]
Cli = Callable[..., Answer]
FACTS = {
    "machine": "cpu-test-2c",
    "os": "Linux 6.1.2-3",
    "cpu": "Test CPU",
    "cores": 2,
    "ram_bytes": 25276510208,
    "commit": "abcdef1234567890",
    "dirty": None,
}


def one_line(text: str) -> str:
    return " ".join(text.split())
