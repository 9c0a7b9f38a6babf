"""Findings for the machinery around a pull request: annotations of GitHub Actions, and JUnit's XML."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as xml

from spectralbench.alert.finding import Finding, Verdict
from spectralbench.alert.words import BETTER, headline, reason, title, worst_first
from spectralbench.record import Damage
from spectralbench.text import printable

MOST = 10
"""Annotations of one level that GitHub shows of a step."""


def to_github(findings: Sequence[Finding], doubtful: Sequence[Damage] = (), scope: str = "") -> str:
    """The headline, then one workflow command a finding: worse is an error, better a notice; MOST of each at most."""
    lines = [headline(findings, doubtful, scope)]
    lines += [_command("error", "damaged results", str(damage)) for damage in doubtful[:MOST]]
    worse = worst_first(found for found in findings if found.worse)
    better = worst_first(found for found in findings if found.verdict in BETTER and not found.worse)
    for level, told in (("error", worse), ("notice", better)):
        lines += [_command(level, title(found), reason(found)) for found in told[:MOST]]
        if len(told) > MOST:
            lines.append(f"  and {len(told) - MOST} more; `spectralbench alert --all` shows everything")
    return "\n".join(lines)


def to_junit(findings: Sequence[Finding], doubtful: Sequence[Damage] = ()) -> str:
    """One test case a series: worse and damaged results fail, what cannot be judged is skipped, with its reason."""
    suite = xml.Element("testsuite", name="spectralbench alert")
    for damage in doubtful:
        case = xml.SubElement(suite, "testcase", classname="results", name=printable(damage.path.name))
        xml.SubElement(case, "failure", message=_legal(str(damage)))
    for found in findings:
        subject = found.key.subject
        classname = _legal(f"{subject.machine}.{subject.operation}.{found.key.metric}")
        case = xml.SubElement(suite, "testcase", classname=classname, name=_legal(str(found.key)))
        if found.worse:
            xml.SubElement(case, "failure", message=_legal(title(found))).text = _legal(reason(found))
        elif found.verdict in (Verdict.CANNOT_TELL, Verdict.NO_DATA):
            xml.SubElement(case, "skipped", message=_legal(f"{found.verdict.value}: {reason(found)}"))
    counted = {tag: str(sum(1 for _ in suite.iter(tag))) for tag in ("failure", "skipped", "testcase")}
    suite.attrib.update(tests=counted["testcase"], failures=counted["failure"], errors="0", skipped=counted["skipped"])
    root = xml.Element("testsuites")
    root.append(suite)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _command(level: str, what: str, why: str) -> str:
    """`::error title=...::...`, escaped as the runner's toolkit does."""
    name = _escaped(what).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{_escaped(why)}"


def _escaped(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _legal(text: str) -> str:
    """What XML can hold: no control characters, no halves of surrogates."""
    return printable(text).encode("utf-8", "backslashreplace").decode()
