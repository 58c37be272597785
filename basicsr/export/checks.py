"""What is checked of an exported file: sizes, tolerances, and the refusal of a file that differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from basicsr.utils.errors import CheckpointError

Size = tuple[int, int, int]  # batch, height, width
# Square and not, odd, above and below multiples of usual windows, smaller than a window.
SIZES: tuple[Size, ...] = ((1, 24, 24), (2, 17, 31), (1, 64, 40), (1, 33, 80), (1, 48, 48), (1, 5, 7))
# Largest difference between values in [0, 1]. Of fp16: one and a half steps of 8 bits, so that no rounded pixel is off
# by more than two; published networks reach 1.2 at single pixels (docs/shipping.md). Of int8: root of the mean square,
# from the network with fake quantisation, or more (`ExportJob.compare`).
TOLERANCES = {"float32": 1e-4, "fp16": 1.5 / 255, "int8": 1 / 255}


@dataclass(frozen=True)
class Check:
    """One run of an exported file."""

    kind: str  # the format and what ran it
    shape: tuple[int, ...]  # of the input, (B, C, H, W)
    difference: float  # from the network's output in float32, as `measured`
    tolerance: float  # largest difference allowed

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for nan."""
        return self.difference <= self.tolerance


def measured(difference: Tensor, precision: str) -> float:
    """The largest absolute value, of int8 the root of the mean square; nan where there is one."""
    return (difference.square().mean().sqrt() if precision == "int8" else difference.abs().max()).item()


def sizes_for(smallest: int) -> tuple[Size, ...]:
    """`SIZES`, and larger ones where none of them with several images reaches `smallest` pixels a side."""
    if any(batch > 1 and min(height, width) >= smallest for batch, height, width in SIZES):
        return SIZES
    return (*SIZES, (2, smallest, smallest + 9), (1, 2 * smallest + 1, smallest))


def require(checks: Sequence[Check], path: Path) -> None:
    """Raises CheckpointError, naming the worst check, unless there are checks and all passed."""
    if not checks:
        raise CheckpointError(f"{path.name} was not written: there was no image to check it with")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(failed, key=lambda check: math.inf if math.isnan(check.difference) else check.difference)
        raise CheckpointError(
            f"{path.name} was not written: {worst.kind} differs from PyTorch by {worst.difference:.2g} at"
            f" {shape_text(worst.shape)}, allowed is {worst.tolerance:.2g}{_remedy(worst)}"
        )


def _remedy(check: Check) -> str:
    """What to do where half precision is at fault."""
    if check.tolerance != TOLERANCES["fp16"]:
        return ""
    too_large = not math.isfinite(check.difference)
    reason = "its features have values beyond fp16's 65504" if too_large else "its features need more than 11 bits"
    return f": {reason}; export it in float32"


def shape_text(shape: Sequence[int]) -> str:
    """Such as 1x3x24x24."""
    return "x".join(map(str, shape))
