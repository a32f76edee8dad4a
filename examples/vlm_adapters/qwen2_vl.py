"""Qwen2-VL: find the layer whose attention hurts a task.

python examples/vlm_adapters/qwen2_vl.py --benchmark scienceqa --task maps --shots 15

What is special about this family:

- An image keeps its shape and costs one token per 28 x 28 pixels, after it was resized to between `min_pixels` and
  `max_pixels`. This is the setting that counts: accuracies with other sizes are other accuracies. The checkpoint allows
  up to 16,384 tokens an image, and every harness has its own numbers (`SIZES`).
- The processor needs torchvision, for its part that reads videos, even where there is none.
- The chat template puts "You are a helpful assistant." in front. All harnesses leave it there.
- VLMEvalKit samples its answers, at so low a temperature that it is greedy decoding in effect. Here it is greedy.
- Its tokenizer pads on the right. The scorers pad by themselves, on the left where text is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import layersurgery as ls

if __package__:
    from examples.vlm_adapters import _common
else:  # run as a script
    import _common

OFFICIAL_ID = "Qwen/Qwen2-VL-2B-Instruct"
TOKEN = 28 * 28
"""Pixels behind one token."""

SIZES = {
    "vlmevalkit": (1280 * TOKEN, 16384 * TOKEN),
    "lmms-eval": (4 * TOKEN, 768 * TOKEN),
    "transformers": (4 * TOKEN, 1280 * TOKEN),
}
"""Smallest and largest number of pixels of an image. The first is the paper's harness, the last needs no checkpoint."""


def load(
    model_id: str = OFFICIAL_ID,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor.

    Args:
        model_id: hub id or local folder.
        dtype: torch dtype or its name; "auto": as stored.
        device_map: as in transformers; None: the GPU if there is one.
        min_pixels: smaller images are enlarged to this; None: the checkpoint's own.
        max_pixels: larger images are made smaller than this; None: the checkpoint's own.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_id)
    images = processor.image_processor
    smallest, largest = min_pixels or images.size["shortest_edge"], max_pixels or images.size["longest_edge"]
    images.size = {"shortest_edge": smallest, "longest_edge": largest}  # the names are historical: they are pixels
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, device_map=device_map)
    return _common.place(model, device_map), processor


def main(arguments: Sequence[str] | None = None) -> ls.Finding:
    """Search on the task that the options name."""
    parser = _common.parser(__doc__, OFFICIAL_ID)
    parser.add_argument("--size", choices=SIZES, help="image sizes of a harness; left out: the checkpoint's own")
    parser.add_argument("--min-pixels", type=int, metavar="N", help="smallest image, in place of that of --size")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="largest image, in place of that of --size")
    options = parser.parse_args(arguments)
    smallest, largest = SIZES.get(options.size, (None, None))
    samples = _common.samples(options)
    model, processor = load(
        options.model,
        dtype=options.dtype,
        device_map=options.device_map,
        min_pixels=options.min_pixels or smallest,
        max_pixels=options.max_pixels or largest,
    )
    return _common.talo(model, _common.scorer(model, processor, options), samples, options)


if __name__ == "__main__":
    main()
