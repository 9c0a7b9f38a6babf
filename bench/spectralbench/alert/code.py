"""What the code did where a time changed: nothing, or other machine code; asked of git and the stored fingerprints.

If kernels and harness are the same files on both sides of a change, the code did not make it: the host did. If the
fingerprints that are kept in git differ, the kernels and their instructions are named. A commit that git does not know
here, or a tree with uncommitted changes, says nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spectralbench import checkout
from spectralbench.alert.finding import Finding, Verdict
from spectralbench.alert.judging import judge
from spectralbench.alert.rules import Override
from spectralbench.fingerprint import compare, stored
from spectralbench.history import History

MEASURED = ("kernels", "bench")
FINGERPRINTS = "results/fingerprints"
NAMED = 2
TIMES = ("second", "joule")


@dataclass(slots=True)
class _Repository:
    """What git says of commits, each asked once."""

    root: Path
    trees: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    words: dict[tuple[str, str], str] = field(default_factory=dict)

    def code(self, commit: str) -> tuple[str, ...] | None:
        """The hashes of all that is measured and measures; None if git does not know them."""
        if commit not in self.trees:
            try:
                asked = (f"{commit}:{folder}" for folder in MEASURED)
                self.trees[commit] = tuple(_git(self.root, "rev-parse", "--verify", one).strip() for one in asked)
            except (OSError, subprocess.SubprocessError):
                self.trees[commit] = None
        return self.trees[commit]

    def machine_code(self, old: str, new: str) -> str:
        """How the stored fingerprints of two known commits differ, in words."""
        if (old, new) not in self.words:
            listed = _git(self.root, "diff", "--name-only", "--no-renames", old, new, "--", f":(top){FINGERPRINTS}")
            names = listed.splitlines()
            sides = [
                {
                    one.identity: one
                    for name in _git(
                        self.root, "ls-tree", "--full-tree", "-r", "--name-only", commit, "--", *names
                    ).splitlines()
                    for one in stored.parse(_git(self.root, "show", f"{commit}:{name}"), f"{name} at {commit}")
                }
                if names
                else {}
                for commit in (old, new)
            ]
            kernels = {one.kernel for one in sides[0].values()}
            changes = [one for one in compare.compare(sides[0], sides[1].values(), kernels) if one.verdict != "same"]
            self.words[old, new] = _words(changes)
        return self.words[old, new]


def findings(
    history: History, roots: Sequence[Path], *, overrides: Sequence[Override] = (), since: Collection[str] | None = None
) -> list[Finding]:
    """What `spectralbench alert` says: every series judged (see `judge`), then what the code says (see `explain`)."""
    return explain(judge(history, overrides=overrides, since=since), roots)


def explain(findings: Iterable[Finding], roots: Sequence[Path]) -> list[Finding]:
    """The findings, with what the code says of every changed time in its reason.

    A time that changed while its code and its environment did not is CANNOT TELL: the host's. The commit of a change is
    known to within one, so two points on either side must agree in their code. roots: folders in the repository.

    Raises: ValueError if a committed file of fingerprints is damaged.
    """
    repositories = [_Repository(root) for root in roots]
    return [_explained(found, repositories) for found in findings]


def _explained(found: Finding, repositories: Sequence[_Repository]) -> Finding:
    changed = found.verdict in (Verdict.SLOWER, Verdict.FASTER, Verdict.LESS_EXACT)
    if not changed or found.key.unit not in TIMES or not (found.since and found.changed_at):
        return found
    for repository in repositories:
        trees = [repository.code(mark) for mark in found.around]
        old, new = repository.code(found.since), repository.code(found.changed_at)
        if old is None or new is None:
            continue
        if len(set(trees)) == 1:
            why = "host, not code: kernels and harness are the same files on both sides in the same environment"
            return replace(found, verdict=Verdict.CANNOT_TELL, reason=f"{why}; {found.reason}", unexpected=False)
        words = repository.machine_code(found.since, found.changed_at)
        if not words:
            kernels = "no kernel's source and" if old[0] == new[0] else "sources did, but"
            words = f"{kernels} no stored fingerprint changed"
        return replace(found, reason=f"{found.reason}; {words}")
    return found


def _words(changes: Sequence[compare.Change]) -> str:
    """The kernels whose machine code changed, worst first, with what grew."""
    if not changes:
        return ""
    by_kernel: dict[str, list[compare.Change]] = {}
    for one in sorted(changes, key=lambda one: (one.verdict != "worse", one.kernel, one.launch, one.capability)):
        by_kernel.setdefault(one.kernel, []).append(one)
    told = [
        f"{kernel} in {len(found)} (sm_{found[0].capability}, {found[0].launch}: {found[0].words})"
        for kernel, found in list(by_kernel.items())[:NAMED]
    ]
    more = f" and {len(by_kernel) - NAMED} more kernels" if len(by_kernel) > NAMED else ""
    return f"machine code changed: {', '.join(told)}{more}"


def _git(root: Path, *arguments: str) -> str:
    return checkout.git(root, *arguments).decode()
