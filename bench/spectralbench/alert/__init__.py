"""Judge the newest commit of every series against its own past, and find where its level last changed.

Every machine is judged by itself. A time is judged as log(subject / control), process by process: `control` says what
a sitting did to everybody. `evidence` searches the whole series for its last change and takes the noise from all of the
machine, or assumes heavy noise where there is too little; `judging` keeps the false discovery rate of a machine at 1 %
and asks for a change beyond the practical percent of `rules`. Exact metrics (bytes, fractions) have no noise:
one earlier point is enough. "Not shown to differ" is not "same": a change over the practical percent that the noise
could explain is CANNOT TELL. How often all this is wrong is measured by `python -m spectralbench.simulate`.
"""

from spectralbench.alert.code import explain, findings
from spectralbench.alert.exports import to_github, to_junit
from spectralbench.alert.finding import Finding, Verdict, exit_code
from spectralbench.alert.judging import judge
from spectralbench.alert.rules import RULES, Override, Rule, configured, parse
from spectralbench.alert.words import to_json, to_markdown, to_terminal

__all__ = (
    "RULES", "Finding", "Override", "Rule", "Verdict", "configured", "exit_code", "explain", "findings", "judge",
    "parse", "to_github", "to_json", "to_junit", "to_markdown", "to_terminal",
)  # fmt: skip
