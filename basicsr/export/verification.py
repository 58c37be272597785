"""Whether an exported file computes what the network does: both are run on images of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.export.tracing import first_line, smallest_side
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
        tolerance: what it may be.
    """

    kind: str
    shape: tuple[int, ...]
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; never if it is not a number."""
        return self.difference <= self.tolerance


def sizes_for(smallest: int) -> tuple[Size, ...]:
    """`SIZES`, and larger ones where none of them with several images reaches `smallest` pixels a side."""
    if any(batch > 1 and min(height, width) >= smallest for batch, height, width in SIZES):
        return SIZES
    return (*SIZES, (2, smallest, smallest + 9), (1, 2 * smallest + 1, smallest))


def examples(network: nn.Module, channels: int, scale: int, *, seed: int = 0) -> list[Example]:
    """Images of `sizes_for` the network, smooth with some noise, and what the network makes of them.

    Args:
        network: in eval mode, float32, on the CPU.
        channels: of its input.
        scale: factor of enlargement.
        seed: of the images.

    Raises:
        CheckpointError: its outputs are not images of `scale` times the size, or not finite.
    """
    generator = torch.Generator().manual_seed(seed)
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


def compare(
    kind: str, run: Callable[[Tensor], Tensor], wanted: Iterable[Example], tolerance: float, *, smallest: int = 1
) -> list[Check]:
    """Runs an exported file on all examples of at least `smallest` pixels a side.

    Raises:
        CheckpointError: it cannot be run.
    """
    checks = []
    for example in wanted:
        if min(example.lq.shape[-2:]) < smallest:
            continue
        shape = tuple(example.lq.shape)
        try:
            with torch.no_grad():
                output = run(example.lq.clone())  # spandrel's RCAN changes its input in place
        except Exception as error:  # each runtime has exceptions of its own
            reason = f"{kind} fails on an input of {_size(shape)} ({first_line(error)})"
            raise CheckpointError(f"{reason}; nothing was written") from error
        checks.append(Check(kind, shape, _difference(output, example.expected), tolerance))
    return checks


def _difference(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return float("inf")
    return (output.float() - expected).abs().max().item()  # nan stays nan


def require(checks: Sequence[Check], path: Path) -> None:
    """Raises CheckpointError, naming the worst, unless there are checks and all passed."""
    if not checks:
        raise CheckpointError(f"{path.name} was not written: there was no image to check it with")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(
            failed, key=lambda check: float("inf") if check.difference != check.difference else check.difference
        )
        raise CheckpointError(
            f"{path.name} was not written: {worst.kind} differs from PyTorch by {worst.difference:.2g} at"
            f" {_size(worst.shape)}, allowed is {worst.tolerance:.2g}"
        )


def table(checks: Sequence[Check]) -> str:
    """All checks as lines of text in columns."""
    rows = [("checked against PyTorch", "input", "max. difference", "allowed")]
    for check in checks:
        rows.append((check.kind, _size(check.shape), f"{check.difference:.1e}", f"{check.tolerance:.1e}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
