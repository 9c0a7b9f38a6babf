"""A judged series: the verdict, the numbers behind it, and what a run of them exits with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from spectralbench.history import Key
from spectralbench.quantity import ratio_words
from spectralbench.record import Damage


class Verdict(Enum):
    """What the evidence says about one series; FASTER and SLOWER mean better and worse for every metric.

    LESS EXACT: faster, and at the same commit the error grew beyond `rules.LESS_EXACT` times: it bought the time.
    """

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    LESS_EXACT = "LESS EXACT"
    CANNOT_TELL = "CANNOT TELL"
    NO_DATA = "NO DATA"


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement of one series at its newest commit.

    old: median of the points before the change (None if there are none). new: None if there is no number. ratio: the
    later level over the earlier one, freed of what moved the controls; None where it does not exist. resolution: the
    smallest relative change of the newest point that would have been reported. since: the last commit before the
    change. changed_at: the commit that made it, None if nothing changed. commit: the newest one. earlier: number of
    points before the change. failed: it was measured before and fails, is skipped or is gone now. too_few: there are
    not enough points to judge it by. around: marks of the two points before and after the change. unexpected: it is
    better, where a rule says that nothing may change until the expectation is written anew. processes: of the newest
    point.
    """

    key: Key
    verdict: Verdict
    reason: str
    old: float | None
    new: float | None
    ratio: float | None
    commit: str | None
    since: str | None
    earlier: int
    resolution: float | None = None
    failed: bool = False
    changed_at: str | None = None
    too_few: bool = False
    around: tuple[str, ...] = ()
    unexpected: bool = False
    processes: int = 0

    @property
    def worse(self) -> bool:
        """Whether it makes a run exit with 1."""
        return self.verdict is Verdict.SLOWER or self.failed or self.unexpected

    @property
    def words(self) -> str:
        """The change for people: `1.22x slower`."""
        return "" if self.old is None or self.new is None else ratio_words(self.ratio, self.key.unit)


def exit_code(findings: Sequence[Finding], doubtful: Sequence[Damage] = ()) -> int:
    """0 fine, 1 a regression, a case that fails now or damage in the newest results, 3 too few points everywhere.

    (2 is the command line's: usage.) A change that the noise could explain was judged: it shows no regression.
    """
    if doubtful or any(finding.worse for finding in findings):
        return 1
    judged = any(finding.verdict is not Verdict.NO_DATA and not finding.too_few for finding in findings)
    return 0 if judged else 3
