"""A sample's images, opened when they are needed."""

from __future__ import annotations

import io
from os import PathLike
from typing import Any

from layersurgery.errors import SampleError
from layersurgery.tasks import Sample


def load_images(sample: Sample) -> list[Any]:
    """The sample's images as RGB PIL images; paths are opened here and not before.

    Raises:
        SampleError: naming the sample and the image, if one is missing, unreadable, or no image at all.
    """
    from PIL import Image

    images = []
    for image in sample.images:
        if isinstance(image, Image.Image):
            images.append(_opened_anew(image).convert("RGB"))
            continue
        if not isinstance(image, (str, PathLike)):
            raise SampleError(
                f"sample {sample.id!r} has an image of type {type(image).__name__}; give PIL images or paths to files"
            )
        try:
            with Image.open(image) as opened:
                images.append(opened.convert("RGB"))
        except OSError as error:
            raise SampleError(f"sample {sample.id!r}: cannot read the image {str(image)!r}: {error}") from error
    return images


def _opened_anew(image: Any) -> Any:
    """A picture that lies in memory as a file, opened again: decoding would keep its pixels for as long as the sample.

    Thousands of samples take little memory as files, and gigabytes as pixels.
    """
    from PIL import Image

    file = getattr(image, "fp", None)  # gone once a picture is decoded
    return Image.open(io.BytesIO(file.getvalue())) if isinstance(file, io.BytesIO) else image
