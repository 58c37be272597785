"""Noise, blur, compression and rounding, each a step of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch

from basicsr.data.degradations.base import Degradation, one_thread
from basicsr.data.degradations.blur_kernels import KernelName, draw_side, random_mixed_kernels
from basicsr.data.degradations.jpeg import compressed
from basicsr.data.degradations.operations import filtered, with_poisson_noise
from basicsr.files.images import img2tensor, to_float32
from basicsr.utils.ranges import KernelSide, NoiseLevel, PoissonLevel, Probability, Quality, Spread
from basicsr.utils.registry import DEGRADATION_REGISTRY, Conflict

_BLOCK = 16  # pixels of the blocks in which JPEG codes a colour image
_ANGLES = (-np.pi, np.pi)


@DEGRADATION_REGISTRY.register()
class GaussianNoise(Degradation):
    """Adds normally distributed noise, independent in every pixel, as denoisers are trained with.

    Args:
        sigma: its standard deviation in levels of 255, or two limits between which it is drawn for each image.
        gray_prob: how often the noise is the same in all channels; otherwise they are independent.
        clip: clip to [0, 1], which denoisers' inputs are not in papers.
        rounds: round to 8 bits, as an image that was stored.
    """

    def __init__(
        self,
        *,
        sigma: NoiseLevel | tuple[NoiseLevel, NoiseLevel],
        gray_prob: Probability = 0.0,
        clip: bool = False,
        rounds: bool = False,
    ) -> None:
        self._sigma, self._gray_prob, self._clip, self._rounds = sigma, gray_prob, clip or rounds, rounds

    @staticmethod
    def conflicts(sigma: float | Sequence[float]) -> Iterator[Conflict]:
        """See `find_problems`."""
        return order("sigma", sigma)

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        sigma, channels = drawn(self._sigma, rng), image.shape[2]
        channels = 1 if rng.random() < self._gray_prob else channels
        noise = rng.standard_normal((*image.shape[:2], channels), np.float32)
        noisy = _as_float(image) + noise * np.float32(sigma / 255)
        if self._clip:
            noisy = np.clip(noisy, 0, 1, out=noisy)
        return as_eight_bits(noisy) if self._rounds else noisy


@DEGRADATION_REGISTRY.register()
class PoissonNoise(Degradation):
    """Adds the noise of counted light, as Real-ESRGAN defines it (`with_poisson_noise`); clips to [0, 1].

    Args:
        strength: factor of the noise, or two limits between which it is drawn for each image.
        gray_prob: how often the noise is that of the gray image, and the same in all channels.
    """

    def __init__(
        self, *, strength: PoissonLevel | tuple[PoissonLevel, PoissonLevel], gray_prob: Probability = 0.0
    ) -> None:
        self._strength, self._gray_prob = strength, gray_prob
        self.only_colours = gray_prob > 0  # the gray image is luma

    @staticmethod
    def conflicts(strength: float | Sequence[float]) -> Iterator[Conflict]:
        """See `find_problems`."""
        return order("strength", strength)

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        strength = drawn(self._strength, rng)
        channels = 1 if rng.random() < self._gray_prob else image.shape[2]
        uniform = torch.from_numpy(rng.random((channels, *image.shape[:2]), np.float32))
        with one_thread():
            return to_bgr(with_poisson_noise(to_rgb(image), uniform, strength))


@DEGRADATION_REGISTRY.register()
class Blur(Degradation):
    """Blurs by a random kernel of Real-ESRGAN's six kinds; values are not rounded.

    Args:
        sigma: limits of the kernel's standard deviations in pixels.
        kernel_size: its side: an odd number, the largest of those that are drawn from 7 on; a smaller one is fixed.
        kernel_list: kinds to draw from.
        kernel_prob: how likely each kind is; all alike if left out.
        betag_range: limits of beta of generalized Gaussians.
        betap_range: limits of beta of plateaus.
    """

    def __init__(
        self,
        *,
        sigma: tuple[Spread, Spread],
        kernel_size: KernelSide = 21,
        kernel_list: tuple[KernelName, ...] = ("iso",),
        kernel_prob: tuple[Probability, ...] | None = None,
        betag_range: tuple[Spread, Spread] = (0.5, 4.0),
        betap_range: tuple[Spread, Spread] = (1.0, 2.0),
    ) -> None:
        self.margin = kernel_size // 2
        self._side, self._sigma = kernel_size, sigma
        self._kinds, self._chances = kernel_list, kernel_prob or (1.0,) * len(kernel_list)
        self._betas = betag_range, betap_range

    @staticmethod
    def conflicts(
        sigma: Sequence[float],
        kernel_size: int,
        kernel_list: Sequence[str],
        kernel_prob: Sequence[float] | None,
        betag_range: Sequence[float],
        betap_range: Sequence[float],
    ) -> Iterator[Conflict]:
        """See `find_problems`."""
        yield from order("sigma", sigma)
        yield from around_one("betag_range", betag_range)
        yield from around_one("betap_range", betap_range)
        yield from kernel_conflicts(kernel_list, kernel_prob, ("kernel_list", "kernel_prob"))
        if kernel_size % 2 == 0:
            yield "kernel_size", f"must be odd, got {kernel_size}"

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        side = draw_side(self._side, rng)
        kernel = random_mixed_kernels(
            self._kinds, self._chances, side, self._sigma, self._sigma, _ANGLES, *self._betas, rng=rng
        )
        with one_thread():
            blurred = to_bgr(filtered(to_rgb(image), torch.from_numpy(kernel)))
        return within(blurred, self.margin)


@DEGRADATION_REGISTRY.register()
class Jpeg(Degradation):
    """Compresses as JPEG, with chroma of half the size, in the blocks in which the whole image would be coded.

    Args:
        quality: 1 to 100, or two limits between which it is drawn for each image.
        codec: libjpeg, through OpenCV, whose qualities are whole numbers; or torch, by Real-ESRGAN's simplification.
    """

    only_colours = True
    margin = _BLOCK + 2  # libjpeg smooths chroma over the edges of blocks

    def __init__(
        self, *, quality: Quality | tuple[Quality, Quality], codec: Literal["libjpeg", "torch"] = "libjpeg"
    ) -> None:
        self._quality, self._codec = quality, codec

    @staticmethod
    def is_random(options: Mapping[str, Any]) -> bool:
        """See `Degradation`."""
        return isinstance(options.get("quality"), Sequence)

    @staticmethod
    def conflicts(quality: float | Sequence[float]) -> Iterator[Conflict]:
        """See `find_problems`."""
        return order("quality", quality)

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        quality = drawn(self._quality, rng)
        starts = [-place % _BLOCK for place in origin]
        ends = [start + (side - start) // _BLOCK * _BLOCK for start, side in zip(starts, image.shape, strict=False)]
        blocks = image[starts[0] : ends[0], starts[1] : ends[1]]
        if self._codec == "torch":
            with one_thread():
                coded = to_bgr(compressed(to_rgb(blocks), quality))
        else:
            parameters = [cv2.IMWRITE_JPEG_QUALITY, round(quality)]
            _, content = cv2.imencode(".jpg", np.ascontiguousarray(as_eight_bits(blocks)), parameters)
            coded = np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED)).reshape(blocks.shape)
        top, left = self.margin - starts[0], self.margin - starts[1]
        return coded[top : top + image.shape[0] - 2 * self.margin, left : left + image.shape[1] - 2 * self.margin]


@DEGRADATION_REGISTRY.register()
class EightBits(Degradation):
    """Rounds to 8 bits, as an image that was stored; values are clipped to [0, 1] before."""

    @staticmethod
    def is_random(options: Mapping[str, Any]) -> bool:
        """See `Degradation`."""
        return False

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        return as_eight_bits(image)


def drawn(value: float | Sequence[float], rng: np.random.Generator) -> float:
    """A number itself, or one that is drawn between two limits."""
    return float(rng.uniform(value[0], value[1])) if isinstance(value, Sequence) else float(value)


def within(image: np.ndarray, margin: int) -> np.ndarray:
    """An image (H, W, C) without `margin` pixels at every edge."""
    return image[margin : image.shape[0] - margin, margin : image.shape[1] - margin]


def to_rgb(image: np.ndarray) -> torch.Tensor:
    """(H, W, C), BGR or gray, as float32 (C, H, W), RGB or gray."""
    return img2tensor(_as_float(image)).contiguous()


def to_bgr(image: torch.Tensor) -> np.ndarray:
    """(C, H, W), RGB or gray, as (H, W, C), BGR or gray."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return pixels[..., ::-1] if pixels.shape[2] == 3 else pixels


