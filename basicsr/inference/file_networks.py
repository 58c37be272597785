"""An exported file in the place of a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from basicsr.runtimes.base import LoadedFile
from basicsr.utils.errors import MachineError
from basicsr.utils.text import first_line

_NO_MEMORY = ("alloc", "memory")


class FileNetwork(nn.Module):
    """A file in its runtime, (B, C, h, w) in [0, 1] to float32 (B, C, sh, sw), on the CPU; it has no parameters.

    A file for images of one size takes smaller ones, too: extended by reflection at the right and the bottom.

    Args:
        loaded: the file.
        name: in messages.

    Attributes:
        only_size: height and width of the one size that the file takes, or of the largest; tiles are of it. None: any.
    """

    def __init__(self, loaded: LoadedFile, name: str) -> None:
        super().__init__()
        self._loaded, self.architecture = loaded, name
        self.only_size = loaded.facts.size or loaded.facts.most
        self.scale, self.in_channels = loaded.facts.scale, loaded.facts.channels

    def forward(self, x: Tensor) -> Tensor:
        """Runs the file; MemoryError where the runtime says so, MachineError for all else that it says."""
        height, width = x.shape[-2:]
        images = x.numpy()
        if (size := self._loaded.facts.size) not in (None, (height, width)):
            for axis, wanted in zip((2, 3), size, strict=True):
                images = images.take(_reflected(images.shape[axis], wanted), axis)
        try:
            if self._loaded.facts.batches or len(images) == 1:
                output = self._loaded(images)
            else:
                output = np.concatenate([self._loaded(images[index : index + 1]) for index in range(len(images))])
        except Exception as error:  # each runtime has exceptions of its own
            reason = first_line(error)
            if any(word in reason.lower() for word in _NO_MEMORY):
                raise MemoryError(reason) from error
            raise MachineError(f"{self.architecture} fails on images of {height}x{width} ({reason})") from error
        return torch.from_numpy(output)[..., : height * self.scale, : width * self.scale]


def _reflected(length: int, wanted: int) -> np.ndarray:
    """Which of `length` pixels make `wanted` of them: 0 1 2 1 0 1..."""
    position = np.arange(wanted) % max(2 * length - 2, 1)
    return np.minimum(position, np.abs(2 * length - 2 - position)) if length > 1 else np.zeros(wanted, int)
