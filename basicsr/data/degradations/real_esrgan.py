"""Real-ESRGAN's second-order degradations (Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with
Pure Synthetic Data", ICCVW 2021), with the options, orders and probabilities of its published code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from basicsr.data.degradations.base import DeviceName, SplitDegradation, one_thread
from basicsr.data.degradations.blur_kernels import KernelName, draw_side, draw_sinc, random_mixed_kernels
from basicsr.data.degradations.jpeg import compressed
from basicsr.data.degradations.operations import (
    filtered,
    resized,
    rounded,
    sharpened,
    with_gaussian_noise,
    with_poisson_noise,
)
from basicsr.data.degradations.steps import around_one, kernel_conflicts, order, to_bgr, to_rgb
from basicsr.utils.ranges import KernelSide, NoiseLevel, PoissonLevel, Probability, Quality, ResizeFactor, Scale, Spread
from basicsr.utils.registry import DEGRADATION_REGISTRY, Conflict

_KINDS: tuple[KernelName, ...] = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
)
_CHANCES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_MODES = ("area", "bilinear", "bicubic")
_CONTEXT = 72  # HR pixels around a patch: the published code cuts patches of 256 out of 400
_ANGLES = (-math.pi, math.pi)


@dataclass(frozen=True)
class Noise:
    """Drawn noise: `numbers` are standard normal, or for Poisson noise from [0, 1); (C, H, W), or (1, H, W) if gray."""

    poisson: bool
    strength: float
    numbers: torch.Tensor


@dataclass(frozen=True)
class Round:
    """What was drawn for one of the two rounds; `kernel` None does not blur."""

    kernel: torch.Tensor | None
    size: tuple[int, int]
    mode: str
    noise: Noise
    quality: float


@dataclass(frozen=True)
class Drawn:
    """All that is random about one image: the rounds, the last resizing and the sinc filter after it (None: none)."""

    rounds: tuple[Round, Round]
    mode: str
    sinc: torch.Tensor | None
    jpeg_last: bool


@DEGRADATION_REGISTRY.register()
class RealESRGAN(SplitDegradation):
    """Blur, resizing, noise and JPEG, twice, then a sinc filter, and rounding to 8 bits.

    Every image has numbers of its own; the published code shares sizes and orders among the images of a batch, and
    mixes batches afterwards in a pool, which is not needed here. Kinds of kernels are those of `gaussian_kernel`; the
    blur may also be a sinc filter. Names with a 2 at their end are of the second round.

    Args:
        scale: filled in: how many times smaller LR images are.
        sharpen_hr: begin with the HR image after unsharp masking, as the published GAN training does.
        blur_kernel_size: largest side of kernels, from 7 on.
        kernel_list: kinds of kernels.
        kernel_prob: how likely each kind is.
        sinc_prob: how often the blur is a sinc filter.
        blur_sigma: limits of the kernels' standard deviations in pixels.
        betag_range: limits of beta of generalized Gaussians.
        betap_range: limits of beta of plateaus.
        resize_prob: how likely it is to enlarge, to shrink, and to keep the size.
        resize_range: limits of the factor.
        gaussian_noise_prob: how often noise is Gaussian; else it is Poisson noise.
        noise_range: limits of the Gaussian noise's standard deviation in levels of 255.
        poisson_scale_range: limits of the Poisson noise's factor.
        gray_noise_prob: how often noise is the same in all channels.
        jpeg_range: limits of the JPEG quality.
        second_blur_prob: how often there is a blur in the second round.
        blur_kernel_size2: as `blur_kernel_size`.
        kernel_list2: as `kernel_list`.
        kernel_prob2: as `kernel_prob`.
        sinc_prob2: as `sinc_prob`.
        blur_sigma2: as `blur_sigma`.
        betag_range2: as `betag_range`.
        betap_range2: as `betap_range`.
        resize_prob2: as `resize_prob`.
        resize_range2: as `resize_range`.
        gaussian_noise_prob2: as `gaussian_noise_prob`.
        noise_range2: as `noise_range`.
        poisson_scale_range2: as `poisson_scale_range`.
        gray_noise_prob2: as `gray_noise_prob`.
        jpeg_range2: as `jpeg_range`.
        final_sinc_prob: how often there is a sinc filter at the end.
        device: where training computes pixels: 'cpu' in the workers, 'training' on its device after a batch has been
            handed over, 'auto' there if that is a GPU, else in the workers.
    """

    shrinks = True
    only_colours = True

    def __init__(
        self,
        *,
        scale: Scale,
        sharpen_hr: bool = True,
        blur_kernel_size: KernelSide = 21,
        kernel_list: tuple[KernelName, ...] = _KINDS,
        kernel_prob: tuple[Probability, ...] = _CHANCES,
        sinc_prob: Probability = 0.1,
        blur_sigma: tuple[Spread, Spread] = (0.2, 3.0),
        betag_range: tuple[Spread, Spread] = (0.5, 4.0),
        betap_range: tuple[Spread, Spread] = (1.0, 2.0),
        resize_prob: tuple[Probability, Probability, Probability] = (0.2, 0.7, 0.1),
        resize_range: tuple[ResizeFactor, ResizeFactor] = (0.15, 1.5),
        gaussian_noise_prob: Probability = 0.5,
        noise_range: tuple[NoiseLevel, NoiseLevel] = (1.0, 30.0),
        poisson_scale_range: tuple[PoissonLevel, PoissonLevel] = (0.05, 3.0),
        gray_noise_prob: Probability = 0.4,
        jpeg_range: tuple[Quality, Quality] = (30.0, 95.0),
        second_blur_prob: Probability = 0.8,
        blur_kernel_size2: KernelSide = 21,
        kernel_list2: tuple[KernelName, ...] = _KINDS,
        kernel_prob2: tuple[Probability, ...] = _CHANCES,
        sinc_prob2: Probability = 0.1,
        blur_sigma2: tuple[Spread, Spread] = (0.2, 1.5),
        betag_range2: tuple[Spread, Spread] = (0.5, 4.0),
        betap_range2: tuple[Spread, Spread] = (1.0, 2.0),
        resize_prob2: tuple[Probability, Probability, Probability] = (0.3, 0.4, 0.3),
        resize_range2: tuple[ResizeFactor, ResizeFactor] = (0.3, 1.2),
        gaussian_noise_prob2: Probability = 0.5,
        noise_range2: tuple[NoiseLevel, NoiseLevel] = (1.0, 25.0),
        poisson_scale_range2: tuple[PoissonLevel, PoissonLevel] = (0.05, 2.5),
        gray_noise_prob2: Probability = 0.4,
        jpeg_range2: tuple[Quality, Quality] = (30.0, 95.0),
        final_sinc_prob: Probability = 0.8,
        device: DeviceName = "auto",
    ) -> None:
        given = locals()
        self.device = device
        self.factor, self.margin = scale, -(-_CONTEXT // scale) * scale
        self._sharpen = sharpen_hr
        self._second_blur_prob, self._final_sinc_prob = second_blur_prob, final_sinc_prob
        self._largest = max(blur_kernel_size, blur_kernel_size2)
        # By the names of the first round, as those of the second have a 2 at their end.
        self._options: list[dict[str, Any]] = [
            {name: given[f"{name}{ending}"] for name in given if f"{name}2" in given} for ending in ("", "2")
        ]

    @staticmethod
    def conflicts(
        kernel_list: Sequence[str],
        kernel_prob: Sequence[float],
        kernel_list2: Sequence[str],
        kernel_prob2: Sequence[float],
        resize_prob: Sequence[float],
        resize_prob2: Sequence[float],
        blur_kernel_size: int,
        blur_kernel_size2: int,
        blur_sigma: Sequence[float],
        blur_sigma2: Sequence[float],
        noise_range: Sequence[float],
        noise_range2: Sequence[float],
        poisson_scale_range: Sequence[float],
        poisson_scale_range2: Sequence[float],
        jpeg_range: Sequence[float],
        jpeg_range2: Sequence[float],
        resize_range: Sequence[float],
        resize_range2: Sequence[float],
        betag_range: Sequence[float],
        betag_range2: Sequence[float],
        betap_range: Sequence[float],
        betap_range2: Sequence[float],
    ) -> Iterator[Conflict]:
        """See `find_problems`."""
        given = dict(locals())
        for ending in ("", "2"):
            kinds, chances = f"kernel_list{ending}", f"kernel_prob{ending}"
            yield from kernel_conflicts(given[kinds], given[chances], (kinds, chances))
            if not sum(given[f"resize_prob{ending}"]):
                yield f"resize_prob{ending}", "must not be all 0"
            if given[f"blur_kernel_size{ending}"] % 2 == 0:
                yield f"blur_kernel_size{ending}", f"must be odd, got {given[f'blur_kernel_size{ending}']}"
            for name in ("blur_sigma", "noise_range", "poisson_scale_range", "jpeg_range"):
                yield from order(f"{name}{ending}", given[f"{name}{ending}"])
            for name in ("resize_range", "betag_range", "betap_range"):
                yield from around_one(f"{name}{ending}", given[f"{name}{ending}"])

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        drawn = self.draw(image.shape[0], image.shape[1], image.shape[2], rng)
        with one_thread():
            return to_bgr(self.finish(to_rgb(image), drawn))

    def draw(self, height: int, width: int, channels: int, rng: np.random.Generator) -> Drawn:
        """Draws everything that is random about an image of this size."""
        first, second = self._options
        kernel: np.ndarray | None = self._draw_kernel(first, rng)
        factor = _draw_factor(first, rng)
        rounds = [self._draw_round(first, kernel, (int(height * factor), int(width * factor)), channels, rng)]
        kernel = self._draw_kernel(second, rng) if rng.random() < self._second_blur_prob else None
        factor = _draw_factor(second, rng) / self.factor
        rounds.append(self._draw_round(second, kernel, (int(height * factor), int(width * factor)), channels, rng))
        sinc = draw_sinc(self._largest, rng, final=True) if rng.random() < self._final_sinc_prob else None
        return Drawn(
            rounds=(rounds[0], rounds[1]),
            mode=_MODES[rng.integers(len(_MODES))],
            sinc=None if sinc is None else torch.from_numpy(sinc),
            jpeg_last=rng.random() < 0.5,
        )

    def finish(self, image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """See `SplitDegradation`; returns uint8."""
        margin, made = self.margin // self.factor, self.apply(image, drawn)
        return made[:, margin : made.shape[1] - margin, margin : made.shape[2] - margin]

    def apply(self, image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """Degrades an image, float32 (C, H, W) in [0, 1], on its device; returns uint8 (C, H / scale, W / scale)."""
        size = image.shape[-2] // self.factor, image.shape[-1] // self.factor
        first, second = drawn.rounds
        image = sharpened(image) if self._sharpen else image
        image = compressed(_without_jpeg(image, first), first.quality)
        image = _without_jpeg(image, second)
        if not drawn.jpeg_last:
            image = compressed(image, second.quality)
        image = resized(image, size, drawn.mode)
        if drawn.sinc is not None:
            image = filtered(image, drawn.sinc)
        if drawn.jpeg_last:
            image = compressed(image.clamp(0, 1), second.quality)
        return rounded(image)

    def _draw_kernel(self, options: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        if rng.random() < options["sinc_prob"]:
            return draw_sinc(options["blur_kernel_size"], rng)
        return random_mixed_kernels(
            options["kernel_list"],
            options["kernel_prob"],
            draw_side(options["blur_kernel_size"], rng),
            options["blur_sigma"],
            options["blur_sigma"],
            _ANGLES,
            options["betag_range"],
            options["betap_range"],
            rng=rng,
        )

    def _draw_round(
        self,
        options: dict[str, Any],
        kernel: np.ndarray | None,
        size: tuple[int, int],
        channels: int,
        rng: np.random.Generator,
    ) -> Round:
        size = max(size[0], 1), max(size[1], 1)
        mode = _MODES[rng.integers(len(_MODES))]
        poisson = rng.random() >= options["gaussian_noise_prob"]
        strength = rng.uniform(*options["poisson_scale_range" if poisson else "noise_range"])
        channels = 1 if rng.random() < options["gray_noise_prob"] else channels
        shape = channels, *size
        numbers = rng.random(shape, np.float32) if poisson else rng.standard_normal(shape, np.float32)
        return Round(
            kernel=None if kernel is None else torch.from_numpy(kernel),
            size=size,
            mode=mode,
            noise=Noise(poisson, strength, torch.from_numpy(numbers)),
            quality=rng.uniform(*options["jpeg_range"]),
        )


def _draw_factor(options: dict[str, Any], rng: np.random.Generator) -> float:
    chances = np.asarray(options["resize_prob"], np.float64)
    low, high = options["resize_range"]
    way = rng.choice(3, p=chances / chances.sum())
    return 1.0 if way == 2 else float(rng.uniform(1, high) if way == 0 else rng.uniform(low, 1))


def _without_jpeg(image: torch.Tensor, drawn: Round) -> torch.Tensor:
    """Blurs, resizes and adds noise."""
    if drawn.kernel is not None:
        image = filtered(image, drawn.kernel)
    if image.shape[-2:] != drawn.size:
        image = resized(image, drawn.size, drawn.mode)
    noise, numbers = drawn.noise, drawn.noise.numbers.to(image.device)
    return (with_poisson_noise if noise.poisson else with_gaussian_noise)(image, numbers, noise.strength)
