"""What `impl="auto"` took in every case that was measured: asked by `choices`, which has torch.

results/choices/<machine>.json      [{"operation", "case", "dtype", "pass", "chosen", "because", "for"}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

Question = tuple[str, str, str, str]
"""operation, case, dtype, pass"""

Answer = tuple[str, str, str]
"""implementation, reason, what auto looked for: time or memory"""

FIELDS = ("operation", "case", "dtype", "pass", "chosen", "because", "for")


def write(results: Path, machine: str, answers: Mapping[Question, Answer]) -> Path:
    """Store what auto takes by question and return the file."""
    path = results / "choices" / f"{machine}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(FIELDS, (*question, *answer), strict=True)) for question, answer in sorted(answers.items())]
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return path


def read(results: Path, machine: str) -> dict[Question, Answer]:
    """What auto takes by question; empty if it was never asked on that machine.

    Raises: ValueError naming the file if it is not what `write` writes.
    """
    path = results / "choices" / f"{machine}.json"
    if not path.is_file():
        return {}
    try:
        return {_question(row): _answer(row) for row in _rows(json.loads(path.read_text(encoding="utf-8")))}
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); write it again with `spectralbench choices`") from None


def _rows(found: object) -> Iterable[Mapping[str, object]]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise TypeError("expected a list of objects")
    return found


def _question(row: Mapping[str, object]) -> Question:
    operation, case, dtype, pass_ = (str(row[name]) for name in FIELDS[:4])
    return operation, case, dtype, pass_


def _answer(row: Mapping[str, object]) -> Answer:
    return str(row["chosen"]), str(row["because"]), str(row.get("for", "time"))
