"""Write `layersurgery/embedded/digits.npz` from scikit-learn's copy of the digits.

Run it as `python -m examples.train_tiny_vlm.make_digits`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from layersurgery.embedded import _digits


def main() -> None:
    """Save images as uint8 (0 to 16, as published) and labels as uint8, compressed."""
    pixels, labels = load_digits(return_X_y=True)
    target = Path(_digits.__file__).with_name(_digits.FILE)
    images = np.asarray(pixels).reshape(-1, 8, 8).astype(np.uint8)
    np.savez_compressed(target, images=images, labels=np.asarray(labels).astype(np.uint8))
    print(f"{target.name}: {len(images)} digits, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
