"""PSNR and SSIM of a pair of images."""

from __future__ import annotations

from functools import partial

import numpy as np

from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.images import picture
from benchmarks.table import Outcome, Report, Target, short

BORDER = 4
PSNR_TOLERANCE, SSIM_TOLERANCE = 1e-3, 1e-4


def metrics(bench: Bench) -> Report:
    """Seconds for PSNR and SSIM on Y by both sides, and by how much their figures differ."""
    height, width = (96, 128) if bench.quick else (644, 1024)
    rng = np.random.default_rng(0)
    image = picture(height, width, rng)
    other = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    path = str(bench.folder / "pair.npz")
    np.savez(path, img=image, img2=other)
    settings = {"path": path, "crop_border": BORDER, "threads": bench.threads}
    with bench.against_reference(
        "metrics", ours=settings, reference=settings, fallback=settings, fallback_part="plain_metrics"
    ) as workers:
        figures = {name: worker.ask("figures") for name, worker in workers.items()}
        repeats = 1 if bench.quick else 5
        times = in_turn(
            {name: partial(worker.ask, "run", repeats=repeats) for name, worker in workers.items()}, bench.rounds
        )
    psnr, ssim = (abs(figures["ours"][name] - figures["reference"][name]) for name in ("psnr", "ssim"))
    same = "within" if psnr <= PSNR_TOLERANCE and ssim <= SSIM_TOLERANCE else "**not within**"
    outcome = Outcome(
        row="metrics",
        what=f"PSNR and SSIM on Y of {width}x{height}",
        reference=f"{short(1e3 * spread(times['reference']).median)} ms",
        ours=f"{short(1e3 * spread(times['ours']).median)} ms",
        figure=ratios(times["reference"], times["ours"]),
        target=Target("at least", 10.0, " x"),
        remark=(
            f"against {bench.reference_name} {figures['reference']['psnr']:.4f} dB, {figures['reference']['ssim']:.6f};"
            f" ours differ by {psnr:.1e} dB and {ssim:.1e}, {same} {PSNR_TOLERANCE:g} dB and {SSIM_TOLERANCE:g}"
        ),
    )
    return Report((outcome,))


ROWS = {"metrics": metrics}
