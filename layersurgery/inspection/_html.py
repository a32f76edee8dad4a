"""An anatomy as a fragment of HTML that brings its own style along, for notebooks and reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from layersurgery.inspection import _fold
from layersurgery.inspection._anatomy import Anatomy, LayerPart, TowerPart
from layersurgery.sites import HAZARDS

# Colours are the page's own, made fainter, so that the fragment suits a light page and a dark one.
_STYLE = """
.layersurgery { font: 13px/1.5 system-ui, sans-serif; max-width: 70em; color: inherit; }
.layersurgery details { margin: .15em 0 .15em .2em; padding-left: .9em; border-left: 1px solid rgba(128,128,128,.35); }
.layersurgery summary { cursor: pointer; }
.layersurgery table { border-collapse: collapse; margin: .3em 0 .6em; font-size: inherit; background: none; }
.layersurgery tr { background: none !important; }
.layersurgery th, .layersurgery td { padding: .1em 1em .1em 0; text-align: left; vertical-align: baseline;
  border: 0; border-bottom: 1px solid rgba(128,128,128,.25); color: inherit; background: none; }
.layersurgery th { font-weight: 600; opacity: .7; }
.layersurgery .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.layersurgery code { font: 12px ui-monospace, monospace; background: none; color: inherit; padding: 0; }
.layersurgery .h { border: 1px solid rgba(200,120,0,.8); border-radius: .6em; padding: 0 .5em; margin-right: .3em;
  font-size: 11px; white-space: nowrap; }
.layersurgery .r { color: #d33; }
.layersurgery .f { opacity: .7; }
.layersurgery p { margin: .3em 0; }
"""
_NUMBER = ' class="n"'


def as_html(anatomy: Anatomy) -> str:
    """The fragment."""
    refused = list(anatomy.refusals)
    pieces = [f"<p><b>{escape(_fold.heading(anatomy))}</b></p>"]
    pieces += [f"<p>{escape(remark)}</p>" for remark in _fold.remarks(anatomy)]
    pieces += [_tower(tower, anatomy, refused) for tower in anatomy.towers]
    if anatomy.elsewhere:
        pieces.append(_elsewhere(anatomy))
    pieces.append(_legend(anatomy))
    return f'<div class="layersurgery"><style>{_STYLE}</style>{"".join(pieces)}</div>'


def _tower(tower: TowerPart, anatomy: Anatomy, refused: Sequence[str]) -> str:
    runs = _fold.runs(tower)
    inner = "".join(
        _unfolding(run.title, _sites(run.first, anatomy, refused), opened=tower.default and len(runs) <= 4)
        for run in runs
    )
    return _unfolding(_fold.tower_title(tower, anatomy.parameters), inner, opened=tower.default)


def _sites(layer: LayerPart, anatomy: Anatomy, refused: Sequence[str]) -> str:
    rows: list[list[str]] = []
    for part in layer.sites:
        hazards = "".join(
            f'<span class="h" title="{escape(HAZARDS[code])}">{escape(code)}</span>'
            for code in _fold.hazards(part.site, anatomy)
        )
        effect = escape(_fold.effect(part, refused))
        effect = f'<span class="r" title="{escape(part.refusal)}">{effect}</span>' if part.refusal else effect
        sizes = _sizes(part.site.parameters, anatomy.parameters)
        rows.append([_code(part.name), escape(part.site.kind), *sizes, effect, hazards])
    if layer.rest:
        rows.append(['<span class="f">the rest of it</span>', "", *_sizes(layer.rest, anatomy.parameters), "", ""])
    return _table(["site", "kind", "parameters", "share", "Zero() there", "hazards"], rows)


def _elsewhere(anatomy: Anatomy) -> str:
    rows: list[list[str]] = []
    for item in anatomy.elsewhere:
        path = _code(item.path) if item.path else "the model itself"
        sizes = _sizes(item.parameters, anatomy.parameters)
        rows.append([path, escape(item.module), *sizes, escape(_fold.ties(item))])
    table = _table(["module", "class", "parameters", "share", ""], rows)
    return _unfolding(_fold.elsewhere_title(anatomy), table, opened=not anatomy.towers)


def _legend(anatomy: Anatomy) -> str:
    hazards = [f"<b>{escape(code)}</b>: {escape(HAZARDS[code])}" for code in _fold.legend(anatomy)]
    reasons = [f'<span class="r">({at})</span> {escape(text)}' for at, text in enumerate(anatomy.refusals.values(), 1)]
    return "".join(f'<p class="f">{line}</p>' for line in (*hazards, *reasons))


def _unfolding(title: str, inner: str, opened: bool) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inner}</details>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already. Columns in which nothing stands are left out."""
    filled = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    lines = [_line("th", filled, titles), *(_line("td", filled, row) for row in rows)]
    return f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


def _line(tag: str, filled: Sequence[int], cells: Sequence[str]) -> str:
    numeric = (2, 3)  # parameters and share
    inner = "".join(f"<{tag}{_NUMBER if at in numeric else ''}>{cells[at]}</{tag}>" for at in filled)
    return f"<tr>{inner}</tr>"


def _sizes(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", escape(_fold.share(count, total))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
