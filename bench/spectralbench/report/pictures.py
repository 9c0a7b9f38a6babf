"""The drawn figures of a machine with their findings, which each PNG file carries in itself."""

from __future__ import annotations

import struct
from pathlib import Path

from spectralbench.plot import FIGURES
from spectralbench.report.page import Figure

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"Description"
LEADING = ("speedup_map", "kernel_size_sweep")
"""What a reader comes for; the others follow in the order of their names."""


def pictures(folder: Path) -> list[Figure]:
    """Every PNG of a folder, leading figures first; the first of a family before those of its other settings."""
    order = {name: index for index, name in enumerate(dict.fromkeys((*LEADING, *FIGURES)))}

    def place(path: Path) -> tuple[int, tuple[str, str, str]]:
        parts = path.stem.partition("-")
        return order.get(parts[0], len(order)), parts

    found = sorted(folder.glob("*.png"), key=place)
    return [Figure(path, finding(path) or path.stem.replace("_", " ")) for path in found]


def finding(path: Path) -> str | None:
    """The sentence that was written into a PNG when it was drawn; None if there is none, or no PNG."""
    data = path.read_bytes()
    place = len(SIGNATURE)
    if not data.startswith(SIGNATURE):
        return None
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        if kind == b"tEXt" and body.startswith(KEYWORD + b"\0"):
            return body[len(KEYWORD) + 1 :].decode("latin-1")
        if kind == b"iTXt" and body.startswith(KEYWORD + b"\0\0\0"):
            return body[len(KEYWORD) + 3 :].split(b"\0", 2)[2].decode("utf-8", "replace")
        place += 12 + length
    return None
