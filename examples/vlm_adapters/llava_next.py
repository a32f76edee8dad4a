"""LLaVA-NeXT: find the layer whose attention hurts a task.

python examples/vlm_adapters/llava_next.py --benchmark scienceqa --task maps --shots 15

What is special about this family:

- An image is seen several times: once as a whole, and as square tiles of a larger version. Which grid of tiles is used
  depends on the image's shape ("pinpoints" in the checkpoint; 2 to 4 tiles in the official one). A tile costs up to 576
  tokens, so an image costs up to about 2,900. `max_tiles` leaves the larger grids out.
- The model counts tiles as well, by its own config. So both are changed, or neither.
- VLMEvalKit runs it in float16 with all grids. That is how the checkpoint is stored, and the default here.
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

OFFICIAL_ID = "llava-hf/llama3-llava-next-8b-hf"


def load(
    model_id: str = OFFICIAL_ID, *, dtype: Any = "auto", device_map: Any = None, max_tiles: int | None = None
) -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor.

    Args:
        model_id: hub id or local folder.
        dtype: torch dtype or its name; "auto": as stored.
        device_map: as in transformers; None: the GPU if there is one.
        max_tiles: use only grids of at most so many tiles; None: all grids of the checkpoint.

    Raises:
        ValueError: if no grid is as small as that.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_id)
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, device_map=device_map)
    if max_tiles is not None:
        side = model.config.vision_config.image_size
        grids = [[height, width] for height, width in model.config.image_grid_pinpoints]
        kept = [[height, width] for height, width in grids if height * width <= max_tiles * side**2]
        if not kept:
            raise ValueError(f"max_tiles={max_tiles} leaves none of the grids {grids} of {side}-pixel tiles; give more")
        processor.image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints = kept
    return _common.place(model, device_map), processor


def main(arguments: Sequence[str] | None = None) -> ls.Finding:
    """Search on the task that the options name."""
    parser = _common.parser(__doc__, OFFICIAL_ID)
    parser.add_argument("--max-tiles", type=int, metavar="N", help="leave out grids of more tiles; left out: none")
    options = parser.parse_args(arguments)
    samples = _common.samples(options)
    model, processor = load(
        options.model, dtype=options.dtype, device_map=options.device_map, max_tiles=options.max_tiles
    )
    return _common.talo(model, _common.scorer(model, processor, options), samples, options)


if __name__ == "__main__":
    main()
