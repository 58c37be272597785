"""MDSR: EDSR for several scales, each with its own first blocks and upsampling around one body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from basicsr.archs.arch_util import StagedNetwork, Upsample, upscale_conflicts
from basicsr.archs.mean_shift import without_mean_shift
from basicsr.archs.recognition import Recognised, numbered, upsampling_scale, weights_of
from basicsr.utils.ranges import Blocks, Colour, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments


class ResidualBlock(nn.Module):
    """x + convolution(relu(convolution(x))), of `kernel` pixels a side, on (B, num_feat, H, W)."""

    def __init__(self, num_feat: int, kernel: int = 3) -> None:
        super().__init__()
        first, second = (nn.Conv2d(num_feat, num_feat, kernel, padding=kernel // 2) for _ in range(2))
        self.body = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@ARCH_REGISTRY.register()
class MDSR(StagedNetwork):
    """MDSR (Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features.
        num_block: residual blocks in the body: 16, in the large network 80.
        scales: factors that there are branches for, of which `upscale` chooses one and the others lie idle.
        upscale: factor of enlargement, a power of two or 3; one of `scales`.
        img_range: factor on the input, which is in [0, 1].
        rgb_mean: mean colour in [0, 1], one entry per channel; the default is DIV2K's.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 64,
        num_block: Blocks = 16,
        scales: tuple[Scale, ...] = (2, 3, 4),
        upscale: Scale = 4,
        img_range: ImageRange = 255.0,
        rgb_mean: tuple[Colour, ...] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        check_arguments(MDSR, locals())
        super().__init__()
        self.img_range = img_range
        self.branch = scales.index(upscale)
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(num_in_ch, num_feat, 3, 1, 1))
        self.pre_process = nn.ModuleList(
            nn.Sequential(ResidualBlock(num_feat, 5), ResidualBlock(num_feat, 5)) for _ in scales
        )
        blocks = (ResidualBlock(num_feat) for _ in range(num_block))
        self.body = nn.Sequential(*blocks, nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.upsample = nn.ModuleList(Upsample(scale, num_feat) for scale in scales)
        self.tail = nn.Sequential(nn.Conv2d(num_feat, num_out_ch, 3, 1, 1))
        for number, branch in enumerate(zip(self.pre_process, self.upsample, strict=True)):
            for module in branch:
                module.requires_grad_(number == self.branch)

    @staticmethod
    def conflicts(
        scales: tuple[int, ...], upscale: int, rgb_mean: tuple[float, ...], num_in_ch: int, num_out_ch: int
    ) -> Iterator[Conflict]:
        for scale in scales:
            yield from upscale_conflicts(scale)
        if upscale not in scales or len(set(scales)) < len(scales):
            yield "upscale", f"{upscale} is none of scales {list(scales)}, each once: change either"
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            channels = f"num_in_ch {num_in_ch} and num_out_ch {num_out_ch}"
            yield "rgb_mean", f"has {len(rgb_mean)} entries for {channels}: give one per channel, as many out as in"

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"body.{number}" for number in range(len(self.body) - 1))

    def stem(self, x):
        shallow = self.pre_process[self.branch](self.head((x - self.mean) * self.img_range))
        return shallow, shallow

    def run_stages(self, features, kept, first=0, last=None):
        for block in self.body[:-1][first:last]:
            features = block(features)
        return features

    def reconstruct(self, features, kept):
        x = self.tail(self.upsample[self.branch](self.body[-1](features) + kept))
        return x / self.img_range + self.mean

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """EDSR-PyTorch's keys; see `basicsr.archs.recognition`."""
        if "pre_process.0.0.body.0.weight" not in state:
            return None
        inner, img_range, rgb_mean, note = without_mean_shift(state, "head.0", "tail.0")
        features, colours = inner["head.0.weight"].shape[:2]
        branches = numbered(inner, "upsample")
        scales = tuple(upsampling_scale(inner, f"upsample.{branch}") for branch in range(branches))
        blocks = numbered(inner, "body") - 1
        if _keys(blocks, scales) != inner.keys() or inner["tail.0.weight"].shape[0] != colours:
            return None
        options = {
            "type": "MDSR",
            "num_in_ch": colours,
            "num_out_ch": colours,
            "num_feat": features,
            "num_block": blocks,
            "scales": scales,
            "upscale": min(scales),
            "img_range": img_range,
            "rgb_mean": rgb_mean,
        }
        found = Recognised("MDSR", "EDSR-PyTorch", options, min(scales), inner, notes=(note,) if note else ())
        return replace(found, has_range="sub_mean.weight" in state, scales=scales if branches > 1 else ())


def _keys(blocks: int, scales: Sequence[int]) -> frozenset[str]:
    """All keys of a network."""
    modules = [
        "head.0",
        "tail.0",
        f"body.{blocks}",
        *(f"body.{block}.body.{at}" for block in range(blocks) for at in (0, 2)),
    ]
    for branch, scale in enumerate(scales):
        modules += [f"pre_process.{branch}.{block}.body.{at}" for block in (0, 1) for at in (0, 2)]
        steps = 1 if scale == 3 else scale.bit_length() - 1
        modules += [f"upsample.{branch}.{2 * step}" for step in range(steps)]
    return weights_of(*modules)
