"""`PromptTemplate`: how a sample is put into words, piece by piece, and the wordings of the harnesses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from layersurgery._toml import read_toml
from layersurgery.errors import ScoringError
from layersurgery.scoring._fingerprint import digest
from layersurgery.scoring._prompts import Message, Picture
from layersurgery.tasks import KINDS, LETTERS, Sample

BY_LETTER = "Answer with the option's letter from the given choices directly."

_IMAGES = ("before", "numbered", "interleave")
_STRIPS = ("right", "both", "none")
_PIECES = frozenset(
    {"hint", "question", "unit", "options", "option", "images", "strip"}
    | {f"{place}_{kind}{decimals}" for place in ("start", "end") for kind in KINDS for decimals in ("", "_1", "_2")}
    | {f"end_{kind}_chinese" for kind in KINDS}
)
_PLACEHOLDER = re.compile(r"<image ?(\d+)>")
_CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True)
class PromptTemplate:
    r"""A way of asking a question: pieces of text that are put together, each only where there is something to say.

    In this order: `start_<kind>`, `hint`, `question`, `unit`, `options` (a heading), `option` (once for each), and
    `end_<kind>`; `<kind>` is the sample's, "open" standing in for other kinds without options. `_1` or `_2` after it
    is for answers with this many decimals, `_chinese` for a text with Chinese characters before it. Pieces may hold
    {question}, {hint}, {unit}, {letter}, {option} and {meta[...]}.

    Args:
        name: what it is called in records and fingerprints.
        pieces: the pieces. Two are settings: `images`, which is "before" (all images first; the default), "numbered"
            (the same, several of them announced as Image-1, ...) or "interleave" (each where the text says
            `<image 1>`, as often as it does; those that it does not name come first); and `strip`, which is "right"
            (the default), "both" or "none".

    Raises:
        ScoringError: for an unknown piece or setting. Calling the template raises it for a field that is not there.

    Examples:
        >>> ask = PromptTemplate("short", {"question": "{question}", "option": "\n{letter}) {option}"})
        >>> ask(Sample("q1", "Which colour is the sky?", ("red", "blue"), 1))
        'Which colour is the sky?\nA) red\nB) blue'
    """

    name: str
    pieces: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        for piece, text in self.pieces.items():
            if piece not in _PIECES:
                near = difflib.get_close_matches(piece, _PIECES, 3)
                hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
                raise ScoringError(
                    f"prompt template {self.name!r}: there is no piece {piece!r}; {hint}Pieces: "
                    f"{', '.join(sorted(_PIECES))}"
                )
            if not isinstance(text, str):
                raise ScoringError(f"prompt template {self.name!r}: {piece} is {text!r}; give a text")
        for piece, allowed in (("images", _IMAGES), ("strip", _STRIPS)):
            if self.pieces.get(piece, allowed[0]) not in allowed:
                raise ScoringError(
                    f"prompt template {self.name!r}: {piece} is {self.pieces[piece]!r}; give one of "
                    f"{', '.join(allowed)}"
                )
        object.__setattr__(self, "pieces", MappingProxyType(dict(self.pieces)))

    def __call__(self, sample: Sample) -> Message:
        """The user's message for `sample`.

        Raises:
            ScoringError: if a piece asks for a field that the sample does not have.
        """
        text = self._text(sample)
        way = self.pieces.get("images", "before")
        if not sample.images or way == "before":
            return text
        if way == "numbered":
            return text if len(sample.images) == 1 else tuple(_numbered(sample, text))
        return tuple(_interleaved(sample, text))

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptTemplate, (self.name, dict(self.pieces))

    @cached_property
    def fingerprint(self) -> str:
        """A string that changes with the wording."""
        return f"{self.name}#{digest(repr(sorted(self.pieces.items())))}"

    def _text(self, sample: Sample) -> str:
        parts = [self._find("start", sample)]
        parts += ["hint"] if sample.hint else []
        parts += ["question"]
        parts += ["unit"] if sample.unit else []
        text = "".join(self._fill(part, sample) for part in parts)
        if sample.options:
            text += self._fill("options", sample)
            for letter, option in zip(LETTERS, sample.options, strict=False):
                text += self._fill("option", sample, letter=letter, option=option)
        end = self._find("end", sample)
        chinese = f"end_{sample.kind}_chinese"
        text += self._fill(chinese if chinese in self.pieces and _CHINESE.search(text) else end, sample)
        strip = self.pieces.get("strip", "right")
        return text.strip() if strip == "both" else text.rstrip() if strip == "right" else text

    def _find(self, place: str, sample: Sample) -> str:
        kind = f"{place}_{sample.kind}"
        exact = f"{kind}_{sample.precision}"
        if exact in self.pieces:
            return exact
        return kind if kind in self.pieces or sample.kind == "mcq" else f"{place}_open"

    def _fill(self, piece: str, sample: Sample, **fields: str) -> str:
        try:
            return self.pieces.get(piece, "").format(
                question=sample.question, hint=sample.hint, unit=sample.unit, meta=sample.meta, **fields
            )
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ScoringError(
                f"prompt template {self.name!r}, piece {piece!r}: {self.pieces[piece]!r} cannot be filled in for "
                f"sample {sample.id!r} ({type(error).__name__}: {error}); fields are question, hint, unit, letter, "
                "option and meta[...]"
            ) from error


PLAIN = PromptTemplate(
    "plain",
    {
        "hint": "{hint}\n",
        "question": "{question}",
        "unit": " (unit: {unit})",
        "option": "\n{letter}. {option}",
        "end_mcq": f"\n{BY_LETTER}",
        "end_integer": "\nAnswer the question using a single whole number.",
        "end_float": "\nAnswer the question using a single number.",
        "end_float_1": "\nAnswer the question using a single number with one decimal place.",
        "end_float_2": "\nAnswer the question using a single number with two decimal places.",
        "end_list": "\nAnswer the question using a list such as [1, 2, 3].",
        "end_open": "\nAnswer the question using a single word or phrase.",
    },
)
"""What the scorers ask with by default."""

BY_TEXT = PromptTemplate(
    "plain-by-text",
    {**PLAIN.pieces, "end_mcq": "\nAnswer with the option's text from the given choices directly."},
)
"""What the scorers ask with by default where the options' texts are the candidates."""


