"""What a run says while it goes on."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """One line of talk."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
