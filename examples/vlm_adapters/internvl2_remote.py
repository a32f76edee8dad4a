"""InternVL2 with the code from its own repository: find the layer whose attention hurts a task.

python examples/vlm_adapters/internvl2_remote.py --model OpenGVLab/InternVL2-40B --task maps --shots 15

The paper's InternVL2-26B and -40B have no class in transformers. Their model and tokenizer are Python files in the
checkpoint (`trust_remote_code=True` runs them: read them first). There is no processor, so the ready scorers have
nothing to work with. What there is, is `model.chat(tokenizer, pixel_values, question, ...)`. A scorer is any function
of a model and samples, so `ChatScorer` below is all that is needed. It is also the pattern for other models of this
kind.

Tested: this file, on a tiny model with the same interface, and the cutting of images on real pictures. Not tested: the
official checkpoints. Their code was written for transformers 4 (4.37 to about 4.45) and is reported to fail with 5,
which layersurgery asks for. All that is used here also ran with 4.45.2, on the tiny model and by hand. To try that, in
an environment of its own, after layersurgery was installed:

pip install --no-deps transformers==4.45.2 tokenizers==0.20.3 huggingface_hub==0.25.2

For 26B (InternLM2), the sites should be `language_model.model.layers.N.attention`, for 40B (Llama)
`language_model.model.layers.N.self_attn`: look at `print(ls.select(model))` before you trust a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import layersurgery as ls
from layersurgery.scoring import Picture, judge, prompt_template
from layersurgery.tasks import Sample

if __package__:
    from examples.vlm_adapters import _common
else:  # run as a script
    import _common

OFFICIAL_ID = "OpenGVLab/InternVL2-26B"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the model was trained


def load(model_id: str = OFFICIAL_ID, *, dtype: Any = "bfloat16", device_map: Any = None) -> tuple[Any, Any]:
    """The model in evaluation mode, and its tokenizer. Runs the code that is in the checkpoint."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=True, use_fast=False)
    settings = {"torch_dtype": dtype, "device_map": device_map}  # the name that transformers 4 knows, too
    model = AutoModel.from_pretrained(model_id, trust_remote_code=True, **settings)
    return _common.place(model, device_map), tokenizer


class ChatScorer:
    """Lets the model answer through its own `chat`, one sample at a time, and reads the answer.

    Args:
        tokenizer: the checkpoint's.
        prompt: from a sample to the message; VLMEvalKit's for this family if left out.
        extract: the rule that reads answers, see `layersurgery.scoring.judge`.
        max_new_tokens: length limit of an answer.
        max_tiles: most tiles of an image (VLMEvalKit: 6; 12 for MMMU).
    """

    batch_size = 1

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Any = None,
        extract: str = "letters-v1",
        max_new_tokens: int = 16,
        max_tiles: int = 6,
    ) -> None:
        self.tokenizer, self.extract, self.max_tiles = tokenizer, extract, max_tiles
        self.prompt = prompt or prompt_template("vlmevalkit", family="internvl")
        self.generation = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}

    def __call__(self, model: Any, samples: Sequence[Sample]) -> ls.Scores:
        """A sample is right where it and all of its variants are."""
        texts, correct, answered = [], [], []
        for sample in samples:
            ways = (sample, *sample.variants)
            replies = [self._ask(model, way) for way in ways]
            judged = [judge(reply, way, self.extract) for reply, way in zip(replies, ways, strict=True)]
            texts.append("\n".join(replies))
            correct.append(float(all(one.correct for one in judged)))
            answered.append(all(one.answer is not None for one in judged))
        return ls.Scores(correct, text=texts, answered=answered)  # pyright: ignore[reportArgumentType]

    def _ask(self, model: Any, sample: Sample) -> str:
        question, shown = message(self.prompt(sample), len(sample.images))
        size = model.config.force_image_size or model.config.vision_config.image_size
        pictures = [pixels(opened(sample.images[index]), self.max_tiles, size) for index in shown]
        stacked = torch.cat(pictures).to(model.device, model.dtype) if pictures else None
        with torch.no_grad():
            return model.chat(
                self.tokenizer,
                stacked,
                question,
                dict(self.generation),  # `chat` writes into it
                num_patches_list=[len(tiles) for tiles in pictures],
            ).strip()


def message(parts: Any, images: int) -> tuple[str, list[int]]:
    """A message as `chat` wants it: one text, "<image>" where an image stands, and which images those are."""
    if isinstance(parts, str):
        return "<image>\n" * images + parts, list(range(images))
    # The chat templates of other models write the line break after an image; here there is none.
    text = "".join("<image>\n" if isinstance(part, Picture) else part for part in parts)
    return text, [part.index for part in parts if isinstance(part, Picture)]


def opened(image: Any) -> Image.Image:
    """A sample's image, which may be a path."""
    return (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")


def pixels(image: Image.Image, max_tiles: int = 6, size: int = 448) -> torch.Tensor:
    """The image as the model was trained to see it: tiles of the grid nearest to its shape, then the whole.

    Args:
        image: in RGB.
        max_tiles: most tiles, the whole aside.
        size: of a tile, in pixels.

    Returns:
        [tiles, 3, size, size], normalised. A single tile is the whole already.
    """
    columns, rows = grid(image.width, image.height, max_tiles, size)
    resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((left, top, left + size, top + size)) for left, top in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
    values = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def grid(width: int, height: int, max_tiles: int, size: int) -> tuple[int, int]:
    """Columns and rows of the grid nearest to the image's shape; of two equally near the largest that it half fills."""
    sides = range(1, max_tiles + 1)
    grids = sorted(((c, r) for c in sides for r in sides if c * r <= max_tiles), key=lambda grid: grid[0] * grid[1])
    best, smallest = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        fills = width * height > 0.5 * columns * rows * size**2
        if difference < smallest or (difference == smallest and fills):
            best, smallest = (columns, rows), difference
    return best


def main(arguments: Sequence[str] | None = None) -> ls.Finding:
    """Search on the task that the options name."""
    parser = _common.parser(__doc__, OFFICIAL_ID)
    parser.set_defaults(scorer="generate", dtype="bfloat16")
    parser.add_argument("--max-tiles", type=int, default=6, metavar="N", help="most tiles of an image (%(default)s)")
    options = parser.parse_args(arguments)
    if options.scorer != "generate":
        parser.error("--scorer choices needs a processor, which this checkpoint does not have; leave it out")
    samples = _common.samples(options)
    model, tokenizer = load(options.model, dtype=options.dtype, device_map=options.device_map)
    prompt = _common.prompt(model, options)
    score = ChatScorer(tokenizer, prompt=prompt, max_tiles=options.max_tiles, **_common.reading(options))
    return _common.talo(model, score, samples, options)


if __name__ == "__main__":
    main()
