"""InternVL in transformers' own classes: find the layer whose attention hurts a task.

python examples/vlm_adapters/internvl.py --benchmark scienceqa --task maps --shots 15

What is special about this family:

- Checkpoints whose names end in "-hf" or "-HF" load as they are: InternVL3, InternVL3.5, and InternVL2.5 with MPO. The
  paper's InternVL2-26B and -40B are not among them: see internvl2_remote.py.
- An image is cut into square tiles of 448 pixels by the grid that fits its shape, and a small version of the whole is
  added. Each costs 256 tokens. `max_tiles` limits the grid; 1 means the whole image in one tile, and nothing else.
  VLMEvalKit takes 6 for InternVL2, and 12 for MMMU, which is the limit in the checkpoints.
- (`crop_to_patches=False` in the image processor's settings does nothing: the processor switches cropping on in every
  call. `max_tiles=1` is the way to do without.)
- The processor needs torchvision, for its part that reads videos, even where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import layersurgery as ls

if __package__:
    from examples.vlm_adapters import _common
else:  # run as a script
    import _common

OFFICIAL_ID = "OpenGVLab/InternVL3-8B-hf"
VLMEVALKIT_TILES = 6


def load(
    model_id: str = OFFICIAL_ID, *, dtype: Any = "auto", device_map: Any = None, max_tiles: int | None = None
) -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor.

    Args:
        model_id: hub id or local folder.
        dtype: torch dtype or its name; "auto": as stored.
        device_map: as in transformers; None: the GPU if there is one. "auto" spreads a large model over several.
        max_tiles: most tiles of an image, the small version of the whole aside; None: the checkpoint's own limit.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_id)
    if max_tiles is not None:
        processor.image_processor.max_patches = max_tiles
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, device_map=device_map)
    return _common.place(model, device_map), processor


def main(arguments: Sequence[str] | None = None) -> ls.Finding:
    """Search on the task that the options name."""
    parser = _common.parser(__doc__, OFFICIAL_ID)
    parser.add_argument(
        "--max-tiles", type=int, metavar="N", help=f"most tiles of an image (VLMEvalKit: {VLMEVALKIT_TILES})"
    )
    options = parser.parse_args(arguments)
    samples = _common.samples(options)
    model, processor = load(
        options.model, dtype=options.dtype, device_map=options.device_map, max_tiles=options.max_tiles
    )
    return _common.talo(model, _common.scorer(model, processor, options), samples, options)


if __name__ == "__main__":
    main()
