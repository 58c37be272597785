"""A look at what a network of others makes of a few patches: whether its input range, colours and mean can be right.

No shape of its weights shows them. Where they are wrong, outputs look much like images, and figures are dB too low.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs.bicubic_arch import Bicubic
from basicsr.archs.luma import LumaNetwork
from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.inference.trials import Trial
from basicsr.utils.color_util import rgb2ycbcr_pt
from basicsr.utils.complexity import count_parameters
from basicsr.utils.logger import WarningRemark
from basicsr.weights.loading import read_weights
from basicsr.weights.spandrel_networks import SpandrelNetwork

_COUNT = 3  # patches
_SIDES = (32, 24, 16)  # LR pixels
_MOST_WORK = 1e10  # parameters times pixels on a CPU: about a second
_CLEAR = 1.0  # dB
_EQUAL = 0.5  # dB: of settings so close to the best the simplest is named
_NOISY = 40.0  # dB: a sound denoiser may harm images that are closer to their targets
_HARMED = 3.0  # dB


@dataclass(frozen=True)
class Patches:
    """Patches of LR images (N, C, h, w) in [0, 1], and of their targets (N, C, sh, sw); `source` names the images."""

    lq: Tensor
    gt: Tensor
    source: str

    def luma(self) -> Patches:
        """Y of RGB patches; gray ones as they are."""
        if self.lq.shape[1] != 3:
            return self
        return Patches(rgb2ycbcr_pt(self.lq, y_only=True), rgb2ycbcr_pt(self.gt, y_only=True), self.source)

    def psnr_of(self, output: Tensor) -> float:
        """Of outputs, clipped to [0, 1], over all patches, without a border as wide as the scale."""
        border = self.gt.shape[-1] // self.lq.shape[-1]
        error = (output.clamp(0, 1) - self.gt)[..., border:-border, border:-border]
        return -10 * torch.log10(error.double().square().mean()).item()


def patches_of(pairs: Sequence[tuple[Tensor, Tensor]], source: str, largest: int = _SIDES[0]) -> Patches | None:
    """The most detailed patches, of `largest` pixels a side at most, of LR images (C, h, w) and targets (C, sh, sw).

    None where there are no images, or they are too small or of different channels.
    """
    shortest = min((min(lq.shape[-2:]) for lq, _ in pairs), default=0)
    side = next((side for side in _SIDES if side <= min(shortest, largest)), None)
    if side is None or len({(lq.shape[0], gt.shape[0]) for lq, gt in pairs}) > 1:
        return None
    chosen: list[tuple[Tensor, Tensor]] = []
    for lq, gt in pairs:
        scale = gt.shape[-1] // lq.shape[-1]
        places = product(*(range(0, length - side + 1, side) for length in lq.shape[-2:]))
        cut = [(_square(lq, top, left, side), _square(gt, top, left, side, scale)) for top, left in places]
        chosen += sorted(cut, key=lambda pair: -pair[1].std().item())[: -(-_COUNT // len(pairs))]
    lqs, gts = (torch.stack(images).float() for images in zip(*chosen[:_COUNT], strict=True))
    return Patches(lqs, gts, source)


def _square(image: Tensor, top: int, left: int, side: int, scale: int = 1) -> Tensor:
    top, left, side = top * scale, left * scale, side * scale
    return image[:, top : top + side, left : left + side]


def doubt(
    label: str,
    network: nn.Module,
    file: str | os.PathLike[str],
    pairs: Sequence[tuple[Tensor, Tensor]],
    source: str,
) -> str | None:
    """A remark where a network with the weights of `file` does worse than bicubic, at scale 1 much worse than nothing.

    It names what may be wrong, and which of the usual settings would be clearly better, as found by trying. The
    network, on any device, stays as it is. `pairs` are as for `patches_of`. None where all is well or nothing can be
    said, or the file itself tells its network's options, as those of our training do.
    """
    inner = network.network if isinstance(network, LumaNetwork) else network
    device = next((parameter.device for parameter in inner.parameters()), torch.device("cpu"))
    work = max(count_parameters(inner), 1) * _COUNT
    largest = _SIDES[0] if device.type != "cpu" else int((_MOST_WORK / work) ** 0.5)
    if device.type == "cpu" and isinstance(inner, SpandrelNetwork):  # their attention costs more than parameters say
        largest = min(largest, _SIDES[-1])
    patches = patches_of(pairs, source, largest)
    if patches is None:
        return None
    patches = patches.luma() if isinstance(network, LumaNetwork) else patches
    trial = Trial(label, inner, device)
    with suppress(Exception):  # what does not run is for other checks to say
        remark = _doubt(trial, patches)
        return remark if remark is not None and read_weights(file).network is None else None
    return None


def _doubt(trial: Trial, patches: Patches) -> str | None:
    colours, scale = patches.lq.shape[1], patches.gt.shape[-1] // patches.lq.shape[-1]
    found = patches.psnr_of(trial.run(patches.lq))
    plain = patches.psnr_of(Bicubic(upscale=scale)(patches.lq))
    if found >= plain - (0 if scale > 1 else _HARMED) or (scale == 1 and plain > _NOISY):
        return None
    what = f"{trial.name} has {found:.1f} dB on {len(patches.lq)} patches of {patches.source}, "
    what += f"bicubic enlargement {plain:.1f}" if scale > 1 else f"the images that it restores {plain:.1f}"
    causes = "input range (img_range)"
    causes += ", order of colours (RGB or BGR) and mean colour (rgb_mean)" if colours == 3 else ""
    tried = {setting: patches.psnr_of(setting.run(trial, patches.lq)) for setting in _settings(trial.network, colours)}
    highest = max(tried.values())
    best = min((one for one in tried if tried[one] >= highest - _EQUAL), key=lambda one: one.changes)
    if tried[best] >= max(plain, found + _CLEAR):
        return WarningRemark(f"{what}: check its {causes}; with {best} it has {tried[best]:.1f}")
    return WarningRemark(
        f"{what}: check its {causes}, although no usual one is clearly better; networks for other degradations, or for"
        " looks rather than PSNR, are below it too"
    )


@dataclass(frozen=True)
class _Setting:
    """A range and a mean colour of the input, None to leave them, and whether its colours are B, G, R."""

    img_range: float | None
    mean: tuple[float, ...] | None
    bgr: bool

    @property
    def changes(self) -> int:
        """How many of the three differ from the network's own."""
        return (self.img_range is not None) + (self.mean is not None) + self.bgr

    def __str__(self) -> str:
        words = [f"img_range {self.img_range:g}"] if self.img_range is not None else []
        if self.mean is not None:
            words.append("the mean colour of DIV2K" if any(self.mean) else "no mean colour")
        return " and ".join([*words, *(["BGR"] if self.bgr else [])])

    def run(self, trial: Trial, images: Tensor) -> Tensor:
        """What the network would put out if it had this setting: its own are changed for the time, if it has them."""
        network: Any = trial.network
        given = images.flip(1) if self.bgr else images
        mean = torch.tensor(self.mean or 0.0).view(1, -1, 1, 1)
        if not hasattr(network, "img_range"):
            factor = self.img_range or 1.0
            output = trial.run((given - mean) * factor) / factor + mean
        else:
            kept = network.img_range, getattr(network, "mean", None)
            try:
                network.img_range = self.img_range or kept[0]
                if self.mean is not None:
                    network.mean = mean.to(kept[1])
                output = trial.run(given)
            finally:
                network.img_range = kept[0]
                if self.mean is not None:
                    network.mean = kept[1]
        return output.flip(1) if self.bgr else output


def _settings(network: Any, colours: int) -> Iterator[_Setting]:
    """The usual settings other than the network's own."""
    own_range, own_mean = getattr(network, "img_range", 1.0), getattr(network, "mean", None)
    ranges = [None, *(value for value in (1.0, 255.0) if value != own_range)]
    means: list[tuple[float, ...] | None] = [None]
    if colours == 3 and (own_mean is not None or not hasattr(network, "img_range")):
        has_mean = own_mean is not None and bool(own_mean.any())
        means.append((0.0, 0.0, 0.0) if has_mean else DIV2K_MEAN)
    for img_range, mean, bgr in product(ranges, means, (False, True) if colours == 3 else (False,)):
        setting = _Setting(img_range, mean, bgr)
        if setting.changes:
            yield setting
