"""docs/architectures.md lists what the bench has, so that it cannot grow stale unseen."""

from __future__ import annotations

import re

from tests.architectures.build import names
from tests.architectures.exceptions import NOT_BUILT
from tests.architectures.page import COMMAND, GROUPS, PAGE, page
from tests.architectures.rows import COLUMNS, Cell, Row


def test_the_page_lists_exactly_the_classes_of_the_bench():
    written = PAGE.read_text(encoding="utf-8")
    listed = {
        f"{group}/{model}": made_for
        for group, heading in GROUPS.items()
        for model, made_for in re.findall(r"^\| (\S+) \| (\w+) \| ✓", _section(written, heading), re.MULTILINE)
    }
    assert listed == names(), f"write the page anew: {COMMAND}"
    assert all(name in written for name in NOT_BUILT)


def test_the_page_answers_each_question_of_the_bench():
    head = PAGE.read_text(encoding="utf-8").split("## ", 1)[0]
    questions = re.findall(r"^\| ([a-z ]+) \| \d+ \| \d+ \| \d+ \|", head, re.MULTILINE)
    assert questions == list(COLUMNS), f"write the page anew: {COMMAND}"
    assert COMMAND in head


def test_a_row_is_shown_with_its_answers_and_their_reasons():
    cells = dict.fromkeys(COLUMNS, Cell("yes"))
    cells |= {"uniform": Cell("yes", "close"), "zero": Cell("NO", "off by <1> | 2"), "nested": Cell("-", "a reason")}
    written = page([Row("causal/gpt2", "GPT2LMHeadModel", cells, 0.1)])
    line = next(line for line in written.splitlines() if line.startswith("| gpt2 | GPT2LMHeadModel |"))
    assert [line.count(sign) for sign in ("✓", "close", "**NO**", "| - |")] == [len(COLUMNS) - 3, 1, 1, 1]
    assert "**causal/gpt2**, zero: off by &lt;1> | 2" in written
    assert "**nested** - a reason: gpt2" in written


def _section(written: str, heading: str) -> str:
    return written.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
