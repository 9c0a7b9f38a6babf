"""Stored text does not act where it is shown: not on a terminal, not in Markdown, and it stays one cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_records as synthetic

from spectralbench import alert, history, report
from spectralbench.text import cell, code, lined_up, printable, table

HOSTILE = "\x1b]0;owned\x07<script>alert(1)</script>|a\\|b\n# no title ![x](http://t/p.png) `c` \u202e\x9b31m"


def test_a_terminal_gets_no_control_codes() -> None:
    assert printable("plain µ → text") == "plain µ → text"
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m\nb"
    assert printable("\u202e\x9b\x00\r") == "\\u202e\\x9b\\x00\\r"


@pytest.mark.parametrize("text", [HOSTILE, "\\|", "\\\\|", "a|b", "<", "](", ">"])
def test_a_cell_stays_one_cell_without_html_or_links(text: str) -> None:
    shown = cell(text)
    assert not set("<\n\r\x1b\x07") & set(shown) and "](" not in shown
    escaped, ends = False, 0
    for letter in shown:
        ends += letter == "|" and not escaped
        escaped = letter == "\\" and not escaped
    assert ends == 0 and not shown.startswith(">")


def test_a_code_span_cannot_be_left() -> None:
    assert code("a`b\n\x1bc") == "`a'b \\x1bc`"


def test_nothing_of_a_stored_text_acts_in_a_page(tmp_path: Path) -> None:
    failed = synthetic.record(None, status="failed", failure="error", reason=HOSTILE)
    facts = synthetic.environment(cpu=HOSTILE, torch=HOSTILE)
    path = synthetic.write(tmp_path, "a", facts, [failed, synthetic.record({"device_time": 1.0})])
    with path.open("a") as file:
        file.write('{"schema":1,"kind":"<script>|\\u001b"}\n')
    pages = [report.write(tmp_path, tmp_path).read_text(), alert.to_markdown(alert.judge(history.load(tmp_path)))]
    for page in pages:
        assert "<script" not in page and "\x1b" not in page and "](http" not in page and "\x9b" not in page
        assert all(not line.startswith("# no title") for line in page.splitlines())


def test_a_table_stands_on_a_page_and_in_a_terminal() -> None:
    rows = [("one", "1"), ("", "22")]
    assert list(table(("name", "n"), rows, {1})) == ["| name | n |", "|---|---:|", "| one | 1 |", "|  | 22 |"]
    assert list(lined_up(("name", "n"), rows)) == ["| name | n  |", "|------|----|", "| one  | 1  |", "|      | 22 |"]
    assert list(lined_up(("a", "long head"), [("x|y", "1\n2")]))[2] == "| x/y | 1 2       |"
    assert list(table(("name",), [])) == ["| name |", "|---|"]
    with pytest.raises(ValueError, match="zip"):
        list(lined_up(("name", "n"), [("alone",)]))


def test_a_table_gives_a_line_as_soon_as_its_row_is_there() -> None:
    def rows() -> Iterator[tuple[str]]:
        yield ("first",)
        raise RuntimeError("not yet")

    lines = table(("name",), rows())
    assert [next(lines) for _ in range(3)][-1] == "| first |"
