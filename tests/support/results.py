"""Results of evaluations with figures known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from basicsr.metrics.evaluator import Evaluation
from basicsr.report.tables import Results, Row, ScaleResults
from basicsr.utils.timing import Spread


def evaluation(psnr: Sequence[float], ssim: Sequence[float], seconds: float = 0.1) -> Evaluation:
    """Figures of images a, b, c and so on."""
    images = tuple("abcdefghij"[: len(psnr)])
    return Evaluation(("psnr", "ssim"), images, np.array([psnr, ssim]).T, np.full(len(psnr), seconds))


def row(
    name: str,
    parameters: int,
    figures: Mapping[str, tuple[float, float]],
    *,
    multiply_adds: int | None = None,
    seconds: float | None = None,
) -> Row:
    """A row whose averages of PSNR and SSIM are `figures`, by dataset; latency spreads a little around `seconds`."""
    evaluations = {
        dataset: evaluation([psnr - 1, psnr + 1], [ssim - 0.01, ssim + 0.01])
        for dataset, (psnr, ssim) in figures.items()
    }
    latency = Spread(seconds, 0.98 * seconds, 1.03 * seconds) if seconds is not None else None
    return Row(name, parameters, evaluations, multiply_adds, latency)


def results(*scales: ScaleResults, better: Mapping[str, str] | None = None) -> Results:
    """Results with an input of 3 x 256 x 256."""
    return Results("bench_1", scales, "a device", (3, 256, 256), better or {"psnr": "higher", "ssim": "higher"})
