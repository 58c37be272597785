"""Images of an evaluation held in memory, and looking for images inside of pictures."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np


class Memory:
    """Pictures (see `SavedPictures`): arrays by dataset and image, then by `hr`, `lr` or the row's name."""

    def __init__(self, images: Mapping[tuple[str, str], Mapping[str, np.ndarray]]) -> None:
        self._images = images

    def names(self, dataset: str) -> list[str]:
        return [image for name, image in self._images if name == dataset]

    def hr(self, dataset: str, image: str) -> np.ndarray | None:
        return self._images[dataset, image].get("hr")

    def lr(self, dataset: str, image: str) -> np.ndarray:
        return self._images[dataset, image]["lr"]

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        return self._images[dataset, image][row]


def places_of(picture: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Left and top of every place where uint8 (H, W, 3) `picture` shows `part` to the last bit."""
    difference = cv2.matchTemplate(picture, part, cv2.TM_SQDIFF)
    # Computed by way of a Fourier transform in float32: near zero is looked at exactly.
    candidates = np.argwhere(difference <= difference.min() + 1e-4 * part.size)
    height, width = part.shape[:2]
    return [(int(x), int(y)) for y, x in candidates if np.array_equal(picture[y : y + height, x : x + width], part)]


def contains(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether `part` is to be seen in `picture`, to the last bit."""
    return bool(places_of(picture, part))