def prompt_template(
    style: str, *, family: str = "default", overrides: Mapping[str, Mapping[str, str]] | None = None
) -> PromptTemplate:
    """The wording of a harness for a family of models.

    A harness asks the same question in other words depending on the model, so both count.

    Args:
        style: "plain" (the same for every model), or a harness: "vlmevalkit" (the paper's [A]), "lmms-eval".
        family: what the harness calls a kind of model; `model_family` finds it. One that it has no words of its own
            for is asked as "default" is.
        overrides: a benchmark's own pieces, by family (`Benchmark.prompts[style]`).

    Raises:
        ScoringError: for an unknown style, or a piece that is none.

    Examples:
        >>> sample = Sample("q1", "Which colour is the sky?", ("red", "blue"), 1, hint="Look up.")
        >>> print(prompt_template("vlmevalkit", family="qwen2_vl")(sample))
        Hint: Look up.
        Question: Which colour is the sky?
        Options:
        A. red
        B. blue
        Please select the correct answer from the options above.
    """
    styles: Mapping[str, Mapping[str, Mapping[str, str]]] = {"plain": {"default": PLAIN.pieces}, **_book()["styles"]}
    if style not in styles:
        near = difflib.get_close_matches(str(style), styles, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ScoringError(f"there is no prompt style {style!r}; {hint}Give one of {', '.join(styles)}")
    own = overrides or {}
    pieces: dict[str, str] = {}
    for layer in (styles[style], own):
        for name in dict.fromkeys(("default", family)):
            pieces.update(layer.get(name, {}))
    known = family in styles[style] or family in own
    return PromptTemplate(f"{style}/{family if known else 'default'}", pieces)


def prompt_styles() -> tuple[str, ...]:
    """The styles that `prompt_template` knows.

    Examples:
        >>> prompt_styles()
        ('plain', 'vlmevalkit', 'lmms-eval')
    """
    return ("plain", *_book()["styles"])


def model_family(model: Any) -> str:
    """What harnesses call the kind of a model, by the `model_type` of its configuration; "default" for most.

    Args:
        model: a Hugging Face model.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model_family(GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1)))
        'default'
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return next((family for family, kinds in _book()["families"].items() if kind in kinds), "default")


def _book() -> dict[str, Any]:
    return read_toml("prompts")


def _numbered(sample: Sample, text: str) -> Iterator[str | Picture]:
    for number in range(len(sample.images)):
        yield f"Image-{number + 1}: "
        yield Picture(number)  # and a new line, which the chat templates of models that are asked so put after it
    yield text


def _interleaved(sample: Sample, text: str) -> Iterator[str | Picture]:
    pieces = _PLACEHOLDER.split(text)  # text, number, text, number, ..., text
    named = {int(number) for number in pieces[1::2]}
    yield from (Picture(number) for number in range(len(sample.images)) if number + 1 not in named)
    for position, piece in enumerate(pieces):
        if position % 2 == 0:
            if piece:
                yield piece
        elif 1 <= int(piece) <= len(sample.images):
            yield Picture(int(piece) - 1)
        else:
            raise ScoringError(
                f"sample {sample.id!r} speaks of <image {piece}>, but has {len(sample.images)} image(s); use a "
                'template with images = "before", or give it all of its images'
            )
