"""Compares MATLAB's bicubic with basicsr 1.4.2's, and prints the figures that tests hold.

    python scripts/reference/imresize.py

Run it where basicsr 1.4.2 and its requirements are installed. The image is made by a formula, so no files are
needed; tests/utils/test_matlab_functions.py has the same formula.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torchvision_for_basicsr import prepare_torchvision

ROOT = Path(__file__).resolve().parents[2]
SCALES = (1 / 2, 1 / 3, 1 / 4, 0.7, 2, 1.5)


def image(height: int, width: int) -> np.ndarray:
    """A pattern without symmetry, float32 (H, W, 3) in [0, 1]."""
    rows, columns, channels = np.indices((height, width, 3))
    levels = (7 * rows * rows + 13 * columns + 29 * channels * columns * rows) % 256
    return (levels / 255).astype(np.float32)


def reference() -> Any:
    """basicsr 1.4.2's imresize."""
    prepare_torchvision()
    return importlib.import_module("basicsr.utils.matlab_functions").imresize


def ours() -> Any:
    """This repository's imresize, in place of the reference's."""
    for name in [name for name in sys.modules if name.split(".")[0] == "basicsr"]:
        del sys.modules[name]
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("basicsr.utils.matlab_functions").imresize


def main() -> None:
    """Prints a line for each scale, with antialiasing and without."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    img = image(24, 27)
    theirs, expected = reference(), {}
    for scale in SCALES:
        for antialiasing in (True, False):
            try:
                expected[scale, antialiasing] = theirs(img, scale, antialiasing)
            except RuntimeError:
                print(f"({scale!r}, {antialiasing}): the reference fails: no pixel beyond the edge is needed")
    resize = ours()
    for (scale, antialiasing), result in expected.items():
        off = np.abs(resize(img, scale, antialiasing) - result).max()
        first = ", ".join(f"{value:.6f}" for value in result[1, :4, 2])
        waves = np.cos(np.arange(result.size)).reshape(result.shape)
        spread = float((result.astype(np.float64) * waves).sum())
        print(f"({scale!r}, {antialiasing}, {result.shape}, [{first}], {spread:.5f}),  # off by {off:.1e}")


if __name__ == "__main__":
    main()
