"""The documentation holds: its Python runs, its commands exist, and the reference leaves nothing public out."""

from __future__ import annotations

import importlib
import re
import typing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import layersurgery
from layersurgery.interventions import _base

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
ROOMS = [page.stem for page in (ROOT / "docs" / "reference").glob("*.md")]

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    page: Path
    line: int  # of its first line of code
    words: frozenset[str]
    code: str

    @property
    def is_python(self):
        return "python" in self.words

    @property
    def runs(self):
        return self.is_python and "no-run" not in self.words


def code_blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        words = frozenset(word.lstrip(".") for word in match["info"].replace("{", " ").replace("}", " ").split())
        yield CodeBlock(page, line, words, match["code"])


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def as_it_was(tmp_path, monkeypatch):
    """Pages write files, register interventions and seed torch; other tests must not notice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(_base, "_registry", dict(_base._registry))
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs for b in code_blocks(page))], ids=name_of)
def test_the_pages_code_runs_and_prints_what_the_page_says(page, as_it_was, tmp_path, capsys):
    """As one program, in a file with the page's line numbers: failures point there, and nnsight reads its callers."""
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in code_blocks(page):
        if block.runs:
            code = block.code.splitlines()
            end = block.line - 1 + len(code)
            lines[block.line - 1 : end] = code
            lines[end] = f"print('{_END}{block.line}')"  # where the page closes the block
    program = tmp_path / f"{page.stem}.md.py"
    program.write_text("\n".join(lines), encoding="utf-8")
    exec(
        compile(program.read_text(encoding="utf-8"), str(program), "exec", dont_inherit=True),
        {"__name__": "docs_page"},
    )
    printed = dict(_printed(capsys.readouterr().out))
    for block, after in pairwise(code_blocks(page)):
        said = printed.get(block.line, "")
        follows = after.line == block.line + block.code.count("\n") + 3  # with an empty line between them
        if said.strip() and follows and after.words == {"text"}:
            assert _without_times(said) == _without_times(after.code), f"{name_of(page)}, line {after.line}"


_END = "end of block "


def _printed(output):
    """The first line of each block, and what it printed."""
    *blocks, _ = re.split(rf"(?<={_END})(\d+)\n", output)
    for text, line in zip(blocks[::2], blocks[1::2], strict=True):
        yield int(line), text.removesuffix(_END)


def _without_times(text):
    """Words only: how long something took moves the ends of lines as well."""
    return re.sub(r"\b[\d.]+ (s|min)\b", "some time", " ".join(text.split()))


def test_code_that_does_not_run_is_rare_and_says_why():
    blocks = [block for page in PAGES for block in code_blocks(page) if block.is_python]
    idle = [block for block in blocks if not block.runs]
    assert len(blocks) > 20
    assert len(idle) <= 4
    for block in idle:
        compile(block.code, str(block.page), "exec")
        assert block.code.startswith("# not run here: "), f"{name_of(block.page)}, line {block.line}"


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        (name_of(page), target)
        for page in PAGES
        for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert {target for _, target in named} >= {"demo", "test"}
    assert not {(page, target) for page, target in named if target not in targets}


def test_every_make_target_is_explained():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target}:.* ## \S", makefile, re.MULTILINE), target


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_names_everything_public(room):
    text = (ROOT / "docs" / "reference" / f"{room}.md").read_text(encoding="utf-8")
    assert f"::: layersurgery.{room}\n" in text
    module = importlib.import_module(f"layersurgery.{room}")
    public = [name for name in getattr(module, "__all__", []) if not isinstance(getattr(module, name), str)]
    listed = re.findall(r"^        - (\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(public)


def test_every_room_of_the_library_has_a_reference_page():
    assert {layersurgery._ROOMS[name] for name in layersurgery._ROOMS} <= set(ROOMS)


def test_everything_public_is_documented():
    for room in ROOMS:
        module = importlib.import_module(f"layersurgery.{room}")
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if callable(value) and typing.get_origin(value) is None:  # an alias of a type has no docstring
                assert (value.__doc__ or "").strip(), f"layersurgery.{room}.{name}"
