"""Pictures for TensorBoard and W&B: a validation set's first image, upscaled in all ways that a run has, and HR."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from basicsr.engine.training_run import TrainingRun
from basicsr.files.images import tensor2img
from basicsr.inference.runner import ImageRunner
from basicsr.utils.matlab_functions import imresize

_LARGEST = 512  # pixels a side that are shown of an image
_GAP, _CAPTION = 4, 22  # pixels between columns, and above them
_PAPER, _INK = 255, 32  # gray levels


class ComparisonImages:
    """Makes a picture of columns: LR enlarged by bicubic interpolation, output, teacher's output, HR.

    What does not change in the run is made once for each set; the teacher thus costs one forward pass.

    Args:
        run: whose validation sets, scale and teacher to use. Without a teacher, or HR images, the column is left out.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._fixed: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def __call__(self, dataset: str, output: np.ndarray) -> np.ndarray:
        """The picture, uint8 (H, W, 3) BGR.

        Args:
            dataset: name of a validation set.
            output: of the network for its first image, uint8 (h, w, 3) BGR.
        """
        if dataset not in self._fixed:
            self._fixed[dataset] = self._others(dataset)
        before, after = self._fixed[dataset]
        name = "student" if self._run.teacher is not None else "output"
        return side_by_side({**before, name: centre(output), **after})

    def _others(self, dataset: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The columns to the left and to the right of the output."""
        images = self._run.validation[dataset]
        item = images[0]
        scale, val = self._run.options.scale, self._run.options.val
        after = {}
        if self._run.teacher is not None:
            runner = ImageRunner(
                self._run.teacher.network,
                scale,
                self._run.rank_info.device,
                tile=val.tile,
                tile_overlap=val.tile_overlap,
                precision=self._run.teacher.precision,
            )
            after["teacher"] = centre(tensor2img(images.restored(runner(item["lq"].unsqueeze(0)))))
        if "gt" in item:
            after["HR"] = centre(tensor2img(images.restored(item["gt"])))
        return {"LR, bicubic": centre(tensor2img(imresize(images.restored(item["lq"]), scale)))}, after


def centre(image: np.ndarray) -> np.ndarray:
    """The middle of an image (H, W) or (H, W, 3), at most 512 pixels a side, as (h, w, 3)."""
    height, width = image.shape[:2]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    middle = image[top : top + _LARGEST, left : left + _LARGEST]
    return middle if middle.ndim == 3 else middle[..., None].repeat(3, axis=2)


def side_by_side(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """One picture of images of one height, each under its name.

    Args:
        columns: uint8 (H, W, 3) by name, from left to right.

    Returns:
        uint8 (H + 22, sum of the widths and of gaps of 4 between them, 3).
    """
    captioned = []
    for name, image in columns.items():
        head = np.full((_CAPTION, image.shape[1], 3), _PAPER, np.uint8)
        cv2.putText(head, name, (2, _CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (_INK,) * 3, 1, cv2.LINE_AA)
        gap = np.full((_CAPTION + image.shape[0], _GAP, 3), _PAPER, np.uint8)
        captioned += [np.concatenate([head, image]), gap]
    return np.concatenate(captioned[:-1], axis=1)