def kernel_conflicts(
    kinds: Sequence[str], chances: Sequence[float] | None, keys: tuple[str, str]
) -> Iterator[Conflict]:
    """What is wrong with a list of kinds of kernels and the probabilities beside it."""
    if not kinds:
        yield keys[0], "must have an entry, such as iso"
    elif chances is not None and len(chances) != len(kinds):
        yield keys[1], f"must have an entry for each of {keys[0]}, {len(kinds)}, got {len(chances)}"
    elif chances is not None and not sum(chances):
        yield keys[1], "must not be all 0"


def order(key: str, value: float | Sequence[float]) -> Iterator[Conflict]:
    """What is wrong with two limits."""
    if isinstance(value, Sequence) and value[0] > value[1]:
        yield key, f"must have the lower limit first, got {list(value)}"


def around_one(key: str, value: Sequence[float]) -> Iterator[Conflict]:
    """What is wrong with two limits that must have 1 between them."""
    if not value[0] <= 1 <= value[1]:
        yield key, f"must have 1 between its limits, or as one of them, got {list(value)}"


def _as_float(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.float32 else to_float32(image)


def as_eight_bits(image: np.ndarray) -> np.ndarray:
    """uint8, uint16 or float32 in [0, 1], which is clipped, as uint8."""
    if image.dtype == np.uint8:
        return image
    return np.rint(np.clip(_as_float(image), 0, 1) * np.float32(255)).astype(np.uint8)
