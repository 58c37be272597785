"""Whether an exported file computes what the network does: both are run on images of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.export.tracing import smallest_side
from basicsr.utils.errors import CheckpointError

Size = tuple[int, int, int]  # batch, height, width
# Square and not, odd, above and below multiples of usual windows, smaller than a window.
SIZES: tuple[Size, ...] = ((1, 24, 24), (2, 17, 31), (1, 64, 40), (1, 33, 80), (1, 48, 48), (1, 5, 7))

# Largest difference between values in [0, 1]. Of fp16: half a step of 8 bits, so that no rounded pixel is off by
# more than one step; we measured up to two thirds of that (docs/shipping.md).
TOLERANCES = {"float32": 1e-4, "fp16": 0.5 / 255}


@dataclass(frozen=True)
class Example:
    """An input (B, C, H, W) in [0, 1] and the network's output in float32."""

    lq: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Check:
    """One run of an exported file.

    Attributes:
        kind: the file's format and what ran it.
        shape: of the input, (B, C, H, W).
        difference: largest absolute difference from the network's output in float32; nan or inf where it is not finite.
        tolerance: largest difference allowed.
    """

    kind: str
    shape: tuple[int, ...]
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for nan."""
        return self.difference <= self.tolerance


def sizes_for(smallest: int) -> tuple[Size, ...]:
    """`SIZES`, and larger ones where none of them with several images reaches `smallest` pixels a side."""
    if any(batch > 1 and min(height, width) >= smallest for batch, height, width in SIZES):
        return SIZES
    return (*SIZES, (2, smallest, smallest + 9), (1, 2 * smallest + 1, smallest))


def examples(network: nn.Module, channels: int, scale: int) -> list[Example]:
    """Smooth images with some noise, and what the network, in float32 on the CPU, makes of them.

    Raises:
        CheckpointError: its outputs are not images of `scale` times the size, or not finite.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for batch, height, width in sizes_for(smallest_side(network)):
        coarse = torch.rand(batch, channels, height // 8 + 2, width // 8 + 2, generator=generator)
        smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        noise = torch.randn(smooth.shape, generator=generator) * 0.05
        lq = (smooth * 1.4 - 0.2 + noise).clamp(0, 1)  # black and white are reached
        with torch.no_grad():
            expected = network(lq)
        if expected.shape[0] != batch or expected.shape[-2:] != (height * scale, width * scale):
            raise CheckpointError(
                f"{type(network).__name__} makes {tuple(expected.shape)} of {tuple(lq.shape)}, expected x{scale}: no"
                " super-resolution network"
            )
        if not expected.isfinite().all():
            raise CheckpointError("the network's own outputs are not finite: its weights are broken; export another")
        made.append(Example(lq, expected))
    return made


def require(checks: Sequence[Check], path: Path) -> None:
    """Raises CheckpointError, naming the worst check, unless there are checks and all passed."""
    if not checks:
        raise CheckpointError(f"{path.name} was not written: there was no image to check it with")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(
            failed, key=lambda check: float("inf") if check.difference != check.difference else check.difference
        )
        raise CheckpointError(
            f"{path.name} was not written: {worst.kind} differs from PyTorch by {worst.difference:.2g} at"
            f" {size_text(worst.shape)}, allowed is {worst.tolerance:.2g}"
        )


def table(checks: Sequence[Check]) -> str:
    """All checks as lines of text in columns."""
    rows = [("checked against PyTorch", "input", "max. difference", "allowed")]
    rows += [(c.kind, size_text(c.shape), f"{c.difference:.1e}", f"{c.tolerance:.1e}") for c in checks]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{kind:<{wide[0]}}  {size:<{wide[1]}}  {difference:>{wide[2]}}  {allowed:>{wide[3]}}"
        for kind, size, difference, allowed in rows
    )


def size_text(shape: Sequence[int]) -> str:
    """A shape: 1x3x24x24."""
    return "x".join(map(str, shape))
