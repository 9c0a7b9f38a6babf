"""In which order the commits of a history follow each other: along git's first parents, never by a clock.

A commit's place is its place on the first-parent line of HEAD. So a commit that is measured late stands where it
belongs, a clock that is a year ahead moves nothing, and what a side branch measured is no baseline of the main one.
Commits that git knows but that are not on the line (side branches, merged or not; what a rebase has left behind; what
comes after HEAD) and commits that it does not know are set aside, and said. A shallow clone knows too little for that:
what it does not know comes before what it knows, by the clock. Without git the clock is all there is, and that is said.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spectralbench import checkout

_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
SHOWN = 3

Place = tuple[int, int, str]
"""Sorts points, oldest first: whether git places it, where, and within one commit when it was measured."""


@dataclass(frozen=True, slots=True)
class Order:
    """places: commit -> its place on the line, 0 is the first commit. aside: commits that have none there.

    by_clock: git orders nothing. notes: what a reader must know, in words.
    """

    by_clock: bool = True
    places: Mapping[str, int] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def place(self, commit: str | None, recorded_at: str) -> Place | None:
        """Where a point stands; None if it is set aside."""
        if self.by_clock:
            return 0, 0, recorded_at
        if commit is None or commit in self.aside:
            return None
        if commit not in self.places:
            return 0, 0, recorded_at
        return 1, self.places[commit], recorded_at


def order(roots: Sequence[Path], commits: Collection[str]) -> Order:
    """The order of `commits` in the first of the repositories around `roots` that knows any of them."""
    if not commits:
        return Order()
    reasons: list[str] = []
    for root in roots:
        try:
            line = checkout.git(root, "rev-list", "--first-parent", "--reverse", "HEAD").decode().split()
            places = {commit: place for place, commit in enumerate(line) if commit in commits}
            rest = [commit for commit in commits if commit not in places]
            known = _known(root, rest)
            shallow = checkout.is_shallow(root)
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(_why(error))
            continue
        if places or known:
            unknown = [] if shallow else [commit for commit in rest if commit not in known]
            notes = _notes(known, unknown, len(rest) - len(known) if shallow else 0)
            return Order(False, places, frozenset((*known, *unknown)), notes)
        reasons.append(f"the repository around {root} knows none of them")
    return Order(notes=(f"commits are ordered by the time of their measurement: {reasons[0]}",) if reasons else ())


def after(roots: Sequence[Path], old: str, new: str) -> list[str] | None:
    """The commits after `old` up to `new`, oldest first, on the first-parent line of `new`.

    Of the first of the repositories around `roots` that knows both; None where none does.
    """
    for root in roots:
        try:
            told = checkout.git(
                root, "rev-list", "--first-parent", "--reverse", "--end-of-options", f"{old}..{new}", "--"
            )
            return told.decode().split()
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _known(root: Path, commits: Sequence[str]) -> list[str]:
    """Those that are commits of the repository; a name that is no hash may be a branch, and is none."""
    hashes = [commit for commit in commits if _HASH.fullmatch(commit)]
    said = checkout.git(root, "cat-file", "--batch-check", given="".join(f"{one}\n" for one in hashes).encode())
    kinds = [line.split()[1:2] for line in said.decode().splitlines()]
    return [commit for commit, kind in zip(hashes, kinds, strict=True) if kind == ["commit"]]


def _notes(off: Sequence[str], unknown: Sequence[str], before: int) -> tuple[str, ...]:
    notes = []
    if off:
        notes.append(
            f"set aside: {_some(off)} not on the first-parent line of HEAD (a branch, a rebase, or after HEAD)"
        )
    if unknown:
        notes.append(f"set aside: {_some(unknown)} not known to git here (another clone, or gone after a rebase)")
    if before:
        notes.append(
            f"the clone is shallow: {before} commits that it lacks are ordered by the clock, before all that it has; "
            "`git fetch --unshallow` gets them"
        )
    return tuple(notes)


def _some(commits: Sequence[str]) -> str:
    shown = ", ".join(commit[:8] for commit in sorted(commits)[:SHOWN])
    return f"{len(commits)} measured commits ({shown}{', ...' if len(commits) > SHOWN else ''})"


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "git is not installed"
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return said[0] if said else f"git exited with {error.returncode}"
    return f"git could not be run: {error}"
