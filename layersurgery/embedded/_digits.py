"""The handwritten digits that the embedded benchmark shows, divided among its splits.

1,797 digits of 8 x 8 pixels from the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin
and C. Kaynak, UCI Machine Learning Repository, 1998, doi:10.24432/C50P49, licence CC BY 4.0), as scikit-learn
ships them. They are stored beside this module, so that scikit-learn is not needed at run time.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

FILE = "digits.npz"
SPLITS = ("train", "probe", "test")
SHARES = {"train": 0.70, "probe": 0.15, "test": 0.15}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits.

    Returns:
        images: [1797, 8, 8] uint8, ink 0 to 16; labels: [1797] uint8, 0 to 9. Both are read-only.

    Examples:
        >>> images, labels = digits()
        >>> images.shape, int(images.max()), labels[:4].tolist()
        ((1797, 8, 8), 16, [0, 1, 2, 3])
    """
    with np.load(Path(__file__).with_name(FILE)) as stored:
        images, labels = stored["images"], stored["labels"]
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@cache
def digit_indices(split: str, value: int) -> tuple[int, ...]:
    """Which digit images of one value belong to a split.

    Args:
        split: "train", "probe" or "test".
        value: 0 to 9.

    Examples:
        >>> len(digit_indices("test", 7)) > 15, set(digit_indices("train", 7)) & set(digit_indices("test", 7))
        (True, set())
    """
    images, labels = digits()
    return tuple(i for i in np.flatnonzero(labels == value).tolist() if split_of(images[i].tobytes()) == split)


@cache
def glyphs() -> np.ndarray:
    """The digits as they are drawn: enlarged twice (bilinear), [1797, 16, 16] uint8, ink 0 to 255."""
    images, _ = digits()
    large = _enlarge(_enlarge(images.astype(np.int64), axis=1), axis=2)
    ink = (large * 255 // 256).astype(np.uint8)  # 16 levels x 4 x 4 weights: at most 256
    ink.setflags(write=False)
    return ink


def split_of(content: bytes) -> str:
    """The one split that some content belongs to, by its hash: equal content can never be in two splits.

    Examples:
        >>> split_of(b"a scene") == split_of(b"a scene")
        True
    """
    position = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        position -= share
        if position < 0:
            return split
    return SPLITS[-1]


def _enlarge(images: np.ndarray, axis: int) -> np.ndarray:
    """Twice as long along one axis: a new pixel is 3 parts its own old one, 1 part the nearest neighbour."""
    size = images.shape[axis]
    own = np.arange(2 * size) // 2
    neighbour = np.clip(own + np.where(np.arange(2 * size) % 2, 1, -1), 0, size - 1)
    return 3 * images.take(own, axis) + images.take(neighbour, axis)
