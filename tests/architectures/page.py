"""docs/architectures.md, written from the bench's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.architectures.check import known_gaps
from tests.architectures.exceptions import NOT_BUILT
from tests.architectures.rows import COLUMNS, Row

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
COMMAND = "python -m tests.architectures.bench --markdown"

GROUPS = {
    "vlm": "Image-text-to-text models",
    "causal": "Causal language models",
    "other": "Encoders, encoder-decoders, vision and audio models",
}
SIGNS = {"yes": "✓", "NO": "**NO**", "-": "-"}


def page(rows: Sequence[Row]) -> str:
    """The page, ready to be written."""
    return "\n".join([*_head(rows), *_tables(rows), *_reasons(rows), *_not_there()]) + "\n"


def _head(rows: Sequence[Row]) -> Iterator[str]:
    import torch
    import transformers

    yield f"""<!-- Written by `{COMMAND}`; do not edit. -->
# Architectures

This page is written by `{COMMAND}`, with transformers {transformers.__version__} and torch
{torch.__version__.split("+")[0]}. `make bench` runs the same checks, and each landing has to pass them.

There is no list of architectures in this library. To see whether it needs one, the bench builds a tiny model with
random weights of **{len(rows)} classes of transformers** - every class of its image-text-to-text and causal-LM mappings
that can be built, and some encoders, vision and audio models - and asks the same of each. What selection should find
was written down by reading each source. What a surgery should do is computed on a copy whose weights are changed by
hand, without this library.
"""
    yield "| question | yes | no | - | |\n|---|--:|--:|--:|---|"
    for title, meaning in COLUMNS.items():
        counts = Counter(row.cells[title].answer for row in rows)
        yield f"| {title} | {counts['yes']} | {counts['NO']} | {counts['-']} | {_cell(meaning)} |"
    yield "\n✓ yes; - does not apply, for the reason given below; other words are a yes that is said more exactly.\n"


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for group, heading in GROUPS.items():
        here = [row for row in rows if row.name.startswith(f"{group}/")]
        yield f"## {heading}\n"
        yield f"| model | class | {' | '.join(COLUMNS)} |\n|---|---|{':-:|' * len(COLUMNS)}"
        for row in here:
            signs = (
                _cell(cell.why) if cell.answer == "yes" and cell.why else SIGNS[cell.answer]
                for cell in row.cells.values()
            )
            yield f"| {row.name.split('/', 1)[1]} | {row.made_for} | {' | '.join(signs)} |"
        yield ""


def _reasons(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Where the answer is no\n"
    wrong = [(row, title) for row in rows for title, cell in row.cells.items() if cell.answer == "NO"]
    yield from _list(f"**{row.name}**, {title}: {row.cells[title].why}" for row, title in wrong)
    yield "\n## Why a question does not apply\n"
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for title, cell in row.cells.items():
            if cell.answer == "-":
                reasons.setdefault((title, cell.why), []).append(row.name.split("/", 1)[1])
    yield from _list(f"**{title}** - {why}: {', '.join(names)}" for (title, why), names in reasons.items())


def _not_there() -> Iterator[str]:
    yield "\n## What is left out, and what is known to be wrong\n"
    yield from _list(
        [
            *(f"**{name}** cannot be built: {why}" for name, why in NOT_BUILT.items()),
            *(f"**{name}**, {role} sites: {why}" for (name, role), why in known_gaps().items()),
        ]
    )


def _list(entries: Iterable[str]) -> list[str]:
    return [f"- {' '.join(_plain(entry).split())}" for entry in entries] or ["Nowhere."]


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """Messages of models' own errors may hold what markdown would take for a tag."""
    return text.replace("<", "&lt;")
