"""What a step is that makes LR images of HR images, and several of them in a row.

A step sees a window of an image with `margin` pixels more at every edge, and returns the window alone. So the LR patch
is what the whole LR image has at its place, without the whole being made. Beyond the image's edges pixels are mirrored,
edge pixels repeated, as MATLAB's `imresize` has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import DEGRADATION_REGISTRY

Steps = Mapping[str, Any] | Sequence[Mapping[str, Any]]
DeviceName = Literal["auto", "cpu", "training"]


class Degradation(ABC):
    """A step; all its random choices come from the generator that it is handed."""

    factor: int = 1
    """How many times smaller the result is."""
    margin: int = 0
    """Pixels that are needed beyond every edge of the window."""
    shrinks: ClassVar[bool] = False
    """Whether the step makes the image as many times smaller as the network enlarges it."""
    only_colours: bool = False
    """Whether the step is defined for gray and RGB, and not for images of other bands."""

    @staticmethod
    def is_random(options: Mapping[str, Any]) -> bool:
        """Whether a step of these options draws anything; otherwise an HR image has always the same LR image."""
        return True

    @abstractmethod
    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Degrades an image (H, W, C), BGR or gray, and cuts the margin off.

        `origin` is the row and column of its first pixel in the whole image, negative beyond the edges. Pixels are
        uint8, uint16, or float32 in [0, 1]; of which type the result is, is up to the step.
        """


class SplitDegradation(Degradation):
    """A step in two parts: what is random is drawn, then pixels are computed, maybe later and on another device."""

    device: DeviceName = "cpu"
    """Where training computes pixels: 'cpu' in the workers, 'training' on its device, after batches were handed over,
    and 'auto' there if that is a GPU."""

    @abstractmethod
    def draw(self, height: int, width: int, channels: int, rng: np.random.Generator) -> Any:
        """Draws all that is random about an image of this size: dataclasses and tuples of tensors and other values."""

    @abstractmethod
    def finish(self, image: torch.Tensor, drawn: Any) -> torch.Tensor:
        """Degrades an image, float32 (C, H, W), RGB or gray in [0, 1], on its device, and cuts the margin off."""


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread in the block, as workers do: with more, sums may come out otherwise."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Chain(Degradation):
    """Steps in a row; raises OptionsError where they do not shrink by `scale` together."""

    def __init__(self, steps: Steps, scale: int) -> None:
        blocks = _listed(steps)
        if fault := fault_of(blocks, scale):
            raise OptionsError(f"degradation {fault}")
        self._steps: list[Degradation] = [DEGRADATION_REGISTRY.build(block, scale=scale) for block in blocks]
        self.factor, self.margin = scale, 0
        for step in reversed(self._steps):
            self.margin = self.margin * step.factor + step.margin

    def check_channels(self, channels: int) -> None:
        """Raises OptionsError where a step is not defined for images of so many channels."""
        for step in self._steps if channels not in (1, 3) else ():
            if step.only_colours:
                raise OptionsError(
                    f"degradation {type(step).__name__} is of gray and RGB images, and these have {channels} bands;"
                    " remove it"
                )

    @property
    def device(self) -> DeviceName:
        """Where the last step computes pixels in training (`SplitDegradation`); all others do it in the workers."""
        last = self._steps[-1]
        return last.device if isinstance(last, SplitDegradation) else "cpu"

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        return self._after(self._steps, image, origin, rng)

    def begin(
        self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, SplitDegradation, Any]:
        """All but the last step's pixels: what it is to degrade, with its margin; the step; and what was drawn."""
        *first, last = self._steps
        assert isinstance(last, SplitDegradation)
        image = self._after(first, image, origin, rng)
        return image, last, last.draw(image.shape[0], image.shape[1], image.shape[2], rng)

    @staticmethod
    def _after(
        steps: Sequence[Degradation], image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        for step in steps:
            image = step(image, origin, rng)
            row, column = ((place + step.margin) // step.factor for place in origin)
            origin = row, column
        return image


def fault_of(steps: Sequence[Mapping[str, Any]], scale: int) -> str | None:
    """What is wrong with steps at a scale, beginning with a verb; None where nothing is."""
    names = [str(block.get("type")) for block in steps]
    shrinking = [name for name in names if name in DEGRADATION_REGISTRY and _shrinks(name)]
    if not names:
        return "must have a step, such as {type: MatlabBicubic}"
    if len(shrinking) > 1:
        return f"shrinks more than once, by {' and '.join(shrinking)}; keep one of them"
    if scale == 1 and shrinking == ["MatlabBicubic"]:
        return "would change nothing at scale 1; give other steps, such as {type: GaussianNoise, sigma: 25}"
    if any(block.get("device") == "training" for block in steps[:-1]):
        return "has device: training at a step that is not the last; take device: cpu there, or move it to the end"
    if scale > 1 and not shrinking:
        return f"does not shrink, and the scale is {scale}; write a list of steps, with {{type: MatlabBicubic}} in it"
    return None


def resolved(steps: Steps) -> list[dict[str, Any]]:
    """Steps with all their options, as plain values."""
    return [DEGRADATION_REGISTRY.with_defaults(block) for block in _listed(steps)]


def random_steps(steps: Steps) -> list[str]:
    """The names of steps that draw anything, on which the LR image of an HR image then depends."""
    known = [(block, str(block.get("type"))) for block in _listed(steps)]
    return [
        name
        for block, name in known
        if name in DEGRADATION_REGISTRY
        and getattr(DEGRADATION_REGISTRY.get(name), "is_random", Degradation.is_random)(block)
    ]


def cache_fault(steps: Steps) -> str | None:
    """Why LR images that steps make can have no teacher's cache, in words; None where nothing is in its way."""
    if not (names := list(dict.fromkeys(random_steps(steps)))):
        return None
    draws = f"{' and '.join(names)} draw{'s' if len(names) == 1 else ''}"
    return f"has one output for each image, and {draws} another LR image of it each time"


def _listed(steps: Steps) -> list[Mapping[str, Any]]:
    return [steps] if isinstance(steps, Mapping) else list(steps)


def _shrinks(name: str) -> bool:
    return bool(getattr(DEGRADATION_REGISTRY.get(name), "shrinks", False))
